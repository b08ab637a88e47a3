"""The rules of the house: which way imports point, what every model and config promises, what the README says."""

import ast
import inspect
import pathlib
import re
import subprocess
import sys

import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from scfm_jax import models

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("scfm_jax", "data_pipeline", "configs", "experiments")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").glob("[!_]*.py"))


def imports(path: pathlib.Path) -> set[str]:
    """Return the dotted names that the file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def forbidden(path: pathlib.Path) -> list[str]:
    """Return the import prefixes that this file may not use."""
    place = path.relative_to(ROOT).as_posix()
    never = ["tensorflow", "jax.experimental.pjit"]
    if place.startswith("data_pipeline/"):
        return [*never, "jax", "flax", "optax", "orbax", "scfm_jax", "experiments", "torch"]
    if place.startswith("scfm_jax/api/"):
        return [*never, "experiments"]
    if place.startswith("scfm_jax/"):
        never += ["data_pipeline", "experiments", "anndata", "scanpy"]
        if place.startswith(("scfm_jax/models/", "scfm_jax/layers/")):
            never += [f"scfm_jax.{wing}" for wing in ("tasks", "training", "inference", "api")]
        if place.startswith("scfm_jax/layers/") or place == "scfm_jax/types.py":
            never += ["scfm_jax.models"]
        if place.startswith("scfm_jax/models/") and place.count("/") > 2:
            never += [f"scfm_jax.models.{other}" for other in models.names() if other != path.parent.name]
    return never


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_the_right_way(path):
    wrong = [n for n in imports(path) for p in forbidden(path) if n == p or n.startswith(p + ".")]
    assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_module_and_public_function_says_what_it_is(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "no module docstring"
    public = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]
    silent = [n.name for n in public if not ast.get_docstring(n) and n.name != "main"]
    assert not silent, f"without a docstring: {silent}"


def test_no_file_is_called_after_nothing():
    bad = {"utils", "util", "helpers", "base", "misc", "legacy", "common"}
    assert not [p for p in SOURCES if p.stem in bad]


def test_torch_is_only_met_where_published_files_are_read_and_where_its_speed_is_compared():
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        top = {a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names}
        assert "torch" not in top, path
        if "torch" in imports(path):
            assert path.parent.name == "published" or path == ROOT / "experiments/benches/scemb.py", path


@pytest.mark.parametrize("name", models.names())
def test_model_keeps_the_contract(name):
    module = models.get(name)
    assert issubclass(module.Model, nn.Module)
    fields = {f for f in module.Model.__dataclass_fields__ if f not in ("parent", "name")}
    assert {"tiny", "paper"} <= set(module.VARIANTS)
    assert set(module.SIZES) <= fields
    accepts = {
        "model": fields,
        "inputs": set(inspect.signature(module.prepare).parameters),
        "loss": set(inspect.signature(module.loss).parameters),
    }
    for variant, parts in module.VARIANTS.items():
        assert set(parts) <= set(accepts), variant
        for part, options in parts.items():
            assert set(options) <= accepts[part], f"{name}:{variant} {part}"
    assert list(inspect.signature(module.prepare).parameters)[:3] == ["batch", "constants", "rng"]
    assert {"step", "train"} <= accepts["inputs"]
    assert callable(module.flops) and callable(module.tokens)
    assert hasattr(__import__(f"{module.__name__}.published", fromlist=["x"]), "params")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_config_opens_with_its_claim_and_has_a_tiny_variant(path):
    module = __import__(f"configs.{path.stem}", fromlist=["x"])
    doc = module.__doc__
    assert "python -m experiments." in doc, "the command"
    assert re.search(r"not yet run|expect", doc, re.I), "the number to expect"
    assert isinstance(module.get_config("tiny"), ConfigDict)
    with pytest.raises(ValueError, match="tiny"):
        module.get_config("no-such-variant")


def test_importing_the_package_is_light():
    code = (
        "import time, sys; t = time.perf_counter(); import scfm_jax; s = time.perf_counter() - t;"
        "print(s, [m for m in ('jax', 'anndata', 'scanpy', 'torch') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    seconds, heavy = out.split(maxsplit=1)
    assert float(seconds) < 2 and heavy.strip() == "[]"


def test_readme_commands_are_those_that_ci_runs():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci/run").read_text()
    commands = re.findall(r"```bash\n(python3 -m venv [^\n]+)\n```", readme)
    assert len(commands) == 2
    for command in commands:
        assert command in ci, command


def test_readme_map_names_every_file_there_is():
    readme = (ROOT / "README.md").read_text()
    block = readme.split("<!-- map -->")[1]
    named = set(re.findall(r"`([\w/]+\.py)`", block))
    real = {p.relative_to(ROOT).as_posix() for p in SOURCES if p.name != "__init__.py"}
    assert named == real, f"missing {sorted(real - named)}, gone {sorted(named - real)}"


def test_nothing_names_a_machine():
    leak = re.compile(r"(?<![\w.])/(?:work|root|home/\w+)/")
    for path in [*SOURCES, *ROOT.glob("tests/*.py"), *ROOT.glob("*.md"), ROOT / "setup.py", ROOT / ".ci/run"]:
        if path.name != "test_house.py":
            assert not leak.search(path.read_text()), path
