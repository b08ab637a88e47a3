"""What lies on disk: checkpoints, weights, checksums, the names of leaves."""
