"""Attack what lies on disk, and count: kills at random moments, flipped bits and cuts, in everything that is read back.

    python -m tests.attack [--flips=60] [--cuts=20] [--kills=3] [--folder=DIR] [--only=results,suite]

Each damage has one of three ends: noticed (an error, a warning, or the file passed over by name), harmless
(what is read is what was written), or silent: another number is read as if nothing had happened. Exit status 1 if
one is silent, or a killed command, run again, does not come to what the uninterrupted one has. `tests/test_attack.py`
runs it with small numbers.
"""

import argparse
import dataclasses
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from data_pipeline.genes import graph_file
from data_pipeline.store import manifest
from data_pipeline.store.ingest import file_sources, ingest
from data_pipeline.store.store import open_store, verify
from experiments.pages import output
from experiments.suite import results
from scfm_jax.saving import checkpoint, sealed, weights
from scfm_jax.saving.leaves import flatten
from tests.harness import ROOT, suites, tiny

Reader = Callable[[], tuple[Any, bool]]
"""Returns what is read, comparable with ==, and whether something was said to be wrong."""


@dataclasses.dataclass
class Count:
    """The ends of the damages of one target."""

    noticed: int = 0
    harmless: int = 0
    silent: int = 0


def damage(files: list[pathlib.Path], read: Reader, flips: int, cuts: int, rng: random.Random) -> Count:
    """Flip a random bit or cut a random file so many times, read, and put the file back."""
    (wanted, before), count = read(), Count()
    assert not before, "whole files are said to be damaged"
    for way in ["flip"] * flips + ["cut"] * cuts:
        path = rng.choice([file for file in files if file.stat().st_size])
        data = path.read_bytes()
        place = rng.randrange(len(data))
        changed = data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
        path.write_bytes(changed if way == "flip" else data[:place])
        try:
            content, said = read()
        except (ValueError, OSError):
            count.noticed += 1
        else:
            if said:
                count.noticed += 1
            elif content == wanted:
                count.harmless += 1
            else:
                count.silent += 1
                print(f"silent: {way} at byte {place} of {path}")
        path.write_bytes(data)
    return count


# -------------------------------------------------------------------------------------------------------------- targets


def store(folder: pathlib.Path) -> tuple[list[pathlib.Path], Reader]:
    """A store of two studies: all counts, obs and genes."""
    paths = [suites.write(folder / f"{name}.h5ad", seed) for seed, name in enumerate(("one", "two"))]
    assert not ingest(file_sources(paths), folder / "store", workers=0, say=lambda _: None)

    def read() -> tuple[Any, bool]:
        opened = open_store(folder / "store")
        content = [opened.genes, opened.studies, opened.offsets.tolist()]
        for study in map(opened.study, opened.studies):
            content += [array.tolist() for array in study.read(0, study.n_cells).result()]
            content += [study.indptr.tolist(), study.obs.to_json(), study.measured.tolist(), study.groups]
        return content, False

    return [path for path in (folder / "store").rglob("*") if path.is_file() and path.name != ".lock"], read


def run(folder: pathlib.Path) -> pathlib.Path:
    """A short training."""
    if not (folder / "run/checkpoints").exists():
        tiny.fit(folder / "run", steps=6, log_every=1, checkpoint_every=3, eval_every=3)
    return folder / "run"


def newest(folder: pathlib.Path) -> tuple[list[pathlib.Path], Reader]:
    """The newest checkpoint of a run: it, or the one before by name."""
    places = run(folder) / "checkpoints"

    def read() -> tuple[Any, bool]:
        restored = checkpoint.restore(places)
        return {name: leaf.tobytes() for name, leaf in flatten(restored.state).items()}, bool(restored.skipped)

    return [path for path in (places / "6").rglob("*") if path.is_file()], read


def exported(folder: pathlib.Path) -> tuple[list[pathlib.Path], Reader]:
    """A file of weights."""
    path, rng = folder / "w.safetensors", np.random.default_rng(0)
    weights.export(path, {"a": rng.normal(size=(20, 30)).astype(np.float32)}, {"model": "tiny"})

    def read() -> tuple[Any, bool]:
        tree, meta = weights.read(path)
        return (tree["a"].tobytes(), meta), False

    return [path], read


def graph(folder: pathlib.Path) -> tuple[list[pathlib.Path], Reader]:
    """A gene graph."""
    rng, path = np.random.default_rng(0), folder / "graph.npz"
    made = graph_file.GeneGraph(
        genes=[f"G{i}" for i in range(50)],
        source=rng.integers(0, 50, 90).astype(np.int32),
        target=rng.integers(0, 50, 90).astype(np.int32),
        weight=rng.random(90).astype(np.float32),
        meta={"source": "drawn"},
    )
    graph_file.write(path, made)

    def read() -> tuple[Any, bool]:
        one = graph_file.read(path)
        return (one.genes, one.source.tolist(), one.target.tolist(), one.weight.tolist(), str(one.meta)), False

    return [path], read


def suite_results(folder: pathlib.Path) -> tuple[list[pathlib.Path], Reader]:
    """results.jsonl: the numbers of a suite; a cell that is not there any more is said by the page and filled again."""
    rng, keys = random.Random(0), [f"{i:024x}" for i in range(20)]
    for seed, key in enumerate(keys):
        names = {"key": key, "run": "r", "model": "sct", "task": "t", "dataset": "d", "seed": seed}
        rows = [
            {**names, "method": "m", "kind": "model", "case": "", "metric": m, "value": rng.random()} for m in "abcde"
        ]
        results.append(folder, [*rows, {**names, "status": "done", "reason": ""}])

    def read() -> tuple[Any, bool]:
        metrics, cells = results.read(folder, keys)
        return metrics.to_json(), bool(results.problems(folder)) or len(cells) < len(keys)

    return [folder / results.NAME], read


def log(folder: pathlib.Path) -> tuple[list[pathlib.Path], Reader]:
    """metrics.jsonl: the curves of a run, as its page reads them."""
    from experiments.pages import run as page

    workdir = run(folder)
    meta = checkpoint.read_meta(workdir / "checkpoints")

    def read() -> tuple[Any, bool]:
        return sealed.read_lines(workdir / "metrics.jsonl").rows, bool(page.problems(workdir, meta))

    return [workdir / "metrics.jsonl"], read


def scores(folder: pathlib.Path) -> tuple[list[pathlib.Path], Reader]:
    """scores.json, and all JSON that is written the same way."""
    rng = random.Random(0)
    output.write_file(folder / "scores.json", {"rows": [{"accuracy": rng.random(), "seed": s} for s in range(9)]})

    def read() -> tuple[Any, bool]:
        warned: list[str] = []
        return output.read(folder / "scores.json", warned.append), bool(warned)

    return [folder / "scores.json"], read


def picture(folder: pathlib.Path) -> tuple[list[pathlib.Path], Reader]:
    """The arrays of a picture."""
    np.savez_compressed(folder / "p.npz", embedding=np.random.default_rng(0).normal(size=(30, 4)), label=["T", "B"])

    def read() -> tuple[Any, bool]:
        return {name: x.tolist() for name, x in sealed.read_arrays(folder / "p.npz").items()}, False

    return [folder / "p.npz"], read


TARGETS = {
    "store": store,
    "newest checkpoint": newest,
    "weights": exported,
    "gene graph": graph,
    "results.jsonl": suite_results,
    "metrics.jsonl": log,
    "scores.json": scores,
    "pictures": picture,
}

# ---------------------------------------------------------------------------------------------------------------- kills


def killed(
    start: Callable[[pathlib.Path], subprocess.Popen],
    whole: pathlib.Path,
    cut: pathlib.Path,
    kills: int,
    rng: random.Random,
) -> int:
    """Run a command to its end in `whole`, and in `cut` with so many kills at random moments before; return these.

    A moment is one after which it has begun to write. Where it was faster, it is begun anew, a few times.
    """
    process, began = start(whole), time.monotonic()
    while not whole.exists() and process.poll() is None:
        time.sleep(0.02)
    before = time.monotonic() - began
    assert process.wait() == 0, f"the command does not end well in {whole}"
    length, dead = time.monotonic() - began - before, 0
    for _ in range(4 * kills):
        if dead == kills:
            break
        process = start(cut)
        try:
            process.wait(0.8 * before + rng.uniform(0, length))
            shutil.rmtree(cut, ignore_errors=True)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            dead += cut.exists()
    assert start(cut).wait() == 0, f"after {dead} kills the command does not end well in {cut}"
    return dead


def command(*words: object) -> subprocess.Popen:
    """Start a module of the project without a word on the terminal."""
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-m", *map(str, words)], cwd=ROOT, **silent)


def kill_training(folder: pathlib.Path, kills: int, rng: random.Random) -> int:
    """Trainings end in the same arrays and the same log."""
    options = '{"steps": 12, "log_every": 1, "checkpoint_every": 1, "eval_every": 4, "slow": 0.1, "tensorboard": true}'
    whole, cut = folder / "whole", folder / "cut"
    dead = killed(lambda workdir: command("tests.harness.tiny", workdir, options), whole, cut, kills, rng)
    tiny.assert_same_run(whole, cut, 12)
    assert not list((cut / "checkpoints").glob("*.*"))
    return dead


def kill_ingest(folder: pathlib.Path, kills: int, rng: random.Random) -> int:
    """Ingests end in the same files, but for the seconds that they took."""
    paths = [suites.write(folder / f"s{i}.h5ad", i) for i in range(6)]
    words = ["experiments.ingest", f"--input={','.join(paths)}", "--workers=0"]
    whole, cut = folder / "whole", folder / "cut"
    dead = killed(lambda place: command(*words, f"--store={place}"), whole, cut, kills, rng)
    files = [{r["name"]: r["files"] for r in manifest.records(manifest.read(place))} for place in (whole, cut)]
    assert files[0] == files[1] and not verify(cut)
    return dead


def kill_suite(folder: pathlib.Path, kills: int, rng: random.Random) -> int:
    """Suites end in the same table, byte by byte."""
    data = suites.write(folder / "d.h5ad")
    suites.entrant("cellplm", "first").run.export(folder / "first.safetensors")
    words = ["experiments.evaluate", "--suite=zero_shot:tiny", f"--runs={folder}/first.safetensors", f"--data={data}"]
    words += ["--tasks=cell_typing,gene_imputation"]
    whole, cut = folder / "whole", folder / "cut"
    dead = killed(lambda place: command(*words, f"--output={place}"), whole, cut, kills, rng)
    tables = [pd.read_csv(place / "table.csv") for place in (whole, cut)]
    pd.testing.assert_frame_equal(*tables)
    assert not results.problems(cut)
    return dead


KILLS = {"training": kill_training, "ingest": kill_ingest, "suite": kill_suite}


def attack(folder: pathlib.Path, flips: int, cuts: int, kills: int, only: list[str], seed: int = 0) -> bool:
    """Run the attacks, print a line for each, and return whether all went well."""
    rng, well = random.Random(seed), True
    for name, target in TARGETS.items():
        if flips + cuts and (not only or name in only):
            place = folder / name.replace(" ", "_")
            place.mkdir(parents=True)
            count = damage(*target(place), flips, cuts, rng)
            print(f"{name}: {flips} flips and {cuts} cuts: {count.noticed} noticed, {count.harmless} harmless, "
                  f"{count.silent} silent", flush=True)  # fmt: skip
            well &= not count.silent
    for name, target in KILLS.items():
        if kills and (not only or name in only):
            place = folder / f"killed_{name}"
            place.mkdir(parents=True)
            try:
                dead = target(place, kills, rng)
                print(f"{name}: {dead} kills: the same as uninterrupted", flush=True)
            except AssertionError as error:
                print(f"{name}: NOT the same as uninterrupted: {error}", flush=True)
                well = False
    return well


def main() -> int:
    """Attack as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, number in (("flips", 60), ("cuts", 20), ("kills", 3), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--only", default="")
    parser.add_argument("--folder", type=pathlib.Path)
    args = parser.parse_args()
    folder = args.folder or pathlib.Path(tempfile.mkdtemp())
    try:
        only = [name for name in args.only.split(",") if name]
        return 0 if attack(folder, args.flips, args.cuts, args.kills, only, args.seed) else 1
    finally:
        if not args.folder:
            shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
