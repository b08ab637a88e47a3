"""Tasks about perturbed genes."""
