"""Predict the response of cell lines to drugs from structures and what runs say of the lines' genes: table, picture.

    python -m experiments.drug_response --responses=gdsc_pairs.tsv --drugs=drugs.tsv --expression=ccle.tsv \
        --output=OUT --runs=RUN,RUN [--splits=pairs,drugs,lines,both] [--seeds=5] [--most=20000]

Methods: means of drugs, of drugs and lines (the table that a network has to beat), the nearest line, ridge on
fingerprints and expression, and DeepCDR's network, with the lines' expression as published, with random vectors, and
with those of each run, of its random twin, and of permuted lines.

Lines: what a run says of a line is the sum of its gene vectors, each times the z-score of the gene in the line
(--lines=weighted), or its embedding of the line's expression taken for a cell (cells; TPM or log2 only).

Splits hold out pairs, drugs, lines, both, or tissues; one compound under two ids is one drug to all of them. Prints the
table, and leaves table.md, table.csv (each seed), table.json and table.png in OUT. What OUT has already is not computed
again: the same command goes on, and one with other runs adds them. SMILES need RDKit: pip install 'scfm_jax[chem]'.
"""

import pathlib

from absl import flags

from experiments import cli

FLAGS = flags.FLAGS
SPLITS = ("pairs", "drugs", "lines", "both", "tissues")
OPTIONS = cli.options(
    "gene_table",
    responses=(str, None, "Table of measurements: a drug, a line and a number each; tabs or commas."),
    drugs=(str, None, "Table of the drugs and their SMILES."),
    expression=(str, None, "Table of lines and genes: TPM, log2 or z-scores; or an .npz."),
    output="Folder of the table; made if it is not there.",
    drug=(str, "drug", "Column of drugs, in both tables."),
    smiles=(str, "smiles", "Column of SMILES."),
    line=(str, "depMapID", "Column of lines, as they are called in --expression."),
    value=(str, "ln_ic50", "Column of what was measured."),
    compound=(str, "auto", "Column that is the same for one compound under two ids; auto: pubchem_cid, or the SMILES."),
    tissues=(str, None, "Table of lines and their tissues."),
    tissue=(str, "tissue", "Its column of tissues."),
    lines=(("weighted", "cells"), "weighted", "How a run's vectors of lines are made."),
    splits=(list, ["pairs", "drugs", "lines", "both"], "What is held out: pairs, drugs, lines, both, tissues."),
    folds=(int, 5, "Parts of what is held out; each seed tests on one.", 2),
    salts=(("whole", "largest", "refuse"), "whole", "Drugs of several parts: all as one graph, the largest, an error."),
    skip_invalid=(bool, False, "Leave out rows that cannot be used, and say so."),
    runs=(list, [], "Folders of trained runs."),
    vectors=(list, ["auto"], "Kinds of their gene vectors: table, graph, table+graph, context; auto: the first."),
    context=(str, None, "File of counts whose cells context vectors are means over, for runs without a table."),
    preset=(("linear", "paper", "repo"), "linear", "Of DeepCDR's network."),
    epochs=(int, 100, "At most, of each training.", 1),
    most=(int, 0, "Measurements that a network trains on, drawn by the seed; 0 for all.", 0),
    seeds=(int, 5, "Number of seeds.", 1),
)


def main(_) -> None:
    cli.require("responses", "drugs", "expression", "output")
    cli.check_paths("runs", "gene_table")
    from experiments.analyses import drug_data, drug_table
    from experiments.analyses import drug_response as analysis
    from scfm_jax.api import gene_features

    for name in ("responses", "drugs", "expression", "tissues", "context"):
        if (path := FLAGS[name].value) and not pathlib.Path(path).is_file():
            raise FileNotFoundError(f"--{name}={path}: no such file")
    for name, allowed in (("splits", SPLITS), ("vectors", ("auto", *gene_features.KINDS))):
        if wrong := [one for one in FLAGS[name].value if one not in allowed]:
            raise ValueError(f"--{name}={wrong[0]}: must be of {', '.join(allowed)}")
    same = [field for field in drug_data.Plan.__dataclass_fields__ if field != "gene_table"]
    plan = drug_data.Plan(**{name: FLAGS[name].value for name in same}, gene_table=tuple(FLAGS.gene_table))
    out = pathlib.Path(FLAGS.output)
    data = drug_data.read(plan, out)
    for kind in FLAGS.splits:
        drug_data.rounds(plan, data, kind)
    drug_data.prepare(plan, out)
    listed = analysis.methods(plan, data, out, FLAGS.runs, FLAGS.vectors)
    rows = analysis.fill(plan, data, out, listed, FLAGS.splits, FLAGS.seeds)
    about = f"# Responses of {pathlib.Path(FLAGS.responses).name} predicted"
    print(drug_table.write(out, rows, {method.name: method.note for method in listed}, about))


if __name__ == "__main__":
    cli.run(main, OPTIONS)
