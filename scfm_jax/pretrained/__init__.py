"""Small trained models that come with the package, by name: `scfm_jax.api.load("scfm:cellplm-small")`.

Each is a file of `Run.export`, NAME.safetensors, with its model card NAME.md beside it: what it was trained on and
under which licences, which genes it knows, its losses beside their floors, and its scores on studies that it never saw.
`experiments.pack` makes both of a run.
"""

import difflib
import os
import pathlib

PREFIX = "scfm:"
FOLDER = pathlib.Path(__file__).parent


def names() -> list[str]:
    """Return the names of the models that are here, without the prefix."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def find(name: str) -> pathlib.Path:
    """Return the file of weights of "scfm:NAME" or "NAME"; ValueError where there is none, with the nearest."""
    stem = name.removeprefix(PREFIX)
    if stem not in names():
        near = difflib.get_close_matches(stem, names(), 1)
        hint = f"did you mean {PREFIX}{near[0]}? " if near else ""
        raise ValueError(f"{name}: no such weights come with scfm_jax; {hint}There are {', '.join(names()) or 'none'}")
    return FOLDER / f"{stem}.safetensors"


def place(path: str | os.PathLike) -> pathlib.Path:
    """Return a path as it is, but for "scfm:NAME" the file of those weights."""
    return find(str(path)) if str(path).startswith(PREFIX) else pathlib.Path(path)


def card(name: str) -> str:
    """Return the model card of "scfm:NAME" or "NAME", Markdown; ValueError where there is none."""
    return find(name).with_suffix(".md").read_text(encoding="utf-8")
