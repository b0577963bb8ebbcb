"""The parts that all system tests use: a node of their own with a driver, a kubelet that the tests play, and real containers."""
