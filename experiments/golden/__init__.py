"""How each model reproduces its golden cases: one file a model, found by its name."""
