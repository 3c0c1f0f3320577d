"""The offline store: Delta tables, the registry, training sets."""
