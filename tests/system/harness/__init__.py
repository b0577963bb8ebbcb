"""What the system tests stand on: a node of one's own with a driver, a kubelet that is played, and real containers."""
