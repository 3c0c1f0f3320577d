"""What a user writes: entities, sources, views, services; and what they compile to. Pure."""
