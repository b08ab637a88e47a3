"""Where the tests find real data, and the mark that skips them without it; a cache of compiled programs."""

import os
import pathlib

import pytest

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="the shared data folder is not beside this checkout")


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory):
    """Let JAX keep compiled programs for the session, also those of processes that a test starts."""
    import jax

    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    for name, value in options.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
