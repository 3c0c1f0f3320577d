"""Scoring: features joined with the request, the model run, the answer sent."""
