"""Pages of the website that are made from the project itself: the start page, weights, commands, the map, the API.

A hook of mkdocs (see mkdocs.yml). Nothing of it is kept in the repository, so nothing of it can go stale.
"""

import ast
import html
import importlib
import inspect
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("scfm_jax", "configs", "experiments", "data_pipeline")
WINGS = (
    "scfm_jax.api",
    "scfm_jax.models",
    "scfm_jax.tasks",
    "scfm_jax.inference",
    "scfm_jax.training",
    "scfm_jax.saving",
    "scfm_jax.layers",
    "data_pipeline.files",
    "data_pipeline.genes",
    "data_pipeline.store",
    "data_pipeline.batches",
)
"""Packages whose public functions the API pages show, a page each."""
ALONE = ("scfm_jax.pretrained", "scfm_jax.types", "scfm_jax.sharding", "data_pipeline.synthetic")
"""Modules beside them, together on one page."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the API, which are made here, into the navigation."""
    for entry in config.nav:
        if "API" in entry:
            entry["API"] = [{wing: f"api/{wing}.md"} for wing in (*WINGS, "others")]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {"index.md": start(), "weights.md": weights(), "map.md": tree(), "commands.md": commands(), **dict(api())}
    for place, text in pages.items():
        files.append(File.generated(config, place, content=text))
    return files


def start() -> str:
    """Return README.md with its links as the website has them."""
    return re.sub(r"\]\(docs/", "](", (ROOT / "README.md").read_text())


def weights() -> str:
    """Return the model cards of the weights that come with the package, one after the other."""
    folder = ROOT / "scfm_jax/pretrained"
    lines = ["# Weights", "", *ast.get_docstring(ast.parse((folder / "__init__.py").read_text())).splitlines(), ""]
    lines += [re.sub(r"^#", "##", card.read_text(), flags=re.MULTILINE) for card in sorted(folder.glob("*.md"))]
    return "\n".join(lines)


def tree() -> str:
    """Return the map: every file and the first line of its docstring."""
    lines = ["# Map", "", "Every file of the project and what it is for, as its first line says."]
    for package in PACKAGES:
        for folder in sorted({path.parent for path in (ROOT / package).rglob("*.py")}):
            place = folder.relative_to(ROOT)
            lines += ["", f"## {place}", "", *([purpose(folder / "__init__.py"), ""])]
            files = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
            lines += [f"- `{path.name}` {purpose(path)}" for path in files]
    return "\n".join(lines) + "\n"


def commands() -> str:
    """Return every command: what it does, how it is called, its options, as its own file declares them."""
    sys.path.insert(0, str(ROOT))
    listing = importlib.import_module("experiments.__main__").commands()
    lines = ["# Commands", "", "`python -m experiments` lists them; installed, the same program is called `scfm`.", ""]
    lines += ["| command | what it does |", "|---|---|"]
    lines += [f"| [{name}](#{name}) | {purpose} |" for name, purpose in listing.items()]
    for name in listing:
        module = importlib.import_module(f"experiments.{name}")
        lines += ["", f"## {name}", "", "```text", inspect.cleandoc(module.__doc__), "```", ""]
        table = module.OPTIONS
        lines += ["| flag | default | what it means |", "|---|---|---|"] if table else []
        for flag, option in table.items():
            default = "" if option.default in (None, [], "") else f"`{option.default}`"
            lines.append(f"| `--{flag}` | {default} | {html.escape(option.help).replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def api() -> Iterator[tuple[str, str]]:
    """Yield (page, text) for each wing; mkdocstrings fills in the docstrings."""
    for wing in WINGS:
        folder = ROOT / wing.replace(".", "/")
        modules = [wing, *(name_of(path) for path in sorted(folder.rglob("*.py")) if path.name != "__init__.py")]
        yield f"api/{wing}.md", page(wing, [name for name in modules if public(name)])
    yield "api/others.md", page("Others", ALONE)


def page(title: str, modules: Any) -> str:
    """Return a page that asks mkdocstrings for modules."""
    asked = "## {0}\n\n::: {0}\n    options:\n      show_root_heading: false"
    return "\n\n".join([f"# {title}", *map(asked.format, modules)]) + "\n"


def public(name: str) -> bool:
    """Return whether a module has a public function or class of its own."""
    path = ROOT / name.replace(".", "/")
    text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    kinds = (ast.FunctionDef, ast.ClassDef)
    return any(isinstance(node, kinds) and not node.name.startswith("_") for node in ast.parse(text).body)


def name_of(path: pathlib.Path) -> str:
    """Return the dotted name of a module's file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def purpose(path: pathlib.Path) -> str:
    """Return the first line of a file's docstring, without its full stop."""
    return ast.get_docstring(ast.parse(path.read_text())).splitlines()[0].rstrip(".")
