"""Infer gene regulatory networks by DeepSEM, started from runs or not, GENIE3 and correlation: edges, table, pictures.

    python -m experiments.networks --input=mine.h5ad --tfs=tfs.txt --output=OUT --runs=RUN,RUN
    python -m experiments.networks --input=ExpressionData.csv --truth=ChIP=chip.csv,STRING=string.csv --output=OUT \
        --runs=RUN,RUN [--go=goa_human.gaf.gz] [--ensemble=10] [--seeds=3]

Of every method OUT has edges_<method>.tsv (TF, target, weight, rank, and whether each truth has the edge) and
network_<method>.png; with --truth also table.md, table.csv, table.json and table.png: EPR, AUPR ratio, AUROC and mean
average precision of a TF, with what chance has and with an oracle that knows how many partners each gene has.

Each run is beside its random twin and beside itself with the genes' names shuffled; every start is also scored
untrained. Of raw counts the similarity of genes is that of their representations in all cells, of log-normalised values
that of gene vectors. What OUT has already is not computed again: the same command goes on where it was ended, and one
with other runs, or more of --ensemble or --seeds, adds them. The epochs are fixed: no truth ever chooses anything.
"""

import pathlib

from absl import flags

from experiments import cli

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    "reading",
    input="Raw or log-normalised counts: .h5ad, AnnData .zarr, 10x, or a table (.csv, .tsv) of genes x cells.",
    output="Folder of the networks; made if it is not there.",
    truth=(list, [], "Tables of measured edges, FILE or NAME=FILE: columns TF,target, or Gene1,Gene2 as BEELINE's."),
    tfs=(str, None, "List of genes that may regulate; those of --truth, if left out, and without it all genes."),
    n_genes=(int, 500, "Number of the most variable genes that are taken beside the regulators.", 1),
    share=(float, 0.1, "Share of cells in which a gene must be expressed.", 0, 1),
    cells=(int, 2000, "Most cells; of more some are drawn. 0 for all.", 0),
    runs=(list, [], "Folders of trained runs."),
    vectors=(
        list,
        ["auto"],
        "What of a run is compared: cells (genes in all cells), table, graph, table+graph, context; auto: cells of "
        "counts, else the first that needs no cell.",
    ),
    context=(str, None, "File of counts whose cells context vectors are means over; the input's, if left out."),
    raw_cosine=(bool, False, "Cosines of features as they are, as scLong takes them; else standardised over genes."),
    go=(str, None, "GO annotations for starts made of them: GAF, a table of genes and terms, or an .npz matrix."),
    ensemble=(int, 10, "Trainings of DeepSEM whose strengths are averaged.", 1),
    epochs=(int, 120, "Epochs of a training; the first of three trains networks, the others the matrix.", 1),
    rows=(int, 8, "Cells of a batch; scLong's release has 8, its paper 64.", 1),
    inverse=(("inverse", "cholesky_inverse"), "inverse", "Of I - A; the other is what scLong's release computes."),
    trees=(int, 1000, "Trees of GENIE3 for each gene; 0 leaves it out.", 0),
    min_mapped=(float, 0.01, "Least share of the network's genes that a run must know.", 0, 1),
    seeds=(int, 1, "Number of seeds of twins, shuffles and random vectors.", 1),
)


def main(_) -> None:
    cli.require("input", "output")
    cli.check_paths("gene_table")
    from data_pipeline.files import whole
    from experiments.analyses import networks, networks_data, networks_table
    from experiments.analyses.perturbation_data import prepare
    from scfm_jax.api import gene_networks

    for name in ("input", "tfs", "go", "context"):
        if (path := FLAGS[name].value) and not pathlib.Path(path).exists():
            raise FileNotFoundError(f"--{name}={path}: no such file or folder")
    if wrong := [kind for kind in FLAGS.vectors if kind not in ("auto", *gene_networks.KINDS)]:
        raise ValueError(f"--vectors={wrong[0]}: must be of auto, {', '.join(gene_networks.KINDS)}")
    truths = tuple(networks_data.named(text) for text in FLAGS.truth)
    if len({name for name, *_ in truths}) < len(truths):
        raise ValueError(f"--truth={','.join(FLAGS.truth)}: two of one name; tell them apart as NAME=FILE")
    same = ("input", "n_genes", "share", "cells", "go", "context", "raw_cosine", "epochs", "rows", "inverse", "trees")
    reading, tfs = cli.reading(), FLAGS.tfs
    plan = networks_data.Plan(
        **{name: FLAGS[name].value for name in same},
        truth=truths,
        tfs=(tfs, whole.checksum(pathlib.Path(tfs))) if tfs else (),
        gene_table=tuple(reading.pop("gene_table")),
        reading=reading,
    )
    data = networks_data.read(plan, lambda text: print(cli.in_flags(text)))
    entrants = networks.entrants(plan, data, FLAGS.runs, FLAGS.vectors)
    if plan.go:
        networks.go_terms(plan.go, data)
    out = pathlib.Path(FLAGS.output)
    prepare(plan, out)
    listed = networks.methods(plan, data, out, entrants)
    rows, strengths = networks.fill(data, out, listed, FLAGS.seeds, FLAGS.ensemble)
    print(networks_table.write(out, data, listed, rows, strengths, networks.about(plan, data, FLAGS.ensemble)))


if __name__ == "__main__":
    cli.run(main, OPTIONS)
