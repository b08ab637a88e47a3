"""The report of a suite: numbers are the table's, who wins is said, a real browser opens it without a request."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from experiments.pages import figures
from experiments.suite import report as suite_report
from experiments.suite import results, tasks
from tests.experiments.test_report import Page
from tests.harness import browser, commands

EVIL = '<img src="http://example.org/x">'
RUNS = ("first", "second")
METHODS = {
    ("first", "model"): 0.80,
    ("first, random twin", "twin"): 0.40,
    ("first, even masks", "model"): 0.30,
    ("second", "model"): 0.70,
    ("second, random twin", "twin"): 0.75,
    ("PCA-50", "baseline"): 0.90,
    ("noise", "negative"): 0.10,
}


def lines(task: str, dataset: str, metric: str, seeds: int, scale: float = 1.0) -> list[dict]:
    """Return what a suite writes of one metric."""
    found = []
    for (method, kind), value in METHODS.items():
        run = method.split(",")[0] if kind in ("model", "twin") else ""
        for seed in range(seeds):
            names = {"key": f"{run}{task}{dataset}{seed}", "run": run, "model": "sct" if run else "", "task": task}
            names |= {"dataset": dataset, "seed": seed, "case": "", "method": method, "kind": kind}
            found.append({**names, "metric": metric, "value": scale * value + seed / 100})
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a suite of two runs leaves behind: typing on one study, denoising that failed for a run, pictures, a run."""
    path = tmp_path_factory.mktemp("suite")
    written = lines("cell_typing", "blood", "accuracy", 3) + lines("denoising", "blood", "rmse", 3, scale=-1.0)
    written = [x for x in written if (x["run"], x["task"]) != ("second", "denoising")]
    names = ("key", "run", "model", "task", "dataset", "seed")
    closing = {x["key"]: {**{k: x[k] for k in names}, "status": "done", "reason": ""} for x in written}
    lost = dict(zip(names, ("lost", "second", "sct", "denoising", "blood", 0), strict=True))
    closing["lost"] = lost | {"status": "failed", "reason": EVIL}
    for line in closing.values():
        line |= {"cells": 60, "seconds": 1.0, "cpu_seconds": 2.0}
    rows = sorted(written, key=lambda x: x["key"])
    by = {key: [x for x in rows if x["key"] == key] for key in closing}
    text = "".join(json.dumps(x) + "\n" for key, closed in closing.items() for x in [*by[key], closed])
    (path / "results.jsonl").write_text(text)
    workdir = path / "first"
    workdir.mkdir()
    (workdir / "metrics.jsonl").write_text("".join(json.dumps({"step": s, "loss": 9 / s}) + "\n" for s in range(1, 9)))
    timing = [{"step": s, "time": s, "cells/s": 100.0 + s, "memory_gb": 0.5 * s} for s in (1, 2, 3)]
    (workdir / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in timing))
    study = {"name": "blood", "path": "blood.h5ad", "sha256": "a1b2c3d4e5f60718" * 4, "cells": 60, "genes": 90}
    study |= {"label": "cell_type", "batch": "batch", "spatial": False}
    runs = [
        {"name": name, "model": "sct", "source": "w", "workdir": str(path / name), "weights": "feed", "step": 7}
        | {"parameters": 12345, "genes": 80, "cells_per_second": 55.5}
        | {"contamination": {"blood": {"seen": name == "first", "why": EVIL}}}
        for name in RUNS
    ]
    content = {"suite": "zero_shot", "options": {"cells": 60, "seeds": 3, "tasks": {}}, "code_version": "0.1.0"}
    content |= {"commit": "c0ffee", "keys": list(closing), "runs": runs}
    content |= {"metrics": {name: tasks.get(name).METRICS for name in ("denoising", "cell_typing")}}
    (path / "suite.json").write_text(json.dumps(content | {"datasets": [study], "reference": []}))
    (path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for name in (*RUNS, "PCA-50"):
        label = np.array(["B cell", EVIL, ""] * 20)
        arrays = {"embedding": rng.normal(size=(60, 4)), "label": label, "batch": np.array(["one", "two"] * 30)}
        arrays |= {"confusion": np.array([[18, 2], [5, 15]]), "types": np.array(["B cell", EVIL])}
        np.savez(path / "pictures" / f"{name}@blood.npz", **arrays)
    return path


@pytest.fixture(scope="module")
def report(folder):
    """The page; the maps are not UMAPs, which take long to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "umap", lambda embedding, seed=0: embedding[:, :2])
        return suite_report.write(folder)


def test_numbers_are_those_of_the_table_and_the_best_is_marked(report):
    raw = report.read_text()
    read = Page(raw)
    said = " ".join(" ".join(read.text).split())
    half = 4.302653 * 0.01 / 3**0.5  # Student's t with two degrees of freedom
    for mean in (0.81, 0.71, 0.91):
        assert f"{mean:.3f} ± {half:.3f}" in said
    assert re.search(rf"<td class=best>0\.910 ± {half:.3f}<small>PCA-50</small></td>", raw)
    assert re.search(r"<td class=best>-0\.890 ± [\d.]+<small>PCA-50</small></td>", raw)
    head = raw[raw.index('<th scope="col">Metric</th>') :]
    assert re.findall(r"<th scope=\"col\">([^<]*)", head)[1:5] == [
        "first",
        "first, even masks",
        "second",
        "best baseline",
    ]
    first = raw[raw.index('<th scope="row">5-NN accuracy ↑</th>') :]
    assert re.findall(r"<td[^>]*>([\d.]*)", first)[:4] == ["0.810", "0.310", "0.710", "0.910"]
    assert "twin 0.410" in said and "seen in pretraining" in said and "failed" in said
    assert "Of 2 comparisons" in said and "a simple baseline's in 2 and a model's in 0" in said
    assert "better than their own untrained twins in 2 of 3 pairs" in said
    for part in ("12,345", "55.5", "102.0", "1.50", "c0ffee", "a1b2c3d4e5f60718", "--runs=", "B cell 90%"):
        assert part in said or part in raw, part


def test_text_of_others_is_text_and_pictures_are_inside(report):
    raw = report.read_text()
    read = Page(raw)
    assert EVIL not in raw and EVIL in " ".join(read.text)
    assert not {"script", "link", "iframe", "object"} & set(read.tags) and "url(" not in raw and "@import" not in raw
    assert all(reference.startswith(("data:image/", "#")) for reference in read.references)
    assert len(read.images) == 1 + 2 + 2 * 3 + 3 + 2 and all(len(image["alt"]) > 30 for image in read.images)
    assert read.tags.count("caption") == read.tags.count("table") >= 7


def test_a_changed_digit_and_a_torn_picture_are_named_on_the_page_and_in_no_number(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "umap", lambda embedding, seed=0: embedding[:, :2])
    shutil.copytree(folder, tmp_path / "s")
    parts = [json.loads(text) for text in (folder / "results.jsonl").read_text().splitlines()]
    (tmp_path / "s/results.jsonl").unlink()
    keys = list(dict.fromkeys(line["key"] for line in parts))
    for key in keys:
        results.append(tmp_path / "s", [line for line in parts if line["key"] == key])
    assert not results.problems(tmp_path / "s")
    raw = suite_report.write(tmp_path / "s").read_text()
    assert "0.810" in raw and "does not match" not in raw
    text = (tmp_path / "s/results.jsonl").read_text()
    line = next(x for x in text.splitlines() if '"value": 0.81,' in x)
    (tmp_path / "s/results.jsonl").write_text(text.replace(line, line.replace("0.81", "0.18")))
    (tmp_path / "s/pictures/first@blood.npz").write_bytes(b"torn")
    assert len(results.problems(tmp_path / "s")) == 2
    said = " ".join(" ".join(Page(suite_report.write(tmp_path / "s").read_text()).text).split())
    assert "does not match its checksum: passed over" in said and "first@blood.npz is torn or damaged" in said
    assert f"1 of {len(keys)} cells of the table are not filled" in said
    assert "metrics.jsonl has no checksum" in said


def test_a_cell_with_a_damaged_line_is_not_there_and_comes_again(tmp_path):
    names = {"key": "k", "run": "", "model": "", "task": "t", "dataset": "d", "seed": 0}
    rows = [{**names, "method": "m", "kind": "baseline", "case": "", "metric": m, "value": 0.25} for m in ("a", "b")]
    lines = [*rows, {**names, "status": "done", "reason": ""}]
    results.append(tmp_path, lines)
    assert len(results.closed(tmp_path)[1]["k"]) == 2
    path = tmp_path / "results.jsonl"
    whole = path.read_text()
    for number in range(3):
        text = whole.splitlines(keepends=True)
        text[number] = text[number].replace("0.25", "0.75").replace('"done"', '"gone"')
        for torn in ("".join(text), "".join(text[:number] + text[number + 1 :])):
            path.write_text(torn)
            cells, metrics = results.closed(tmp_path)
            assert not cells and not metrics and (results.problems(tmp_path) or number == 2)
            results.append(tmp_path, lines)
            assert [line["value"] for line in results.closed(tmp_path)[1]["k"]] == [0.25, 0.25]
    path.write_text(whole[:-20])
    results.append(tmp_path, lines)
    assert path.read_text() == "".join(whole.splitlines(keepends=True)[:2]) + whole, "a torn line is cut first"


def test_a_damaged_description_of_a_suite_is_one_line(folder, tmp_path):
    (tmp_path / "suite.json").write_text((folder / "suite.json").read_text()[:-9])
    with pytest.raises(ValueError, match=r"suite.json is torn or damaged; the command that filled the suite") as error:
        suite_report.write(tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "suite.json").write_text('{"suite": "x"}')
    with pytest.raises(ValueError, match="no entry 'options'"):
        suite_report.write(tmp_path)


def test_suite_that_has_only_begun_has_a_report(folder, tmp_path):
    (tmp_path / "suite.json").write_text((folder / "suite.json").read_text())
    (tmp_path / "results.jsonl").write_text("")
    said = " ".join(Page(suite_report.write(tmp_path).read_text()).text)
    assert "No comparison of a model with a baseline is finished yet" in said and "c0ffee" in said


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no suite\.json there"):
        suite_report.write(tmp_path)


@pytest.mark.slow
def test_command_asks_for_one_of_two(tmp_path):
    done = commands.run("report", folder=tmp_path)
    assert done.code == 2 and "--suite" in done.err and done.err.count("\n") == 1


@browser.needed
@pytest.mark.slow
def test_browser_shows_everything_loads_nothing_and_is_led_by_keys(report, tmp_path):
    with browser.browser(tmp_path) as page:
        for width, height in ((1280, 800), (390, 844)):
            page.open(report, width, height)
            assert page.requests == [] and page.complaints == []
            assert page.ask("document.documentElement.scrollWidth <= innerWidth"), "the page itself scrolls sideways"
            assert page.ask("[...document.images].every(x => x.naturalWidth > 0 && x.clientWidth > 100)")
            assert page.ask("document.images.length") == 14
            assert page.ask("[...document.querySelectorAll('table')].filter(x => x.offsetHeight).length") >= 5
            shown = tmp_path / f"{width}.png"
            page.photograph(shown)
            assert shown.stat().st_size > 10_000
        page.ask("document.body.append(Object.assign(new Image(), {src: 'http://localhost:9/x.png'}))")
        page.ask("new Promise(done => setTimeout(done, 200))")
        assert "Content Security Policy" in " ".join(page.complaints), "what is not inside the page can be loaded"

        page.open(report, 1280, 800)
        page.press("Tab")
        assert page.ask("document.activeElement.className") == "skip"
        assert page.ask("document.activeElement.getBoundingClientRect().left") == 0
        page.press("Enter")
        assert page.ask("document.activeElement.id") == "content"
        seen = set()
        for _ in range(60):
            page.press("Tab")
            seen.add(page.ask("document.activeElement.tagName + (document.activeElement.getAttribute('role') || '')"))
        assert {"SUMMARY", "DIVregion"} <= seen
        light = page.ask("getComputedStyle(document.body).backgroundColor")
        page.open(report, 1280, 800, dark=True)
        assert page.ask("getComputedStyle(document.body).backgroundColor") != light


def test_the_best_is_starred_where_it_is_one_alone_and_ties_are_called_ties():
    means = pd.Series([0.5, 0.7, 0.7])
    assert [suite_report._mark(means, True)(m) for m in means] == ["", " class=tie", " class=tie"]
    assert [suite_report._mark(means, False)(m) for m in means] == [" class=best", "", ""]
    assert [suite_report._mark(means[1:], True)(m) for m in means[1:]] == ["", ""], "all alike"


def test_every_run_is_drawn_against_the_best_baseline(report):
    alt = next(image["alt"] for image in Page(report.read_text()).images if "best simple baseline" in image["alt"])
    assert "cell typing · blood · 5-NN accuracy: first -0.100, first, even masks -0.600, second -0.200" in alt
    assert "root mean squared error of log1p: first +0.100" in alt
