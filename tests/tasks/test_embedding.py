"""Clusters of an embedding: Leiden finds what was planted, the same for a seed, in every process."""

import hashlib
import subprocess
import sys

import numpy as np
from sklearn.metrics import adjusted_rand_score

from scfm_jax.tasks.cells import embedding
from tests.harness import ROOT


def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Return 300 cells of five groups that overlap, and their groups."""
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(5), 60)
    return 1.2 * rng.normal(size=(5, 8))[groups] + rng.normal(size=(300, 8)), groups


def test_planted_groups_are_the_clusters():
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(4), 50)
    x = 9 * rng.normal(size=(4, 10))[groups] + rng.normal(size=(200, 10))
    clusters = embedding.leiden(x, resolution=0.3)
    assert adjusted_rand_score(groups, clusters) == 1 and sorted(set(clusters)) == [0, 1, 2, 3]


def test_more_resolution_gives_more_clusters():
    x, _ = drawn()
    numbers = [len(set(embedding.leiden(x, resolution=r))) for r in (0.1, 0.5, 1.0, 3.0)]
    assert numbers == sorted(numbers) and numbers[0] < numbers[-1]


def test_a_seed_gives_the_same_clusters_in_every_process():
    x, _ = drawn()
    first = embedding.leiden(x, seed=3)
    assert np.array_equal(first, embedding.leiden(x, seed=3))
    code = "from tests.tasks.test_embedding import drawn; from scfm_jax.tasks.cells import embedding; import hashlib;"
    code += "print(hashlib.md5(embedding.leiden(drawn()[0], seed=3).tobytes()).hexdigest())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.md5(first.tobytes()).hexdigest()
    assert len({embedding.leiden(x, seed=seed).tobytes() for seed in range(6)}) > 1
