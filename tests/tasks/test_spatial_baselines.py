"""Baselines of genes that a slide lacks promise: copies of the reference are recovered, and the formulas by hand."""

import numpy as np
import pytest

from scfm_jax.tasks.imputation import spatial_baselines
from scfm_jax.tasks.imputation.spatial_baselines import Slide

TYPES = np.array([[8, 1, 0, 3, 0, 2], [0, 6, 2, 1, 3, 0], [1, 0, 7, 0, 4, 4]], float)
LACKING = np.array([[10, 0], [0, 6], [4, 1]], float)


def copies(deeper: float = 1, seed: int = 0) -> tuple[Slide, np.ndarray]:
    """Return a slide of noise-free copies of the reference's cells at another depth, and what it lacks. [n, H]"""
    of_cells, of_spots = np.repeat(np.arange(3), 20), np.random.default_rng(seed).permutation(np.arange(45) % 3)
    slide = Slide(TYPES[of_spots] * deeper, TYPES[of_cells], LACKING[of_cells], 30)
    return slide, LACKING[of_spots[:30]] * deeper


@pytest.mark.parametrize(("method", "error"), [("mapped", 0.05), ("aligned", 1e-6)])
def test_a_copy_of_the_reference_is_recovered(method, error):
    for deeper in (1, 3):
        slide, lacks = copies(deeper)
        predict = getattr(spatial_baselines, method)
        said = predict(slide, neighbours=20) if method == "aligned" else predict(slide)
        assert said.shape == (30, 2)
        np.testing.assert_allclose(said, lacks, atol=error * lacks.max())


def test_only_cells_that_are_asked_for_are_answered_and_all_of_the_slide_are_seen():
    slide, _ = copies()
    noise = np.random.default_rng(1)
    spots, cells = noise.poisson(slide.shared + 1.0), noise.poisson(slide.reference + 1.0)
    one = Slide(spots, cells, slide.lacking, 30)
    other = Slide(np.concatenate([spots[:30], spots[30:, ::-1]]), cells, slide.lacking, 30)
    for method in ("mapped", "aligned"):
        said, else_said = (getattr(spatial_baselines, method)(s) for s in (one, other))
        assert said.shape == else_said.shape == (30, 2) and np.abs(said - else_said).max() > 1e-3, method
    assert (np.ptp(spatial_baselines.constant(one), 0) == 0).all()


def test_a_constant_is_the_mean_of_logs_at_the_slides_depth():
    slide = Slide(np.array([[3.0, 1], [5, 3]]), np.array([[1.0, 1], [2, 6]]), np.array([[1.0, 0], [4, 2]]), 1)
    # the slide's mean depth is 6; the reference's cells have 2 and 8: their counts times 3 and 0.75
    expected = np.expm1([(np.log1p(3) + np.log1p(3)) / 2, (0 + np.log1p(1.5)) / 2])
    np.testing.assert_allclose(spatial_baselines.constant(slide), expected[None])


def test_neighbours_weigh_by_distance_as_the_paper_has_it():
    turn = np.arccos([1.0, 0.9, 0.6, -0.5])
    cells = np.stack([np.cos(turn), np.sin(turn)], 1)
    near, weights = spatial_baselines._weighted(cells, np.array([[2.0, 0]]), 4)
    assert near.tolist() == [[0, 1, 2, 3]]
    # distances 0, 0.1, 0.4 and, on the other side, 1.5: (1 - d / 0.5) / (3 - 1)
    np.testing.assert_allclose(weights, [[0.5, 0.4, 0.1, 0]], atol=1e-12)
    _, alone = spatial_baselines._weighted(cells[:1], np.array([[2.0, 0]]), 4)
    _, none = spatial_baselines._weighted(-cells[:2], np.array([[2.0, 0]]), 4)
    assert alone.tolist() == [[1.0]] and none.sum() == pytest.approx(1)
    _, same = spatial_baselines._weighted(cells[[0, 0, 0]], np.array([[2.0, 0]]), 2)
    np.testing.assert_allclose(same, [[0.5, 0.5]])


def test_a_mapping_follows_the_cosines_and_the_prediction_the_mapping():
    """Two cells that are orthogonal: each is mapped to the spots that look like it, whatever their depth."""
    reference, lacking = np.array([[4.0, 0], [0, 4]]), np.array([[8.0, 0], [2, 2]])
    slide = Slide(np.array([[10.0, 0], [0, 2], [5, 0]]), reference, lacking, 3)
    weights = np.asarray(spatial_baselines._mapping(reference / 4, slide.shared, spatial_baselines.STEPS))
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    assert weights[0, 1] < 0.02 and weights[1, 1] > 0.98
    np.testing.assert_allclose(weights[0, [0, 2]], [2 / 3, 1 / 3], atol=0.02)  # as the gene's counts, 10 to 5
    said = spatial_baselines.mapped(slide)
    np.testing.assert_allclose(said, [[20, 0], [1, 1], [10, 0]], atol=0.4)  # 8 of 4 at depth 10; 2 of 4 at depth 2
