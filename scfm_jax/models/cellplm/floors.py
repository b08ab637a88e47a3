"""Floors of CellPLM's reconstruction: a gene's rate times the cell's depth, with rates of all cells or of each study.

They are decoders whose only hidden unit is 1, or the cell's study, so the model's own objectives score them: "nb" with
an inverse dispersion for each gene, the likeliest of `GRID` and what lies between, squared errors with rates of what
is squared (log1p of counts for "mse"). They stand beside the metric of the objective's name, which is the term of
reconstruction: `loss` has the latent's divergence on top, which a table does not pay, so loss and floor do not compare.
In validation nothing is hidden: what is beyond the floor is what comes through the bottleneck.

"nb/truth" is no floor but the least value: what a decoder scores that says each count as it is.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scfm_jax.layers import sparse
from scfm_jax.models.cellplm import likelihood
from scfm_jax.models.cellplm.objective import loss as objective
from scfm_jax.types import Array, Batch, Outputs

GRID = np.geomspace(1e-2, 1e3, 16)
"""Inverse dispersions that are tried."""
DISPERSED = 2_000
"""Cells that dispersions are learnt from, at most so many and a batch: it takes longest."""
SCALE = 1e4
"""Rates are told per so many molecules, within the range of means that the decoder can say."""
KINDS = ("gene rate x depth", "gene x study rate x depth")


def against(loss: Mapping[str, Any]) -> str | None:
    """Return the floor that the residual score is against, "metric/table"; None for labels."""
    return None if loss["objective"] == "annotation" else f"{loss['objective']}/{KINDS[1]}"


def learn(
    see: Callable[..., Any], constants: Mapping[str, np.ndarray], inputs: Mapping[str, Any], loss: Mapping[str, Any]
) -> dict[str, dict[str, np.ndarray]]:
    """Return the tables of the cells that `see` shows: rates [1, V] or [S, V], and log inverse dispersions [V].

    See the contract of `scfm_jax.models`.
    """
    del inputs
    measured = np.asarray(constants["measured"])
    n_studies, n_genes = measured.shape
    amounts, depths = np.zeros((n_studies, n_genes)), np.zeros(n_studies)
    for batch, made in see("slots", "counts", train=False):
        values = np.log1p(made["counts"]) if loss["objective"] == "mse" else made["counts"]
        at = np.nonzero((made["slots"] < n_genes) & batch.cell_mask[..., None])
        np.add.at(amounts, (batch.study[at[:2]], made["slots"][at]), values[at])
    amounts *= measured
    np.add.at(depths, np.arange(n_studies), amounts.sum(1))
    gene = (amounts.sum(0) + 0.5) / (depths @ measured + 1)  # of the cells that measured it
    study = (amounts + 0.5) / (depths[:, None] + 0.5 / gene)  # half a molecule at the rate of all cells
    tables = {name: {"rate": np.float32(rate)} for name, rate in zip(KINDS, (gene[None], study), strict=True)}
    if loss["objective"] in ("mse", "recon"):
        return tables
    for table in tables.values():
        losses, cells = np.zeros((len(GRID), n_genes)), 0
        for batch, made in see("losses", train=False, add=_losses(table)):
            losses, cells = losses + made["losses"], cells + batch.cell_mask.sum()
            if cells >= DISPERSED:
                break
        table["log_theta"] = np.float32(lowest(np.log(GRID), losses))
    return tables


def _losses(table: Mapping[str, np.ndarray]) -> Callable[[Batch, Mapping[str, Array]], dict[str, Array]]:
    """Return the function from cells to the negative log-likelihood of each gene under each dispersion. [GRID, V]"""

    def losses(batch: Batch, made: Mapping[str, Array]) -> dict[str, Array]:
        slots, counts, measured = made["slots"], made["counts"], made["measured"][:, None]
        real = measured & batch.cell_mask[..., None]
        counts = jnp.where(sparse.at(real, slots, False), counts, 0)
        rate = jnp.where(real, jnp.asarray(table["rate"])[jnp.minimum(batch.study, len(table["rate"]) - 1)], 0)
        mean = rate * (counts.sum(-1) / jnp.maximum(rate.sum(-1), 1e-30))[..., None]
        mean_at = sparse.at(mean, slots)

        def under(theta: Array) -> Array:
            beyond = likelihood.nb_nll(counts, mean_at, theta) - theta * jnp.log1p(mean_at / theta)
            beyond = sparse.scatter(slots, jnp.where(counts > 0, beyond, 0), mean.shape[-1])
            return (theta * jnp.log1p(mean / theta) + beyond).sum((0, 1))

        return {"losses": jax.lax.map(under, jnp.asarray(GRID, jnp.float32))}

    return losses


def lowest(at: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return where each column is lowest: of the parabola through its least value and the two beside it.

    Args:
      at: where the values are, equally far apart [G]. values: [G, V]
    """
    best = values.argmin(0)
    least = np.clip(best, 1, len(at) - 2)
    before, here, after = (np.take_along_axis(values, least[None] + i, 0)[0] for i in (-1, 0, 1))
    bend = before - 2 * here + after
    shift = np.where(bend > 0, (before - after) / (2 * np.where(bend > 0, bend, 1)), 0)
    return at[least] + np.where(best == least, np.clip(shift, -1, 1), best - least) * (at[1] - at[0])


def score(
    tables: Mapping[str, Mapping[str, Array]], batch: Batch, made: Mapping[str, Array], loss: Mapping[str, Any]
) -> dict[str, tuple[Array, Array]]:
    """Return the reconstruction of the cells by each table, and by the truth for a likelihood; see the contract."""
    kind, scores = loss["objective"], {}
    measured, slots = made["measured"][:, None], made["slots"][:, : made["weights"].shape[1]]
    real = sparse.at(measured, slots, False)
    counts = jnp.where(real, made["counts"], 0)
    with jax.default_matmul_precision("highest"):
        for name, table in tables.items():
            n = len(table["rate"])
            unit = jax.nn.one_hot(jnp.minimum(batch.study[:, : slots.shape[1]], n - 1), n)  # [B, R, S]
            head = {"hidden": unit, "kernel": jnp.log(SCALE * table["rate"]), "bias": jnp.zeros(measured.shape[-1])}
            if "log_theta" in table:
                head["log_theta"] = table["log_theta"]
            else:
                whole = jnp.where(measured, unit @ table["rate"], 0).sum(-1, keepdims=True)
                amount = jnp.log1p(counts).sum(-1, keepdims=True) if kind == "mse" else 1
                head |= {"hidden": unit * amount / jnp.maximum(whole, 1e-30), "kernel": table["rate"]}
            scores[f"{kind}/{name}"] = objective(Outputs(cells=None, logits=head), made, **loss)[1][kind]
    if "log_theta" in tables[KINDS[0]]:
        sure = jnp.full(measured.shape[-1:], jnp.log(likelihood.THETA_RANGE[1]))
        logits = jnp.log(jnp.maximum(sparse.scatter(slots, counts, measured.shape[-1]), 1e-9))
        least, _ = likelihood.scaled_nb_nll(logits, sure, slots, made["counts"], (measured,), made["weights"])
        scores[f"{kind}/truth"] = (least, made["weights"].sum())
    return scores
