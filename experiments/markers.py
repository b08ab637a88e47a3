"""Rank the genes of cell types by a model's gene representations and look for the known markers among them.

    python -m experiments.markers --workdir=W --input=labelled.h5ad --labels=cell_type \
        --types='B=B cell,CD14+ Mono=Monocyte' --markers=cellmarker.tsv.gz --tissue=Blood --output=DIR

A type is LABEL, or LABEL=NAME where the table calls it otherwise. The other labels of the column are what a type is
compared with. Writes DIR/markers.md (tables, top genes), DIR/markers.json (each seed) and, for each type and ranking
that is drawn, DIR/heat_map_<number>_<type>_<ranking>.png, all or nothing. The rankings and the null are those of
`scfm_jax.tasks.genes.marker_genes`; a seed draws the cells, their bags and the weights of a random twin.
"""

import os
from collections.abc import Sequence

from absl import flags

from experiments import cli

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    "output sample_key scaler reading",
    workdir="Folder of a training run.",
    input="File of raw counts with labels in obs.",
    labels=(str, "cell_type", "obs column of the cell types."),
    types=(list, None, "Types to rank the genes of: LABEL or LABEL=NAME of the marker table."),
    markers=(str, None, "Table of known markers: CellMarker, ScType, or columns cell_type and gene."),
    tissue=(list, [], "Tissues of the table whose markers count; all, if left out."),
    top=(int, 50, "Genes to choose.", 2),
    cells=(int, 50, "Cells of a type, drawn at random; 0 for all.", 0),
    min_expressed=(float, 0.1, "Least share of the type's cells that express a gene to be ranked.", 0, 1),
    linkage=(("similarity", "rows"), "similarity", "Heat maps cluster genes by this; rows is seaborn's way."),
    seeds=(int, 3, "Number of seeds.", 1),
)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    del argv
    cli.require("workdir", "input", "types", "markers", "output")
    cli.check_free(FLAGS.output)
    from experiments.analyses import marker_table, markers
    from scfm_jax import api

    types = dict(text.rpartition("=")[::2] if "=" in text else (text, text) for text in FLAGS.types)
    table = marker_table.read(FLAGS.markers, FLAGS.tissue)
    known_markers = {label: marker_table.of_type(table, name) for label, name in types.items()}
    names = ("labels", "top", "cells", "min_expressed", "seeds")
    options = {name: FLAGS[name].value for name in names} | {"sample_key": FLAGS.sample_key or None} | cli.reading()
    result = markers.evaluate(api.load(FLAGS.workdir, scaler=FLAGS.scaler), FLAGS.input, known_markers, **options)
    result["markers"] = f"{os.path.basename(FLAGS.markers)}, {', '.join(FLAGS.tissue) or 'all tissues'}"
    markers.write(result, FLAGS.output, FLAGS.linkage)
    print(markers.table(result))


if __name__ == "__main__":
    cli.run(main, OPTIONS)
