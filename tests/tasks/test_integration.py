"""Integration metrics are those of scib-metrics (values it gave) and of their definitions, restated plainly."""

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import f1_score
from sklearn.neighbors import NearestNeighbors

from scfm_jax.tasks.cells import integration, integration_baselines

SCIB = {
    "asw_label": 0.57354736,
    "asw_batch": 0.90843445,
    "isolated_asw": 0.5813816,
    "clisi": 0.7431729,
    "ilisi": 0.62886596,
    "connectivity": 0.9436447986676976,
    "pcr": 0.6345483046819472,
}
"""What scib-metrics 0.5.10 says of `cells()`: neighbours 90 (LISI), 15 (connectivity), 50 (kBET), categorical PCR."""
SCIB_ACCEPTANCE = 0.6708333333333333


def cells(seed: int = 0, n: int = 240) -> tuple[np.ndarray, ...]:
    """Return an embedding with types and a batch effect, types, batches, and what was there before."""
    rng = np.random.default_rng(seed)
    labels, batch = rng.choice(4, n, p=[0.4, 0.3, 0.2, 0.1]), rng.choice(3, n, p=[0.5, 0.3, 0.2])
    batch = np.where(labels == 3, batch % 2, batch)
    x = rng.normal(size=(n, 6)) + 2.2 * np.eye(6)[labels] + 0.8 * np.eye(6)[4] * batch[:, None]
    return x, labels, batch, rng.normal(size=(n, 8)) + 1.5 * np.eye(8)[batch]


@pytest.mark.parametrize("name", SCIB)
def test_metrics_are_those_of_scib_metrics(name):
    x, labels, batch, before = cells()
    found = {
        "asw_label": lambda: integration.asw_label(x, labels),
        "asw_batch": lambda: integration.asw_batch(x, labels, batch),
        "isolated_asw": lambda: integration.isolated_asw(x, labels, batch),
        "clisi": lambda: integration.clisi(x, labels),
        "ilisi": lambda: integration.ilisi(x, batch),
        "connectivity": lambda: integration.connectivity(x, labels),
        "pcr": lambda: integration.pcr_comparison(before, x, batch),
    }[name]()
    assert found == pytest.approx(SCIB[name], abs=2e-6)


def test_acceptance_is_that_of_scib_metrics():
    x, _, batch, _ = cells()
    near = np.concatenate([np.arange(len(x))[:, None], integration.nearest(x, 50)[1]], 1)
    assert integration.acceptance(batch[near], batch) == pytest.approx(SCIB_ACCEPTANCE, abs=1e-9)


def test_kbet_within_types_cell_by_cell():
    x, labels, batch, _ = cells(1)
    each = []
    for label in range(4):
        inside = np.flatnonzero(labels == label)
        present = np.unique(batch[inside])
        number = int(min(70, max(10, len(inside) / len(present) // 4)))
        passed = []
        for cell in inside:
            apart = ((x[inside] - x[cell]) ** 2).sum(1)
            near = batch[inside][np.argsort(apart)[:number]]  # itself first
            expected = [number * (batch[inside] == b).mean() for b in present]
            passed.append(scipy.stats.chisquare([(near == b).sum() for b in present], expected).pvalue >= 0.05)
        each.append(np.mean(passed))
    assert integration.kbet(x, labels, batch) == pytest.approx(np.mean(each), abs=1e-12)


@pytest.mark.slow
def test_lisi_counts_codes_among_neighbours_by_a_slow_search():
    x, labels, *_ = cells(2, 60)
    apart, near = NearestNeighbors(n_neighbors=29).fit(x).kneighbors()
    for cell in range(0, 60, 7):
        best = min(np.geomspace(1e-2, 1e2, 40_000), key=lambda b: abs(_entropy(b * apart[cell]) - np.log(10)))
        weights = np.exp(-best * apart[cell]) / np.exp(-best * apart[cell]).sum()
        simpson = sum(weights[labels[near[cell]] == c].sum() ** 2 for c in range(4))
        assert integration.lisi(x, labels, 30)[cell] == pytest.approx(1 / simpson, rel=1e-3)


def _entropy(logits: np.ndarray) -> float:
    p = np.exp(-logits) / np.exp(-logits).sum()
    return float(-(p * np.log(np.maximum(p, 1e-300))).sum())


def test_variance_between_batches_is_regression_of_components():
    x, _, batch, _ = cells(3)
    centred = x - x.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    coordinates, design = u * s, np.eye(3)[batch]
    fitted = design @ np.linalg.lstsq(design, coordinates, rcond=None)[0]
    r2 = 1 - ((coordinates - fitted) ** 2).sum(0) / (coordinates**2).sum(0)
    assert integration.pcr(x, batch) == pytest.approx((r2 * s**2).sum() / (s**2).sum(), rel=1e-9)
    assert integration.pcr_comparison(x * 0.1, x, batch) == pytest.approx(0, abs=1e-9)
    assert integration.pcr_comparison(x[:, :4], x, batch) == 0, "more than before is no better than as much"


def test_isolated_types_and_their_best_cluster():
    _, labels, batch, _ = cells(4)
    assert integration.isolated(labels, batch).tolist() == [3]
    rng = np.random.default_rng(0)
    clusterings = [rng.integers(0, k, len(labels)) for k in (3, 9)] + [(labels == 3) + (rng.random(len(labels)) < 0.1)]
    best = max(f1_score(labels == 3, c == i) for c in clusterings for i in range(c.max() + 1))
    assert integration.isolated_f1(clusterings, labels, batch) == pytest.approx(best, rel=1e-9)


def test_scores_order_what_is_known_to_be_better():
    x, labels, batch, before = cells(5)
    rng = np.random.default_rng(1)
    perfect = 5 * np.eye(4)[labels] + 0.1 * rng.normal(size=(240, 4))
    parted = perfect + 3 * np.eye(4)[batch]
    good, bad, mixed = (integration.score(e, labels, batch, before) for e in (perfect, parted, rng.permutation(x)))
    assert set(good) == set(integration.METRICS)
    assert good["biology"] > 0.95 and good["batch"] > 0.9
    for name in ("asw_batch", "ilisi", "kbet", "pcr", "batch"):
        assert good[name] > bad[name] + 0.1, name
    for name in ("nmi", "ari", "asw_label", "isolated_asw", "isolated_f1", "clisi", "connectivity"):
        assert good[name] > mixed[name] + 0.1, name
    assert good["total"] == pytest.approx(0.6 * good["biology"] + 0.4 * good["batch"])


def test_summaries_are_those_of_the_papers_table():
    """A row of scEMB's Fig. 2: five metrics of biology, five of batches, their means and 0.6 to 0.4 of these."""
    biology = {"isolated_asw": 0.54, "nmi": 0.69, "ari": 0.52, "asw_label": 0.55, "clisi": 1.00}
    batch = {"asw_batch": 0.97, "ilisi": 0.70, "kbet": 0.91, "connectivity": 0.75, "pcr": 0.41}
    summary = integration.summary(biology | batch | {"isolated_f1": 0.0})
    assert summary["biology"] == pytest.approx(3.30 / 5) and summary["batch"] == pytest.approx(3.74 / 5)
    assert summary["total"] == pytest.approx(0.6 * 0.660 + 0.4 * 0.748)
    assert {name: round(value, 2) for name, value in summary.items()} == {"biology": 0.66, "batch": 0.75, "total": 0.70}
    undefined = integration.summary(biology | batch | {"isolated_f1": 0.9, "kbet": np.nan})
    assert undefined["batch"] == pytest.approx((3.74 - 0.91) / 4) and undefined["biology"] == summary["biology"]


def test_cells_without_label_or_batch_do_not_count():
    x, labels, batch, before = cells(6)
    names, codes = np.array(["abcd"[i] for i in labels], object), batch.astype(object)
    names[:20], codes[20:30] = "unknown", None
    kept = np.arange(240) >= 30
    one = integration.score(x, names, codes, before)
    assert one == pytest.approx(integration.score(x[kept], names[kept], codes[kept], before[kept]))
    with pytest.raises(ValueError, match="two batches"):
        integration.score(x, names, np.zeros(240))
    with pytest.raises(ValueError, match="finite"):
        integration.score(np.full_like(x, np.nan), names, codes)


def test_baselines_take_batches_away():
    x, labels, batch, _ = cells(4)
    x += 3 * np.eye(6)[5] * batch[:, None]
    level = integration_baselines.batch_means_removed(x, batch, 0)
    assert all(np.allclose(level[batch == code].mean(0), 0) for code in range(3))
    pytest.importorskip("harmonypy", reason="Harmony is optional: pip install 'scfm_jax[harmony]'")
    found = integration_baselines.harmony(x, batch, 0)
    assert found.shape == x.shape
    assert integration.ilisi(found, batch) > integration.ilisi(x, batch) + 0.2
    assert integration.asw_label(found, labels) > integration.asw_label(x, labels)
    np.testing.assert_array_equal(found, integration_baselines.harmony(x, batch, 0))
