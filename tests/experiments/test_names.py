"""Names that others chose: formulas, reversed writing, three thousand letters, brackets and bars are only text."""

import json
import shlex
import types

import anndata
import numpy as np
import pandas as pd
import pytest

from experiments.analyses import gene_clusters, latent_ami, perturbation
from experiments.pages import comparisons, document, figures, heat_map, names, output, run
from experiments.suite import sources
from experiments.sweeps import report as sweep_report
from tests.experiments.test_report import Page

FORMULAS = ("$^$", r"$\frac{$", "$$", r"\$x$ and $", "a $5 b $6", "%s %(x)s {old} {0}", "T\ncell", "\u202e21")
LONG = "regulatory " + "T" * 3000


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("B cell", "B cell"),
        ("12\u202e34", "12⟨U+202E⟩34"),
        ("\u2066a\u2069\u200f", "⟨U+2066⟩a⟨U+2069⟩⟨U+200F⟩"),
        ("a\x00b\x1b[31m", "a⟨U+0000⟩b⟨U+001B⟩[31m"),
        ("\udcff.h5ad", "⟨U+DCFF⟩.h5ad"),  # a byte of a file name that is no UTF-8
        ("a\u2028b", "a⟨U+2028⟩b"),
        ("عربي", "عربي"),
        ("naïve café α/β", "naïve café α/β"),
        (3, "3"),
    ],
)
def test_signs_that_act_are_written_out_and_others_stay(name, shown):
    assert names.visible(name) == shown
    assert document.text(name) == shown and document.text(name).encode()


def test_a_long_name_is_cut_and_is_whole_in_its_title():
    page = document.table("T", ("a",), [[LONG, "x" * 3000]])
    assert page.count(LONG) == 1 and f'title="{LONG}"' in page and "x" * 400 not in page.replace(f'"{"x" * 3000}"', "")
    assert len(names.short(LONG)) == names.MOST and names.short("B") == "B"
    assert document.clipped('"><b>' * 100).count("<") == 2, "the span alone"


def test_a_picture_takes_no_name_for_a_formula():
    """What matplotlib draws is the name itself."""
    from matplotlib.figure import Figure

    for name in FORMULAS:
        axes = Figure().add_subplot()
        axes.set_title(names.label(name))
        drawn, formula = axes.title._preprocess_math(axes.title.get_text())
        assert not formula and drawn == " ".join(names.visible(name).split())


def pictures(name: str) -> dict[str, bytes]:
    """Return every picture that shows names, with this one in each place."""
    rng = np.random.default_rng(0)
    xy, types_ = rng.normal(size=(40, 2)), pd.Series([name, "B"] * 20)
    steps = np.arange(5), np.arange(5.0)
    method = comparisons.Method(name, "model", 0.5, 0.1, (0.4, 0.5, 0.6))
    row = {"method": name, "target": name, "gene": name, "direction": 0.1, "direction_q": 0.01, "ceiling": 0.5}
    row |= {"null_directions": [0.1, 0.2]}
    clusters = {"seed": 0, "vectors": name}
    clusters["interactions"] = {key: np.arange(3.0) for key in ("edges", "expected", "low", "high", "q")}
    point = sweep_report.Row(name, name, False, {}, {name: [0.1, 0.2]}, {}, 1.0, 2)
    plan = types.SimpleNamespace(metrics={name: name})
    return {
        "categories": figures.cells(xy, types_, name)[0],
        "numbers": figures.cells(xy, pd.Series(np.arange(40.0)), name)[0],
        "beside": figures.beside({name: (xy, name)}, types_)[0],
        "curves": figures.curves({name: steps, "b": steps}),
        "confusion": figures.confusion(np.ones((2, 2)), [name, "B"], "said", name),
        "intervals": comparisons.intervals([method], "accuracy", "accuracy"),
        "scores": comparisons.scores({"accuracy": {name: 0.5}}, {"accuracy": {name: 0.1}}),
        "grid": comparisons.grid([name], [name], np.array([[1.0]]), [["+0.1"]]),
        "perturbation": perturbation.picture({"rows": [row]}),
        "ami": latent_ami.picture({"rows": [{"embedding": name, "column": name, "ami": 0.5, "seed": 0}]}),
        "clusters": gene_clusters.picture({"rows": [clusters]}),
        "sweep": sweep_report.plot(plan, [point]),
    }


def test_every_picture_is_drawn_with_any_name():
    assert all(len(picture) > 1000 for picture in pictures(r"$\frac{$ ").values())


def test_the_heat_map_is_drawn_with_any_name():
    values = np.corrcoef(np.random.default_rng(0).normal(size=(4, 9)))
    shown = ["$^$", r"$\frac{$", "C", "D"]
    assert heat_map.draw(values, shown, np.arange(4) < 1, "$^$ in x", (0.0, 1.0))[:4] == b"\x89PNG"


@pytest.mark.parametrize("name", ["[lab 3] pbmc.h5ad", "{old}.h5ad", "[1]", "null", '"x" & 50%.h5ad', "a\nb.h5ad"])
def test_a_report_shows_the_name_of_any_input(name, tmp_path):
    """Text in brackets is no JSON; what is JSON (the genes, the shape) is read all the same."""
    cells = anndata.AnnData(np.ones((3, 2), np.float32), obsm={"X_scemb": np.eye(3, 2, dtype=np.float32)})
    uns = {"embedded_with": "1", "date": "2026-11-27T07:10:00+02:00", "input": name, "sample": name, "model": "scemb"}
    report = {"n": 9, "mapped": 8, "covered": 7, "vocab": 6, "examples": {"unknown": [name]}}
    cells.uns["X_scemb"] = uns | {"genes": json.dumps(report), "shape": "[3, 2]", "step": "null"}
    cells.write_h5ad(tmp_path / "embedding.h5ad")
    text = " ".join(Page(run.write(tmp_path).read_text()).text)
    assert text.count(name) >= 4 and "3 × 2" in text and " 8 " in text
    assert "2026-11-27 05:10 UTC" in text, "a time is told in one zone, which is named"


def test_a_category_of_three_thousand_letters_and_one_that_turns_the_writing(tmp_path):
    xy = np.random.default_rng(0).normal(size=(20, 2))
    card, _ = run.cells_map(xy, pd.Series([LONG, "12\u202e34"] * 10), "cell_type", "cell_type", inside=True)
    assert "\u202e" not in card and "12⟨U+202E⟩34" in card
    read = Page(card)
    assert max(len(word) for text in read.text for word in text.split()) < 100 and f'title="{LONG}"' in card
    assert len(read.images[0]["alt"]) < 600


def test_a_table_of_markdown_keeps_its_columns():
    lines = output.markdown(["a|b", "c"], [["x\ny", "T|B"]]).split("\n")
    assert lines == [r"| a\|b | c |", "|---|---|", r"| x y | T\|B |"]


def test_the_command_of_a_suite_is_one_that_a_shell_takes(tmp_path):
    """Names with blanks, quotes, dollar signs and commas come back as they were."""
    runs = ["a $(touch x) run", "it's; rm"]
    content = {"suite": "zero_shot", "options": {"cells": 9, "seeds": 2}, "runs": [{"workdir": name} for name in runs]}
    content["datasets"] = [{"path": 'pbmc, "old".h5ad'}, {"path": "b.h5ad"}]
    words = shlex.split(sources.command(content, tmp_path / "out put").replace("\\\n", ""))
    assert words[:3] == ["python", "-m", "experiments.evaluate"] and f"--output={tmp_path}/out put" in words
    from absl import flags

    parse = flags.ListParser().parse
    assert parse(next(word for word in words if word.startswith("--runs=")).removeprefix("--runs=")) == runs
    data = next(word for word in words if word.startswith("--data=")).removeprefix("--data=")
    assert parse(data) == ['pbmc, "old".h5ad', "b.h5ad"]


@pytest.mark.parametrize(
    ("metric", "mean", "half", "values", "ends"),
    [
        ("mcc_all", 0.2, 5.0, (0.1, 0.2, 0.3), (-1, 1)),
        ("f1", 0.5, 2.5, (0.4, 0.5, 0.6), (0, 1)),
        ("rmse", 0.5, 2.5, (0.4, 0.5, 0.6), (0, 3.0)),
        ("accuracy", 0.5, 0.1, (0.4, 0.5, 0.6), (0.4, 0.6)),
        ("mine", 0.5, 2.5, (0.4, 0.5, 0.6), (-2.0, 3.0)),  # nobody knows its range
        ("f1", 0.5, 2.5, (0.4, 0.6), None),  # two seeds: dots only
    ],
)
def test_an_interval_ends_where_the_metric_does_and_needs_three_seeds(metric, mean, half, values, ends):
    assert comparisons.Method("m", "model", mean, half, values).interval(metric) == (ends and pytest.approx(ends))


def test_one_gene_unlike_all_others_does_not_take_the_range_of_a_heat_map():
    values = np.full((20, 20), 0.8)
    values[0], values[:, 0] = -0.9, -0.9
    np.fill_diagonal(values, 1.0)
    assert heat_map.limits([values]) == (0.8, 1.0)


def test_panels_of_perturbed_genes_have_one_range(monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "encoded", lambda figure, kind: drawn.append(figure))
    row = {"target": "t", "gene": "g", "direction_q": 0.5, "ceiling": 0.5, "null_directions": [0.0, 0.1]}
    rows = [row | {"method": name, "direction": at} for name, at in (("a", -0.9), ("b", 0.9))]
    perturbation.picture({"rows": rows})
    first, second = drawn[0].axes
    assert first.get_xlim() == second.get_xlim() and first.get_xlim()[0] < -0.9 and first.get_xlim()[1] > 0.9
