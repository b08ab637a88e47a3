"""Perturb a gene in control cells on the computer: does the embedding move as that of really perturbed cells does?

scEMB (Hsieh et al., bioRxiv 2024) masks the targeted gene in control cells that express it and takes the cosine of
their mean embedding with that of the cells of a CRISPR screen; Geneformer deletes the gene. The paper reads the cosine
in two ways and gives it no null; embeddings of any two groups of cells have cosines near 1. So here, too:
  cosine      the paper's: of the mean after with the mean of treated cells. before: the same of the cells unperturbed
  direction   cosine of the shift (after less before, mean over cells) with the real one (treated less control)
  gain        how much closer to the treated cells it ends: cosine(after, treated) less cosine(before, treated), the
              paper's number relative to the same cells unperturbed
  share       the shift's part along the real one, 1 where it is as long
  downstream  `direction` where the gene itself is deleted from control and treated cells alike before the real shift is
              taken: a knocked-out gene is often measured less itself, and to see that takes no model of regulation

Null: the same for genes that are as highly expressed in control cells, against the same treated cells; p is one-sided,
(1 + as good ones) / (1 + all). Many genes move cells in like directions, whence the null, not 0, is what counts.
Ceiling (`reliability`): the cosine of the real shifts of two halves of the cells; near 0 nothing can be predicted.

Ways to perturb (HOW): mask (what the model puts for hidden genes: `mask_gene` of its contract), delete (no counts,
before normalisation), overexpress (as many counts as the cell's highest gene). The first two are of cells that express
the gene and in which the model reads it (`read_genes`): beyond scEMB's 2,048 genes of a cell there is none to mask.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np
import scipy.sparse as sp
from flax import linen as nn

from scfm_jax.inference import bags, infer
from scfm_jax.tasks.expression import log_normalised
from scfm_jax.training import pace
from scfm_jax.types import Array, Batch

HOW = ("mask", "delete", "overexpress")
LEAST = 10
"""Cells that a mean needs."""
PAIRS = 4096
"""Cells that are perturbed at a time."""

Embed = Callable[[sp.csr_matrix, np.ndarray | None, np.ndarray], np.ndarray]
"""(counts [n, V], a gene to mask in each cell [n] or None, group [n]) -> [n, D]; cells meet only within a group.

`alone`, where it has it and it is True: a cell's embedding does not depend on the others."""


# ----------------------------------------------------------------------------------------------------- perturbed cells


def changed(counts: sp.csr_matrix, genes: np.ndarray, how: str) -> sp.csr_matrix:
    """Return counts in which a gene of each cell is deleted or overexpressed. [n, V], int [n] -> [n, V]"""
    if how not in HOW[1:]:
        raise ValueError(f"how {how!r}: there are {', '.join(HOW)}")
    new = counts.astype(np.float32).tocsr(copy=True)
    new.data[new.indices == np.repeat(genes, np.diff(new.indptr))] = 0
    new.eliminate_zeros()
    if how == "delete":
        return new
    most = np.maximum(np.asarray(counts.max(1).todense()).ravel(), 1).astype(np.float32)
    return new + sp.csr_matrix((most, (np.arange(len(genes)), genes)), new.shape)


def read_genes(
    module: ModuleType, constants: Mapping[str, Any], config: Mapping[str, Any], counts: sp.csr_matrix
) -> sp.csr_matrix:
    """Return counts [n, V] without those of genes that the model is not given in the cell; all, where it reads all.

    Args:
      module, constants, config: as for `Embedder`.
    """
    if not hasattr(module, "gene_ids"):
        return counts
    inputs, labels = dict(config.get("inputs", {})), list(config.get("data", {}).get("labels", ()))
    look = jax.jit(functools.partial(_gene_ids, module, inputs))
    pairs = []
    for index in bags.rules(module, config).batches([np.arange(counts.shape[0])]):
        packed = bags.pack(counts[index[index >= 0]], index, labels=labels)
        ids = np.asarray(look(constants, Batch(**{field: packed[field] for field in infer.FIELDS})))
        place = np.nonzero((ids >= 0) & (index >= 0)[..., None])
        pairs.append((index[place[:2]], ids[place]))
    rows, genes = map(np.concatenate, zip(*pairs, strict=True))
    return counts.multiply(sp.csr_matrix((np.ones(len(rows)), (rows, genes)), counts.shape)).tocsr()


def shifts(
    embed: Embed, counts: sp.csr_matrix, cells: Mapping[int, np.ndarray], how: str
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return the mean embeddings (before, after) of the cells in which each gene is perturbed.

    Args:
      counts: of control cells, in the model's vocabulary. [n, V]
      cells: {gene: rows of the cells to perturb it in}.
    """
    embeddings = {}
    plain = embed(counts, None, np.zeros(counts.shape[0], int)) if getattr(embed, "alone", False) else None
    for now in pace.counted(_together(cells), "perturbed batch of genes"):
        group = np.repeat(np.arange(len(now)), [len(cells[g]) for g in now])
        rows = np.concatenate([cells[g] for g in now])
        taken, gene = counts[rows], np.asarray(now)[group]
        before = embed(taken, None, group) if plain is None else plain[rows]
        after = embed(taken, gene, group) if how == "mask" else embed(changed(taken, gene, how), None, group)
        for i, g in enumerate(now):
            embeddings[g] = before[group == i].mean(0), after[group == i].mean(0)
    return embeddings


def _together(cells: Mapping[int, np.ndarray]) -> list[list[int]]:
    """Return the genes in batches of at most PAIRS pairs of a gene and a cell, or of one gene."""
    batches, pairs = [], PAIRS + 1
    for gene, rows in cells.items():
        if pairs + len(rows) > PAIRS:
            batches.append([])
            pairs = 0
        batches[-1].append(gene)
        pairs += len(rows)
    return batches


class Embedder:
    """A model that embeds cells, with a gene masked in each where asked; compiled once for any cells.

    Args:
      name: of the model. module, model, variables: its file, network and weights. constants: all that it needs for
        counts in its vocabulary, see `bags.complete_constants`. config: of the run.
    """

    def __init__(
        self,
        name: str,
        module: ModuleType,
        model: nn.Module,
        variables: Mapping[str, Any],
        constants: Mapping[str, Any],
        config: Mapping[str, Any],
    ):
        inputs, self._labels = dict(config.get("inputs", {})), list(config.get("data", {}).get("labels", ()))
        self._state, self._rules, self._name = (dict(variables), dict(constants)), bags.rules(module, config), name
        self.alone = not self._rules.together
        self._plain = jax.jit(functools.partial(_cells, module, model, inputs))
        mask = getattr(module, "mask_gene", None)
        self._masked = mask and jax.jit(functools.partial(_masked, mask, model, inputs))

    def __call__(self, counts: sp.csr_matrix, masked: np.ndarray | None, group: np.ndarray) -> np.ndarray:
        """Return the embeddings of cells; see `Embed`."""
        if masked is not None and not self._masked:
            raise ValueError(f"model {self._name} has no mask for a gene that is asked for: delete or overexpress it")
        result = None
        for index in self._rules.batches(self._rules.cut(bags.by_code(group))):
            here, rows = index >= 0, index[index >= 0]
            packed = bags.pack(counts[rows], index, labels=self._labels)
            batch = Batch(**{field: packed[field] for field in infer.FIELDS})
            if masked is None:
                embeddings = self._plain(*self._state, batch)
            else:
                genes = np.full(index.shape, -1, np.int32)
                genes[here] = masked[rows]
                embeddings = self._masked(*self._state, batch, genes)
            embeddings = np.asarray(embeddings, np.float32)
            result = np.zeros((counts.shape[0], embeddings.shape[-1]), np.float32) if result is None else result
            result[rows] = embeddings[here]
        return result


class Components:
    """The baseline without a model: 50 principal components of log-normalised expression; an `Embed`.

    A masked gene is put at its mean. Args: counts of cells to take the components of [n, V].
    """

    alone = True

    def __init__(self, counts: sp.csr_matrix, components: int = 50, seed: int = 0):
        from sklearn.decomposition import PCA

        x = log_normalised(counts).toarray()
        components = min(components, *(n - 1 for n in x.shape))
        self._fitted = PCA(components, random_state=seed, svd_solver="randomized").fit(x)

    def __call__(self, counts: sp.csr_matrix, masked: np.ndarray | None, group: np.ndarray) -> np.ndarray:
        """Return the components of cells; see `Embed`."""
        del group
        x = log_normalised(counts).toarray()
        if masked is not None:
            x[np.arange(len(x)), masked] = self._fitted.mean_[masked]
        return self._fitted.transform(x).astype(np.float32)


# --------------------------------------------------------------------------------------------------------------- scores


def real_shift(
    control: np.ndarray, treated: np.ndarray, of_control: np.ndarray, of_treated: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the means (control [D], treated [D]) over strata that both have, each weighted by its treated cells.

    Args:
      control, treated: embeddings. [n, D], [m, D]
      of_control, of_treated: the stratum of each cell (its type, its replicate). [n], [m]
    """
    weights, means = [], []
    for stratum in np.unique(of_treated):
        ours, theirs = control[of_control == stratum], treated[of_treated == stratum]
        if len(ours) and len(theirs):
            weights.append(len(theirs))
            means.append((ours.mean(0), theirs.mean(0)))
    if not means:
        raise ValueError("control and treated cells have no stratum in common: leave `within` out")
    control_mean, treated_mean = np.average(np.asarray(means, np.float64), axis=0, weights=weights)
    return control_mean, treated_mean


def reliability(
    control: np.ndarray, treated: np.ndarray, of_control: np.ndarray, of_treated: np.ndarray, seed: int = 0
) -> float:
    """Return the cosine of the real shifts of two random halves of all cells, the mean over 20 cuts."""
    rng, cosines = np.random.default_rng(seed), []
    for _ in range(20):
        halves = [rng.permutation(np.arange(len(x)) % 2 == 0) for x in (control, treated)]
        pair = []
        for side in (True, False):
            a, b = halves[0] == side, halves[1] == side
            low, high = real_shift(control[a], treated[b], of_control[a], of_treated[b])
            pair.append(high - low)
        cosines.append(cosine(*pair))
    return float(np.mean(cosines))


def score(before: np.ndarray, after: np.ndarray, control: np.ndarray, treated: np.ndarray) -> dict[str, float]:
    """Return cosine, before, direction, gain and share of a shift against the real one, all of them means [D]."""
    moved, real = after - before, treated - control
    cosines = {"cosine": cosine(after, treated), "before": cosine(before, treated)}
    return cosines | {
        "direction": cosine(moved, real),
        "gain": cosines["cosine"] - cosines["before"],
        "share": float(moved @ real / max(float(real @ real), 1e-30)),
    }


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the cosine of two vectors, 0 where one has no length."""
    length = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return float(np.asarray(a, np.float64) @ np.asarray(b, np.float64)) / length if length > 1e-30 else 0.0


def matched(level: np.ndarray, gene: int, candidates: Sequence[int], number: int) -> np.ndarray:
    """Return the `number` candidates whose expression is nearest to a gene's, the gene itself left out.

    Args:
      level: mean expression of each gene in control cells. [V]
    """
    others = np.asarray([c for c in candidates if c != gene], np.int64)
    apart = np.abs(np.log(level[others] + 1e-6) - np.log(level[gene] + 1e-6))
    return others[np.argsort(apart, kind="stable")[:number]]


def percentile(observed: float, null: Sequence[float]) -> float:
    """Return the share of null values below, in percent, those that are equal counted half."""
    null = np.asarray(null)
    return 100 * float(((null < observed) + 0.5 * (null == observed)).mean())


def p_value(observed: float, null: Sequence[float]) -> float:
    """Return the share of null values that are as large, the observed one among them."""
    return (1 + int((np.asarray(null) >= observed).sum())) / (1 + len(null))


# ----------------------------------------------------------------------------------------------------------- embeddings


def _cells(module, model, inputs, variables, constants, batch: Batch) -> Array:
    """Return the embeddings of a batch, as `infer.embed` has them. [B, C, D]"""
    prepared = module.prepare(batch, constants, jax.random.key(0), step=0, train=False, **inputs)
    return model.apply(variables, prepared, train=False, rngs={"latent": jax.random.key(0)}).cells


def _gene_ids(module, inputs, constants, batch: Batch) -> Array:
    """Return which gene the model reads at each place of a cell, below 0 for none. [B, C, L]"""
    return module.gene_ids(module.prepare(batch, constants, jax.random.key(0), step=0, train=False, **inputs))


def _masked(mask, model, inputs, variables, constants, batch: Batch, gene: Array) -> Array:
    """Return the embeddings of cells in which a gene is masked, -1 for none: `gene` [B, C] -> [B, C, D]"""
    return mask(model, variables, batch, constants, gene, inputs=inputs)
