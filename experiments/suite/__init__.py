"""A benchmark as a table of cells: what is compared, on what, and the numbers."""
