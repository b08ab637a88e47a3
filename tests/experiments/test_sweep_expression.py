"""A sweep's zero-shot errors: the same cells for every run, and beside it what beats it."""

import numpy as np
import pytest

from experiments.analyses import sweep_expression
from experiments.suite.entrants import Study
from tests.harness import suites


@pytest.mark.slow
def test_every_method_has_both_errors_for_every_seed(tmp_path):
    source, spatial, single = (
        Study(suites.write(tmp_path / f"{name}.h5ad", seed, spatial=name == "spatial"))
        for seed, name in enumerate(("source", "spatial", "single"))
    )
    options = {"rate": 0.2, "seeds": 2, "cells": 50}
    one, two = (
        sweep_expression.rows(suites.entrant("cellplm", "run", seed), source, spatial, [single], **options)
        for seed in (0, 1)
    )
    by_method = {(row["method"], row["seed"]): row for row in one}
    assert {"run", "run, random twin", "gene mean"} <= {method for method, _ in by_method}
    for row in one:
        assert set(sweep_expression.METRICS) <= row.keys() and np.isfinite(row["rmse_denoised"])
    assert len(by_method) == len(one) == 2 * len({method for method, _ in by_method})
    tables = [[row for row in rows if row["method"] == "gene mean"] for rows in (one, two)]
    assert tables[0] == tables[1], "cells, flips and genes do not depend on the run"
    models = [[row["rmse_spatial"] for row in rows if row["method"] == "run"] for rows in (one, two)]
    assert models[0] != models[1]
