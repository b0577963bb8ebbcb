"""Shows operators what the driver does: its log, its metrics and the page that serves them, and what is wrong with each volume."""
