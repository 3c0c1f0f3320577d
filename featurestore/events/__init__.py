"""Events: decoding, and talking to the broker."""
