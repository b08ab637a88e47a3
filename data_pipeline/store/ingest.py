"""Take many files into one store: name the studies, settle the vocabulary, write one study per Dask task, commit each.

The process that calls `ingest` alone decides on names, vocabulary and order, and alone touches the manifest. Tasks read
one source each and write one study under a temporary name, on this machine or any that sees the same file system. So
what a store holds does not depend on the workers, a study that fails leaves the others alone, and an ingest that is
killed goes on where it was: finished studies are kept, the rest is written as if nothing had happened.
"""

import contextlib
import dataclasses
import errno
import functools
import logging
import os
import pathlib
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import psutil

from data_pipeline.files import census, h5ad, whole
from data_pipeline.files import sources as files
from data_pipeline.genes import vocab
from data_pipeline.genes.finder import Finder
from data_pipeline.progress import Progress, silent
from data_pipeline.store import manifest as ledger
from data_pipeline.store.store import check_name, partial
from data_pipeline.store.study import Settings, build

MEMORY_PER_WORKER = 2 << 30
FULL = os.strerror(errno.ENOSPC)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a study comes from: a file or folder that `h5ad.read_counts` reads, or a query of a Census."""

    name: str
    where: str | census.Query

    def open(self, settings: Settings):
        """Return the source's counts, open."""
        if isinstance(self.where, census.Query):
            return census.CensusCounts(self.where)
        return h5ad.read_counts(self.where, **h5ad.place(dataclasses.asdict(settings)))

    def identity(self) -> dict:
        """Return what tells this source from another: name, size and checksum of the file, or the query."""
        if isinstance(self.where, census.Query):
            return dataclasses.asdict(self.where)
        path = pathlib.Path(self.where)
        parts = files.parts(path)
        sums = [whole.checksum(part) for part in parts]
        total = sum(part.stat().st_size for part in parts)
        together = sums[0] if len(sums) == 1 else whole.crc32c("".join(sums).encode())
        return {"file": path.name, "bytes": total, "crc32c": together}


def file_sources(inputs: list[str], names: list[str] | None = None) -> list[Source]:
    """Return the sources of `inputs`, named by their file stems or by `names`.

    Raises FileNotFoundError where one is missing, ValueError where two are of one name.
    """
    paths = [pathlib.Path(text).absolute() for text in inputs]
    for text, path in zip(inputs, paths, strict=True):
        if not path.exists():
            raise FileNotFoundError(f"{text}: no such file or folder; check --input")
    if names and len(names) != len(paths):
        raise ValueError(f"--names has {len(names)} names for {len(paths)} inputs; give one each, in the same order")
    names = names or [_stem(path) for path in paths]
    sources = [Source(check_name(name), str(path)) for name, path in zip(names, paths, strict=True)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two inputs would be study {twice[0]!r}; tell them apart with --names")
    return sources


def _stem(path: pathlib.Path) -> str:
    """Return the name of a study by that of its file: without its endings, and of an mtx file what stands before."""
    if path.name.endswith(("matrix.mtx", "matrix.mtx.gz")):
        return path.name.rpartition("matrix.mtx")[0].rstrip("_-.") or path.parent.name
    return path.name.removesuffix(".zip").removesuffix(path.suffix).removesuffix(".zarr") or path.name


def census_sources(query: census.Query) -> list[Source]:
    """Return one source per data set in the answer to a Census query, named `census_<data set's id>`."""
    return [Source(check_name(f"census_{part.dataset or 'query'}"), part) for part in census.datasets(query)]


def ingest(
    sources: list[Source],
    store: str | os.PathLike,
    *,
    settings: Settings | None = None,
    vocabulary: str | None = None,
    tables: list[str] | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    say: Callable[[str], None] = print,
    progress: Progress = silent,
) -> dict[str, str]:
    """Write `sources` as studies into the store (made where there is none); return the reasons of those that failed.

    Args:
      sources: from `file_sources` or `census_sources`.
      store: its folder; every worker must see it under this path.
      settings: what to keep and how to order it.
      vocabulary: file with the list of genes that the store is to hold; None for the union of what is ingested.
      tables: gene tables that tell aliases, previous symbols and Ensembl ids.
      scheduler: address of a Dask cluster; None starts one on this machine.
      workers: processes on this machine, 0 for this process alone; None for what cores and memory allow. A script
        that lets processes start does its work under `if __name__ == "__main__"`.
      say: takes each line of the report.
      progress: of the studies and, in whatever process takes one in, of its rows; a function that can be pickled.

    A study that the store has already is kept; where its source or settings were others, that is a ValueError before
    anything is written. ValueError, FileNotFoundError or OSError where nothing at all can be done.
    """
    store, settings = pathlib.Path(os.path.expanduser(store)).absolute(), settings or Settings()
    with ledger.writing(store) as manifest:
        pending, failed = _pending(sources, manifest, settings, say)
        tables = [str(pathlib.Path(table).absolute()) for table in tables or ()]
        if vocabulary:
            genes, is_table = read_vocabulary(vocabulary)
            tables += [str(pathlib.Path(vocabulary).absolute())] * is_table
            if len(genes) > manifest["vocabulary"]["n_genes"]:  # a run on this store then knows both names
                studies, table = _studies(pending, settings)[0], gene_table(genes, tables)
                genes = _both_names(dict(genes), studies, vocab.learn(studies, table))
            ledger.extend_genes(store, manifest, genes, kind="fixed")
        elif manifest["vocabulary"]["kind"] == "union":
            failed |= _add_genes(store, manifest, pending, settings, tables)
        pending = [source for source in pending if source.name not in failed]
        _plan(store, manifest, [source.name for source in pending])
        tasks = [(str(store), source, settings, tables, progress) for source in pending]
        for name, result in progress(_run(tasks, scheduler, workers), "took in study", len(tasks)):
            if isinstance(result, str):
                failed[name] = result
                continue
            folder, record, report = result
            ledger.commit(store, manifest, pathlib.Path(folder), record)
            say(f"{_describe(record)}\n{report}")
        ledger.trim_genes(store, manifest)
        _plan(store, manifest, [])
    return failed


def read_vocabulary(path: str) -> tuple[list[tuple[str, str]], bool]:
    """Return the genes of a file as pairs of (gene, second name), and whether it is a gene table rather than a list.

    A table, with columns of Ensembl ids and of symbols, stands for its Ensembl ids, or the symbol where it has no id.
    """
    with contextlib.suppress(ValueError):
        table = vocab.read_table(path)
        if any(table.ids) and any(table.symbols):
            pairs = zip(table.ids, table.symbols, strict=True)
            return [(id or symbol, symbol if id else "") for id, symbol in pairs], True
    return [(gene, "") for gene in vocab.read_genes(path)], False


def gene_table(genes: Sequence[tuple[str, str]], tables: Sequence[str]) -> vocab.GeneTable:
    """Return what `tables` and the store's own second names tell of genes."""
    return vocab.learn([tuple(zip(*genes, strict=True))] if genes else [], vocab.read_table(tables) if tables else None)


@functools.lru_cache(1)
def _finder(genes: tuple[tuple[str, str], ...], tables: tuple[tuple[str, int], ...]) -> Finder:
    """Return the store's genes by every name; made once for all studies that a process takes in.

    `tables`: paths, and when they were changed.
    """
    return Finder([gene for gene, _ in genes], gene_table(genes, [path for path, _ in tables]))


def _add_genes(
    store: pathlib.Path, manifest: dict, sources: list[Source], settings: Settings, tables: list[str]
) -> dict[str, str]:
    """Append the genes of `sources` to the store's vocabulary; return the reasons of those that cannot be read."""
    stored = ledger.read_genes(store, manifest)
    studies, failed = _studies(sources, settings)
    if studies:
        table = vocab.learn(studies, gene_table(stored, tables))
        genes = vocab.union(studies, table, [gene for gene, _ in stored])
        second = dict.fromkeys(genes, "") | dict(stored)
        ledger.extend_genes(store, manifest, _both_names(second, studies, table), kind="union")
    return failed


def _studies(sources: list[Source], settings: Settings) -> tuple[list[tuple[list[str], list[str]]], dict[str, str]]:
    """Return names and second names of each source's genes, and the reasons of those that cannot be read."""
    studies, failed = [], {}
    for source in sources:
        try:
            with source.open(settings) as counts:
                studies.append(_gene_names(counts))
        except Exception as error:  # whatever it is, the others are taken in
            failed[source.name] = _reason(error)
    return studies, failed


def _both_names(
    second: Mapping[str, str], studies: list[tuple[list[str], list[str]]], table: vocab.GeneTable
) -> list[tuple[str, str]]:
    """Return genes with their second names; where there is none that of the first study that has one, or the table."""
    second, genes = dict(second), list(second)
    finder = Finder(genes, table)
    for names, other in studies:
        index = vocab.map_genes(names, finder, ensembl=other, min_mapped=None).index
        for both, slot in zip(zip(names, other, strict=True), index, strict=True):
            if slot >= 0 and not second[genes[slot]]:
                second[genes[slot]] = next((name for name in both if vocab.strip_version(name) != genes[slot]), "")
    for gene in genes:
        rows = table.find(gene)
        if not second[gene] and len(rows) == 1:
            second[gene] = next(name for name in (table.ids[rows[0]], table.symbols[rows[0]], "") if name != gene)
    return list(second.items())


def _gene_names(counts: h5ad.Counts) -> tuple[list[str], list[str]]:
    """Return names and second names of a source's genes; ValueError where one cannot be a line of a store's list."""
    names, other = vocab.file_names(counts)
    wrong = next((name for name in [*names, *other] if "\t" in name or "\n" in name), None)
    if wrong is not None:
        text = "a tab or a line break cannot be part of a gene's name; rename it"
        raise ValueError(f"{counts.path}: gene {wrong!r}: {text}")
    return names, other


def _plan(store: pathlib.Path, manifest: dict, pending: list[str]) -> None:
    """Settle the order of the studies: those that are there, then those to come, whichever is finished first."""
    planned = [name for name in manifest["plan"] if name in manifest["studies"] or name in pending]
    manifest["plan"] = planned + [name for name in pending if name not in planned]
    ledger.write(store, manifest)


def write_source(
    store: str, source: Source, settings: Settings, tables: list[str], progress: Progress = silent
) -> tuple[str, dict, str] | str:
    """Write one study into the store's partial folder (the task that Dask runs).

    Returns (its folder, its manifest record, the gene mapping report), or the reason why it failed, in one line.
    """
    path, started, folder = pathlib.Path(store), time.perf_counter(), None
    try:
        genes = tuple(ledger.read_genes(path, ledger.read(path)))
        with source.open(settings) as counts:
            finder = _finder(genes, tuple((table, os.stat(table).st_mtime_ns) for table in tables))
            mapping = vocab.onto(counts, finder, min_mapped=settings.min_mapped, whose="store")
            folder = partial(path, source.name)
            record = build(folder, source.name, counts, mapping, finder.names, settings, progress)
            record["source"] = source.identity() | {"matrix": counts.source}
    except Exception as error:
        if folder is not None:
            shutil.rmtree(folder.parent, ignore_errors=True)
        return _reason(error)
    record["seconds"] = round(time.perf_counter() - started, 2)
    return str(folder), record, str(mapping.report)


def _reason(error: Exception) -> str:
    """Return why a source failed, in one line; raise the error where SCFM_TRACEBACK asks for it."""
    if os.environ.get("SCFM_TRACEBACK"):
        raise error
    return _line(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {_line(error)}"


def _describe(record: dict) -> str:
    cells, groups = record["shape"][0], len(record["groups"])
    left_out = [f"{number:,} cells by {rule}" for rule, number in record["removed"]["cells"].items()]
    left_out += [f"{record['removed']['genes']:,} rare genes"] * (record["removed"]["genes"] > 0)
    text = f"{record['name']}: {cells:,} cells in {groups} group{'s' * (groups > 1)}, {record['seconds']:.1f} s"
    text += f"; left out: {', '.join(left_out)}" if left_out else ""
    renamed = [f"obs column {old!r} is called {new!r} in the store" for old, new in record.get("renamed", {}).items()]
    return "\n  ".join([text, *renamed])


def _pending(
    sources: list[Source], manifest: dict, settings: Settings, say: Callable[[str], None]
) -> tuple[list[Source], dict[str, str]]:
    """Return the sources that are not in the store yet, and why others, that are, cannot be compared with it.

    ValueError where one is in the store, made otherwise.
    """
    pending, failed = [], {}
    for source in sources:
        record = manifest["studies"].get(source.name)
        if record is None:
            pending.append(source)
            continue
        asked, stored = dataclasses.asdict(settings), record["settings"]
        decide = [key for key in asked if key != "min_mapped" and asked[key] != stored.get(key)]
        differ = [f"{key} {stored.get(key)!r} -> {asked[key]!r}" for key in decide]
        try:
            same = source.identity() == {key: value for key, value in record["source"].items() if key != "matrix"}
        except (ValueError, OSError) as error:
            failed[source.name] = _reason(error)
            continue
        differ += [] if same else ["another source"]
        if differ:
            way = "give it another name with --names, or use a new --store"
            raise ValueError(
                f"study {source.name!r} is in the store already, made otherwise ({', '.join(differ)}); {way}"
            )
        say(f"{source.name}: already in the store, kept")
    return pending, failed


def _run(tasks: list[tuple], scheduler: str | None, workers: int | None) -> Iterator[tuple[str, tuple | str]]:
    """Do the tasks, in this process or on Dask, and yield (study, result or reason of failure) as each ends."""
    if workers is None:
        fit = psutil.virtual_memory().available // MEMORY_PER_WORKER
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        workers = int(max(1, min(len(tasks), cores, fit)))
        workers = 0 if workers == 1 else workers
    if not tasks:
        return
    if scheduler is None and not workers:
        for task in tasks:
            yield task[1].name, write_source(*task)
        return
    from distributed import as_completed

    with _cluster(scheduler, workers) as client:
        futures = {client.submit(write_source, *task, pure=False): task[1].name for task in tasks}
        for future in as_completed(futures):
            if future.status == "finished":
                yield futures[future], future.result()
            else:
                why = "its worker died again and again, out of memory perhaps; use fewer --workers"
                yield futures[future], f"{why} ({type(future.exception()).__name__})"


@contextlib.contextmanager
def _cluster(scheduler: str | None, workers: int) -> Iterator:
    """Yield a Dask client of the cluster at `scheduler`, or of one on this machine that ends with the block."""
    from distributed import Client, LocalCluster

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    if scheduler:
        try:
            client = Client(scheduler, timeout="20s")
        except (OSError, ValueError) as error:
            raise OSError(f"--scheduler={scheduler}: {_line(error)}; is a Dask scheduler running there?") from error
        with client:
            yield client
        return
    options = {"threads_per_worker": 1, "memory_limit": 0, "dashboard_address": None, "silence_logs": logging.ERROR}
    with LocalCluster(n_workers=workers, **options) as cluster, Client(cluster) as client:
        client.run(_leave_interrupts)
        yield client


def _leave_interrupts() -> None:
    """Leave Ctrl-C, which every process of a terminal gets, to the process that will end this worker in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return "no space left on the disk of the store; free some and run the same command again" if FULL in text else text
