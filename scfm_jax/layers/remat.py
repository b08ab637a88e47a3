"""What a block keeps for its backward pass, by the names that configs give: `remat`."""

import jax

REMAT = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
"""Policies of `jax.checkpoint`: "full" keeps only a block's inputs, "dots" its matrix products too."""
