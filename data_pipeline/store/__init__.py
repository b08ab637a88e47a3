"""The store of studies: written whole, checked, read by TensorStore."""
