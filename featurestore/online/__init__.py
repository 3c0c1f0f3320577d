"""The online store: its bytes, its writer, its clients."""
