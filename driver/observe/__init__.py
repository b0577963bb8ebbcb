"""How operators see the driver: its log, its metrics and the page that serves them, and what is wrong with each volume."""
