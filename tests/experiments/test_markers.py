"""The command of marker genes: planted markers are found, tables are read as published, mistakes are one line."""

import functools
import json
import types

import anndata
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import linen as nn

from data_pipeline import synthetic
from experiments.analyses import marker_table, markers
from experiments.pages import heat_map
from scfm_jax import api, models
from scfm_jax.types import Outputs
from tests.harness import commands

QUIET = {"say": lambda _: None}
CELLMARKER = """cell_name\tgene_name\ttissue_type\tgene_id
B cell\tMS4A1\tBlood\tENSG00000156738
B cell\tCD79A\tBlood\tENSG00000105369
B cell\tCR2\tSpleen\tENSG00000117322
Monocyte\tCD14\tBlood\tENSG00000170458
Monocyte\t\tBlood\t
"""


class PerGene(nn.Module):
    """A model of single cells that represents a gene by its own count, along a direction of its own."""

    @nn.compact
    def __call__(self, inputs, train=False):
        table = self.param("table", nn.initializers.normal(), (inputs.shape[-1], 8))
        return Outputs(cells=inputs @ table, genes=1 + inputs[..., None] * table)


def per_gene(genes: list[str]) -> api.Run:
    """Return a run of it."""

    def prepare(batch, constants, rng, *, step, train):
        slots = constants["slots"][batch.genes]
        return (jax.nn.one_hot(slots, len(genes)) * jnp.log1p(batch.counts)[..., None]).sum(2)

    module = types.ModuleType("scfm_jax.models.per_gene")
    module.prepare = prepare
    meta = {"model": "per_gene", "config": {"model": {}, "inputs": {}}, "genes": genes, "step": 0}
    return api.Run(module, PerGene(), {}, {}, meta, "a test").twin(0)


@functools.cache
def planted() -> anndata.AnnData:
    """Return cells of four types, each with 50 markers among 400 genes."""
    return synthetic.make(400, 800, batch_effect=0.1, depth=4000.0)


def known(adata: anndata.AnnData, which: int) -> pd.DataFrame:
    """Return the planted markers of a type as a table, two of five left out."""
    genes = adata.var_names[(adata.var["marker_of"] == which) & (np.arange(adata.n_vars) % 5 > 1)]
    return pd.DataFrame({"type": f"type {which}", "gene": genes, "id": ""})


def evaluate(adata: anndata.AnnData, tables: dict | None = None, **options) -> dict:
    """Return what `marking` finds for types 1 and 2."""
    tables = tables or {f"type{i}": known(adata, i) for i in (1, 2)}
    given = {"cells": 40, "top": 40, "seeds": 2} | options
    return markers.evaluate(per_gene(list(adata.var["ensembl_id"])), adata, tables, **given, **QUIET)


def of(found: dict, ranking: str, metric: str) -> list[float]:
    """Return a metric of a ranking, for each type and seed."""
    return [row[metric] for row in found["rows"] if row["ranking"] == ranking]


def test_planted_markers_are_found_beyond_their_expression():
    found = evaluate(planted())
    for ranking in ("per_gene: shift", "fold change"):
        assert min(of(found, ranking, "hits")) > 15 and max(of(found, ranking, "p")) < 1e-6, ranking
        assert min(of(found, ranking, "matched_auroc")) > 0.8 and max(of(found, ranking, "auroc_p")) < 1e-4
    assert min(of(found, "expression", "p")) > 0.01
    assert len(found["rows"]) == 2 * 2 * 8 and found["types"] == ["type0", "type1", "type2", "type3"]
    assert found["known"]["type1"]["measured"] == len(known(planted(), 1))
    tops = found["top"]["type1"]["per_gene: shift"]
    assert len(tops) == 40 and sum(gene["marker"] for gene in tops) == of(found, "per_gene: shift", "hits")[0]
    assert np.mean([planted().var.loc[gene["gene"], "marker_of"] == 1 for gene in tops]) > 0.7


@pytest.mark.slow
def test_of_shuffled_markers_nothing_is_found():
    adata, ps = planted(), []
    tables = {f"type{i}": known(adata, i) for i in (1, 2)}
    for seed in range(3):
        rng = np.random.default_rng(seed)
        order = rng.permutation(adata.var_names)
        chance = {name: table.assign(gene=order[: len(table)]) for name, table in tables.items()}
        found = evaluate(adata, chance)
        ps += of(found, "per_gene: shift", "auroc_p") + of(found, "fold change", "auroc_p")
    assert 0.25 < np.mean(ps) < 0.75 and min(ps) > 1e-3


@pytest.mark.slow
def test_the_same_seed_gives_the_same_scores():
    assert evaluate(planted(), seeds=1)["rows"] == evaluate(planted(), seeds=1)["rows"]


def test_cells_without_a_type_do_not_count():
    adata = planted().copy()
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(object).where(np.arange(adata.n_obs) % 10 > 0, None)
    found = evaluate(adata, seeds=1)
    assert found["types"] == ["type0", "type1", "type2", "type3"]
    assert found["rows"] == evaluate(adata[np.arange(adata.n_obs) % 10 > 0].copy(), seeds=1)["rows"]


def test_symbols_name_every_gene_once():
    adata = planted()[:50, :60].copy()
    adata.var["ensembl_id"] = [f"ENSG0{i:010d}" for i in range(60)]
    run = per_gene(list(adata.var["ensembl_id"]))
    adata.var_names = ["SAME", "SAME", *adata.var_names[2:]]
    with markers.h5ad.read_counts(adata) as counts:
        genes = run.gene_representations(adata, **QUIET)
        names = markers.symbols(genes, run.mapping, counts)
    assert names[:3] == ["SAME", "SAME (ENSG00000000001)", "SYN2"] and len(set(names)) == 60


def test_tables_are_read_as_published(tmp_path):
    path = tmp_path / "cellmarker.tsv"
    path.write_text(CELLMARKER)
    table = marker_table.read(path)
    assert list(marker_table.of_type(table, "B cell")["gene"]) == ["MS4A1", "CD79A", "CR2"]
    assert list(marker_table.of_type(marker_table.read(path, ["blood"]), "b cells")["gene"]) == ["MS4A1", "CD79A"]
    genes = ["CD14", "MS4A1", "ENSG00000105369", "CR2L"]
    assert list(marker_table.match(table, genes)) == [True, True, True, False]
    (tmp_path / "own.csv.gz").write_bytes(__import__("gzip").compress(b"cell_type,gene\nNK,NKG7\nNK,GNLY\n"))
    assert list(marker_table.of_type(marker_table.read(tmp_path / "own.csv.gz"), "NK cells")["gene"]) == [
        "NKG7",
        "GNLY",
    ]
    (tmp_path / "sctype.tsv").write_text("tissueType\tcellName\tgeneSymbolmore1\nBlood\tNaive B cells\tCD19, CD27,\n")
    assert list(marker_table.of_type(marker_table.read(tmp_path / "sctype.tsv"), "naive b")["gene"]) == ["CD19", "CD27"]


def test_mistakes_in_a_table_are_one_line(tmp_path):
    path = tmp_path / "cellmarker.tsv"
    path.write_text(CELLMARKER)
    with pytest.raises(ValueError, match=r"--tissue=Lung: .* has none of it; there are 'Blood', 'Spleen'"):
        marker_table.read(path, ["Lung"])
    with pytest.raises(ValueError, match=r"no markers of 'Neuron'.*--types=LABEL=NAME, there are 'B cell', 'Monocyte'"):
        marker_table.of_type(marker_table.read(path), "Neuron")
    (tmp_path / "two.tsv").write_text("kind\tgene\nB\tMS4A1\n")
    with pytest.raises(ValueError, match=r"no column for type \(cell_name.*; there are kind, gene"):
        marker_table.read(tmp_path / "two.tsv")
    (tmp_path / "own.tsv").write_text("cell_type\tgene\nB\tMS4A1\n")
    with pytest.raises(ValueError, match="has no column for the tissue; leave --tissue out"):
        marker_table.read(tmp_path / "own.tsv", ["Blood"])
    (tmp_path / "empty.tsv").write_text("")
    (tmp_path / "picture.tsv").write_bytes(bytes(range(256)))
    for name in ("empty", "picture"):
        with pytest.raises(ValueError, match="not a table of text"):
            marker_table.read(tmp_path / f"{name}.tsv")


def test_mistakes_about_types_are_one_line():
    adata = planted()
    run = per_gene(list(adata.var["ensembl_id"]))
    table = known(adata, 1)
    with pytest.raises(ValueError, match=r"--types=B: obs\['cell_type'\] has fewer than 5 such cells; there are type"):
        markers.evaluate(run, adata, {"B": table}, **QUIET)
    with pytest.raises(ValueError, match="--labels=kind: no such obs column; there are cell_type, batch"):
        markers.evaluate(run, adata, {"type1": table}, labels="kind", **QUIET)
    with pytest.raises(ValueError, match="type1: none of the 1 markers of 'B' is among the 800 genes"):
        other = pd.DataFrame({"type": ["B"], "gene": ["MS4A1"], "id": [""]})
        markers.evaluate(run, adata, {"type1": other}, cells=10, **QUIET)
    with pytest.raises(ValueError, match="too few to choose 799"):
        markers.evaluate(run, adata, {"type1": table}, cells=10, top=799, **QUIET)


def test_colours_span_what_there_is_to_see():
    assert heat_map.limits([np.array([[1, 0.62], [0.62, 1]])]) == (0.6, 1.0)
    assert heat_map.limits([np.array([[1, 0.9997], [0.9997, 1]])]) == (0.9997, 1.0)
    assert heat_map.limits([np.ones((2, 2))])[0] < 1


@pytest.mark.slow
def test_command_writes_all_or_nothing(tmp_path):
    adata = synthetic.make(80, 200, depth=3000.0)
    adata.write_h5ad(tmp_path / "x.h5ad")
    for model in ("sct", "cellplm"):
        config = models.options(model, "tiny") | {"data": {"bag": 20, "labels": []}}
        config["model"] |= {"num_downsamples": 1, "head_layers": 0} if model == "sct" else {}
        meta = {"model": model, "config": config, "genes": list(adata.var["ensembl_id"]), "classes": {}, "step": 0}
        api.build(meta, {}, {}, "a test").twin(0).export(tmp_path / f"{model}.safetensors")
    table = pd.concat([known(adata, i) for i in range(4)]).rename(columns={"type": "cell_type"})[["cell_type", "gene"]]
    table.to_csv(tmp_path / "own.tsv", sep="\t", index=False)

    def run(model: str, *types: str) -> commands.Ended:
        given = [f"--{name}={tmp_path / file}" for name, file in (("input", "x.h5ad"), ("markers", "own.tsv"))]
        given += [
            f"--workdir={tmp_path}/{model}.safetensors",
            f"--output={tmp_path}/found",
            f"--types={','.join(types)}",
        ]
        return commands.run("markers", *given, "--seeds=1", "--cells=10", "--top=12", folder=tmp_path)

    for args, text in (
        (("cellplm", "type1=type 1"), "model cellplm has no representations of the genes in a cell"),
        (("sct", "type9=type 1"), "--types=type9: obs['cell_type'] has fewer than 5 such cells; there are type"),
        (("sct", "type1"), "no markers of 'type1' in the table; write --types=LABEL=NAME, there are 'type "),
    ):
        done = run(*args)
        assert done.code == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1 and text in done.err
        assert not list(tmp_path.glob("*found*"))
    done = run("sct", "type1=type 1", "type2=type 2")
    assert done.code == 0, done.err
    files = {path.name for path in (tmp_path / "found").iterdir()}
    pictures = {f"heat_map_{i}_type{i}_{ranking}.png" for i in (1, 2) for ranking in ("summed", "shift")}
    assert files == {"markers.json", "markers.md"} | pictures and not list(tmp_path.glob(".found*"))
    assert (tmp_path / "found" / "heat_map_1_type1_shift.png").read_bytes()[:4] == b"\x89PNG"
    found = json.loads((tmp_path / "found" / "markers.json").read_text())
    assert found["model"] == "sct" and found["markers"] == "own.tsv, all tissues" and len(found["rows"]) == 16
    text = (tmp_path / "found" / "markers.md").read_text()
    assert all(f"]({name})" in text for name in pictures) and "| sct: shift |" in text
    again = run("sct", "type1=type 1")
    assert again.code == 2 and "exists already and is not overwritten" in again.err
