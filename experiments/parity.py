"""Compare this project with the recorded outputs of an original implementation, one line a case.

    python -m experiments.parity CASE_DIR...

    PASS cellplm/embed_vae_eval kind=model max_rel=3.1e-06

`max_rel` is the largest |ours - theirs| / (|theirs| + atol / rtol) over all arrays, so an array passes where it is at
most its rtol. Every `out/*` and `grad/*` of a case must be reproduced, a parameter that has no recorded gradient must
have none here, and exit status 0 means that all cases pass.

A model brings `experiments/golden/<model>.py` with `KINDS`, {kind: function of a `Case` that returns {"out/...": array,
"grad/...": array}}, and may bring `TOLERANCES`, {pattern of array names: {"rtol": ..., "atol": ...}}.
"""

import dataclasses
import importlib
import importlib.util
import json
import pathlib
import re
import zipfile
from typing import Any

import jax
import numpy as np

from experiments import cli

OPTIONS = cli.options()


@dataclasses.dataclass(frozen=True)
class Case:
    """One recorded case: its folder, case.json and arrays by group ("in", "param", "out", "grad", ...) and name."""

    folder: pathlib.Path
    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def group(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays of one group by their own names."""
        return {key.split("/", 1)[1]: value for key, value in self.arrays.items() if key.startswith(f"{name}/")}

    def __getattr__(self, name: str) -> Any:
        if name in ("model", "kind"):
            return self.meta.get(name, "?")
        raise AttributeError(name)


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a case: its line, and whether it passed."""

    passed: bool
    line: str


def read(folder: pathlib.Path) -> Case:
    """Read a case folder; ValueError or OSError says what is wrong with it."""
    try:
        meta = json.loads((folder / "case.json").read_text())
        with np.load(folder / "arrays.npz") as arrays:
            return Case(folder, meta, dict(arrays))
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"broken case: {error}") from None


def check(folder: pathlib.Path) -> Result:
    """Run one case and return its line; whatever goes wrong is a FAIL with the reason."""
    label, kind = folder.resolve().name, "?"
    try:
        case = read(folder)
        kind, label = case.kind, f"{case.model}/{label}"
        if importlib.util.find_spec(f"experiments.golden.{case.model}") is None:
            raise ValueError(f"no experiments/golden/{case.model}.py")
        runner = importlib.import_module(f"experiments.golden.{case.model}")
        if kind not in runner.KINDS:
            raise ValueError(f"kind {kind!r}: there are {', '.join(runner.KINDS)}")
        with jax.default_matmul_precision("highest"):
            ours = runner.KINDS[kind](case)
        worst, name, failed = compare(case, ours, getattr(runner, "TOLERANCES", {}))
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return Result(False, f"FAIL {label} kind={kind} max_rel=nan {reason}")
    detail = f" worst={name} failed={','.join(failed)}" if failed else ""
    return Result(not failed, f"{'FAIL' if failed else 'PASS'} {label} kind={kind} max_rel={worst:.1e}{detail}")


def compare(
    case: Case, ours: dict[str, np.ndarray], looser: dict[str, dict[str, float]]
) -> tuple[float, str, list[str]]:
    """Return (largest relative error, its array, names of the arrays beyond their tolerance or not computed)."""
    theirs = {key: value for key, value in case.arrays.items() if key.split("/")[0] not in ("in", "param")}
    if any(key.startswith("grad/") for key in theirs):  # what has no recorded gradient has none
        theirs |= {key: np.zeros_like(ours[key]) for key in ours if key.startswith("grad/") and key not in theirs}
    worst, where, failed = 0.0, "", []
    for key, value in theirs.items():
        rtol, atol = tolerance(case, key, looser)
        error = relative_error(ours[key], value, atol / rtol if rtol else 0.0) if key in ours else np.inf
        if not error <= rtol:
            failed.append(key)
        if not error <= worst:
            worst, where = error, key
    return worst, where, failed


def tolerance(case: Case, key: str, looser: dict[str, dict[str, float]]) -> tuple[float, float]:
    """Return (rtol, atol) of an array: that of a pattern of `looser`, else its own in case.json, else its group's.

    Gradients of a case that says nothing of them have that of its outputs; other arrays are then exact.
    """
    if override := next((value for pattern, value in looser.items() if re.fullmatch(pattern, key)), None):
        return override["rtol"], override["atol"]
    tolerances = case.meta.get("tolerance", {})
    group = key.split("/")[0]
    names = [key, "loss"] if group == "out" and key.endswith("/loss") else [key]
    groups = [*names, group, "out"] if group == "grad" else [*names, group]
    chosen = next((tolerances[name] for name in groups if name in tolerances), "exact")
    return (0.0, 0.0) if chosen == "exact" else (chosen["rtol"], chosen["atol"])


def relative_error(ours: np.ndarray, theirs: np.ndarray, floor: float) -> float:
    """Return the largest |ours - theirs| / (|theirs| + floor); infinite where shapes or NaNs differ."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape or (np.isnan(ours) != np.isnan(theirs)).any():
        return np.inf
    with np.errstate(all="ignore"):
        error = np.abs(ours - theirs) / (np.abs(theirs) + floor)
    error = np.where((ours == theirs) | np.isnan(theirs), 0, error)
    return float(error.max(initial=0))


def main(argv: list[str]) -> int:
    if len(argv) < 2:
        raise ValueError("name at least one case folder: python -m experiments.parity CASE_DIR...")
    results = []
    for folder in argv[1:]:
        results.append(check(pathlib.Path(folder)))
        print(results[-1].line, flush=True)
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    cli.run(main, OPTIONS, positional=True)
