"""One reading of flags: every command that reads files of counts takes the same group, and errors fit the door."""

import importlib
import pathlib

import anndata
import numpy as np
import pytest
from absl import flags
from scipy import sparse

from experiments import __main__ as door
from experiments import cli
from experiments.analyses import annotation, cells, floors, imputation, pretraining_floors
from experiments.suite import entrants
from scfm_jax.api import run as api_run
from tests.harness import ROOT
from tests.harness.commands import run

FILES = {"input", "train", "test", "data", "reference"}
NO_COUNTS = {
    "report": "its --input is a file with an embedding, of which no counts are read",
    "bench": "it maps no genes, so that it takes layer, raw and round alone",
}
COMMANDS = sorted(door.commands())


def options(command):
    return importlib.import_module(f"experiments.{command}").OPTIONS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_reads_files_of_counts_takes_the_group(command):
    reads = bool(FILES & set(options(command))) and command not in NO_COUNTS
    assert reads == (set(cli.READING) <= set(options(command))), command
    code = (ROOT / f"experiments/{command}.py").read_text()
    assert not reads or "cli.reading()" in code or command == "ingest"
    for name in {"layer", "raw", "round", *(["gene_table"] * reads)} & set(options(command)):
        assert options(command)[name] == cli.SHARED[name], "one help and one default for all"


def test_the_benchmark_of_the_loader_reads_by_flags_too(files, tmp_path):
    assert {"layer", "raw", "round"} <= set(options("bench")) and "gene_table" not in options("bench")
    from data_pipeline.store.store import open_store
    from experiments.benches import loader

    store = open_store(loader.make_store(tmp_path / "s", files[:1], 1, layer="near", round=True))
    want = anndata.read_h5ad(files[0]).layers["counts"]
    assert int(store.study("0").read(0, 60).result()[1].sum()) == int(want.sum())


def test_the_commands_that_read_files_are_those_that_are_known():
    reading = {command for command in COMMANDS if set(cli.READING) <= set(options(command))}
    assert reading >= {"annotate", "class_token", "embed", "evaluate", "floors", "gene_clusters", "impute", "ingest"}
    assert reading >= {"latent_ami", "markers", "perturb", "quickstart", "transfer"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files whose X is scaled, with counts in a layer, a bit off in another, and in raw."""
    folder = tmp_path_factory.mktemp("reading")
    for i in (0, 1):
        rng = np.random.default_rng(i)
        x = rng.poisson(3, (60, 15)).astype(np.float32)
        adata = anndata.AnnData(sparse.csr_matrix(x))
        adata.var_names = [f"G{j}" for j in range(15)]
        adata.obs["cell_type"], adata.obs["donor"] = rng.choice(["a", "b"], 60), rng.choice(["D1", "D2"], 60)
        adata.raw = adata.copy()
        adata.layers["counts"], adata.layers["near"] = adata.X.copy(), adata.X * np.float32(1.001)
        adata.X = adata.X.log1p()
        adata.write_h5ad(folder / f"{i}.h5ad")
    return [str(folder / f"{i}.h5ad") for i in (0, 1)]


PLACES = [{"layer": "counts"}, {"raw": True}, {"layer": "near", "round": True}]


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_every_door_reads_the_counts_that_are_chosen(place, files, tmp_path):
    want = anndata.read_h5ad(files[0]).layers["counts"].toarray()
    genes = [f"G{i}" for i in range(15)]
    labelled = annotation.read(files[0], "cell_type", {}, place=place, say=lambda _: None)
    assert np.array_equal(labelled.X.toarray(), want)
    study = entrants.Study(files[0], **place)
    assert np.array_equal(study.counts.rows(0, 60).toarray(), want) and study.place == place
    pool = pretraining_floors.Pool.read(files[:1], genes, None, 0.5, **place)
    assert np.array_equal(pool.counts.toarray(), want)
    others, _ = imputation.reference_cells(files[:1], genes, None, 0.5, 60, **place)
    assert np.array_equal(others, want)
    asked = dict(parts=["denoising"], seeds=1, cells=20, say=lambda _: None)
    plain = floors.evaluate(files[0], layer="counts", **asked)
    assert floors.evaluate(files[0], **place, **asked)["rows"] == plain["rows"]
    model = api_run.Run(None, None, {}, {}, {"model": "m", "config": {}, "genes": genes}, "w")
    read = cells.read(model, files[0], **place, say=lambda _: None)
    assert np.array_equal(read.counts.toarray(), want)
    with pytest.raises(ValueError, match="choose with layer=counts or raw=True"):
        cells.read(model, files[0])


def test_a_plan_made_before_files_were_read_by_flags_is_the_same_plan(files, tmp_path):
    plan = annotation.Plan((files[0],), files[1], None, "cell_type", "cell_type", {}, 0, 5, 0.5, {"layer": "counts"})
    assert annotation.prepare(plan, tmp_path, say=lambda _: None) == ["a", "b"]
    other = annotation.Plan((files[0],), files[1], None, "cell_type", "cell_type", {}, 0, 5, 0.5, {"raw": True})
    with pytest.raises(ValueError, match="holds a table with another reading"):
        annotation.prepare(other, tmp_path, say=lambda _: None)


def test_the_shell_is_told_flags_and_python_is_told_options(files, tmp_path):
    ended = run("ingest", f"--input={files[0]}", f"--store={tmp_path}/s", "--workers=0", folder=tmp_path)
    assert ended.code == 1 and ended.err.rstrip().endswith("choose with --layer=counts or --raw"), ended.err
    ended = run("quickstart", f"--input={files[0]}", f"--workdir={tmp_path}/q", folder=tmp_path)
    assert ended.code == 2 and ended.err.rstrip().endswith("choose with --layer=counts or --raw"), ended.err
    ended = run("quickstart", f"--input={files[0]}", "--layer=x", "--raw", f"--workdir={tmp_path}/q", folder=tmp_path)
    assert "--layer=x and --raw exclude each other" in ended.err


def test_ingest_takes_in_the_others_and_ends_with_a_line_for_each_that_failed(files, tmp_path):
    bad = tmp_path / "bad.h5ad"
    bad.write_bytes(b"nothing")
    args = (f"--input={bad},{files[0]}", f"--store={tmp_path}/s", "--layer=near", "--round", "--workers=0")
    ended = run("ingest", *args, folder=tmp_path)
    assert ended.code == 1 and ended.err.startswith("error: bad: ") and ended.err.count("\n") == 1
    assert "rounded to whole numbers" in ended.out and "1 studies" not in ended.err
    assert (tmp_path / "s/studies/0.zarr").is_dir()
    gone = run("ingest", f"--input={files[0]},nowhere.h5ad", f"--store={tmp_path}/t", folder=tmp_path)
    assert gone.code == 2 and "--input=nowhere.h5ad: no such file" in gone.err and not (tmp_path / "t").exists()


@pytest.mark.parametrize(("command", "flag"), [("ingest", "input"), ("annotate", "train"), ("class_token", "input")])
def test_a_comma_in_a_name_is_said_to_need_quotes(command, flag, files, tmp_path):
    path = tmp_path / "GSE1,2 (final).h5ad"
    path.write_bytes(pathlib.Path(files[0]).read_bytes())
    rest = (
        [f"--store={tmp_path}/s"]
        if command == "ingest"
        else [f"--output={tmp_path}/o", "--workdir=w", f"--test={path}"]
    )
    rest = [word for word in rest if word[2:].partition("=")[0] in options(command)]
    ended = run(command, f"--{flag}={path}", *rest, folder=tmp_path)
    assert ended.code == 2 and f"""--{flag}='"{path}"'""" in ended.err, ended.err
    if command == "ingest":
        words = (f'--{flag}="{path}"', *rest, "--names=x", "--layer=counts", "--workers=0")
        assert run(command, *words, folder=tmp_path).code == 0


def test_suites_say_that_they_do_not_take_a_least_share(files, tmp_path):
    words = ("--suite=zero_shot", "--runs=r", f"--data={files[0]}", f"--output={tmp_path}/o", "--min_mapped=0.2")
    ended = run("evaluate", *words, folder=tmp_path)
    assert ended.code == 2 and "--min_mapped: is not for suites" in ended.err


@pytest.mark.parametrize("flag", ["label", "batch"])
def test_suites_refuse_a_column_that_no_file_has(flag, files, tmp_path):
    words = ("--suite=zero_shot", "--runs=r", f"--data={files[0]}", f"--output={tmp_path}/o", f"--{flag}=nowhere")
    ended = run("evaluate", *words, "--layer=counts", folder=tmp_path)
    assert ended.code == 2 and f"--{flag}=nowhere: no file of --data has this obs column" in ended.err
    assert not (tmp_path / "o" / "results.jsonl").exists()


def test_messages_keep_what_is_no_option(monkeypatch):
    values = flags.FlagValues()
    cli.define(cli.options("reading", label=(str, None, "A label.")), values)
    monkeypatch.setattr(flags, "FLAGS", values)
    monkeypatch.setattr(cli, "_ours", set(values))
    text = "choose with layer=counts or raw=True; --layer=x; f(raw=True); my.layer=3; a == b; label=kind: none"
    assert cli.in_flags(text) == (
        "choose with --layer=counts or --raw; --layer=x; f(raw=True); my.layer=3; a == b; --label=kind: none"
    )


@pytest.mark.skipif(not hasattr(flags, "FLAGS"), reason="absl")
def test_an_output_that_cannot_be_written_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=f"--output={tmp_path}/y: no permission to write in {tmp_path}"):
        cli.check_free(f"{tmp_path}/y")
