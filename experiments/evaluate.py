"""Embed a labelled file with a trained model and score the embedding beside PCA-50 and random twins.

    python -m experiments.evaluate --workdir=W --input=x.h5ad [--label=cell_type] [--batch=batch] [--seeds=3]

Writes W/embedding.h5ad and W/scores.json, which `experiments.report` shows, and prints the table of scores.
"""

import pathlib

from absl import flags

from experiments import cli

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Folder of a training run.")
flags.DEFINE_string("input", None, "File of raw counts with labels in obs, not one of the training studies.")
flags.DEFINE_string("label", "cell_type", "obs column to score by.")
flags.DEFINE_string("batch", "batch", "obs column of batches; used if it is there.")
flags.DEFINE_integer("seeds", 3, "Number of seeds of folds, Leiden, PCA and twins.", 1)
flags.DEFINE_string("layer", None, "Layer of the input that holds the counts.")
flags.DEFINE_bool("raw", None, "The counts are in the input's raw.")
flags.DEFINE_string("sample_key", "auto", 'obs column of tissue samples; "" for one; "auto": batch if there is one.')
flags.DEFINE_list("gene_table", [], "Tables that translate gene names, HGNC or GENCODE style.")
flags.DEFINE_float("min_mapped", 0.5, "Least share of the input's genes that the model must know.", 0, 1)


def main(_) -> None:
    if not FLAGS.workdir or not FLAGS.input:
        raise ValueError("--workdir and --input say which model is scored on what (see --helpshort)")
    from experiments import scoring
    from scfm_jax import api

    options = {name: FLAGS[name].value for name in ("label", "batch", "layer", "raw", "gene_table", "min_mapped")}
    options |= {"seeds": range(FLAGS.seeds), "sample_key": FLAGS.sample_key or None}
    scores = scoring.evaluate(api.load(FLAGS.workdir), FLAGS.input, pathlib.Path(FLAGS.workdir), **options)
    print(scoring.table(scores))


if __name__ == "__main__":
    cli.run(main)
