"""How a table goes on where it was: the plan that its folder was made with, and arrays that are made once.

OUT/plan.json   what is computed of which files; a folder holds the table of one plan
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipeline.files import whole
from experiments.pages import output
from scfm_jax.saving import sealed


def prepare(plan: Any, out: pathlib.Path, files: Sequence[str]) -> None:
    """Write a plan, a dataclass, to OUT; ValueError where OUT holds another one, or one of its files is another now.

    Args:
      files: fields of the plan that name a file, where they are set.
    """
    described: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(plan)))
    paths = {name: pathlib.Path(described[name]) for name in files if described.get(name)}
    described["checksums"] = {name: whole.checksum(path) if path.is_file() else "" for name, path in paths.items()}
    file = out / "plan.json"
    if file.exists():
        old = output.read(file)
        if differ := [name for name in described if old.get(name) != described[name]]:
            raise ValueError(f"--output={out}: holds a table with another {', '.join(differ)}; choose another folder")
        return
    out.mkdir(parents=True, exist_ok=True)
    output.write_file(file, described)


def slug(name: str) -> str:
    """Return a name of a file that is like a method's, and of no other method."""
    return f"{re.sub(r'[^0-9A-Za-z.]+', '_', name)}-{whole.crc32c(name.encode())}"


def arrays(
    path: pathlib.Path,
    make: Callable[[], Mapping[str, Any]],
    fits: Callable[[Mapping[str, np.ndarray]], bool] = lambda kept: True,
) -> Mapping[str, Any]:
    """Return the arrays in a .npz file; made and written where it is not there, is damaged, or does not fit.

    Args:
      fits: whether what the file holds is what is asked for; a KeyError stands for damage.
    """
    try:
        kept = sealed.read_arrays(path)
        if fits(kept):
            return kept
    except FileNotFoundError:
        pass
    except (sealed.Damaged, KeyError) as damage:
        output.warn(f"{damage}: it is made again")
    made = make()
    with whole.writing(path) as partial, partial.open("wb") as file:
        np.savez(file, **made)
    return made
