"""Read a query of the CELLxGENE Census, or of any TileDB-SOMA experiment, as studies for a store.

A study is one data set of the answer (obs `dataset_id`), since which genes were measured is known per data set: the
Census keeps it in its presence matrix. `CensusCounts` looks like `h5ad.Counts`, so it takes the same road into the
store: cells are fetched in blocks and never held all at once. Needs the extra `census` (tiledbsoma; cellxgene-census to
find a release by name).

CELLxGENE Discover Census: https://chanzuckerberg.github.io/cellxgene-census
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pandas as pd
import scipy.sparse as sp

from data_pipeline.files.columns import text

LARGEST = 2**31 - 1
MEASUREMENT, LAYER = "RNA", "raw"
PRESENCE = "feature_dataset_presence_matrix"
# The public bucket of the Census; local paths and other stores do not look at it.
_CONFIG = {"vfs.s3.region": "us-west-2", "vfs.s3.no_sign_request": "true", "soma.init_buffer_bytes": 1 << 27}


@dataclasses.dataclass(frozen=True)
class Query:
    """What to read.

    Attributes:
      uri: of a Census release or of a SOMA experiment: a folder, s3://…, …
      value_filter: TileDB-SOMA condition on obs, such as `tissue_general == "lung" and is_primary_data == True`.
      organism: the experiment of a Census.
      dataset: obs `dataset_id` to keep, None for all.
    """

    uri: str
    value_filter: str = ""
    organism: str = "homo_sapiens"
    dataset: str | None = None

    @property
    def condition(self) -> str | None:
        """Both conditions on obs as one, None where there are none."""
        parts = [f"({self.value_filter})"] if self.value_filter else []
        parts += [f"dataset_id == '{self.dataset}'"] if self.dataset else []
        return " and ".join(parts) or None


def release(version: str = "stable") -> str:
    """Return the URI of a Census release ("stable", "latest", a date); ValueError without the extra or the network."""
    try:
        import cellxgene_census
    except ImportError as error:
        raise ValueError("a Census release by name needs pip install 'scfm_jax[census]'; or give its URI") from error
    try:
        return cellxgene_census.get_census_version_description(version)["soma"]["uri"]
    except Exception as error:
        raise ValueError(f"Census release {version!r}: {_line(error)}; check the network or give its URI") from error


def datasets(query: Query) -> list[Query]:
    """Return one query per data set in the answer, in the order of their ids; the query itself where obs has none."""
    with _Reader(query) as reader:
        if "dataset_id" not in reader.experiment.obs.schema.names:
            ids = [None]
        else:
            ids = sorted(set(text(reader.obs(["dataset_id"])["dataset_id"])) - {None})
    if not ids:
        raise ValueError(f"{query.uri}: no cell fulfils {query.condition!r}; loosen the query")
    return [dataclasses.replace(query, dataset=dataset) for dataset in ids]


class _Reader:
    """An open experiment; errors of TileDB-SOMA come out as one-line ValueErrors."""

    def __init__(self, query: Query):
        try:
            import tiledbsoma
        except ImportError as error:
            raise ValueError("reading a Census or SOMA experiment needs pip install 'scfm_jax[census]'") from error
        self.query = query
        context = tiledbsoma.SOMATileDBContext(tiledb_config=_CONFIG)
        self.root = self.guard(tiledbsoma.open, query.uri, context=context)
        self.experiment = self.root
        if "census_data" in self.root:
            organisms = sorted(self.root["census_data"])
            if query.organism not in organisms:
                raise ValueError(f"organism {query.organism!r}: not in {query.uri}; there are {', '.join(organisms)}")
            self.experiment = self.root["census_data"][query.organism]
        if MEASUREMENT not in self.experiment.ms or LAYER not in self.experiment.ms[MEASUREMENT].X:
            raise ValueError(
                f"{query.uri}: no layer {LAYER!r} of measurement {MEASUREMENT!r}; that is where raw counts are"
            )
        self.measurement = self.experiment.ms[MEASUREMENT]

    def guard(self, function, *args, **kwargs):
        """Call `function`; whatever TileDB-SOMA raises becomes a ValueError that names the experiment."""
        try:
            return function(*args, **kwargs)
        except Exception as error:
            raise ValueError(f"{self.query.uri}: {_line(error)}; check its URI and the query") from error

    def obs(self, columns: list[str] | None = None) -> pd.DataFrame:
        """Return obs of the answer, in the order of joinids."""
        read = self.guard(self.experiment.obs.read, column_names=columns, value_filter=self.query.condition)
        return self.guard(lambda: read.concat().to_pandas())

    def present(self, var_ids: np.ndarray) -> np.ndarray:
        """Return which genes the data set measured, all of them where the experiment does not say. [G] bool"""
        if self.query.dataset is None or PRESENCE not in self.measurement or "census_info" not in self.root:
            return np.ones(len(var_ids), bool)
        table = (
            self.root["census_info"]["datasets"].read(column_names=["soma_joinid", "dataset_id"]).concat().to_pandas()
        )
        row = table["soma_joinid"][table["dataset_id"] == self.query.dataset].to_numpy()
        entries = self.measurement[PRESENCE].read((row, slice(None))).tables().concat()
        return np.isin(var_ids, entries["soma_dim_1"].to_numpy()[entries["soma_data"].to_numpy() != 0])

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_) -> None:
        self.root.close()


class CensusCounts:
    """The answer to a query, open for reading: the interface of `h5ad.Counts`, a context manager.

    Attributes:
      path: the URI.
      source: the layer.
      n_cells, n_genes: size.
      genes: gene ids: `feature_id` (Ensembl) where var has it.
      var: the experiment's var for the genes that the data set measured.
      obs: of the answer.
      obsm: empty.
      notes: lines on what is left out; none.
    """

    notes: tuple[str, ...] = ()

    source = f"{MEASUREMENT}/{LAYER}"

    def __init__(self, query: Query):
        self._reader = _Reader(query)
        self.path, self.obsm = query.uri, {}
        obs = self._reader.obs().sort_values("soma_joinid")
        self._cells = obs.pop("soma_joinid").to_numpy()
        names = next((c for c in ("obs_id", "observation_joinid") if c in obs), None)
        self.obs = obs.set_index(obs.pop(names).astype(str) if names else self._cells.astype(str)).rename_axis(None)
        var = self._reader.guard(lambda: self._reader.measurement.var.read().concat().to_pandas())
        var = var[self._reader.present(var["soma_joinid"].to_numpy())].sort_values("soma_joinid")
        self._columns = var.pop("soma_joinid").to_numpy()
        self.genes = var[next(c for c in ("feature_id", "var_id", var.columns[0]) if c in var)].to_numpy(dtype=str)
        self.var = var.set_index(pd.Index(self.genes, dtype=object))
        self.n_cells, self.n_genes = len(self._cells), len(self.genes)

    def rows(self, start: int, stop: int) -> sp.csr_matrix:
        """Return the counts of cells `start` to `stop`; ValueError where they are not counts. [stop - start, G]"""
        cells = self._cells[start:stop]
        layer = self._reader.measurement.X[LAYER]
        table = self._reader.guard(lambda: layer.read((cells, slice(None))).tables().concat())
        row, column, data = (table[name].to_numpy() for name in ("soma_dim_0", "soma_dim_1", "soma_data"))
        if ((data < 0) | (data > LARGEST) | (data != np.rint(data))).any():
            raise ValueError(f"{self.path}: layer {LAYER!r} holds values that are not counts; exclude that data set")
        slot = np.searchsorted(self._columns, column)
        wanted = (data != 0) & (self._columns[np.minimum(slot, self.n_genes - 1)] == column)
        where = np.searchsorted(cells, row[wanted]), slot[wanted]
        counts = sp.coo_matrix((data[wanted].astype(np.uint32), where), shape=(len(cells), self.n_genes)).tocsr()
        counts.sort_indices()
        return counts

    def chunks(self, size: int = 4096) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Yield (first cell, counts) of blocks of `size` cells."""
        for start in range(0, self.n_cells, size):
            yield start, self.rows(start, min(start + size, self.n_cells))

    def __enter__(self) -> "CensusCounts":
        return self

    def __exit__(self, *_) -> None:
        self._reader.__exit__()


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
