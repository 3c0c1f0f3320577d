"""Engines: evaluate definitions over events; all obey one conformance suite."""
