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
from tests.harness import documented

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODELS = ROOT / "scfm_jax/models"
PACKAGES = ("scfm_jax", "data_pipeline", "configs", "experiments")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").glob("[!_]*.py"))


def imports(path: pathlib.Path) -> set[str]:
    """Return the dotted names that the file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


NOWHERE = ("tensorflow", "jax.experimental.pjit")
GROUND = ("jax", "flax", "optax", "orbax", "torch", "scfm_jax", "configs", "experiments")
DEVICE = ("data_pipeline", "configs", "experiments", "anndata", "scanpy")
NEVER = {
    "data_pipeline/": GROUND,
    "data_pipeline/files/": ("data_pipeline.genes", "data_pipeline.store", "data_pipeline.batches"),
    "data_pipeline/genes/": ("data_pipeline.store", "data_pipeline.batches"),
    "data_pipeline/store/": ("data_pipeline.batches",),
    "scfm_jax/api/": ("configs", "experiments"),
    "scfm_jax/tasks/": (*DEVICE, "scfm_jax.api"),
    "scfm_jax/inference/": (*DEVICE, "scfm_jax.api", "scfm_jax.tasks", "scfm_jax.models"),
    "scfm_jax/models/": (*DEVICE, *(f"scfm_jax.{wing}" for wing in ("api", "tasks", "inference", "training"))),
    "scfm_jax/training/": (*DEVICE, *(f"scfm_jax.{wing}" for wing in ("api", "tasks", "inference", "models"))),
    "scfm_jax/saving/": (*DEVICE, *(f"scfm_jax.{w}" for w in ("api", "tasks", "inference", "models", "training"))),
    "scfm_jax/layers/": (
        *DEVICE,
        *(f"scfm_jax.{wing}" for wing in ("api", "tasks", "inference", "models", "training", "saving")),
    ),
    "configs/": ("experiments", "data_pipeline"),
}
"""What may not be imported: the order is experiments, configs, api, tasks, inference, models, layers."""


def forbidden(path: pathlib.Path) -> list[str]:
    """Return the import prefixes that this file may not use."""
    place = path.relative_to(ROOT).as_posix()
    never = [*NOWHERE, *(name for folder, names in NEVER.items() if place.startswith(folder) for name in names)]
    if path.parent.parent == MODELS:
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


def test_local_values_have_names_that_say_something():
    bad, places = {"found", "known", "given", "there", "own"}, []
    for path in SOURCES:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        fields = {node.target for node in nodes if isinstance(node, ast.AnnAssign) and node.value is None}
        names = [node for node in nodes if isinstance(node, ast.Name) and node not in fields]
        stored = [node for node in names if isinstance(node.ctx, ast.Store) and node.id in bad]
        places += [f"{path.relative_to(ROOT)}:{node.lineno} {node.id}" for node in stored]
    assert not places, f"call them by what they hold: {places}"


def test_torch_is_only_met_where_published_files_are_read_and_where_its_speed_is_compared():
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        top = {a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names}
        assert "torch" not in top, path
        if "torch" in imports(path):
            assert path.parent.name == "published" or path.parent == ROOT / "experiments/benches", path


REQUIRED = {"Model", "SIZES", "VARIANTS", "TUNING", "prepare", "loss", "flops", "tokens"}
OPTIONAL = {
    "impute": ["model", "variables", "batch", "constants", "asked", "inputs", "loss"],
    "mask_gene": ["model", "variables", "batch", "constants", "gene", "inputs"],
    "input_flops": ["model", "inputs"],
    "gene_vectors": ["variables", "n_genes"],
    "graph_vectors": ["model", "variables", "constants"],
    "gene_ids": ["inputs"],
    "fit": None,
    "FITTED": None,
    "project": ["params"],
    "BATCH": None,
    "SAMPLE": None,
}
"""Members that a model may have, and the arguments of those that are called by name or in order."""


@pytest.mark.parametrize("name", models.names())
def test_model_keeps_the_contract(name):
    module = models.get(name)
    assert set(module.__all__) >= REQUIRED, REQUIRED - set(module.__all__)
    assert set(module.__all__) <= REQUIRED | set(OPTIONAL), "the folder exports the contract and no more"
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
    assert list(inspect.signature(module.flops).parameters) == ["model", "inputs", "embed"]
    assert list(inspect.signature(module.tokens).parameters) == ["inputs"]
    assert set(module.TUNING) == {"lora", "inputs", "layers", "visible"}
    assert set(module.TUNING["visible"]) <= accepts["inputs"]
    for member, arguments in OPTIONAL.items():
        if arguments and hasattr(module, member):
            assert list(inspect.signature(getattr(module, member)).parameters) == arguments, member
    assert hasattr(module, "fit") == hasattr(module, "FITTED")
    assert getattr(module, "SAMPLE", False) in (False, True, "bag") and getattr(module, "BATCH", 1) > 0


@pytest.mark.parametrize("name", [n for n in models.names() if (MODELS / n / "published.py").exists()])
def test_published_weights_are_read_by_the_contract(name):
    published = models.published(name)
    assert list(inspect.signature(published.params).parameters) == ["state", "model"]
    assert list(inspect.signature(published.state_dict).parameters) == ["variables", "model"]
    assert next(iter(inspect.signature(published.config).parameters)) == "published"
    assert next(iter(inspect.signature(published.load).parameters)) == "path"


def test_contract_is_written_down():
    for member in (*REQUIRED, *OPTIONAL, "published.py"):
        assert re.search(rf"^  {re.escape(member)}\b", models.__doc__, re.M), member
    assert '"slots"' in models.__doc__ and '"measured"' in models.__doc__


def test_a_model_without_published_weights_says_so(monkeypatch, tmp_path):
    folder = tmp_path / "sixth"
    folder.mkdir()
    (folder / "__init__.py").write_text('"""A model of a paper that released no weights."""\n')
    (tmp_path / "notes.py").write_text("")
    monkeypatch.setattr(models, "__path__", [str(tmp_path)])
    assert models.names() == ["sixth"], "a folder is a model, a file is none"
    with pytest.raises(ValueError, match=r"model 'sixth': no published weights.*published\.py"):
        models.published("sixth")
    sys.modules.pop("scfm_jax.models.sixth", None)


@pytest.mark.parametrize("path", sorted(MODELS.rglob("*.py")), ids=lambda p: p.relative_to(MODELS).as_posix())
def test_files_of_models_are_short(path):
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize("path", sorted((ROOT / "scfm_jax/layers").glob("[!_]*.py")), ids=lambda p: p.stem)
def test_a_layer_has_two_users(path):
    """Each model is one user, each other wing (tasks, api, training, inference) another; layers by what uses them."""
    assert len(users(f"scfm_jax.layers.{path.stem}")) > 1, "move it to its only user"


def users(module: str) -> set[str]:
    """Return the models and wings that import a module of scfm_jax, themselves or through another layer."""
    who = set()
    for path in (ROOT / "scfm_jax").rglob("*.py"):
        wing, *rest = path.relative_to(ROOT / "scfm_jax").parts
        if module in imports(path) and f"scfm_jax.{wing}.{path.stem}" != module:
            if wing == "layers":
                who |= users(f"scfm_jax.layers.{path.stem}")
            else:
                who.add(f"{wing}/{rest[0]}" if wing == "models" else wing)
    return who


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_config_opens_with_its_claim_and_has_a_tiny_variant(path):
    module = __import__(f"configs.{path.stem}", fromlist=["x"])
    doc = module.__doc__
    commands = documented.launched(doc)
    assert commands, "the command"
    for command, arguments in commands:
        documented.check(command, arguments)
    expected = re.search(r"\bExpect(?:ed)?\b.*", doc, re.S)
    assert expected, "what to expect"
    pages = [ROOT / name for name in re.findall(r"docs/\w+\.md", expected[0])]
    tables = [page for page in pages if re.search(r"^\|.*\d\.\d", page.read_text(), re.M)]
    assert tables or re.search(r"\d\.\d|not yet run", expected[0]), "the number to expect, or a table that has it"
    assert isinstance(module.get_config("tiny"), ConfigDict)
    with pytest.raises(ValueError, match="tiny"):
        module.get_config("no-such-variant")


def test_importing_the_package_is_light():
    code = (
        "import time, sys; t = time.process_time(); import scfm_jax; s = time.process_time() - t;"
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


def test_readme_is_a_page_or_two_and_what_it_names_is_there():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 140
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    assert len(links) > 5 and not [link for link in links if not (ROOT / link).exists()]
    named = set(re.findall(r"experiments\.(\w+)", text))
    assert not [name for name in named if not (ROOT / "experiments" / f"{name}.py").exists()], named


def test_every_page_of_the_website_is_in_its_navigation():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    named = set(re.findall(r"(\w+\.md)", (ROOT / "mkdocs.yml").read_text()))
    assert named - pages == {"index.md", "weights.md", "commands.md", "map.md"}, "those are made by docs/generate.py"
    assert pages <= named


def test_nothing_names_a_machine():
    leak = re.compile(r"(?<![\w.])/(?:work|root|home/\w+)/")
    for path in [*SOURCES, *ROOT.glob("tests/*.py"), *ROOT.glob("*.md"), ROOT / "setup.py", ROOT / ".ci/run"]:
        if path.name != "test_house.py":
            assert not leak.search(path.read_text()), path


@pytest.mark.parametrize(
    "path", sorted((ROOT / "scfm_jax").rglob("*.py")), ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_errors_of_the_python_api_do_not_speak_of_flags(path):
    """Who calls a function has no --flag: a message names the argument."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and node.exc:
            texts = [n.value for n in ast.walk(node.exc) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            assert not re.search(r"(?<!\w)--\w", " ".join(texts)), f"{path.name}:{node.lineno}"
