"""Every format that holds the same counts gives the same counts: of genes alone, of one genome, by every name."""

import fcntl
import gzip
import os
import shutil

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse

from data_pipeline.files.h5ad import read_counts, write_embedding
from data_pipeline.genes import vocab
from data_pipeline.store.ingest import file_sources, ingest
from data_pipeline.store.store import open_store
from data_pipeline.store.study import Settings
from scfm_jax.api import run as api_run

GENES, CELLS = 12, 30
NAMES = ["CD4", "CD19", *(f"G{i}" for i in range(GENES - 2))]
IDS = [f"ENSG{i:011d}" for i in range(GENES)]
FORMATS = ("h5ad", "zarr", "zip", "tenx", "mtx", "memory", "raw")


def counts_of(columns=GENES, seed=0):
    return np.random.default_rng(seed).poisson(2, (CELLS, columns)).astype(np.float32)


def text(path, lines, gz=False):
    with gzip.open(f"{path}.gz", "wt") if gz else open(path, "w") as file:
        file.write("".join(f"{line}\n" for line in lines))


def mtx(folder, x, features, *, prefix="", gz=True, genes="features", order="cell", field="integer", turned=False):
    """Write a 10x folder by hand: `features` are lines of the file of genes."""
    folder.mkdir(exist_ok=True)
    gene, cell = np.nonzero(x.T)
    order = {"cell": np.lexsort((gene, cell)), "gene": np.lexsort((cell, gene)), "none": np.arange(len(gene))[::-1]}[
        order
    ]
    order = np.random.default_rng(0).permutation(order) if field == "shuffled" else order
    triples = [(c, g) if turned else (g, c) for g, c in zip(gene[order] + 1, cell[order] + 1, strict=True)]
    values = x.T[gene[order], cell[order]]
    shape = f"{x.shape[0]} {x.shape[1]}" if turned else f"{x.shape[1]} {x.shape[0]}"
    head = [
        "%%MatrixMarket matrix coordinate " + ("real" if field == "real" else "integer") + " general",
        "% made by hand",
    ]
    body = [f"{a} {b} {v if field == 'real' else int(v)}" for (a, b), v in zip(triples, values, strict=True)]
    text(folder / f"{prefix}matrix.mtx", [*head, f"{shape} {len(body)}", *body], gz)
    text(folder / f"{prefix}{genes}.tsv", features, gz)
    text(folder / f"{prefix}barcodes.tsv", [f"c{i}" for i in range(len(x))], gz)
    return folder


def write(folder, how, x, names, ids, **columns):
    """Write counts in one format and return what is to be read, and how."""
    var = pd.DataFrame({"gene_ids": ids, **columns}, index=names)
    adata = anndata.AnnData(sparse.csr_matrix(x), pd.DataFrame(index=[f"c{i}" for i in range(len(x))]), var)
    if how == "memory":
        return adata, {}
    if how == "raw":
        adata.raw = adata.copy()
        adata.X = adata.X.log1p()
        adata.write_h5ad(folder / "raw.h5ad")
        return folder / "raw.h5ad", {"raw": True}
    if how == "mtx":
        kinds = columns.get("feature_types", ["Gene Expression"] * len(ids))
        return mtx(folder / "mtx", x, ["\t".join(line) for line in zip(ids, names, kinds, strict=True)]), {}
    if how == "tenx":
        with h5py.File(folder / "x.h5", "w") as file:
            group = file.create_group("matrix")
            rows = sparse.csr_matrix(x)
            group["barcodes"] = np.array([f"c{i}" for i in range(len(x))], "S")
            group["data"], group["indices"], group["indptr"] = rows.data.astype(int), rows.indices, rows.indptr
            group["shape"] = np.array(x.shape[::-1])
            features = group.create_group("features")
            features["id"], features["name"] = np.array(ids, "S"), np.array(names, "S")
            features["feature_type"] = np.array(columns.get("feature_types", ["Gene Expression"] * len(ids)), "S")
            features["genome"] = np.array(columns.get("genome", ["GRCh38"] * len(ids)), "S")
        return folder / "x.h5", {}
    path = folder / ("x.h5ad" if how == "h5ad" else "x.zarr")
    adata.write_h5ad(path) if how == "h5ad" else adata.write_zarr(path)
    if how == "zip":
        shutil.make_archive(str(folder / "z"), "zip", folder, "x.zarr")  # with the folder's name in it
        (folder / "z.zip").rename(folder / "x.zarr.zip")
        return folder / "x.zarr.zip", {}
    return path, {}


def read(source, **how):
    with read_counts(source, **how) as counts:
        return counts.rows(0, counts.n_cells).toarray(), counts.genes.tolist(), counts.notes


@pytest.mark.parametrize("how", FORMATS)
def test_an_antibody_of_a_genes_name_is_not_added_to_it(how, tmp_path):
    x, kinds = counts_of(GENES + 2), ["Gene Expression"] * GENES + ["Antibody Capture", "Peaks"]
    x[:, GENES:] += 1000
    source, options = write(tmp_path, how, x, [*NAMES, "CD4", "chr1:1-9"], [*IDS, "CD4", "p"], feature_types=kinds)
    read_x, genes, notes = read(source, **options)
    assert np.array_equal(read_x, x[:, :GENES]) and genes == NAMES
    assert any("1 Antibody Capture left out" in note for note in notes) and any("1 Peaks" in note for note in notes)


@pytest.mark.parametrize("how", FORMATS)
def test_a_file_without_gene_expression_is_refused(how, tmp_path):
    source, options = write(tmp_path, how, counts_of(), NAMES, IDS, feature_types=["Peaks"] * GENES)
    with pytest.raises(ValueError, match="no Gene Expression features; it has Peaks"):
        read_counts(source, **options)


KINDS = {
    "feature_type": (["gene expression"] * 10 + ["ADT"] * 2, 10),
    "feature_types": (["GEX"] * 9 + ["ATAC"] * 3, 9),
    "Feature_Types": (["Gene Expression"] * 9 + ["CRISPR Guide Capture"] * 2 + ["anything else"], 9),
    "feature_biotype": (["gene"] * 11 + ["spike-in"], 11),
    "modality": (["rna"] * 11 + ["prot"], 11),
    "biotype": (["protein_coding"] * 11 + ["Peaks"], 12),
}


@pytest.mark.parametrize("column", KINDS)
def test_other_ways_to_say_what_is_measured(column, tmp_path):
    kinds, genes = KINDS[column]
    source, _ = write(tmp_path, "h5ad", counts_of(), NAMES, IDS, **{column: kinds})
    assert np.array_equal(read(source)[0], counts_of()[:, :genes])


def test_biotypes_of_genes_and_missing_kinds_leave_nothing_out(tmp_path):
    kinds = ["protein_coding"] * 6 + ["lncRNA"] * 6
    source, _ = write(tmp_path, "memory", counts_of(), NAMES, IDS, feature_type=kinds)
    assert read(source)[1] == NAMES
    source.var["feature_types"] = pd.array(["Gene Expression"] * 6 + [None] * 6, "string")
    assert read(source)[1] == NAMES and not read(source)[2]


def test_normalised_antibodies_do_not_make_counts_of_genes_suspect(tmp_path):
    x = counts_of(GENES + 1)
    x[:, -1] = -0.5
    kinds = ["Gene Expression"] * GENES + ["Antibody Capture"]
    source, _ = write(tmp_path, "h5ad", x, [*NAMES, "CD4"], [*IDS, "CD4"], feature_types=kinds)
    assert np.array_equal(read(source)[0], x[:, :-1])


def test_of_mudata_gene_expression_is_read(tmp_path):
    source, _ = write(tmp_path, "memory", counts_of(), NAMES, IDS)
    with h5py.File(tmp_path / "x.h5mu", "w") as file:
        modalities = file.create_group("mod")
        for name, part in (("prot", source[:, :2].copy()), ("rna", source)):
            anndata.io.write_elem(modalities, name, part)
        for name in ("obs", "var"):
            anndata.io.write_elem(file, name, getattr(source, name))
    x, genes, notes = read(tmp_path / "x.h5mu")
    assert np.array_equal(x, counts_of()) and genes == NAMES and "left out: prot" in notes[0]
    write_embedding(tmp_path / "x.h5mu", tmp_path / "y.h5ad", "X_a", np.zeros((CELLS, 2)), {})
    assert anndata.read_h5ad(tmp_path / "y.h5ad").n_vars == GENES


@pytest.mark.parametrize("how", FORMATS)
@pytest.mark.parametrize("by", ["column", "prefix"])
def test_two_genomes_are_refused_with_the_way_out(how, by, tmp_path):
    half = GENES // 2
    names = [f"GRCh38_{n}" for n in NAMES[:half]] + [f"mm10___{n.capitalize()}" for n in NAMES[half:]]
    columns = {} if by == "prefix" or how == "mtx" else {"genome": ["GRCh38"] * half + ["mm10"] * half}
    source, options = write(tmp_path, how, counts_of(), names if not columns else NAMES, IDS, **columns)
    if how == "mtx" and by == "column":
        pytest.skip("there is no column of genomes in a 10x folder")
    with pytest.raises(
        ValueError, match=r"several genomes \(GRCh38, mm10\): give a file of one, as of adata\[:, "
    ) as error:
        read_counts(source, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("genome", ["GRCh38", "hg19", "GRCh38-2020-A"])
def test_the_way_out_of_two_genomes_works(genome, tmp_path):
    names, ids = [f"{genome}_{n}" for n in NAMES], [f"{genome}_{i}" for i in IDS]
    source, _ = write(tmp_path, "h5ad", counts_of(), names, ids, genome=[genome] * GENES)
    with read_counts(source) as counts:
        assert counts.genes.tolist() == NAMES and counts.var["gene_ids"].tolist() == IDS
        assert f"{genome}_" in counts.notes[0]


def test_one_genome_and_names_with_underscores_stay_as_they_are(tmp_path):
    names = ["RP11_34", "mm_gene", "hg", "Y_RNA", *NAMES[4:]]
    source, _ = write(tmp_path, "h5ad", counts_of(), names, IDS, genome=["GRCh38"] * (GENES - 1) + [""])
    assert read(source)[1] == names and not read(source)[2]


LINES = [f"{i}\t{n}\tGene Expression" for i, n in zip(IDS, NAMES, strict=True)]
FOLDERS = {
    "cellranger 3": (LINES, {}, NAMES),
    "starsolo, not gzipped": (LINES, {"gz": False}, NAMES),
    "cellranger 2": ([line.rpartition("\t")[0] for line in LINES], {"gz": False, "genes": "genes"}, NAMES),
    "with a prefix": (LINES, {"prefix": "GSM123_sample_"}, NAMES),
    "ids alone": (IDS, {}, IDS),
    "numbers for ids": ([str(900 + i) for i in range(GENES)], {}, [str(900 + i) for i in range(GENES)]),
    "ids and types": ([f"{i}\tGene Expression" for i in IDS], {}, IDS),
    "an empty symbol": ([f"{IDS[0]}\t\tGene Expression", *LINES[1:]], {}, [IDS[0], *NAMES[1:]]),
    "symbols like missing values": ([f"{IDS[0]}\tNA\tGene Expression", *LINES[1:]], {}, ["NA", *NAMES[1:]]),
    "six columns": ([f"{line}\tchr1\t5\t9" for line in LINES], {}, NAMES),
    "by gene": (LINES, {"order": "gene"}, NAMES),
    "in no order": (LINES, {"order": "none"}, NAMES),
    "real": (LINES, {"field": "real"}, NAMES),
    "cells first": (LINES, {"turned": True}, NAMES),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders_of_every_kind_are_read(kind, tmp_path):
    lines, options, names = FOLDERS[kind]
    folder = mtx(tmp_path / "f", counts_of(), lines, **options)
    x, genes, _ = read(folder)
    assert np.array_equal(x, counts_of()) and genes == names
    if options.get("prefix"):
        matrix = folder / f"{options['prefix']}matrix.mtx.gz"
        assert np.array_equal(read(matrix)[0], counts_of())
        assert file_sources([str(matrix)])[0].name == "GSM123_sample"
        assert file_sources([str(matrix)])[0].identity()["bytes"] == sum(p.stat().st_size for p in folder.iterdir())


def test_a_folder_that_is_not_whole_says_what_is_missing(tmp_path):
    one = mtx(tmp_path / "one", counts_of(), LINES)
    (one / "features.tsv.gz").rename(one / "feature.tsv.gz")
    with pytest.raises(
        OSError, match=r"no features.tsv or genes.tsv \(or .gz\) beside matrix.mtx.gz, but barcodes.tsv.gz"
    ):
        read_counts(one)
    two = mtx(mtx(tmp_path / "two", counts_of(), LINES, prefix="a_"), counts_of(), LINES, prefix="b_")
    with pytest.raises(ValueError, match=r"several matrices: give one of the files instead: a_matrix.mtx.gz, b_matrix"):
        read_counts(two)
    with pytest.raises(ValueError, match="but one, two in it are: give one"):
        read_counts(tmp_path)
    short = mtx(tmp_path / "short", counts_of(), LINES[:-1])
    with pytest.raises(ValueError, match=r"features.tsv.gz lists 11 genes and barcodes.tsv.gz 30 cells"):
        read_counts(short)
    for name, change in (
        ("cut", lambda lines: lines[:-3]),
        ("more", lambda lines: [*lines, "1 1 1"]),
        ("outside", lambda lines: [*lines[:-1], "99 1 1"]),
        ("text", lambda lines: [*lines[:-1], "1 1 x"]),
        ("dense", lambda lines: ["%%MatrixMarket matrix array integer general", *lines[1:]]),
        ("nothing", lambda lines: []),
    ):
        bad = mtx(tmp_path / name, counts_of(), LINES, gz=False)
        lines = (bad / "matrix.mtx").read_text().splitlines()
        text(bad / "matrix.mtx", change(lines))
        with pytest.raises(ValueError, match=r"\A[^\n]*matrix.mtx: not a whole matrix: [^\n]+\Z"):
            read_counts(bad)


def test_two_genes_of_one_symbol_are_summed_by_symbol_and_apart_by_id(tmp_path):
    names = [*NAMES[:-1], NAMES[0]]
    x = counts_of()
    for how in ("mtx", "tenx", "h5ad"):
        source, _ = write(tmp_path, how, x, names, IDS)
        with read_counts(source) as counts:
            second = vocab.second_names(counts.var)
            by_symbol = vocab.map_genes(counts.genes, NAMES[:-1], ensembl=second).apply(counts.rows(0, CELLS))
            by_id = vocab.map_genes(counts.genes, IDS, ensembl=second).apply(counts.rows(0, CELLS))
        assert np.array_equal(by_symbol.toarray()[:, 0], x[:, 0] + x[:, -1]) and np.array_equal(by_id.toarray(), x)


def test_tables_without_marks_of_their_encoding_are_read(tmp_path):
    """SeuratDisk: groups with the name of their index and no more, in raw too, and factors in __categories."""
    source, _ = write(tmp_path, "memory", counts_of(), NAMES, IDS)
    source.raw = source.copy()
    source.obs["kind"] = pd.Categorical(["b", "a", None] * (CELLS // 3))
    source.write_h5ad(tmp_path / "x.h5ad")
    with h5py.File(tmp_path / "x.h5ad", "r+") as file:
        for place in ("var", "raw/var"):
            del file[place]
            file[f"{place}/_index"], file[f"{place}/gene_ids"] = NAMES, IDS
            file[place].attrs["_index"] = "_index"
        file["raw"].attrs.clear()
        codes = file["obs/kind/codes"][:]
        del file["obs/kind"]
        file["obs/kind"], file["obs/__categories/kind"] = codes, ["a", "b"]
        for name in ("encoding-type", "encoding-version", "column-order"):
            del file["obs"].attrs[name]
    for options in ({}, {"raw": True}):
        with read_counts(tmp_path / "x.h5ad", **options) as counts:
            assert counts.genes.tolist() == NAMES and counts.var["gene_ids"].tolist() == IDS
            assert counts.obs["kind"].astype(object).where(counts.obs["kind"].notna(), None).tolist()[:3] == [
                "b",
                "a",
                None,
            ]
            assert counts.obs.index.tolist()[:2] == ["c0", "c1"]
    with h5py.File(tmp_path / "x.h5ad", "r+") as file:
        del file["var/_index"], file["var"].attrs["_index"]
    with pytest.raises(ValueError, match="no column _index with the names of its rows; there are gene_ids"):
        read_counts(tmp_path / "x.h5ad")


def test_a_file_that_is_open_elsewhere_says_so(tmp_path):
    source, _ = write(tmp_path, "h5ad", counts_of(), NAMES, IDS)
    with open(source, "rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=r"is open elsewhere.*close it there, or set HDF5_USE_FILE_LOCKING=FALSE"):
            read_counts(source)
    assert np.array_equal(read(source)[0], counts_of())


@pytest.mark.parametrize(("name", "says"), [("x.h5ad.gz", "gunzip it first"), ("x.tar.gz", "tar -xzf it first")])
def test_compressed_files_say_how_to_unpack_them(name, says, tmp_path):
    source, _ = write(tmp_path, "h5ad", counts_of(), NAMES, IDS)
    (tmp_path / name).write_bytes(gzip.compress(source.read_bytes()))
    with pytest.raises(ValueError, match=says):
        read_counts(tmp_path / name)
    shutil.make_archive(str(tmp_path / "y"), "zip", tmp_path, "x.h5ad")
    with pytest.raises(ValueError, match="without a zarr group in it: unzip it"):
        read_counts(tmp_path / "y.zip")


def test_a_zip_file_is_embedded_and_ingested_as_the_folder_in_it(tmp_path):
    source, _ = write(tmp_path, "zip", counts_of(), NAMES, IDS)
    write_embedding(source, tmp_path / "y.h5ad", "X_a", np.zeros((CELLS, 2)), {})
    assert np.array_equal(anndata.read_h5ad(tmp_path / "y.h5ad").X.toarray(), counts_of())
    assert not ingest(file_sources([str(source)]), tmp_path / "store", workers=0, say=lambda _: None)
    assert open_store(tmp_path / "store").studies == ["x"]


def test_matrices_compressed_with_a_plug_in_say_so(tmp_path):
    source, _ = write(tmp_path, "h5ad", counts_of(), NAMES, IDS)
    with h5py.File(source, "r+") as file:
        data = file["X/data"][:]
        del file["X/data"]
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((len(data),))
        properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))  # Zstandard
        space = h5py.h5s.create_simple((len(data),))
        h5py.h5d.create(file["X"].id, b"data", h5py.h5t.NATIVE_FLOAT, space, properties)
    if h5py.h5z.filter_avail(32015):
        pytest.skip("the plug-in is installed here")
    with pytest.raises(
        ValueError, match=r"X/data is compressed with Zstandard, a plug-in of HDF5: pip install hdf5plugin"
    ):
        read_counts(source)


# ------------------------------------------------------------------------------------------ whole numbers and rounding


def deep(n=60):
    """Counts of depths that no sample of a few would mistake."""
    return np.random.default_rng(3).poisson(4, (n, 20)).astype(np.float32)


FRACTIONS = {
    "an ulp off": (lambda d: np.nextafter(d, np.float32(9e9)), "rounding error", True),
    "a factor": (lambda d: d * np.float32(1.0019583), "rounding error", True),
    "undone logarithms": (lambda d: np.expm1(np.log1p(d)) + np.float32(1e-6) * (d > 0), "rounding error", True),
    "estimated": (lambda d: d + np.float32(0.33) * (np.arange(d.size).reshape(d.shape) % 50 == 7), "RSEM", True),
    "corrected": (lambda d: d * np.random.default_rng(0).uniform(0.7, 1, d.shape).astype(np.float32), "SoupX", True),
    "logarithms": (np.log1p, "looks log-transformed", False),
    "logarithms of depths": (lambda d: np.log1p(d / d.sum(1, keepdims=True) * 1e4), "looks log-transformed", False),
    "base 2": (lambda d: np.log2(d / d.sum(1, keepdims=True) * 1e4 + 1), "looks log-transformed", False),
    "per ten thousand": (lambda d: d / d.sum(1, keepdims=True) * 1e4, "looks normalised", False),
}


@pytest.mark.parametrize("kind", FRACTIONS)
def test_what_is_not_whole_is_told_apart_and_rounding_is_offered(kind, tmp_path):
    change, looks, offered = FRACTIONS[kind]
    adata = anndata.AnnData(sparse.csr_matrix(change(deep()).astype(np.float32)))
    with pytest.raises(ValueError, match=looks) as error:
        read_counts(adata)
    assert ("round=True" in str(error.value)) == offered
    number = str(error.value).partition("not an integer: ")[2].split(",")[0]
    assert float(number) != round(float(number)), "the number that is shown must not look whole"
    if offered:
        assert "of its values are whole" in str(error.value)
        with read_counts(adata, round=True) as counts:
            block = counts.rows(0, counts.n_cells)
            assert np.array_equal(block.toarray(), np.rint(change(deep()))) and (block.data > 0).all()
            assert counts.round and "X rounded to whole numbers" in counts.notes[0]
    elif looks.endswith("transformed"):
        with pytest.raises(ValueError, match="round=True gives no counts"):
            read_counts(adata, round=True)


@pytest.mark.parametrize("value", [-2.5, np.nan, np.inf, 1e12])
def test_rounding_makes_no_counts_of_what_is_none(value):
    x = deep()
    x[5, 5] = value
    with pytest.raises(ValueError, match="does not hold raw counts"):
        read_counts(anndata.AnnData(sparse.csr_matrix(x)), round=True)


def test_rounding_is_written_into_the_store(tmp_path):
    cells = anndata.AnnData(sparse.csr_matrix(deep() * np.float32(1.0001)))
    cells.var_names = [f"G{i}" for i in range(cells.n_vars)]
    cells.write_h5ad(tmp_path / "x.h5ad")
    said = []
    sources = file_sources([str(tmp_path / "x.h5ad")])
    assert not ingest(
        sources, tmp_path / "s", workers=0, say=said.append, settings=Settings(round=True, min_mapped=None)
    )
    study = open_store(tmp_path / "s").study("x")
    assert study.record["settings"]["round"] is True and "rounded to whole numbers" in study.record["notes"][0]
    assert "\n".join(said).count("rounded to whole numbers") == 1
    assert int(study.read(0, 60).result()[1].sum()) == int(deep().sum())
    with pytest.raises(ValueError, match="round True -> None"):
        ingest(sources, tmp_path / "s", workers=0, say=said.append, settings=Settings())


def test_rounding_is_written_into_an_embeddings_provenance():
    with read_counts(anndata.AnnData(sparse.csr_matrix(deep() * np.float32(1.0001))), round=True) as counts:
        genes = counts.genes.tolist()
        run = api_run.Run(None, None, {}, {}, {"model": "m", "config": {}, "genes": genes}, "w")
        run.mapping = vocab.map_genes(genes, genes)
        made = run._provenance(counts, run.mapping, "one sample", 3)
    assert made["rounded"] is True and "rounded to whole numbers" in made["notes"]


# ------------------------------------------------------------------------------------------ obs and read-only folders


def test_obs_columns_with_slashes_beside_those_without(tmp_path):
    source, _ = write(tmp_path, "memory", counts_of(), NAMES, IDS)
    source.obs["QC_pass"], source.obs["a_b"] = ["yes"] * CELLS, range(CELLS)
    source.write_h5ad(tmp_path / "x.h5ad")
    with h5py.File(tmp_path / "x.h5ad", "r+") as file:
        anndata.io.write_elem(file["obs"].create_group("QC"), "pass", np.array(["no"] * CELLS, object))
        file["obs/a/b"], file["obs/c/d"] = np.arange(CELLS) + 100, np.arange(CELLS)
        file["obs"].attrs["column-order"] = [*file["obs"].attrs["column-order"], "QC/pass", "a/b", "c/d"]
    said = []
    assert not ingest(file_sources([str(tmp_path / "x.h5ad")]), tmp_path / "s", workers=0, say=said.append)
    study = open_store(tmp_path / "s").study("x")
    assert set(study.obs["QC_pass"]) == {"yes"} and set(study.obs["QC_pass_2"]) == {"no"}
    assert study.obs["a_b"].max() == CELLS - 1 and study.obs["a_b_2"].min() == 100 and "c_d" in study.obs
    assert study.record["renamed"] == {"QC/pass": "QC_pass_2", "a/b": "a_b_2", "c/d": "c_d"}
    assert "obs column 'QC/pass' is called 'QC_pass_2'" in said[0]


@pytest.mark.slow
def test_five_hundred_obs_columns_are_taken_in(tmp_path):
    source, _ = write(tmp_path, "memory", counts_of(), NAMES, IDS)
    columns = {f"column {i}": np.arange(CELLS) * i if i % 2 else pd.Categorical([f"v{i}"] * CELLS) for i in range(500)}
    source.obs = pd.DataFrame(columns, index=source.obs_names)
    source.write_h5ad(tmp_path / "x.h5ad")
    assert not ingest(file_sources([str(tmp_path / "x.h5ad")]), tmp_path / "s", workers=0, say=lambda _: None)
    assert open_store(tmp_path / "s").study("x").obs.shape == (CELLS, 500)


@pytest.mark.parametrize("how", ["h5ad", "zarr", "mtx"])
def test_read_only_inputs_are_read(how, tmp_path):
    source, _ = write(tmp_path, how, counts_of(), NAMES, IDS)
    paths = [source, *(source.rglob("*") if source.is_dir() else ())]
    for path in paths:
        os.chmod(path, 0o555 if path.is_dir() else 0o444)
    os.chmod(tmp_path, 0o555)
    try:
        assert np.array_equal(read(source)[0], counts_of())
    finally:
        os.chmod(tmp_path, 0o755)
        for path in paths:
            os.chmod(path, 0o755)


def test_zarr_of_both_formats_is_read(tmp_path):
    source, _ = write(tmp_path, "memory", counts_of(), NAMES, IDS)
    for version in (2, 3):
        with anndata.settings.override(zarr_write_format=version):
            source.write_zarr(tmp_path / f"{version}.zarr")
        assert zarr.open_group(tmp_path / f"{version}.zarr", mode="r").metadata.zarr_format == version
        assert np.array_equal(read(tmp_path / f"{version}.zarr")[0], counts_of())
