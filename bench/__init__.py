"""What measures speed, memory and size, and the table that it prints: bench/run --help."""
