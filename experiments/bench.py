"""Measure the loader, a train step or inference beside what one could compare it with: a table and one line of JSON.

  python -m experiments.bench loader --input=a.h5ad,b.h5ad [--copies=4]     (or --store=DIR, a store that is there)
  python -m experiments.bench step --model=cellplm
  python -m experiments.bench step --model=sct [--row=L] [--dtype=bfloat16] [--plan]
  python -m experiments.bench compile --model=sct --row=published --target=h100:8 [--mesh=fsdp:4] [--dtype=...]
  python -m experiments.bench infer --model=sclong [--row=L]
  python -m experiments.bench lengths --store=DIR            (scEMB: batches of cells of like length against padding)
  python -m experiments.bench heads                          (GEARS' and DeepSEM's steps against torch's)

`--row` chooses among the sizes that `experiments/benches/<model>.py` has; `--plan` compiles the step and says what
memory it would take, without running it.

`compile` says whether a training step fits, on how many devices and how fast it is at most, for devices that are not
here: h100:1, h100:8, h200:8, v5e:4x4, v5p:4x4x8, v6e:16x16. Their makers' compilers do it on a processor, which
`pip install "scfm_jax[tpu]"` and `"scfm_jax[cuda13]"` bring. `--row` may also be a variant of the model's config, with
as many genes as the bench's first row; `--network=remat:dots,large_depth:2` changes fields of the network,
`--tune=lora` trains by fine-tuning, `--infer` compiles the embedding of cells. Printed are, for each device: state,
temporaries and peak beside its memory, with the most bags that fit; the least time of a step and the MFU that would be;
what kinds of kernels there are; loops with their trip counts; bytes exchanged; the most expensive kernels with the line
that they come from. See `experiments/benches/roofline.py` for what the estimate counts.

Speeds are of this machine under its load of the moment, so cpu seconds are printed too.
"""

import json
import pathlib
import tempfile

from absl import flags

from data_pipeline.files import whole
from experiments import cli

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    "layer raw round",
    store=(str, None, "loader, lengths: the store to read."),
    input=(list, [], "loader: files with raw counts, made into a store for the occasion."),
    copies=(int, 4, "loader: how often each cell of --input is put into its study.", 1),
    seconds=(float, 5.0, "Time to measure each row for.", 0.1),
    model=(str, "cellplm", "step, infer: the model."),
    row=(str, None, "step, infer: the size to measure, of those that the model's bench has; by default its first."),
    dtype=(("float32", "bfloat16"), None, "step, infer: what to compute in, not the model's own."),
    parts=(bool, True, "step: also time the step's parts, each of which is compiled by itself."),
    plan=(bool, False, "step: compile only, and say what memory the step would take."),
    target=(str, None, "compile: devices that need not be here, h100:8, v5e:4x4, v5p:4x4x8, ..."),
    target_config=(str, None, "compile: file that describes another GPU to XLA, in place of our figures."),
    mesh=(list, [], "compile: devices on each axis, data:4,fsdp:4; by default all on data."),
    infer=(bool, False, "compile: the embedding of cells, not the training step."),
    tune=(("full", "lora", "prefix", "frozen"), None, "compile: tell cell types by fine-tuning so."),
    network=(list, [], "compile: fields of the network, as name:value."),
    bags=(list, [], "compile: bags on each device, a row for each; by default those of the row and twice as many."),
    microbatches=(int, 1, "compile: parts of a batch, one after the other, of so many bags on each device each.", 1),
    output="File for the JSON, besides standard output.",
)

WHAT = ("loader", "step", "infer", "compile", "lengths", "heads")


def main(argv: list[str]) -> None:
    if len(argv) != 2 or argv[1] not in WHAT:
        raise ValueError(f"bench {' '.join(argv[1:]) or '(nothing)'}: say what to measure: {', '.join(WHAT)}")
    if argv[1] == "compile":
        sections = _compile()
        print("\n\n".join(f"{title}\n{table(rows)}" for title, rows in sections.items() if rows))
        text = json.dumps({"bench": "compile", "model": FLAGS.model, "target": FLAGS.target, "sections": sections})
    else:
        rows = {"loader": _loader, "lengths": _lengths, "heads": _heads}.get(argv[1], lambda: _step(argv[1]))()
        print(table(rows))
        text = json.dumps({"bench": argv[1], "rows": rows})
    print(text)
    if FLAGS.output:
        whole.write_file(FLAGS.output, f"{text}\n".encode())


def _loader() -> list[dict]:
    from data_pipeline.store.store import open_store
    from experiments.benches import loader

    if bool(FLAGS.store) == bool(FLAGS.input):
        raise ValueError("bench loader: give either --store=DIR or --input=a.h5ad,b.h5ad")
    cli.check_paths("input")
    place = {name: FLAGS[name].value for name in ("layer", "raw", "round")}
    with tempfile.TemporaryDirectory() as scratch:
        path = FLAGS.store or loader.make_store(pathlib.Path(scratch) / "store", FLAGS.input, FLAGS.copies, **place)
        return loader.rows(open_store(path), FLAGS.seconds)


def _compile() -> dict[str, list[dict]]:
    from experiments.benches import targets

    cli.require("target")
    if FLAGS.infer and FLAGS.tune:
        raise ValueError(f"--tune={FLAGS.tune}: is of training; leave --infer out")
    target = targets.find(FLAGS.target, FLAGS.target_config)
    from experiments.benches import compiling, layouts
    from scfm_jax import sharding

    case = layouts.layout(FLAGS.model, FLAGS.row, FLAGS.network, FLAGS.dtype)
    mesh = sharding.mesh_of(target.devices, **layouts.mesh_sizes(FLAGS.mesh))
    bags = layouts.numbers("bags", FLAGS.bags) or [len(case.batch.genes), 2 * len(case.batch.genes)]
    wanted = compiling.Wanted(FLAGS.model, case, target, mesh, FLAGS.infer, FLAGS.tune, FLAGS.microbatches)
    return compiling.sections(wanted, bags)


def _lengths() -> list[dict]:
    from data_pipeline.store.store import open_store
    from experiments.benches import scemb

    if not FLAGS.store:
        raise ValueError("bench lengths: give --store=DIR, whose cells' lengths count")
    return scemb.length_rows(open_store(FLAGS.store), FLAGS.seconds)


def _heads() -> list[dict]:
    from experiments.benches import heads

    return heads.rows(FLAGS.seconds)


def _step(what: str) -> list[dict]:
    from experiments.benches import step

    if what == "infer":
        return step.infer_rows(FLAGS.model, FLAGS.seconds, row=FLAGS.row, dtype=FLAGS.dtype)
    if FLAGS.plan:
        return step.plan_rows(FLAGS.model, row=FLAGS.row, dtype=FLAGS.dtype)
    return step.step_rows(FLAGS.model, FLAGS.seconds, row=FLAGS.row, dtype=FLAGS.dtype, parts=FLAGS.parts)


def table(rows: list[dict]) -> str:
    """Return the rows as aligned text, a column for each key, empty where a row lacks it."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [keys, *([_text(row.get(key)) for key in keys] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(keys))]
    lines = (
        "  ".join(f"{c:{'<' if i == 0 else '>'}{w}}" for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def _text(value) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    cli.run(main, OPTIONS, positional=True)
