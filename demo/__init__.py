"""The flights of a year, one agent per aircraft, while the process that runs them is killed again and again."""
