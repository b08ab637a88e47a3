"""Tasks about genes: clusters and markers."""
