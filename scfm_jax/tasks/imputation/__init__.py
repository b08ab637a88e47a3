"""Tasks about counts: hidden, spoiled or never measured ones."""
