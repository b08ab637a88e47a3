"""Batches of cells out of a store."""
