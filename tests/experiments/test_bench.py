"""The bench of a training step: it measures and plans what each model brings, and names what there is otherwise."""

import importlib.util
import math

import jax
import numpy as np
import pytest

from experiments import bench
from experiments.benches import heads, step
from scfm_jax import models


def sizes(model: str) -> tuple[int, int, float]:
    """Return the cells, tokens and FLOPs of a training step of the small case of a model."""
    bench, row = step.find(model, None)
    case, module = bench.case(row, True), models.get(model)
    inputs = jax.jit(step.build(module, case).prepare)(case.batch)
    return int(case.batch.cell_mask.sum()), int(module.tokens(inputs)), 3 * module.flops(case.network, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("model", step.names())
def test_rates_of_a_step_are_those_of_its_case_and_all_parts_are_measured(model):
    whole, *parts = step.step_rows(model, seconds=0.01, small=True)
    cells, tokens, flops = sizes(model)
    assert whole["cells_per_s"] * whole["s"] == pytest.approx(cells)
    assert whole["tokens_per_s"] * whole["s"] == pytest.approx(tokens)
    assert whole["gflop_per_s"] * whole["s"] == pytest.approx(flops / 1e9)
    assert np.isnan(whole["mfu"]) or 0 < whole["mfu"] < 1
    assert {"prepare", "forward", "backward", "optimiser"} <= {row["part"] for row in parts}
    assert "whole" in whole["part"] and whole["peak_gb"] > 0.05, "less than Python and JAX hold"


@pytest.mark.slow
@pytest.mark.parametrize("model", step.names())
def test_the_rate_of_inference_is_that_of_its_case(model):
    (row,) = step.infer_rows(model, seconds=0.01, small=True)
    assert row["cells_per_s"] * row["s"] == pytest.approx(sizes(model)[0])
    assert 0.05 < row["import_gb"] <= row["peak_gb"]


def test_a_call_is_timed_by_the_median_of_what_follows_the_first_and_once_if_long(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(step.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(step, "_cpu", lambda: 2 * now[0])

    def timed(*seconds):
        calls.clear()

        def call(carry):
            calls.append(carry)
            now[0] += seconds[len(calls) - 1]
            return carry + 1

        return step._repeat(call, 0, 6.0)

    assert timed(50, 1, 3, 2, 99) == ({"s": 2, "cpu_s": 4}, 4) and calls == [0, 1, 2, 3]
    assert timed(1, 4, 1, 1, 99) == ({"s": 1, "cpu_s": 2}, 4)
    assert timed(1, 1, 1, 1, 1, 1, 1, 99)[1] == 7, "so often that it takes the seconds asked for"
    assert timed(61, 99) == ({"s": 61, "cpu_s": 122}, 1)


def test_twice_as_many_bags_are_twice_the_cells_tokens_and_flops(monkeypatch):
    bench, row = step.find("sct", None)
    once, case = sizes("sct"), bench.case(row, True)
    batch = jax.tree.map(lambda x: np.concatenate([x, x]), case.batch)
    monkeypatch.setattr(bench, "case", lambda *_: case._replace(batch=batch))
    assert sizes("sct") == tuple(2 * size for size in once)


def test_the_files_are_the_registry_and_what_is_not_there_is_named():
    assert {"cellplm", "sct"} <= set(step.names())
    with pytest.raises(ValueError, match=r"no bench of model 'scgpt'; there is .*cellplm"):
        step.step_rows("scgpt")
    with pytest.raises(ValueError, match=r"no row 'XL' of sct; there is S, M, L, published"):
        step.step_rows("sct", row="XL")


@pytest.mark.slow
def test_a_plan_counts_flops_and_memory_and_runs_nothing():
    (plan,) = step.plan_rows("sct", small=True, dtype="bfloat16")
    case, module = step.find("sct", None)[0].case("S", True), models.get("sct")
    carry = jax.eval_shape(step.build(module, case).init, case.batch)
    state = sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(carry))
    assert state < plan["arguments_gb"] * 1e9 < 1.1 * state
    assert plan["tflop"] == plan["run"] == pytest.approx(sizes("sct")[2] / 1e12)
    assert plan["peak_gb"] == pytest.approx(plan["arguments_gb"] + plan["temporaries_gb"])


def test_a_table_has_every_key_once_and_blanks_where_a_row_lacks_it():
    head, first, second = bench.table([{"part": "a", "s": 0.5}, {"part": "bc", "n": 1200}]).splitlines()
    assert head.split() == ["part", "s", "n"] and first.split() == ["a", "0.5"] and second.split() == ["bc", "1,200"]


@pytest.mark.slow
def test_heads_are_timed_beside_torch_where_it_is_installed():
    rows = heads.rows(seconds=0.01, small=True)
    ours, theirs = ([row for row in rows if (row["part"] == "  torch") == torch] for torch in (False, True))
    assert [row["part"].split(",")[0] for row in ours] == ["GEARS on features", "GEARS alone", "DeepSEM", "DeepSEM"]
    assert all(row["s"] > 0 for row in rows) and all(row["epoch_s"] > row["s"] for row in ours[:2])
    assert len(theirs) == (4 if importlib.util.find_spec("torch") else 0)
    assert all(row["times_ours"] > 0 for row in theirs)
