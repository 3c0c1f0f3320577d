"""Checks on a user's own definitions and data: do all paths agree, and where does one value come from."""
