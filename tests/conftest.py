"""Where the tests find real data, and the mark that skips them without it; how programs are compiled in tests."""

import os
import pathlib
import sys
from importlib.metadata import version

import pytest

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="the shared data folder is not beside this checkout")

# A test compiles more than it computes: XLA is asked for little, here and in the processes that tests start.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
QUICK += " --xla_cpu_parallel_codegen_split_count=1"
if tuple(map(int, version("jaxlib").split(".")[:2])) <= (0, 10):  # later ones do not know it, and stop
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()


@pytest.fixture(scope="session", autouse=True)
def _compilation_cache(tmp_path_factory):
    """Let JAX keep compiled programs for the session, also those of other workers and of processes that tests start."""
    import jax

    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    options = {
        "jax_compilation_cache_dir": str(folder / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }
    for name, value in options.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


@pytest.fixture(scope="module", autouse=True)
def _forgotten():
    """Forget a file's programs after its tests: thousands of small ones take gigabytes."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
