"""Gene regulatory networks: inferred ones, scored against measured ones."""
