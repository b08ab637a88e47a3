"""Make of a run weights that others can load by name: one file, and its model card beside it.

    python -m experiments.pack --workdir=W --licences=studies.tsv --suite=DIR \
        --output=scfm_jax/pretrained/cellplm-small.safetensors

`scfm_jax.api.load("scfm:cellplm-small")` then finds it. The card says on what the run was trained and under which
licences, which genes it knows, its validation losses beside their floors, and a suite's scores beside the random twin
and the best baseline. Of paths in the config only their last part is kept. Neither file may exist yet.
"""

import pathlib
from typing import Any

from absl import flags

from experiments import cli

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    "workdir step",
    output="File to write, NAME.safetensors.",
    licences=(str, None, "Tab-separated, with a header: study, licence, source; a line for each study of the store."),
    suite=(str, None, "Folder of a suite that this run is in."),
)


def main(_) -> None:
    cli.require("workdir", "licences", "output")
    out, workdir = pathlib.Path(FLAGS.output), pathlib.Path(FLAGS.workdir)
    if out.suffix != ".safetensors":
        raise ValueError(f"--output={out}: must end in .safetensors")
    cli.check_free(out)
    cli.check_free(out.with_suffix(".md"))
    which = cli.step()
    import pandas as pd

    from data_pipeline.store.store import open_store
    from experiments.pages import model_card, output
    from experiments.suite import results, table
    from scfm_jax import api
    from scfm_jax.saving import sealed

    run = api.load(workdir, which)
    studies = open_store(run.meta["config"]["data"]["store"]).manifest["studies"]
    licences = pd.read_csv(FLAGS.licences, sep="\t", index_col="study")
    if lacking := [name for name in studies if name not in licences.index]:
        raise ValueError(f"--licences={FLAGS.licences}: no line for {lacking[0]}, which the run was trained on")
    logged = [row for _, row in sealed.read_lines(workdir / "metrics.jsonl").rows]
    scores = []
    if FLAGS.suite:
        folder = pathlib.Path(FLAGS.suite)
        content = results.description(folder)
        scores = [table.build(*results.read(folder), content), content, workdir.name]
    card = model_card.written(run, out.stem, studies, licences, logged, *scores)
    run.meta["config"] = without_folders(run.meta["config"])
    output.write_file(out.with_suffix(".md"), card)
    run.export(out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; {out.with_suffix('.md')}")


def without_folders(tree: Any) -> Any:
    """Return a config in which of every text that is an absolute path the last part is left."""
    if isinstance(tree, dict):
        return {name: without_folders(value) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [without_folders(value) for value in tree]
    return pathlib.PurePath(tree).name if isinstance(tree, str) and pathlib.PurePath(tree).is_absolute() else tree


if __name__ == "__main__":
    cli.run(main, OPTIONS)
