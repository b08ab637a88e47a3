"""The table of predicted drug responses: planted effects, a table that was killed, runs and twins, bad input."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from experiments.analyses import drug_response as analysis
from experiments.analyses import drug_table
from experiments.analyses.drug_data import Plan, prepare, read, rounds
from tests.harness import commands, suites

pytest.importorskip("rdkit", reason="RDKit reads SMILES: pip install 'scfm_jax[chem]'")
QUIET = {"say": lambda _: None}
SMILES = ["C" * n + end for n in (1, 3, 5, 7) for end in ("O", "N", "c1ccccc1")] + ["CCO.Cl"]
LINES = [f"L{i}" for i in range(20)]


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """Return the plan of 13 drugs, the first under two ids, in 20 lines; drug by line effects grow with one gene."""
    folder, rng = tmp_path_factory.mktemp("drugs"), np.random.default_rng(0)
    z = rng.normal(size=(20, suites.V))
    pd.DataFrame(z, LINES, suites.GENES).rename_axis("depMapID").to_csv(folder / "z.tsv", sep="\t")
    drugs = pd.DataFrame({"drug": [f"D{i}" for i in range(14)], "smiles": [*SMILES, SMILES[0]]})
    drugs.to_csv(folder / "drugs.tsv", sep="\t", index=False)
    drug, line = np.repeat(np.arange(14), 20), np.tile(np.arange(20), 14)
    level, slope = rng.normal(0, 3, 14), rng.normal(0, 1, 14)
    y = level[drug] + rng.normal(size=20)[line] + slope[drug] * z[line, 0]
    frame = {"drug": drugs.drug[drug].to_numpy(), "depMapID": np.array(LINES)[line], "ln_ic50": y}
    pd.DataFrame(frame).sample(frac=0.9, random_state=0).to_csv(folder / "responses.tsv", sep="\t", index=False)
    pd.DataFrame({"depMapID": LINES, "tissue": [f"T{i % 6}" for i in range(20)]}).to_csv(folder / "tissues.csv")
    paths = {name: str(folder / f"{name}.tsv") for name in ("responses", "drugs")}
    return Plan(**paths, expression=str(folder / "z.tsv"), tissues=str(folder / "tissues.csv"), epochs=2, folds=4)


def test_means_rank_nothing_within_drugs_and_what_is_there_is_not_made_again(plan, tmp_path, capsys):
    prepare(plan, tmp_path)
    data = read(plan, tmp_path, **QUIET)
    assert len(set(data.drug)) == 14 and len(set(data.compound)) == 13, "one compound under two ids"
    right = analysis.Method("the truth", lambda split, _: data.y[split.test])
    listed = [
        m for m in analysis.methods(plan, data, tmp_path, [], []) if "DeepCDR" not in m.name and "random" not in m.name
    ]
    calls = []

    def counting(method):
        return dataclasses.replace(method, predict=lambda *x: calls.append(method.name) or method.predict(*x))

    kinds = ["pairs", "drugs", "lines", "tissues"]
    rows = analysis.fill(plan, data, tmp_path, [right, *listed], kinds, 2, **QUIET)
    frame = pd.DataFrame(rows).set_index(["split", "method"]).within_drug
    assert np.allclose(frame.xs("the truth", level=1), 1)
    assert np.nanmax(np.abs(frame.xs("drug mean", level=1))) < 1e-9
    assert (frame["lines"][analysis.TABLE] == 0).all() and frame["pairs"][analysis.TABLE].mean() > 0.2
    files = sorted((tmp_path / "predictions").glob("nearest_line-*"))
    assert len(files) == 8
    files[0].unlink()  # where it was killed
    files[1].write_bytes(files[1].read_bytes()[:-30])
    again = analysis.fill(plan, data, tmp_path, [counting(m) for m in (right, *listed)], kinds, 2, **QUIET)
    pd.testing.assert_frame_equal(pd.DataFrame(again), pd.DataFrame(rows))
    assert calls == ["nearest line"] * 2 and "it is made again" in capsys.readouterr().err
    text = drug_table.write(tmp_path, rows, {"the truth": "knows all"}, "# A title")
    assert "## lines out" in text and "| the truth | 1.00 (1.00 … 1.00) |" in text and "- the truth: knows all" in text
    assert "Better within drugs than the drug and line means" in text
    assert {"table.md", "table.csv", "table.json", "table.png"} <= {path.name for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="holds a table with another folds; choose another folder"):
        prepare(dataclasses.replace(plan, folds=3), tmp_path)


def test_a_line_is_what_its_genes_weigh_and_zscores_are_no_cells(plan, tmp_path):
    data, run = read(plan, tmp_path, **QUIET), suites.entrant("cellplm", "a").run
    values, note = analysis._lines(plan, data, tmp_path, run, "table", None)
    vectors = run.gene_vectors("table", names=suites.GENES, **QUIET).standardised()
    np.testing.assert_allclose(values, data.z @ vectors / 8, rtol=1e-4, atol=1e-5)
    assert note == "knows 64 of 64 genes"
    other = analysis.permuted(values, 1)
    assert (np.sort(other, 0) == np.sort(values, 0)).all() and (other != values).any()
    assert np.abs(analysis._lines(plan, data, tmp_path, run, "table", 0)[0] - values).max() > 0.01, "the twin's"
    with pytest.raises(ValueError, match="z-scores are no expression that a model could read as cells"):
        analysis._lines(dataclasses.replace(plan, lines="cells"), data, tmp_path, run, "auto", None)


def test_what_cannot_be_used_is_one_line_or_left_out(plan, tmp_path):
    frame = pd.read_csv(plan.responses, sep="\t")
    told = []
    for change, said in (
        (
            {"drug": "D99"},
            "row 2: the drug D99 has no molecule in .*drugs.tsv; add it, or skip_invalid to leave out 1 such",
        ),
        ({"depMapID": "HeLa"}, "row 2: the line HeLa has no expression in .*z.tsv"),
        ({"ln_ic50": "many"}, "row 2: the value many is no number"),
    ):
        path = tmp_path / "changed.tsv"
        frame.astype(object).assign(**{k: [v, *frame[k][1:]] for k, v in change.items()}).to_csv(
            path, sep="\t", index=False
        )
        with pytest.raises(ValueError, match=said) as caught:
            read(dataclasses.replace(plan, responses=str(path)), tmp_path, **QUIET)
        assert "\n" not in str(caught.value)
        skipping = dataclasses.replace(plan, responses=str(path), skip_invalid=True)
        assert (
            len(read(skipping, tmp_path, say=told.append).y) == len(frame) - 1 and "1 rows left out: row 2" in told[-2]
        )
    for change, said in (
        ({"value": "auc"}, "no column 'auc'; say which one it is; there are drug, depMapID, ln_ic50"),
        ({"salts": "refuse"}, "drugs.tsv: row 13 .D12.: 'CCO.Cl' has 2 parts"),
        ({"folds": 15}, "14 drugs and 20 lines can be used: 15 folds need as many"),
        ({"drugs": "nothing.tsv"}, "nothing.tsv: no such table"),
    ):
        with pytest.raises((ValueError, OSError), match=said):
            read(dataclasses.replace(plan, **change), tmp_path, **QUIET)
    without = dataclasses.replace(plan, tissues=None)
    with pytest.raises(ValueError, match="split tissues: give a table that has each line's tissue"):
        rounds(without, read(without, tmp_path, **QUIET), "tissues")


@pytest.mark.slow
def test_the_command_shows_every_run_beside_its_twin_and_goes_on(plan, tmp_path):
    suites.entrant("cellplm", "a").run.export(tmp_path / "cellplm")
    args = [f"--{name}={getattr(plan, name)}" for name in ("responses", "drugs", "expression")]
    args += [f"--output={tmp_path}/out", "--seeds=2", "--folds=4", "--epochs=2", f"--runs={tmp_path}/cellplm"]
    done = commands.run("drug_response", *args, "--splits=drugs,lines", folder=tmp_path)
    assert done.code == 0, done.err
    for name in ("DeepCDR, expression", "random vectors", "cellplm", "cellplm, random twin", "cellplm, permuted lines"):
        assert f"| {name} |" in done.out
    first = (tmp_path / "out/table.md").read_text()
    sorted((tmp_path / "out/predictions").iterdir())[3].unlink()
    again = commands.run("drug_response", *args, "--splits=drugs,lines", folder=tmp_path)
    assert again.code == 0 and (tmp_path / "out/table.md").read_text() == first
    for more, what in (
        ("--splits=cells", "--splits=cells: must be of pairs, drugs, lines, both, tissues"),
        ("--drugs=nothing", "--drugs=nothing: no such file"),
        ("--value=auc", "no column 'auc'"),
    ):
        wrong = commands.run("drug_response", *args, more, folder=tmp_path)
        assert wrong.code == 2 and what in wrong.err and wrong.err.count("\n") == 1
