"""The code behind scripts/bench."""
