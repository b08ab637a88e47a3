"""scLong at its published size, run: training steps on devices that one processor poses as, one cell's embedding.

  python -m experiments.scale_sclong step --devices=8 --depth=2 --dtype=float32
  python -m experiments.scale_sclong forward --input=pbmc3k.h5ad --genes=GENES --graph=GRAPH

`step` runs the training step of `experiments.train` on host devices that split parameters and optimiser state (fsdp)
and cells, `forward` embeds one cell. What training takes of devices that one does not hold is what

  python -m experiments.bench compile --model=sclong --row=published --target=h100:8 --mesh=data:1,fsdp:8 \
      --dtype=bfloat16 --bags=1,4 --network=remat:full

says without running it. Layers are scanned, so compiling takes as long for 42 of them as for 2.
"""

import functools
import json
import resource
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import NamedSharding, PartitionSpec

from experiments import cli
from experiments.benches import sclong as bench_sclong
from experiments.benches.step import bag
from scfm_jax import sharding
from scfm_jax.models import sclong
from scfm_jax.training import optim, step
from scfm_jax.types import Batch

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    "reading",
    devices=(int, 8, "step: devices, as which this machine's processor poses.", 1),
    cells=(int, 1, "step: cells on each device.", 1),
    remat=(("full", "dots", "none"), "full", "step: what of the layers is recomputed."),
    steps=(int, 1, "step: updates to run.", 1),
    n_genes=(int, 27874, "step: genes.", 1),
    top=(int, 4096, "Genes that go through the large stack.", 1),
    depth=(int, 42, "Layers of the large stack.", 1),
    microbatches=(int, 1, "step: parts one after the other, of so many cells on each device each.", 1),
    dtype=(("float32", "bfloat16"), "bfloat16", "What is computed in; parameters are float32."),
    input="forward: a file of raw counts.",
    min_mapped=(float, 0.3, "forward: least share of genes to be in the list.", 0, 1),
    cell=(int, 0, "forward: which of its cells.", 0),
    genes=(str, None, "forward: the gene list, one a line."),
    graph=(str, None, "forward: its graph, a file of experiments.go_graph."),
)


def main(argv: list[str]) -> None:
    what = {"step": run_step, "forward": forward}
    if len(argv) != 2 or argv[1] not in what:
        raise ValueError(f"scale_sclong {' '.join(argv[1:]) or '(nothing)'}: say what to do: {', '.join(what)}")
    if argv[1] != "forward":
        jax.config.update("jax_num_cpu_devices", FLAGS.devices)
    for row in what[argv[1]]():
        print(json.dumps(row), flush=True)


def network(n_genes: int, remat: str = "none") -> sclong.Model:
    """Return the published network with the flags' depth and precision, its layers scanned."""
    options = {"top_seq_len": FLAGS.top, "large_depth": FLAGS.depth, "dtype": FLAGS.dtype, "scan": True}
    return sclong.Model(n_genes=n_genes, remat=False if remat == "none" else remat, **options)


class Training:
    """The training step of the published config on a mesh of all devices, split over them by fsdp."""

    def __init__(self, remat: str, cells: int) -> None:
        self.objective = step.pretraining(sclong, network(FLAGS.n_genes, remat), {}, {})
        options = dict(steps=11_875, name="adam", learning_rate=5e-5, schedule="constant", clip_norm=100.0)
        self.optimizer = functools.partial(optim.build, **options)
        self.mesh = sharding.make_mesh(data=1, fsdp=jax.device_count())
        total = cells * jax.device_count() * FLAGS.microbatches
        self.batch = jax.tree.map(lambda x: x.swapaxes(0, 1), bag(total, FLAGS.n_genes))
        self.constants = bench_sclong.constants(FLAGS.n_genes)
        self.init = functools.partial(step.init_state, self.objective, self.optimizer, 0)
        self.shapes = jax.eval_shape(self.init, self.batch, self.constants)
        self.layout = sharding.state_shardings(self.shapes, self.mesh)

    def compile(self) -> Any:
        """Return the compiled step, made of shapes alone."""
        place = NamedSharding(self.mesh, PartitionSpec())
        update = step.jitted(self.objective, self.optimizer(self.shapes.params), FLAGS.microbatches, self.layout, place)
        where = jax.tree.map(lambda x: sharding.batch_sharding(self.mesh, x.ndim), self.batch)
        batch = sharding.abstract(self.batch, where)
        return update.lower(sharding.abstract(self.shapes, self.layout), batch).compile()


def run_step() -> Iterator[dict]:
    """Yield loss, norm of the gradient and cost of each update."""
    training = Training(FLAGS.remat, FLAGS.cells)
    with jax.set_mesh(training.mesh):
        state = jax.jit(training.init, out_shardings=training.layout)(training.batch, training.constants)
        jax.block_until_ready(state)
        made = _peak()
        compiled, batch = training.compile(), sharding.put_batch(training.batch, training.mesh)
        leaves = jax.tree.leaves((state.params, state.opt_state))
        share = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
        state_gb = {"state_gb": sum(leaf.nbytes for leaf in leaves) / 1e9, "of_a_device_gb": share / 1e9}
        for _ in range(FLAGS.steps):
            wall, cpu = time.perf_counter(), time.process_time()
            state, metrics = jax.block_until_ready(compiled(state, batch))
            row = {"devices": FLAGS.devices, "cells": len(training.batch.genes), "depth": FLAGS.depth}
            row |= {"loss": f"{float(metrics['loss'][0] / metrics['loss'][1]):.7f}"}
            row |= {"grad_norm": f"{float(metrics['grad_norm'][0]):.6f}", "s": time.perf_counter() - wall}
            yield row | {"cpu_s": time.process_time() - cpu, "made_gb": made, "peak_gb": _peak()} | state_gb


def forward() -> list[dict]:
    """Return what embedding one real cell takes, with random weights."""
    if not (FLAGS.input and FLAGS.genes and FLAGS.graph):
        raise ValueError("scale_sclong forward: --input, --genes and --graph say which cell, its genes and their graph")
    constants, batch = _cell()
    model, key = network(constants["measured"].shape[1]), jax.random.key(0)

    def prepare(batch: Batch, constants: dict) -> dict:
        return sclong.prepare(batch, constants, key, step=0, train=False, mask_rate=0.0)

    inputs = jax.jit(prepare)(batch, constants)
    started = time.perf_counter()
    variables = jax.block_until_ready(jax.jit(lambda inputs: model.init(key, inputs))(inputs))
    row = {"parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))}
    row |= {"expressed": int((batch.counts > 0).sum()), "edges": len(constants["graph_weight"])}
    row |= {"made_s": time.perf_counter() - started, "made_gb": _peak()}
    compiled = (
        jax.jit(lambda variables, inputs: model.apply(variables, inputs).cells).lower(variables, inputs).compile()
    )
    wall, cpu = time.perf_counter(), time.process_time()
    cells = np.asarray(compiled(variables, inputs))
    row |= {"s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu, "peak_gb": _peak()}
    row |= {
        "gflop": sclong.flops(model, inputs) / 1e9,
        "temporaries_gb": compiled.memory_analysis().temp_size_in_bytes / 1e9,
    }
    row |= {"norm": float(np.linalg.norm(cells)), "finite": bool(np.isfinite(cells).all())}
    return [row]


def _cell() -> tuple[dict, Batch]:
    """Return (constants, batch) of the cell and graph that the flags name."""
    from data_pipeline.files import h5ad
    from data_pipeline.genes import vocab
    from scfm_jax import api
    from scfm_jax.inference import bags

    genes = vocab.read_genes(FLAGS.genes)
    with h5ad.read_counts(FLAGS.input, **h5ad.place(cli.reading())) as counts:
        table = vocab.read_table(FLAGS.gene_table) if FLAGS.gene_table else None
        mapping = vocab.onto(counts, genes, table=table, min_mapped=FLAGS.min_mapped)
        print(mapping.report)
        packed = bags.pack(mapping.apply(counts.take(np.array([FLAGS.cell]))), np.zeros((1, 1), int))
    constants = {"slots": np.arange(len(genes) + 1, dtype=np.int32), "measured": np.ones((1, len(genes)), bool)}
    constants |= api.gene_constants({"graph": FLAGS.graph}, genes, say=print)
    fields = {name: packed[name] for name in Batch.__dataclass_fields__}
    return jax.tree.map(jnp.asarray, constants), Batch(**fields)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    cli.run(main, OPTIONS, positional=True)
