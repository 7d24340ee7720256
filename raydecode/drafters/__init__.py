"""Context to token tree, verified by the engine: a cache that never changes a text. One file per method."""
