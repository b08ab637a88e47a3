"""Clusters of the embedding against every column of a study's metadata, as Exceiver's paper asks of its latents."""

from collections.abc import Iterator
from typing import Any

from experiments.suite import embeddings
from experiments.suite.entrants import Entrant, Inapplicable, Study
from experiments.suite.tasks import rows
from scfm_jax.tasks.cells import latent_ami

METRICS = {"ami": {"text": "AMI of k-means clusters with a column (high is wanted of biology)", "higher": None}}
NEEDS: frozenset[str] = frozenset()


def score(entrant: Entrant | None, study: Study, seed: int, *, cells: int) -> Iterator[dict[str, Any]]:
    """Yield the adjusted mutual information of clusters with each column of the metadata, a case each.

    Raises:
      Inapplicable: no column can be scored.
    """
    obs = study.counts.obs.iloc[study.draw(seed, cells)]
    try:
        columns = latent_ami.columns(obs)
    except ValueError as error:
        raise Inapplicable(str(error)) from error
    for method, kind, x in embeddings.embeddings(entrant, study, seed, cells):
        for name, codes in columns.items():
            yield from rows(method, kind, name, {"ami": latent_ami.score(x, codes, seed=seed)})
