"""A key of a suite's cell follows all code that can change its numbers, and nothing else."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from experiments.suite import entrants, fill, keys, pictures, tasks
from scfm_jax import models
from tests.harness import ROOT, suites

CHANGED = (
    ("packer", "scfm_jax.inference.infer"),
    ("bags", "scfm_jax.inference.bags"),
    ("run", "scfm_jax.api.run"),
    ("imputer", "scfm_jax.tasks.imputation.imputer"),
    ("baselines", "scfm_jax.tasks.imputation.baselines"),
    ("gene names", "data_pipeline.genes.vocab"),
    ("reader of files", "data_pipeline.files.h5ad"),
    ("entrants", "experiments.suite.entrants"),
    ("cells", "experiments.analyses.cells"),
)
DOCUMENTED = ("scfm_jax.inference.infer", "scfm_jax.models.cellplm.network", "experiments.suite.tasks.cell_typing")
REPORTS = ("experiments.pages.output", "experiments.suite.report", "experiments.suite.table", "experiments.suite.fill")


def edited(module: str, change: Callable[[str], str] = lambda text: f"{text}\nEDITED = True\n") -> keys.Source:
    """Return a reader of the project's modules in which one reads otherwise."""

    def read(name: str) -> str | None:
        text = keys.source(name)
        if name != module:
            return text
        assert change(text) != text
        return change(text)

    return read


def described(text: str) -> str:
    """Return a module of which other things are said, and nothing else is done."""
    text = text.replace('"""', '"""Said otherwise. ', 1)
    return text.replace("\n\n\ndef ", '\n\n"""A value."""\n\n\n# a comment\ndef ', 1)


@pytest.fixture(scope="module")
def changed(ground, tmp_path_factory):
    """Return a function: what reads the code -> {(run, task)} of the cells whose keys it changes."""
    folder, paths, runs, _ = ground
    of_study = {"seeds": 1, "cells": 60}

    def plan(source: keys.Source) -> dict[tuple[str, str], str]:
        suite = suites.make(folder / "out", runs, paths[:1], **of_study, source=source)
        return {(cell.names["run"], cell.task): cell.key for cell in suite.plan}

    before = plan(keys.source)
    assert len(before) == 3 * 2

    def compare(source: keys.Source) -> set[tuple[str, str]]:
        return {name for name, key in plan(source).items() if key != before[name]}

    return compare


def test_what_changed_is_computed_again_and_nothing_else(ground, tmp_path):
    folder, paths, runs, _ = ground
    before = {cell.key for cell in suites.make(folder / "out", runs, paths).plan}

    def new(*args, **options) -> set[tuple]:
        plan = suites.make(tmp_path, *args, **options).plan
        return {(cell.names["run"], cell.task, cell.study.name, cell.seed) for cell in plan if cell.key not in before}

    copied = tmp_path / "one.h5ad"
    copied.write_bytes((folder / "one.h5ad").read_bytes())
    assert not new(runs, [str(copied), paths[1]]), "where a file lies does not matter"
    copied.unlink()  # the plans before may have it open
    suites.write(copied, seed=7)
    assert {name for _, _, name, _ in new(runs, [str(copied), paths[1]])} == {"one"}
    assert {run for run, *_ in new([suites.entrant("cellplm", "first", 1), runs[1]], paths)} == {"first"}
    more = new(runs, paths, {**suites.TASKS, "gene_imputation": {"rates": (0.5,)}})
    assert {task for _, task, *_ in more} == {"gene_imputation"}
    assert {seed for *_, seed in new(runs, paths, seeds=3)} == {2}
    assert len(new(runs, paths, cells=61)) == len(before)


def test_other_names_of_genes_are_computed_again(ground, tmp_path):
    folder, paths, _, _ = ground
    for name, text in (("table", "A"), ("same", "A"), ("other", "B")):
        (tmp_path / f"{name}.txt").write_text(text)

    def key(*tables: str) -> str:
        study = entrants.Study(paths[0], tables=[tmp_path / f"{name}.txt" for name in tables])
        return fill.Suite("test", {"cell_typing": {}}, [], [study], folder / "out", seeds=1).plan[0].key

    assert key("table") == key("same") and len({key(), key("table"), key("other")}) == 3


@pytest.mark.parametrize("module", [module for _, module in CHANGED], ids=[name for name, _ in CHANGED])
def test_all_code_that_an_imputed_number_passes_through_counts(module, changed):
    assert {("first", "gene_imputation"), ("second", "gene_imputation"), ("", "gene_imputation")} <= changed(
        edited(module)
    )


def test_a_picture_is_drawn_again_where_its_code_changed(ground, tmp_path):
    study = entrants.Study(ground[1][0])

    def draw(source: keys.Source) -> int:
        """Return which file the picture is."""
        pictures.write(None, study, 0, 60, tmp_path, source)
        return next(tmp_path.iterdir()).stat().st_ino

    first = draw(keys.source)
    assert draw(keys.source) == first and draw(edited("scfm_jax.models.cellplm.network")) == first
    assert draw(edited("scfm_jax.tasks.cells.embedding")) != first


def test_a_model_counts_where_it_runs(changed):
    of_first = {("first", "gene_imputation"), ("first", "cell_typing")}
    assert changed(edited("scfm_jax.models.cellplm.network")) == of_first
    assert changed(edited("scfm_jax.models.cellplm.latent")) == of_first, "what the network is made of"
    assert changed(edited("scfm_jax.models.sct.network")) == set()
    assert "scfm_jax.models.exceiver.scaler" in keys.reached(["scfm_jax.models.exceiver"])


@pytest.mark.parametrize("name", tasks.names())
def test_a_task_counts_for_itself_alone(name):
    def code(source: keys.Source) -> dict[str, str]:
        return {
            task: keys.code([tasks.get(task).__name__, "scfm_jax.models.cellplm"], source) for task in tasks.names()
        }

    before, after = code(keys.source), code(edited(tasks.get(name).__name__))
    assert [task for task in before if before[task] != after[task]] == [name]


@pytest.mark.parametrize("model", models.names())
def test_no_task_reaches_a_model_by_itself_and_no_model_another(model):
    for task in tasks.names():
        reached = keys.reached([tasks.get(task).__name__, f"scfm_jax.models.{model}"])
        assert {name.split(".")[2] for name in reached if name.startswith("scfm_jax.models.")} == {model}
        assert not [name for name in reached if name.startswith("experiments.pages")]


@pytest.mark.parametrize("module", DOCUMENTED)
def test_words_do_not_count(module, changed):
    assert changed(edited(module)) and changed(edited(module, described)) == set()


def test_reports_and_the_version_do_not_count(changed):
    assert [module for module in REPORTS if changed(edited(module))] == []
    assert changed(edited("scfm_jax", lambda text: text.replace('__version__ = "', '__version__ = "9.'))) == set()


def test_imports_are_followed_wherever_they_stand():
    texts = {
        "experiments.one": "def f():\n    from experiments import two\n    import numpy\n",
        "experiments.two": "import experiments.folder.four\nfrom experiments.three import value\n",
        "experiments.three": "value = 3\nfrom scfm_jax.unwritten import nothing\n",
        "experiments.folder": "from experiments.folder.five import x\n",
        "experiments.folder.four": "",
        "experiments.folder.five": "x = 5",
        "experiments.six": "",
    }
    assert keys.reached(["experiments.one"], texts.get).keys() == texts.keys() - {"experiments.six"}
    before = keys.code(["experiments.one"], texts.get)
    texts["experiments.folder.five"] = "x = 6"
    assert keys.code(["experiments.one"], texts.get) != before
    with pytest.raises(ValueError, match="relative import"):
        keys.code(["experiments.one"], {"experiments.one": "from . import two"}.get)


SCORE = """
import sys
from tests.harness import suites
from experiments.suite import entrants, tasks
task = tasks.get({task!r})
run, studies = suites.entrant({model!r}, "first"), [entrants.Study(path) for path in {paths}]
options = dict(cells=60, columns=entrants.shared_genes(studies[0], [run]), reference=studies[1:])
options = {{name: value for name, value in options.items() if name in tasks.keywords(task)}}
assert list(task.score(run, studies[0], 0, **options, **{options}))
project = ("scfm_jax", "data_pipeline", "configs", "experiments")
print(*(name for name in sys.modules if name.partition(".")[0] in project))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "model", "options"),
    [
        ("gene_imputation", "cellplm", {"rates": (0.4,)}),
        ("integration", "scemb", {}),
        (
            "tuned_spatial_imputation",
            "cellplm",
            {"reference_cells": 30, "tuning": {"steps": 1, "learning_rate": 1e-3, "changes": {}}},
        ),
    ],
)
def test_all_that_is_loaded_for_a_number_is_followed(task, model, options, tmp_path):
    paths = [suites.write(tmp_path / "one.h5ad", spatial=True), suites.write(tmp_path / "two.h5ad", 1)]
    code = SCORE.format(task=task, model=model, paths=paths, options=options)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.splitlines()[-1].split())
    followed = keys.reached([tasks.get(task).__name__, f"scfm_jax.models.{model}"])
    assert f"scfm_jax.models.{model}.network" in loaded
    assert loaded - followed.keys() == {keys.__name__}, "a module that is found by its name at run time"
