"""Published weights, one file a model: the original names and our tree, both ways.

The contract of a file: `config(published: dict) -> dict` (a published config as our "model", "inputs" and "loss"
keywords) and `params(state: dict[str, ndarray], model: Model) -> variables` (unknown, missing and mis-shaped names are
one ValueError that lists them).
"""
