"""scfm_jax: Exceiver, CellPLM, sCT, scLong and scEMB in one JAX/Flax training stack.

The device side of the project. Importing this package imports nothing heavy; `scfm_jax.api.load(run)` is the door for
notebooks, `python -m experiments.<command>` the door for the shell.
"""

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `scfm_jax.api` when it is first asked for, so that importing scfm_jax stays light."""
    if name == "api":
        return importlib.import_module("scfm_jax.api")
    raise AttributeError(f"module 'scfm_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names of the module, the door for notebooks among them."""
    return sorted({*globals(), "api"})
