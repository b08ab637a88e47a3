"""A semi-synthetic perturbation screen: real control cells, and knock-outs whose effects are known, single and double.

Where no screen with doubles is at hand, strata and interactions can still be tried on cells that are real but for what
the knock-out does. A target's loss is propagated over signed edges of a regulatory network,

  s = sum over k of decay^(k-1) W^k (-1 at each target),    W_gr = sign_gr / sqrt(regulators of g)
  log fold = log(largest) sign(s) s^2 / (s^2 + half^2),      a target itself keeps `left` of its counts

so that two regulators add up, help each other (both weak) or say the same (both strong). Counts of real cells are then
thinned, each kept with probability fold / largest (Gerard, BMC Bioinformatics 2020), those of control with 1 / largest:
cells stay real, at a smaller depth. No real cell is both control and perturbed; conditions share cells, thinned anew.

Such a file says so in obs["synthetic"], and every table made of it repeats it. It is no substitute for a screen.
"""

import dataclasses
from collections.abc import Sequence

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

LABEL = "synthetic"
"""Column of obs that says, in every cell, that effects are made."""


@dataclasses.dataclass(frozen=True)
class Effects:
    """How a loss becomes changes of expression; see the module's docstring.

    Attributes:
      steps: how far it spreads. largest: fold of expression that nothing exceeds; its inverse is the least.
    """

    steps: int = 3
    decay: float = 0.5
    half: float = 0.5
    largest: float = 3.0
    left: float = 0.1

    def log_fold(self, weights: sparse.csr_matrix, targets: Sequence[int]) -> np.ndarray:
        """Return the log fold of every gene when targets are lost. weights: W [G, G] -> [G]"""
        signal = np.zeros(weights.shape[0])
        signal[list(targets)] = -1
        total = np.zeros_like(signal)
        for step in range(self.steps):
            signal = weights @ signal
            total += self.decay**step * signal
        folds = np.log(self.largest) * np.sign(total) * total**2 / (total**2 + self.half**2)
        folds[list(targets)] = np.log(self.left)
        return folds


def weights(source: np.ndarray, target: np.ndarray, sign: np.ndarray, n_genes: int) -> sparse.csr_matrix:
    """Return W of signed edges regulator -> gene, without those of a gene to itself. [G, G]"""
    kept = source != target
    source, target, sign = source[kept], target[kept], np.sign(sign[kept])
    regulators = np.maximum(np.bincount(target, minlength=n_genes), 1)
    return sparse.csr_matrix((sign / np.sqrt(regulators[target]), (target, source)), (n_genes, n_genes))


def choose(matrix: sparse.csr_matrix, singles: int, doubles: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Return conditions: the regulators of most genes by W [G, G], and pairs of them, more likely if they share genes.

    Raises:
      ValueError: fewer regulators than `singles`, or fewer pairs than `doubles`.
    """
    regulated = (matrix != 0).astype(int)
    number = np.asarray(regulated.sum(0)).ravel()
    if (number > 0).sum() < singles:
        raise ValueError(
            f"singles={singles}: {(number > 0).sum()} expressed genes regulate others by these edges; ask for fewer"
        )
    targets = np.sort(np.argsort(-number, kind="stable")[:singles])
    pairs = np.stack(np.triu_indices(singles, 1), 1)
    if doubles > len(pairs):
        raise ValueError(f"doubles={doubles}: {singles} singles have {len(pairs)} pairs; ask for fewer")
    mine = regulated[:, targets]
    weight = 1 + (mine.T @ mine).toarray()[pairs[:, 0], pairs[:, 1]]
    drawn = np.random.default_rng(seed).choice(len(pairs), doubles, replace=False, p=weight / weight.sum())
    return [(int(i),) for i in targets] + [tuple(map(int, targets[pairs[i]])) for i in np.sort(drawn)]


def make(
    counts: sparse.csr_matrix,
    genes: Sequence[str],
    matrix: sparse.csr_matrix,
    conditions: Sequence[tuple[int, ...]],
    *,
    cells: int = 100,
    effects: Effects = Effects(),
    what: str = "effects over signed edges",
    seed: int = 0,
) -> anndata.AnnData:
    """Return a screen in GEARS' layout: obs.condition "A+B", "A+ctrl" or "ctrl", raw counts in X.

    obs.synthetic says `what`, varm["log_fold"] holds the true log fold of every condition.

    Args:
      counts: of real cells, one half of which become control cells. [n, G]
      matrix: W. [G, G] conditions: places of the targets of each.
      cells: of each condition, drawn from the other half, with replacement where it is smaller.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(counts.shape[0])
    half = len(order) // 2
    if half < 2:
        raise ValueError(f"{len(order)} cells: control and perturbed cells are two halves of them, of two at least")
    names = ["ctrl", *("+".join([*(genes[i] for i in of), *["ctrl"][len(of) - 1 :]]) for of in conditions)]
    folds = np.stack([np.zeros(len(genes)), *(effects.log_fold(matrix, of) for of in conditions)])
    parts = [order[:half], *(_drawn(rng, order[half:], cells) for _ in conditions)]
    thinned = []
    for rows, fold in zip(parts, folds, strict=True):
        block = counts[rows].tocsr().astype(np.int64)
        block.data = rng.binomial(block.data, np.exp(fold)[block.indices] / effects.largest)
        thinned.append(block)
    x = sparse.vstack(thinned, "csr").astype(np.float32)
    x.eliminate_zeros()
    of_cell = np.repeat(names, [len(rows) for rows in parts])
    obs = pd.DataFrame(
        {"condition": pd.Categorical(of_cell), LABEL: pd.Categorical([what] * len(of_cell))},
        index=[f"cell{i}" for i in range(len(of_cell))],
    )
    obs["of_cell"] = np.concatenate(parts)
    varm = {"log_fold": pd.DataFrame(folds.T, index=list(genes), columns=names)}
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=list(genes)), varm=varm)


def _drawn(rng: np.random.Generator, rows: np.ndarray, number: int) -> np.ndarray:
    return rng.permutation(rows)[:number] if number <= len(rows) else rng.choice(rows, number)
