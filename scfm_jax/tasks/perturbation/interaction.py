"""Genetic interactions: what two perturbations do together beyond what each does alone (scLong, Fig. 2c-e; GEARS).

The effect D of a perturbation is the mean of prediction - x over control cells. That of a double is fitted by those of
its singles over some genes, D_ij = alpha D_i + beta D_j + gamma, and the magnitude of the interaction is
sqrt(alpha^2 + beta^2): sqrt(2) where effects add up, more in synergy, less in suppression. Singles that say the same,
or nothing, leave alpha and beta open: a fit whose matrix has a condition number above `CONDITION` is left out (NaN).

PRESETS differ in whose singles a predicted double is fitted by, in the genes, and in how. The paper takes the model's
own singles; the code the measured ones, for every method; GEARS fits by Theil and Sen without an intercept.

Scores of predicted magnitudes against measured ones: correlations, how many of the 15 largest and of the 15 smallest
are among the predicted ones, beside what chance has, and average precision. Of single genes, `residuals` of the sum of
the singles, and which of them are beyond noise (`empirical_null`; Ahlmann-Eltze et al., Nat. Methods 2025). Effects are
arrays; which double has which singles is `pairs` [K, 2], rows of the singles [S, G].
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from scfm_jax.tasks.networks.scores import average_precision

CONDITION = 1e3
ENDS = 15
PRESETS = {
    "paper": {"singles": "own", "genes": 20, "method": "least_squares", "intercept": True},
    "repo": {"singles": "measured", "genes": 50, "method": "least_squares", "intercept": True},
    "gears": {"singles": "own", "genes": 20, "method": "theil_sen", "intercept": False},
}
"""Whose singles, how many of the most changed genes, and keywords of `coefficients`."""
METHODS = ("least_squares", "theil_sen")


@dataclasses.dataclass(frozen=True)
class Interaction:
    """The fit of a double by its singles, and the condition number of the matrix of it."""

    alpha: float
    beta: float
    gamma: float
    condition: float

    @property
    def magnitude(self) -> float:
        """Return sqrt(alpha^2 + beta^2), NaN where the singles do not determine them."""
        return float(np.hypot(self.alpha, self.beta)) if self.condition <= CONDITION else float("nan")


def effects(predicted: np.ndarray, x: np.ndarray, condition: np.ndarray, n_conditions: int) -> np.ndarray:
    """Return the mean of prediction - x over the control cells of each condition, NaN where it has none. [P, G]

    Args:
      predicted: expression of control cells as if perturbed, x: as they are. [n, G]
      condition: of each prediction, 0 to n_conditions - 1. [n]
    """
    total, number = np.zeros((n_conditions, x.shape[1])), np.bincount(condition, minlength=n_conditions)
    np.add.at(total, condition, predicted - x)
    return total / np.where(number > 0, number, np.nan)[:, None]


def coefficients(
    first: np.ndarray, second: np.ndarray, double: np.ndarray, method: str = "least_squares", intercept: bool = True
) -> Interaction:
    """Return the fit of a double effect by two single ones over the same genes. [g] each

    ValueError for another method, or fewer genes than coefficients.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: there are {', '.join(METHODS)}")
    columns = [first, second, np.ones_like(first)] if intercept else [first, second]
    matrix = np.stack(columns, 1).astype(np.float64)
    if len(matrix) < matrix.shape[1]:
        raise ValueError(f"{len(matrix)} genes cannot tell {matrix.shape[1]} coefficients: choose more genes")
    condition = float(np.linalg.cond(matrix))
    if method == "theil_sen":
        fitted = _theil_sen(matrix[:, :2], double, intercept) if condition <= CONDITION else np.full(3, np.nan)
    else:
        fitted = np.linalg.lstsq(matrix, np.asarray(double, np.float64), rcond=None)[0]
    alpha, beta, gamma = [*map(float, fitted), 0.0][:3]
    return Interaction(alpha, beta, gamma, condition)


def fit_all(
    singles: np.ndarray, doubles: np.ndarray, pairs: np.ndarray, genes: np.ndarray, preset: str = "paper"
) -> list[Interaction]:
    """Return the fit of every double.

    Args:
      singles: effects of single perturbations, the model's or the measured ones as PRESETS[preset]["singles"] says.
        [S, G]
      doubles: effects of the doubles. [K, G]
      pairs: rows of each double's singles. [K, 2]
      genes: columns to fit on for each double, the most changed in the measured double first; the preset's number of
        them is used. [K, at least that]
    """
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r}: there are {', '.join(PRESETS)}")
    how = {name: PRESETS[preset][name] for name in ("method", "intercept")}
    chosen = np.asarray(genes)[:, : PRESETS[preset]["genes"]]
    return [
        coefficients(singles[i, g], singles[j, g], double[g], **how)
        for (i, j), g, double in zip(pairs, chosen, doubles, strict=True)
    ]


def magnitude_scores(predicted: np.ndarray, measured: np.ndarray, ends: int = ENDS) -> dict[str, float]:
    """Return the scores of magnitudes; doubles without one of either are left out. [K], [K]

    `pearson`, `spearman` (NaN where all predictions are equal), `synergy_overlap` and `suppression_overlap` of the
    `ends` largest and smallest beside `overlap_expected`, `synergy_ap` and `suppression_ap`, `doubles`, their number.
    ValueError where fewer than three are left.
    """
    kept = np.isfinite(predicted) & np.isfinite(measured)
    p, t, n = predicted[kept], measured[kept], int(kept.sum())
    if n < 3:
        raise ValueError(f"{n} doubles have a magnitude in both: at least three are compared")
    ends, equal = min(ends, n), any(np.ptp(x) <= 1e-9 * np.abs(x).max() for x in (p, t))
    out = {"pearson": np.nan if equal else float(stats.pearsonr(p, t)[0])}
    out |= {"spearman": np.nan if equal else float(stats.spearmanr(p, t)[0]), "overlap_expected": ends**2 / n}
    for name, sign in (("synergy", 1), ("suppression", -1)):
        top = _first(sign * t, ends)
        out[f"{name}_overlap"] = float((_share(sign * p, ends) * top).sum())
        out[f"{name}_ap"] = average_precision(sign * p, top)
    return out | {"doubles": n}


def residuals(singles: np.ndarray, doubles: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return what doubles do beyond the sum of their singles, gene by gene. [S, G], [K, G], [K, 2] -> [K, G]"""
    return doubles - singles[pairs].sum(1)


def empirical_null(residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the p-value of each residual, two-sided, and its q-value over all (Benjamini and Hochberg). [K, G] each

    The null is a normal distribution whose centre and width are those of the bulk of all residuals: their median, and
    the deviation that their middle half would have. ValueError where that half does not vary.
    """
    low, centre, high = np.quantile(residual, [0.25, 0.5, 0.75])
    width = (high - low) / (2 * stats.norm.ppf(0.75))
    if not width > 0:
        raise ValueError("half of the residuals are equal: leave out genes that are not expressed")
    p = 2 * stats.norm.sf(np.abs(residual - centre) / width)
    return p, stats.false_discovery_control(p.ravel()).reshape(p.shape)


def residual_scores(predicted: np.ndarray, measured: np.ndarray, level: float = 0.05) -> dict[str, float]:
    """Return how well |predicted residuals| find the measured ones beyond noise: `ap`, `ap_expected`, `interactions`.

    Both [K, G]; NaN where no residual has a q-value up to `level`.
    """
    true = (empirical_null(measured)[1] <= level).ravel()
    ap = average_precision(np.abs(predicted).ravel(), true)
    return {"ap": ap, "ap_expected": float(true.mean()) if true.any() else np.nan, "interactions": int(true.sum())}


def error_map(
    predicted: np.ndarray, measured: np.ndarray, conditions: int = 40, genes: int = 90
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return |predicted - measured| where it is largest [k, g], and the conditions [k] and genes [g] it is of. [K, G]

    First the conditions, then the genes of the largest mean error; both are in their order of `predicted`.
    """
    error = np.abs(predicted - measured)
    rows = np.sort(np.argsort(-error.mean(1), kind="stable")[:conditions])
    columns = np.sort(np.argsort(-error[rows].mean(0), kind="stable")[:genes])
    return error[np.ix_(rows, columns)], rows, columns


# ------------------------------------------------------------------------------------------------------------ baselines


def additive(singles: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return doubles that are the sums of their singles; all magnitudes are sqrt(2), so nothing correlates. [K, G]"""
    return singles[pairs].sum(1)


def mean_double(training: np.ndarray, n_doubles: int) -> np.ndarray:
    """Return the mean of the training doubles for each double. [T, G] -> [K, G]"""
    return np.broadcast_to(training.mean(0), (n_doubles, training.shape[1]))


def ridge_magnitudes(
    singles: np.ndarray, pairs: np.ndarray, training: np.ndarray, magnitudes: np.ndarray, penalty: float = 1.0
) -> np.ndarray:
    """Return magnitudes by ridge regression on the lengths of the two single effects, the longer first. [K]

    Args:
      training: singles of the training doubles. [T, 2]
      magnitudes: of the training doubles, NaN where there is none. [T]
      penalty: on coefficients of standardised lengths.
    """
    length = np.linalg.norm(singles, axis=1)
    x, asked = (np.sort(length[rows], axis=1)[:, ::-1] for rows in (training, pairs))
    kept = np.isfinite(magnitudes)
    centre, spread = x[kept].mean(0), np.maximum(x[kept].std(0), 1e-12)
    x, asked, y = (x[kept] - centre) / spread, (asked - centre) / spread, magnitudes[kept]
    weight = np.linalg.solve(x.T @ x + penalty * np.eye(2), x.T @ (y - y.mean()))
    return asked @ weight + y.mean()


def summary(fits: list[Interaction]) -> Mapping[str, Any]:
    """Return the magnitudes [K], condition numbers [K] and how many doubles were left out for theirs."""
    condition = np.array([fit.condition for fit in fits])
    magnitudes = np.array([fit.magnitude for fit in fits])
    return {"magnitude": magnitudes, "condition": condition, "left_out": int((~(condition <= CONDITION)).sum())}


def _theil_sen(x: np.ndarray, y: np.ndarray, intercept: bool) -> np.ndarray:
    """Return the spatial median of least squares over subsets of genes: coefficients, then the intercept if any."""
    from sklearn.linear_model import TheilSenRegressor

    model = TheilSenRegressor(fit_intercept=intercept, max_subpopulation=int(1e5), max_iter=1000, random_state=1000)
    model.fit(x, y)
    return np.append(model.coef_, model.intercept_)


def _first(values: np.ndarray, number: int) -> np.ndarray:
    """Return which are the `number` largest, the first of equals. bool [K]"""
    chosen = np.zeros(len(values), bool)
    chosen[np.argsort(-values, kind="stable")[:number]] = True
    return chosen


def _share(values: np.ndarray, number: int) -> np.ndarray:
    """Return the probability of each to be among the `number` largest where equals are in random order. [K]"""
    least = np.sort(values)[-number]
    above, tied = values > least, values == least
    return above + tied * (number - above.sum()) / tied.sum()
