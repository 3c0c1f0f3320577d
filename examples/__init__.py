"""Runnable examples; each is a folder."""
