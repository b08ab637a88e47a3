"""scfm_jax: Exceiver, CellPLM, sCT, scLong and scEMB in one JAX/Flax training stack.

The device side of the project. Importing this package imports nothing heavy; `scfm_jax.api.load(run)` is the door for
notebooks, `python -m experiments.<command>` the door for the shell.
"""

__version__ = "0.1.0"
