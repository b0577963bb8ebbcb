"""Measures speed, memory and size, and prints a table: bench/run --help."""
