"""The smallest model that keeps the contract of `scfm_jax.models`, a loader of random counts, a command that trains it.

python -m tests.harness.tiny WORKDIR '{"steps": 20, ...}' trains as `experiments.train` does, signals included. Keys
that are not keywords of `loop.fit`: `stall` (sleep for a minute in "build", "compile", "train" or "validation", at the
`stall_at`-th call), `slow` (seconds per batch), `bad` (steps whose counts are NaN) and `dropout`. Floors are left out
where `floors` does not ask for them.
"""

import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

from tests.harness import ROOT

if __name__ == "__main__":  # as experiments.train does, before the imports that take long
    from scfm_jax.training import signals

    signals.exit_at_once()

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from scfm_jax import sharding
from scfm_jax.saving import checkpoint
from scfm_jax.saving.leaves import path_name
from scfm_jax.training import loop, signals, step, validation
from scfm_jax.types import Array, Outputs

GENES, CELLS, BAGS, PADDED, STUDIES = 24, 4, 8, 10, 2
EPOCH = 7
"""Steps of an epoch of the loader."""
CONSTANTS = {
    "slots": np.arange(GENES + 1, dtype=np.int32),
    "measured": np.ones((STUDIES, GENES), bool),
}

SIZES = {"n_genes": "genes"}
VARIANTS = {"tiny": {"model": {"width": 16, "dropout": 0.1}}}


def prepare(batch, constants, rng, *, step, train, mask_rate: float = 0.3) -> dict[str, Array]:
    """Densify the counts and hide some of them; without masking every entry is scored."""
    genes = constants["measured"].shape[1]
    slots = constants["slots"][batch.genes]
    x = (jax.nn.one_hot(slots, genes) * jnp.log1p(batch.counts)[..., None]).sum(2)  # [B, C, V]
    hidden = jax.random.bernoulli(rng, mask_rate, x.shape) if mask_rate else jnp.ones(x.shape, bool)
    seen = jnp.where(hidden, 0, x) if mask_rate else x
    return {"seen": seen, "x": x, "scored": hidden & batch.cell_mask[..., None], "cell_mask": batch.cell_mask}


class Model(nn.Module):
    """An autoencoder of log counts with dropout, which keeps a running mean of its input."""

    n_genes: int = 0
    width: int = 16
    dropout: float = 0.1

    @nn.compact
    def __call__(self, inputs: dict[str, Array], train: bool = False) -> Outputs:
        """Return the width-`width` code of each cell, and predicted log counts as logits."""
        mean = self.variable("buffers", "mean", jnp.zeros, (self.n_genes,))
        if train and not self.is_initializing():
            mean.value = 0.9 * mean.value + 0.1 * inputs["x"].mean((0, 1))
        x = nn.Dense(self.width, name="encoder")(inputs["seen"])
        x = sharding.constrain(nn.Dropout(self.dropout, deterministic=not train)(nn.gelu(x)))
        return Outputs(cells=x, logits=nn.Dense(self.n_genes, name="decoder")(x))


def loss(outputs: Outputs, inputs: dict[str, Array]) -> tuple[Array, dict[str, tuple[Array, Array]]]:
    """Return the mean squared error of the scored entries."""
    error = (outputs.logits - inputs["x"]) ** 2
    total, weight = (error * inputs["scored"]).sum(), inputs["scored"].sum()
    return total / weight, {"mse": (total, weight), "loss": (total, weight)}


def tokens(inputs: dict[str, Array]) -> Array:
    """Return the number of cells."""
    return inputs["cell_mask"].sum()


def flops(model: Model, inputs: dict[str, Array]) -> float:
    """Return the FLOPs of the two matrix products."""
    return 4.0 * model.width * float(np.prod(inputs["x"].shape))


class Loader:
    """Batches of random counts, a function of (part, step); after every EPOCH steps the same bags in another order.

    The real loader's interface, with the same share of each batch per host.
    """

    def __init__(self, part: str = "train", host: int = 0, n_hosts: int = 1, slow: float = 0, bad=(), stall_at=None):
        self.part, self.slow, self.bad, self.stall_at = part, slow, bad, stall_at
        self.share = slice(host * BAGS // n_hosts, (host + 1) * BAGS // n_hosts)

    def batch(self, step: int) -> dict[str, Any]:
        """Return this host's share of the batch of a step; odd steps have longer cells, hence another shape."""
        epoch, place = divmod(step, EPOCH)
        place = int(np.random.default_rng(epoch).permutation(EPOCH)[place])
        rng = np.random.default_rng([place, self.part == "val"])
        padded = PADDED + 4 * (place % 2)
        genes = np.stack([rng.permutation(GENES)[:padded] for _ in range(BAGS * CELLS)]).reshape(BAGS, CELLS, padded)
        counts = rng.poisson(3.0 * (1 + genes % 3)).astype(np.float32)
        cell_mask = rng.random((BAGS, CELLS)) < 0.8
        cell_mask[:, 0] = True
        arrays = {
            "genes": np.where(cell_mask[..., None], genes, GENES).astype(np.int32),
            "counts": counts * cell_mask[..., None] * (np.nan if step in self.bad else 1),
            "cell_mask": cell_mask,
            "study": rng.integers(0, STUDIES, (BAGS, CELLS), np.int32),
            "coords": np.full((BAGS, CELLS, 2), np.nan, np.float32),
        }
        unknown = dict.fromkeys(("index", "panel", "field_coords"))
        return {name: array[self.share] for name, array in arrays.items()} | {"labels": {}} | unknown

    def iter(self, start_state: dict | None = None) -> "Batches":
        """Return the endless batches from a state on."""
        return Batches(self, start_state["step"] if start_state else 0)

    def epoch_batches(self):
        """Yield EPOCH batches."""
        for number in range(EPOCH):
            self.wait(number)
            yield self.batch(number)

    def wait(self, step: int) -> None:
        """Be as slow as asked."""
        time.sleep(self.slow)
        if step == self.stall_at:
            say(f"stalling in {self.part}")
            time.sleep(60)


class Batches:
    """The endless iterator of a Loader; its state is the next step."""

    def __init__(self, loader: Loader, start: int):
        self.loader, self.step = loader, start

    def __next__(self) -> dict[str, Any]:
        self.loader.wait(self.step)
        self.step += 1
        return self.loader.batch(self.step - 1)

    def get_state(self) -> dict[str, int]:
        """Return the step that comes next."""
        return {"step": self.step}

    def close(self) -> None:
        """Nothing is open."""


def tables() -> validation.Tables:
    """Return the mean of each gene over all cells, to hold the model against."""

    def learn(over, constants):
        batches = [(batch, x) for batch, x in over(lambda *args: prepare(*args, step=0, train=True)["x"])]
        return {"mean": np.concatenate([x[batch.cell_mask] for batch, x in batches]).mean(0)}

    def score(params, buffers, batch, constants, rng, step, train):
        made = prepare(batch, constants, jax.random.split(rng, 3)[0], step=step, train=train)
        value, metrics = loss(Outputs(cells=None, logits=params["mean"]), made)
        return value, ({"loss/gene": metrics["loss"]}, buffers)

    def residual(values, floors):
        return 1 - values["loss"] / floors["loss/gene"]

    return validation.Tables(learn, score, None, residual, "loss/gene")


def objective(dropout: float = 0.1, **inputs: Any) -> step.Objective:
    """Return what the tiny model minimises; `inputs` are options of `prepare`."""
    return step.pretraining(sys.modules[__name__], Model(n_genes=GENES, dropout=dropout), inputs, {})


def say(text: str) -> None:
    """Tell the test where the run is."""
    print(text, file=sys.stderr, flush=True)


def fit(workdir: str | pathlib.Path, lock: signals.StateLock | None = None, **options: Any) -> Any:
    """Train the tiny model; see the module's docstring for the options."""
    stall, stall_at, slow, bad, dropout = (
        options.pop(*pair) for pair in (("stall", None), ("stall_at", 0), ("slow", 0), ("bad", ()), ("dropout", 0.1))
    )
    pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
    host = {"host": jax.process_index(), "n_hosts": jax.process_count(), "slow": slow}
    task = objective(dropout)
    if stall in ("compile", "build"):
        task = task._replace(**_stalling(task, stall, stall_at))
    options = {
        "steps": 10,
        "seed": 3,
        "log_every": 3,
        "optimizer": {"learning_rate": 1e-2},
        "tensorboard": False,
        "floors": 0,
        "tables": tables(),
    } | options
    held_out = Loader("val", **host, stall_at=stall_at if stall == "validation" else None)
    loader = Loader("train", **host, bad=bad, stall_at=stall_at if stall == "train" else None)
    return loop.fit(task, loader, CONSTANTS, {"model": "tiny"}, workdir, validation=held_out, lock=lock, **options)


def _stalling(task: step.Objective, where: str, stall_at: int) -> dict[str, Any]:
    """Return functions that, once traced for compilation, sleep as a slow compiler would."""
    calls = []

    def slowly(function):
        def call(*args):
            if where == "build" or len(calls) == stall_at:
                say(f"stalling in {where}")
                time.sleep(60)
            calls.append(1)
            return function(*args)

        return call

    return {"flops": slowly(task.flops)} if where == "compile" else {"init": slowly(task.init)}


def start(workdir: str | pathlib.Path, options: dict[str, Any], **environment: str) -> subprocess.Popen:
    """Start the command of this file in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.harness.tiny", str(workdir), json.dumps(options)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen, status: int = 0) -> str:
    """Wait for the end of a process and return what it said; AssertionError for another exit status."""
    said = process.communicate(timeout=300)[0]
    assert process.returncode == status, said
    return said


def arrays(workdir: pathlib.Path, number: int) -> dict[str, np.ndarray]:
    """Return all arrays of a checkpoint by name."""
    state = checkpoint.restore(workdir / "checkpoints", step=number).state
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def assert_same_run(a: pathlib.Path, b: pathlib.Path, number: int) -> None:
    """Check that two runs have the same state at a step and the same metrics.jsonl, bit by bit."""
    mine, theirs = arrays(a, number), arrays(b, number)
    assert mine.keys() == theirs.keys()
    assert not [name for name in mine if mine[name].tobytes() != theirs[name].tobytes()]
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()


def main(workdir: str, options: str) -> None:
    """Train under supervision, as the command does."""

    def work(lock: signals.StateLock) -> None:
        sharding.join_processes()
        say("building")
        fit(workdir, lock, **json.loads(options))

    signals.supervise(work)


if __name__ == "__main__":
    main(*sys.argv[1:])
