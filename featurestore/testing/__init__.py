"""Public test kit: laws of aggregates, hostile event streams, and when two values agree. Needs no test framework."""
