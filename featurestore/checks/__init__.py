"""Checks that a user runs."""
