"""The bench of a training step: it measures and plans what each model brings, and names what there is otherwise."""

import math

import jax
import pytest

from experiments import bench
from experiments.benches import step
from scfm_jax import models


@pytest.mark.slow
@pytest.mark.parametrize("model", step.names())
def test_step_and_parts_are_timed(model):
    rows = step.step_rows(model, seconds=0.01, small=True)
    assert {"cells_per_s", "tokens_per_s", "gflop_per_s", "mfu", "peak_gb"} <= set(rows[0])
    assert {"prepare", "forward", "backward", "optimiser"} < {row["part"] for row in rows}
    assert all(row["s"] > 0 for row in rows if row["part"] != "backward")  # a difference


@pytest.mark.slow
@pytest.mark.parametrize("model", step.names())
def test_inference_is_timed(model):
    (row,) = step.infer_rows(model, seconds=0.01, small=True)
    assert row["s"] > 0 and 0 < row["import_gb"] <= row["peak_gb"]


def test_the_files_are_the_registry_and_what_is_not_there_is_named():
    assert {"cellplm", "sct"} <= set(step.names())
    with pytest.raises(ValueError, match=r"no bench of model 'scgpt'; there is .*cellplm"):
        step.step_rows("scgpt")
    with pytest.raises(ValueError, match=r"no row 'XL' of sct; there is S, M, L, published"):
        step.step_rows("sct", row="XL")


def test_a_plan_counts_flops_and_memory_and_runs_nothing():
    (plan,) = step.plan_rows("sct", small=True, dtype="bfloat16")
    case, module = step.find("sct", None)[0].case("S", True), models.get("sct")
    carry = jax.eval_shape(step.build(module, case).init, case.batch)
    state = sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(carry))
    assert state < plan["arguments_gb"] * 1e9 < 1.1 * state
    assert plan["peak_gb"] == pytest.approx(plan["arguments_gb"] + plan["temporaries_gb"])


def test_a_table_has_every_key_once_and_blanks_where_a_row_lacks_it():
    head, first, second = bench.table([{"part": "a", "s": 0.5}, {"part": "bc", "n": 1200}]).splitlines()
    assert head.split() == ["part", "s", "n"] and first.split() == ["a", "0.5"] and second.split() == ["bc", "1,200"]
