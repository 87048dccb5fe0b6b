"""The rules of the structure engine: how each linear primitive acts on terms."""
