"""Many files become one store: the same whoever writes it and however often it is killed; what fails, fails alone."""

import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from data_pipeline.files.whole import checksum, files
from data_pipeline.store import manifest as ledger
from data_pipeline.store.ingest import file_sources, ingest, read_vocabulary
from data_pipeline.store.store import open_store, verify
from data_pipeline.store.study import Settings
from tests.conftest import SHARED, needs_shared
from tests.harness import ROOT, commands


def write_file(path, seed, n_cells=120, genes=range(60)):
    rng = np.random.default_rng(seed)
    counts = sp.csr_matrix(rng.poisson(0.5, (n_cells, len(genes))).astype(np.float32))
    obs = pd.DataFrame({"batch": rng.choice(["x", "y"], n_cells)}, index=[f"c{i}" for i in range(n_cells)])
    var = pd.DataFrame({"ensembl_id": [f"ENSG{i:011d}" for i in genes]}, index=[f"GENE{i}" for i in genes])
    adata = ad.AnnData(counts, obs, var, obsm={"spatial": rng.random((n_cells, 2))} if seed % 2 else {})
    adata.write_h5ad(path)
    return adata


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Four studies whose genes overlap, as files."""
    folder = tmp_path_factory.mktemp("inputs")
    for i in range(4):
        write_file(folder / f"study{i}.h5ad", i, n_cells=100 + 10 * i, genes=range(10 * i, 10 * i + 50))
    return sorted(map(str, folder.iterdir()))


def take(inputs, store, **options):
    """Ingest in this process, silently."""
    settings = Settings(**options.pop("settings", {"group_by": "batch"}))
    options = {"workers": 0, "say": lambda _: None} | options
    return ingest(file_sources(inputs), store, settings=settings, **options)


def contents(path):
    """Return every stored byte by file name, and what the manifest says besides dates and times."""
    manifest = ledger.read(path)
    for record in manifest["studies"].values():
        record.pop("date"), record.pop("seconds")
    manifest.pop("crc32c")
    manifest["studies"] = dict(sorted(manifest["studies"].items()))
    stored = {name: (path / "studies" / name).read_bytes() for name in files(path / "studies")}
    return manifest, stored, (path / "genes.tsv").read_bytes()


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "store"
    assert take(inputs, path) == {}
    return path


def test_the_union_of_all_genes_is_the_vocabulary(whole, inputs):
    store = open_store(whole)
    assert store.studies == ["study0", "study1", "study2", "study3"]
    assert store.genes == [f"ENSG{i:011d}" for i in range(80)]
    assert store.second_names == [f"GENE{i}" for i in range(80)]
    for i, path in enumerate(inputs):
        source, study = ad.read_h5ad(path), store.study(i)
        np.testing.assert_array_equal(np.flatnonzero(study.measured), range(10 * i, 10 * i + 50))
        stored = ad.read_zarr(study.path)[source.obs_names, source.var["ensembl_id"]]
        assert (stored.X != source.X).nnz == 0
        assert study.record["source"]["file"] == f"study{i}.h5ad"
        assert study.record["source"]["crc32c"] == checksum(pathlib.Path(path))
        assert (study.coords is not None) == bool(i % 2)


@pytest.mark.slow
def test_dask_writes_the_same_store(whole, inputs, tmp_path):
    assert take(inputs, tmp_path / "store", workers=2) == {}
    assert contents(tmp_path / "store") == contents(whole)


@pytest.mark.slow
def test_a_given_scheduler_is_used(whole, inputs, tmp_path):
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        assert take(inputs, tmp_path / "store", scheduler=cluster.scheduler_address) == {}
    assert contents(tmp_path / "store") == contents(whole)
    with pytest.raises(OSError, match="is a Dask scheduler running there"):
        take(inputs, tmp_path / "other", scheduler="nonsense")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("way", ["a/../store", "./store/", "~/store"])
def test_the_way_that_a_store_is_called_by_does_not_matter(inputs, tmp_path, monkeypatch, way):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not take(inputs[:1], way)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "store"]
    assert open_store(way).study("study0").n_cells == 100 and verify(way) == []


def test_a_second_ingest_keeps_what_is_there(whole, inputs):
    before, said = contents(whole), []
    assert take(inputs, whole, say=said.append) == {}
    assert [line for line in said if "already in the store" in line] == said and len(said) == 4
    assert contents(whole) == before


def test_other_settings_for_a_stored_study_are_refused(whole, inputs):
    before = contents(whole)
    with pytest.raises(ValueError, match=r"'study0' is in the store already.*min_genes 1 -> 5.*--names"):
        take(inputs, whole, settings={"group_by": "batch", "min_genes": 5})
    with pytest.raises(ValueError, match="another source"):
        ingest(file_sources(inputs[1:2], ["study0"]), whole, settings=Settings(group_by="batch"), workers=0)
    assert contents(whole) == before


def test_studies_added_later_append_their_genes(whole, inputs, tmp_path):
    for n in (1, 3, 4):
        assert take(inputs[:n], tmp_path / "store") == {}
        assert len(open_store(tmp_path / "store").genes) == 40 + 10 * n
    late, at_once = open_store(tmp_path / "store"), open_store(whole)
    assert late.genes == at_once.genes and late.studies == at_once.studies
    for name in late.studies:
        for mine, theirs in zip(
            late.study(name).read(0, 90).result(), at_once.study(name).read(0, 90).result(), strict=True
        ):
            np.testing.assert_array_equal(mine, theirs)
    assert late.study(0).measured.shape == (80,)
    assert verify(tmp_path / "store") == []


def die_at(module, name, calls, store, inputs):
    """Ingest, and kill this process when it calls a function of a module after so many calls of it."""
    module = importlib.import_module(module)
    original, left = getattr(module, name), iter(range(calls))

    def die_then(*args, **kwargs):
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(module, name, die_then)
    take(inputs, store)


@pytest.mark.parametrize(
    ("module", "function", "calls"),
    [
        ("data_pipeline.store.manifest", "write", 0),  # before the store is one
        ("os", "replace", 0),  # its first manifest has another name yet
        ("data_pipeline.store.manifest", "write_file", 1),  # before the vocabulary is written
        ("data_pipeline.store.manifest", "write", 1),  # the vocabulary is written, the manifest does not know
        ("data_pipeline.store.study", "_write_counts", 1),  # between counting and writing the second study
        ("data_pipeline.store.study", "checksums", 2),  # the third study is written and not committed
        ("data_pipeline.files.whole", "sync_folder", 20),  # amid the flushing of a study
        ("data_pipeline.store.manifest", "write", 4),  # a study is moved in place, the manifest does not know
    ],
)
def test_a_killed_ingest_resumes_to_the_same_store(whole, inputs, tmp_path, module, function, calls):
    path = tmp_path / "store"
    killed = commands.call(die_at, module, function, calls, path, inputs, folder=tmp_path)
    assert killed.code == -signal.SIGKILL, killed.err
    if (path / "manifest.json").exists():
        open_store(path)
        assert all("not in the manifest" in line for line in verify(path))
    assert take(inputs, path) == {}
    assert contents(path) == contents(whole)
    assert verify(path) == [] and sorted(os.listdir(path)) == [".lock", "genes.tsv", "manifest.json", "studies"]


@pytest.mark.slow
def test_the_command_killed_at_any_moment_resumes(whole, inputs, tmp_path):
    """SIGKILL of the whole command, its Dask workers with it, at moments spread over its run; then the same command."""
    arguments = [f"--input={','.join(inputs)}", "--group_by=batch", "--workers=2"]
    for i, seconds in enumerate((2.5, 4, 5.5)):
        path = tmp_path / str(i)
        line = [sys.executable, "-m", "experiments.ingest", *arguments, f"--store={path}"]
        process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.kill()
        process.wait()
        if (path / "manifest.json").exists():
            open_store(path)
    done = commands.run("ingest", *arguments, f"--store={path}", folder=tmp_path)
    assert done.code == 0, done.err
    assert contents(path) == contents(whole)
    for i in range(2):
        assert take(inputs, tmp_path / str(i)) == {}
        assert contents(tmp_path / str(i)) == contents(whole)


def test_a_study_that_fails_leaves_the_others_alone(inputs, tmp_path):
    (tmp_path / "broken.h5ad").write_bytes(pathlib.Path(inputs[0]).read_bytes()[:5000])
    log = ad.read_h5ad(inputs[1])
    log.X = log.X.log1p()
    log.write_h5ad(tmp_path / "log.h5ad")
    ungrouped = ad.read_h5ad(inputs[1])
    del ungrouped.obs["batch"]
    ungrouped.write_h5ad(tmp_path / "ungrouped.h5ad")
    bad = [str(tmp_path / name) for name in ("broken.h5ad", "log.h5ad", "ungrouped.h5ad")]
    store = tmp_path / "store"
    arguments = [f"--input={','.join([*bad, *inputs[:2]])}", f"--store={store}", "--group_by=batch", "--workers=0"]
    done = commands.run("ingest", *arguments, folder=tmp_path)
    assert done.code == 1
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert [line.split(":")[1].strip() for line in errors] == ["broken", "log", "ungrouped"]
    assert "truncated" in errors[0] and "raw counts" in errors[1] and "no obs column 'batch'" in errors[2]
    assert "Traceback" not in done.err
    assert open_store(store).studies == ["study0", "study1"]
    assert verify(store) == [] and not (store / ledger.PARTIAL).exists()
    assert "study0" in done.out and "of the store's" in done.out


def test_names_and_inputs_are_checked_before_anything_is_written(inputs, tmp_path):
    with pytest.raises(FileNotFoundError, match="no-such-file"):
        file_sources([*inputs, "no-such-file.h5ad"])
    with pytest.raises(ValueError, match=r"two inputs would be study 'a'.*--names"):
        file_sources(inputs[:2], ["a", "a"])
    with pytest.raises(ValueError, match="1 names for 2 inputs"):
        file_sources(inputs[:2], ["a"])
    with pytest.raises(ValueError, match="study name 'a b'"):
        file_sources(inputs[:1], ["a b"])
    assert [source.name for source in file_sources(inputs[:2], ["a", "b"])] == ["a", "b"]


def test_a_vocabulary_is_a_list_or_a_table(inputs, tmp_path):
    (tmp_path / "list.txt").write_text("GENE5\nGENE1\nOTHER\n")
    (tmp_path / "table.tsv").write_text("ensembl_gene_id\tsymbol\nENSG00000000005\tGENE5\n\tGENE1\n")
    assert read_vocabulary(str(tmp_path / "list.txt")) == ([("GENE5", ""), ("GENE1", ""), ("OTHER", "")], False)
    assert read_vocabulary(str(tmp_path / "table.tsv")) == ([("ENSG00000000005", "GENE5"), ("GENE1", "")], True)
    assert take(inputs[:1], tmp_path / "store", vocabulary=str(tmp_path / "list.txt")) == {}
    store = open_store(tmp_path / "store")
    assert store.genes == ["GENE5", "GENE1", "OTHER"]
    assert store.study(0).measured.tolist() == [True, True, False]
    loose = {"group_by": "batch", "min_mapped": None}
    assert take(inputs[:2], tmp_path / "store", settings=loose).keys() == {"study1"}, "none of its genes is in the list"
    assert open_store(tmp_path / "store").genes == ["GENE5", "GENE1", "OTHER"], "a given vocabulary does not grow"
    (tmp_path / "longer.txt").write_text("GENE5\nGENE1\nOTHER\nGENE50\n")
    assert take(inputs[:2], tmp_path / "store", settings=loose, vocabulary=str(tmp_path / "longer.txt")) == {}
    assert open_store(tmp_path / "store").genes[-1] == "GENE50"


def test_genes_of_a_list_have_the_second_names_that_the_studies_or_a_table_know(inputs, tmp_path):
    asked = [f"ENSG{i:011d}" for i in (3, 40, 55, 999, 1000)]
    (tmp_path / "list.txt").write_text("\n".join(asked) + "\n")
    (tmp_path / "table.tsv").write_text(f"ensembl_gene_id\tsymbol\n{asked[3]}\tBEYOND\n")
    options = {"vocabulary": str(tmp_path / "list.txt"), "tables": [str(tmp_path / "table.tsv")]}
    assert take(inputs[:2], tmp_path / "store", settings={"min_mapped": None}, **options) == {}
    store = open_store(tmp_path / "store")
    assert store.genes == asked and store.second_names == ["GENE3", "GENE40", "GENE55", "BEYOND", ""]


def test_symbols_and_ids_meet_in_one_gene_and_nameless_ones_in_none(inputs, tmp_path):
    symbols = ad.read_h5ad(inputs[0])
    del symbols.var["ensembl_id"]
    symbols.var_names = ["", *symbols.var_names[1:]]
    symbols.write_h5ad(tmp_path / "symbols.h5ad")
    for order in ((0, 1), (1, 0)):
        files = [[inputs[0], str(tmp_path / "symbols.h5ad")][i] for i in order]
        for file in files:
            assert take([file], tmp_path / str(order)) == {}
        store = open_store(tmp_path / str(order))
        assert len(store.genes) == 50 and "" not in store.genes
        counts = []
        for name in ("study0", "symbols"):
            study = ad.read_zarr(store.study(name).path)
            gene = store.genes.index("ENSG00000000007" if "ENSG00000000007" in store.genes else "GENE7")
            counts.append(np.sort(study.X[:, [gene]].toarray().ravel()))
            assert store.study(name).measured[gene]
        np.testing.assert_array_equal(*counts)
        assert store.study("symbols").measured.sum() == 49


@pytest.mark.slow
def test_ctrl_c_ends_in_one_line_and_a_store(inputs, tmp_path):
    many = inputs * 12  # enough to be in the middle of it when the first is done
    names = ",".join(f"study{i}" for i in range(len(many)))
    line = [sys.executable, "-m", "experiments.ingest", f"--input={','.join(many)}", f"--names={names}"]
    line.append(f"--store={tmp_path / 'store'}")
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen([*line, "--workers=2"], cwd=ROOT, **options)
    assert "study" in process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    *progress, last = errors.splitlines()
    assert process.returncode == 130 and last.startswith("interrupted: ")
    assert all(line.startswith("took in study ") for line in progress), "a slow machine tells how far it is"
    assert verify(tmp_path / "store") == [] and open_store(tmp_path / "store").studies


def test_only_one_ingest_writes_at_a_time(whole, inputs):
    with ledger.writing(whole), pytest.raises(ValueError, match="another ingest is writing"):
        take(inputs, whole)


def test_a_full_disk_is_one_line_and_leaves_the_store_whole(whole, inputs, tmp_path):
    """Files may not grow beyond 30 kB, as on a disk with a quota."""
    big = write_file(tmp_path / "big.h5ad", 0, 3000)
    assert big.X.nnz > 30_000
    store = tmp_path / "store"
    assert take(inputs[:1], store) == {}
    before = contents(store)
    arguments = [f"--input={tmp_path / 'big.h5ad'}", f"--store={store}", "--group_by=batch", "--workers=0"]
    done = commands.run("ingest", *arguments, folder=tmp_path, limit_bytes=30_000)
    assert done.code == 1
    assert len(done.err.strip().splitlines()) == 1 and done.err.startswith("error: big: ")
    after = contents(store)
    assert after[1:] == before[1:] and after[0]["studies"] == before[0]["studies"]
    assert verify(store) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--store=s"], "--input and --store"),
        (["--input={input}"], "--input and --store"),
        (["--input=nowhere.h5ad", "--store={tmp}/s"], "nowhere.h5ad: no such file"),
        (["--input={input}", "--store={input}"], "a file, not a folder"),
        (["--input={input}", "--store=/proc/store"], "/proc/store"),
        (["--input={input}", "--store={tmp}/s", "--vocab=nowhere.tsv"], "nowhere.tsv"),
        (["--input={input}", "--store={tmp}/s", "--min_genes=-1"], "min_genes"),
        (["--input={input}", "--store={tmp}/s", "--mingenes=1"], "mingenes"),
        (["--verify={tmp}/nowhere"], "no such store"),
        (["--verify={tmp}"], "not a store"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(inputs, tmp_path, arguments, message):
    place = tmp_path / "place"
    place.mkdir()
    filled = [text.format(input=inputs[0], tmp=place) for text in arguments]
    done = commands.run("ingest", *filled, folder=tmp_path)
    assert done.code == 2
    assert done.err.startswith("error: ") and len(done.err.strip().splitlines()) == 1, done.err
    assert message in done.err
    assert not list(place.iterdir())


def test_long_loops_pass_all_they_do_through_the_caller(inputs, tmp_path):
    done = {}

    def progress(items, what, total):
        for number, item in enumerate(items, 1):
            done[what] = f"{number} of {total}"
            yield item

    write_file(tmp_path / "large.h5ad", 9, n_cells=4100)
    assert take([inputs[0], str(tmp_path / "large.h5ad")], tmp_path / "store", progress=progress) == {}
    assert done == {
        "took in study": "2 of 2",
        "study0: read block": "1 of 1",
        "study0: wrote block": "1 of 1",
        "large: read block": "2 of 2",
        "large: wrote block": "1 of 1",
    }
    assert verify(tmp_path / "store", progress) == []
    number = sum(len(record["files"]) for record in ledger.read(tmp_path / "store")["studies"].values())
    assert done["checked file"] == f"{number} of {number}"


def test_the_command_verifies(whole, inputs, tmp_path):
    done = commands.run("ingest", f"--verify={whole}", folder=tmp_path)
    assert done.code == 0 and "whole: 4 studies" in done.out
    damaged = tmp_path / "store"
    assert take(inputs[:1], damaged) == {}
    place = damaged / "studies/study0.zarr/X/indices/c/0"
    place.write_bytes(place.read_bytes()[:-1])
    done = commands.run("ingest", f"--verify={damaged}", folder=tmp_path)
    assert done.code == 1
    assert done.err.strip() == "damaged: studies/study0.zarr/X/indices/c/0: damaged (its checksum differs)"


@needs_shared
@pytest.mark.slow
def test_real_studies_come_back(tmp_path):
    files = [SHARED / "data" / name for name in ("cells/pbmc_10x_3chem.h5ad", "spatial/paired_breast_visium.h5ad")]
    assert take(list(map(str, files)), tmp_path / "store") == {}
    store = open_store(tmp_path / "store")
    for i, path in enumerate(files):
        source, study = ad.read_h5ad(path), store.study(i)
        stored = ad.read_zarr(study.path)
        assert set(source.obs) <= set(stored.obs)
        order = pd.Index(source.obs_names).get_indexer(stored.obs_names)
        totals = np.asarray(source.X.sum(axis=1)).ravel()
        np.testing.assert_array_equal(np.asarray(stored.X.sum(axis=1)).ravel(), totals[order])
        assert json.dumps(study.record["mapping"]) and study.record["mapping"]["unknown"] == 0
    chemistry = ad.read_zarr(store.study(0).path)
    measured = [column for column in chemistry.var if column.startswith("measured_")]
    assert len(measured) == 3 and (chemistry.var[measured].any(axis=1) <= chemistry.var["measured"]).all()
    row, table = store.study(0).panels
    assert len(table) == 4 and row.min() == 1, "every batch says what it measured"
    for panel, genes in enumerate(table[:, : chemistry.n_vars]):
        assert not chemistry.X[row == panel][:, ~genes].nnz, "a count of a gene that was not measured"
    assert os.path.getsize(tmp_path / "store/manifest.json") < 1 << 20
