"""Measure the loader, a train step or inference beside what one could compare it with: a table and one line of JSON.

  python -m experiments.bench loader --input=a.h5ad,b.h5ad [--copies=4]     (or --store=DIR, a store that is there)
  python -m experiments.bench step --model=cellplm
  python -m experiments.bench step --model=sct [--row=L] [--dtype=bfloat16] [--plan]
  python -m experiments.bench infer --model=sclong [--row=L]
  python -m experiments.bench lengths --store=DIR            (scEMB: batches of cells of like length against padding)
  python -m experiments.bench heads                          (GEARS' and DeepSEM's steps against torch's)

`--row` chooses among the sizes that `experiments/benches/<model>.py` has; `--plan` compiles the step and says what
memory it would take, without running it.

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
    output="File for the JSON, besides standard output.",
)

WHAT = ("loader", "step", "infer", "lengths", "heads")


def main(argv: list[str]) -> None:
    if len(argv) != 2 or argv[1] not in WHAT:
        raise ValueError(f"bench {' '.join(argv[1:]) or '(nothing)'}: say what to measure: {', '.join(WHAT)}")
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
