"""The report: one file that needs nothing else, shows what there is, says what is missing, and trusts no text."""

import html.parser
import json
import re
from xml.etree import ElementTree

import anndata
import numpy as np
import pandas as pd
import pytest

from experiments.analyses import embedding
from experiments.pages import curves, figures, output, run
from scfm_jax.saving import checkpoint
from scfm_jax.training.log import Log
from tests.harness import commands

EVIL = '<script>alert("x")</script>'
SCORES = {
    "input": "held_out.h5ad",
    "weights": "w, step 20",
    "label": "cell_type",
    "batch": None,
    "of": 60,
    "cells": 58,
    "types": 3,
    "rows": [
        {"embedding": name, "seed": seed, "accuracy": accuracy + seed / 100, "ari": 0.25}
        for name, accuracy in (("cellplm", 0.81), ("PCA-50", 0.72), ("random twin", 0.33))
        for seed in (0, 1, 2)
    ],
}


class Page(html.parser.HTMLParser):
    """The tags, images and text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.images, self.references, self.text = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attrs = dict(attrs)
        if tag == "img":
            self.images.append(attrs)
        self.references += [attrs[name] for name in ("src", "href", "action", "data") if name in attrs]

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A workdir with everything a report shows."""
    path = tmp_path_factory.mktemp("run <1>")
    meta = {"model": "cellplm", "config": {"model": {"enc_hid": 8}, "note": EVIL}, "genes": ["A", "B"], "step": 20}
    meta |= {"code_version": "0.1.0", "mapping": {"n": 5, "mapped": 4, "unknown": 1, "examples": {"unknown": [EVIL]}}}
    checkpoint.save(path / "checkpoints", 20, {"x": np.ones(2)}, meta, best={"metric": "val/loss", "value": 1.25})
    lines = [{"step": s, "loss": 10 / s, "grad_norm": 1.0, "nb": s} for s in range(1, 21)] + [
        {"step": 20, "val/loss": 0.6}
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "timing.jsonl").write_text(json.dumps({"step": 10, "time": 1.0, "cells/s": 1234.0, "mfu": None}) + "\n")
    (path / "scores.json").write_text(json.dumps(SCORES))
    rng = np.random.default_rng(0)
    obs = {"cell_type": [EVIL, "B cell", None] * 20, "n_genes": rng.integers(100, 900, 60), "batch": ["one"] * 60}
    cells = anndata.AnnData(np.ones((60, 2), np.float32), pd.DataFrame(obs, [f"c{i}" for i in range(60)]))
    cells.obsm["X_cellplm"] = rng.normal(size=(60, 4)).astype(np.float32)
    uns = {
        "embedded_with": "0.1.0",
        "date": "2026-01-01",
        "input": "held_out.h5ad",
        "sample": "the whole file is one sample",
    }
    cells.uns["X_cellplm"] = uns | {"genes": json.dumps({"n": 2, "mapped": 2, "unknown": 0}), "model": "cellplm"}
    cells.write_h5ad(path / "embedding.h5ad")
    return path


@pytest.mark.slow
def test_the_embedding_is_drawn_beside_pca_and_the_twin(tmp_path):
    """Three maps of the same cells under the scores they had, as one picture and as a file of its own."""
    rng = np.random.default_rng(0)
    x = {name: rng.normal(size=(58, 4)).astype(np.float32) for name in ("cellplm", "PCA-50", "random twin")}
    assert run.compared(tmp_path, []) == ""
    np.savez(tmp_path / "beside.npz", label=np.array(["B", "T"] * 29), **x)
    (tmp_path / "scores.json").write_text(json.dumps(SCORES))
    page = Page(run.compared(tmp_path, []))
    assert len(page.images) == 1
    for name, accuracy in (("cellplm", "0.82"), ("PCA-50", "0.73"), ("random twin", "0.34")):
        assert re.search(rf"{name}, [^;]*{accuracy}", page.images[0]["alt"]), page.images[0]["alt"]
    assert (tmp_path / "beside.png").read_bytes().startswith(b"\x89PNG")
    assert {"B", "T"} <= {text.strip() for text in page.text}


@pytest.mark.slow
def test_report_is_whole_and_self_contained(workdir):
    path = run.write(workdir, columns=["cell_type", "n_genes"])
    raw = path.read_text()
    read = Page(raw)
    assert not {"script", "link", "iframe"} & set(read.tags) and "url(" not in raw and "@import" not in raw
    assert read.references and all(reference.startswith(("data:image/", "#")) for reference in read.references)
    assert all(len(image["alt"]) > 30 for image in read.images) and len(read.images) == 7  # scores, 2 maps, 4 curves
    text = " ".join(read.text)
    for part in ("0.820", "0.730", "0.340", "± 0.010", "58 of 60 cells", "held_out.h5ad", "1.25", "enc_hid", "B cell"):
        assert part in text, part
    assert "the whole file is one sample" in text and "no value" in text and EVIL in text and EVIL not in raw
    assert "Not here" not in text
    assert re.search(r"<td class=best>0\.820", raw) and not re.search(r"<td class=best>0\.730", raw)
    assert not list(workdir.glob("*.partial"))


def test_what_is_damaged_is_named_and_shown_as_no_number(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "umap", lambda embedding, seed=0: embedding[:, :2])
    text = " ".join(Page(run.write(workdir).read_text()).text)
    assert "scores.json has no checksum" in text and "metrics.jsonl has no checksum" in text
    log = Log(tmp_path, 0, 0, 10, tensorboard=False)
    for step in (1, 2, 3):
        log.write(step, {"loss": step / 8})
    length, digest = log.sync()
    log.close()
    progress = {"length": length, "digest": digest}
    checkpoint.save(tmp_path / "checkpoints", 3, {"x": np.ones(2)}, {"config": {}, "step": 3, "progress": progress})
    output.write_file(tmp_path / "scores.json", SCORES)
    text = " ".join(Page(run.write(tmp_path).read_text()).text)
    assert "0.820" in text and "Damaged" not in text
    for name, old, new in (("scores.json", "0.82", "0.28"), ("metrics.jsonl", '"step": 2', '"step": 9')):
        (tmp_path / name).write_text((tmp_path / name).read_text().replace(old, new))
    with open(tmp_path / "timing.jsonl", "w") as file:
        file.write('{"step": 1, "cel')
    text = " ".join(Page(run.write(tmp_path).read_text()).text)
    assert "0.820" not in text and "0.280" not in text and "scores.json does not match its checksum" in text
    assert "metrics.jsonl, line 2 does not match its checksum: passed over" in text
    assert "metrics.jsonl is not what it was when the checkpoint of step 3 was saved" in text
    assert "timing.jsonl, line 1 is torn or damaged: passed over" in text


def test_report_says_what_is_missing(tmp_path):
    path = run.write(tmp_path)
    text = " ".join(Page(path.read_text()).text)
    for part in ("no checkpoint", "no embedding", "no scores", "no metrics", "python -m experiments.evaluate"):
        assert part in text, part


def test_mistakes_are_one_line(workdir, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        run.write(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no such file"):
        run.write(workdir, tmp_path / "none.h5ad")
    with pytest.raises(ValueError, match=r"--color=donor: .* has no such obs column; there are cell_type"):
        run.write(workdir, columns=["donor"])
    (tmp_path / "bad.h5ad").write_text("not HDF5")
    with pytest.raises(ValueError, match=r"not a readable \.h5ad"):
        run.write(workdir, tmp_path / "bad.h5ad")
    anndata.AnnData(np.ones((3, 2), np.float32), obsm={"X_pca": np.ones((3, 2))}).write_h5ad(tmp_path / "other.h5ad")
    with pytest.raises(ValueError, match="no embedding of ours"):
        run.write(workdir, tmp_path / "other.h5ad")
    assert not (tmp_path / "report.html").exists()


def test_categories_beyond_the_palette_differ_in_shape_or_colour_and_none_is_lost():
    rng = np.random.default_rng(0)
    values = pd.Series([f"type {i}" for i in rng.integers(0, 40, 2000)] + [None] * 5)
    picture, legend = figures.cells(rng.normal(size=(2005, 2)), values, "cell_type")
    assert picture.startswith(b"\x89PNG") and sum(entry.cells for entry in legend) == 2005
    looks = [(entry.mark, entry.colour) for entry in legend]
    assert len(set(looks)) == len(looks) == figures.MOST_CATEGORIES + 1
    assert len({colour for _, colour in looks[: len(figures.COLOURS)]}) == len(figures.COLOURS)


def drawn(values: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Return the pieces of the curve of these values and the heights of its points, as an SVG has them."""
    series = {"loss": (np.arange(len(values)), values), "validation loss": (np.arange(2), values[:2])}
    root = ElementTree.fromstring(figures.curves(series, "nats"))
    words = {text.text.strip() for text in root.iter("{http://www.w3.org/2000/svg}text") if text.text}
    assert {"loss", "validation loss", "step", "nats"} <= words
    style = f"fill: none; stroke: {figures.COLOURS[0].lower()}"
    paths = [path.get("d") for path in root.iter("{http://www.w3.org/2000/svg}path") if style in path.get("style", "")]
    curve = max(paths, key=len)  # the other one is the legend's
    heights = [float(y) for y in re.findall(r"[ML] \S+ (\S+)", curve)]
    return curve.split("M")[1:], np.array(heights)


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [
        (10.0 ** np.arange(6), True),
        (1.0 + np.arange(6), False),  # not wide
        (10.0 ** np.arange(6) - 1, False),  # wide and not positive
    ],
)
def test_curves_have_a_logarithmic_axis_where_values_are_positive_and_wide(values, logarithmic):
    heights = drawn(values)[1]
    expected = np.log(values) if logarithmic else values
    np.testing.assert_allclose(
        np.diff(heights) / np.diff(heights).sum(), np.diff(expected) / np.ptp(expected), atol=1e-4
    )


def test_curves_have_gaps_where_there_is_no_number():
    whole, gap = drawn(10.0 ** np.arange(6)), drawn(np.array([1, 10, np.nan, 1e3, 1e4, 1e5]))
    assert len(whole[0]) == 1 and len(gap[0]) == 2 and [piece.count("L") for piece in gap[0]] == [1, 2]
    np.testing.assert_allclose(gap[1], np.delete(whole[1], 2), atol=1e-4)


def test_summary_is_mean_and_half_range():
    frame = embedding.summary(SCORES)
    assert frame.loc["cellplm", "accuracy"] == pytest.approx(0.82) and frame.loc[
        "cellplm", "accuracy ±"
    ] == pytest.approx(0.01)
    assert "0.820 ± 0.010" in embedding.table(SCORES) and "58 cells of 3 types" in embedding.table(SCORES)


@pytest.mark.slow
def test_command(tmp_path):
    done = commands.run("report", f"--workdir={tmp_path}/none", folder=tmp_path)
    assert done.code == 2 and done.err.startswith("error: --workdir=") and done.err.count("\n") == 1
    (tmp_path / "run").mkdir()
    done = commands.run("report", f"--workdir={tmp_path}/run", folder=tmp_path)
    assert done.code == 0 and "report.html" in done.out and (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("word", ["unassigned", "Unknown", "", "nan", None])
def test_cells_that_nobody_knows_have_no_colour(word):
    values = pd.Series(pd.Categorical(["T cell", word, "T cell", "B cell"] * 5))
    _, legend = figures.cells(np.random.default_rng(0).random((20, 2)), run.labelled(values), "cell_type")
    assert [(entry.name, entry.cells) for entry in legend] == [("T cell", 10), ("B cell", 5), ("no value", 5)]
    assert legend[2].colour == figures.UNKNOWN


def test_the_loss_comes_first_then_what_can_be_compared_and_the_rest_is_folded(tmp_path):
    """A term that is the loss itself is not drawn again; what only training has is named."""
    lines = [
        {"step": s, "loss": 9.0 - s, "same": 9.0 - s, "both": 1.0 * s, "masked": 2.0, "grad_norm": 1.0} for s in (1, 2)
    ]
    lines += [{"step": 2, "val/loss": 5.0, "val/same": 5.0, "val/both": 3.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown, folded = curves.drawn(tmp_path).split("<details>")
    assert re.findall(r"<figcaption>([^<]+)", shown) == ["Loss", "both"]
    assert re.findall(r"<figcaption>([^<]+)", folded) == ["Gradient norm", "masked"]
    assert "Only training has masked" in shown and "They score different entries" in shown
    ylabels = figures.curves({"a": (np.arange(2), np.arange(2))}, curves.UNITS["Memory, GB"])
    assert b">GB<" in ylabels


def test_the_map_of_an_embedding_is_computed_once(tmp_path, monkeypatch):
    computed = []
    monkeypatch.setattr(figures, "umap", lambda x, seed=0: computed.append(len(x)) or x[:, :2])
    rng = np.random.default_rng(0)
    x = {name: rng.normal(size=(30, 4)).astype(np.float32) for name in ("cellplm", "PCA-50", "random twin")}
    cells = anndata.AnnData(np.ones((30, 2), np.float32), obsm={"X_cellplm": x["cellplm"]})
    cells.uns["X_cellplm"] = {"embedded_with": "1", "date": "2026", "input": "a", "sample": "b"}
    cells.write_h5ad(tmp_path / "embedding.h5ad")
    np.savez(tmp_path / "beside.npz", label=np.array(["B", "T"] * 15), **x)
    (tmp_path / "scores.json").write_text(json.dumps(SCORES))
    run.write(tmp_path)
    assert computed == [30, 30, 30]


def test_floors_are_dashed_lines_across_the_metric_that_they_are_of(tmp_path):
    """Those of a term that is the loss lie across the loss; the truth is no floor; the residual score has its own 0."""
    lines = [{"step": 0, "floor/same/gene": 8.0, "floor/same/gene x study": 7.5, "floor/nb/rate": 4.0}]
    lines[0] |= {"floor/nb/truth": 1.0}
    lines += [{"step": s, "loss": 9.0 - s, "same": 9.0 - s, "nb": 5.0 - s} for s in (1, 2)]
    lines += [{"step": 2, "val/loss": 5.0, "val/same": 5.0, "val/nb": 3.0, "val/residual": 0.25}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = curves.drawn(tmp_path)
    page = Page(shown)
    assert re.findall(r"<figcaption>([^<]+)", shown) == ["Loss", "nb", "residual"] and "truth" not in shown
    loss, nb, residual = (image["alt"] for image in page.images)
    assert loss.endswith("; dashed: gene 8, gene x study 7.5") and nb.endswith("; dashed: rate 4")
    assert residual.endswith("residual 0.25 at step 2; dashed: floor 0") and "Dashed: floors" in shown
    root = ElementTree.fromstring(figures.curves({"loss": (np.arange(2), np.arange(2))}, "", {"gene": 0.5}))
    words = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    dashed = [p for p in root.iter("{http://www.w3.org/2000/svg}path") if "stroke-dasharray: 5" in p.get("style", "")]
    assert "gene" in words and dashed
