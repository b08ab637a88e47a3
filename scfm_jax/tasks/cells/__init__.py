"""Tasks about cells: types, clusters, batches, metadata."""
