"""Streaming jobs: what runs in them, and how they are submitted, watched and stopped."""
