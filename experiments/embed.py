"""Embed the cells of a file with a trained model.

    python -m experiments.embed --workdir=W --input=x.h5ad --output=y.h5ad

The output is the input with obsm["X_<model>"] and, in uns, where that comes from: model, step, config
hash, gene mapping, what a sample is, versions, date. It must not exist yet.
"""

from absl import flags

from experiments import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "A training run, a folder of checkpoints or a weights file.")
_INPUT = flags.DEFINE_string("input", None, "File of raw counts: .h5ad, AnnData .zarr, 10x .h5 or mtx folder.")
_OUTPUT = flags.DEFINE_string("output", None, "File to write, .h5ad; must not exist.")
_STEP = flags.DEFINE_string("step", None, 'Checkpoint to use: a step or "best"; by default the newest valid one.')
_LAYER = flags.DEFINE_string("layer", None, "Layer of the input that holds the counts.")
_RAW = flags.DEFINE_bool("raw", None, "The counts are in the input's raw.")
_SAMPLE_KEY = flags.DEFINE_string(
    "sample_key", "auto", 'obs column of tissue samples; "" for one sample; "auto": batch if there is one.'
)
_GENE_TABLE = flags.DEFINE_list("gene_table", [], "Tables that translate gene names, HGNC or GENCODE style.")
_MIN_MAPPED = flags.DEFINE_float("min_mapped", 0.5, "Least share of the input's genes that the model must know.", 0, 1)
_MAX_CELLS = flags.DEFINE_integer("max_cells", None, "Cut larger samples into random parts.", 1)
_REPLACE = flags.DEFINE_bool("replace", False, "Replace an embedding of the same name that the input has.")
_SEED = flags.DEFINE_integer("seed", 0, "Of those parts.")


def main(argv: list[str]) -> None:
    """Run the command."""
    del argv
    cli.require("workdir", "input", "output")
    cli.check_free(_OUTPUT.value)
    if _STEP.value and _STEP.value != "best" and not _STEP.value.isdecimal():
        raise ValueError(f'--step={_STEP.value}: a number or "best"')

    from data_pipeline.files import h5ad
    from scfm_jax import api

    which = int(_STEP.value) if _STEP.value and _STEP.value.isdecimal() else _STEP.value
    run = api.load(_WORKDIR.value, which)
    embedding = run.embed(
        _INPUT.value,
        layer=_LAYER.value,
        raw=_RAW.value,
        sample_key=_SAMPLE_KEY.value or None,
        gene_table=_GENE_TABLE.value,
        min_mapped=_MIN_MAPPED.value,
        max_cells=_MAX_CELLS.value or api.MAX_CELLS,
        seed=_SEED.value,
    )
    key = f"X_{run.name}"
    h5ad.write_embedding(_INPUT.value, _OUTPUT.value, key, embedding, run.provenance, replace=_REPLACE.value)
    print(f"{_OUTPUT.value}: obsm[{key!r}], {len(embedding)} cells x {embedding.shape[1]}; {run.provenance['sample']}")


if __name__ == "__main__":
    cli.run(main)
