"""What a store holds, with a checksum for every byte of it: `manifest.json`, `genes.tsv` and who may write.

A store is a folder:

  manifest.json            schema, vocabulary checksum, and per study: shape, groups, settings, filters, provenance and
                           the crc32c of every file; it carries its own crc32c too
  genes.tsv                gene <tab> second name, one line per store id; only appended to, so ids are stable
  studies/<name>.zarr      one AnnData zarr-v3 group per study
  .partial/                what an ingest is writing now; never looked at by a reader, removed by the next ingest

A study exists when the manifest lists it. The manifest is replaced in one rename, after the study's files are on disk.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Iterator

from data_pipeline.files.whole import checksum, crc32c, files, sync_folder, write_file
from data_pipeline.progress import Progress, silent

SCHEMA = 1
FORMAT = "scfm_jax store"
PARTIAL = ".partial"
DAMAGED = "damaged (its checksum differs)"
_UNSEALED = '"crc32c": "00000000"'


def empty() -> dict:
    """Return the manifest of a store without studies."""
    vocabulary = {"kind": "union", "n_genes": 0, "crc32c": crc32c(b"")}
    return {"format": FORMAT, "schema": SCHEMA, "vocabulary": vocabulary, "plan": [], "studies": {}}


def write(path: pathlib.Path, manifest: dict) -> None:
    """Replace the manifest of the store at `path` in one step, sealed with its own crc32c."""
    body = {"crc32c": "00000000"} | {key: value for key, value in manifest.items() if key != "crc32c"}
    text = json.dumps(body, indent=1)
    write_file(path / "manifest.json", text.replace(_UNSEALED, f'"crc32c": "{crc32c(text.encode())}"', 1).encode())


def read(path: str | os.PathLike) -> dict:
    """Return the manifest of the store at `path`.

    Raises FileNotFoundError or ValueError where there is no store, OSError where the manifest is damaged.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such store; make one: python -m experiments.ingest --input=FILES --store={path}"
        )
    if not (path / "manifest.json").is_file():
        raise ValueError(f"{path}: not a store (no manifest.json); stores are made by python -m experiments.ingest")
    data = (path / "manifest.json").read_bytes()
    try:
        manifest = json.loads(data)
        sealed = manifest["crc32c"]
        intact = crc32c(data.replace(f'"crc32c": "{sealed}"'.encode(), _UNSEALED.encode(), 1)) == sealed
    except (ValueError, KeyError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise OSError(f"{path / 'manifest.json'}: {DAMAGED}; restore it from a copy or ingest again")
    if lacking := [key for key in ("format", "schema", "vocabulary", "plan", "studies") if key not in manifest]:
        raise ValueError(f"{path / 'manifest.json'}: no entry {lacking[0]!r}; another program wrote it, ingest again")
    if manifest["format"] != FORMAT or manifest["schema"] > SCHEMA:
        raise ValueError(f"{path}: schema {manifest['schema']}; this version reads up to {SCHEMA}, update scfm_jax")
    return manifest


def records(manifest: dict) -> list[dict]:
    """Return the records of the studies in the order of their index: the order in which they were first asked for."""
    return [manifest["studies"][name] for name in manifest["plan"] if name in manifest["studies"]]


def extend_genes(path: pathlib.Path, manifest: dict, genes: list[tuple[str, str]], kind: str) -> None:
    """Make `genes`, pairs of (gene, second name), the vocabulary of the store; its present genes must come first.

    Args:
      kind: "union" of what is ingested, or "fixed" by a list the user gave.
    """
    stored = read_genes(path, manifest)
    for i, ((old, _), (new, _)) in enumerate(zip(stored, genes, strict=False)):
        if old != new:
            raise ValueError(
                f"gene {i} is {old!r} in {path} and {new!r} in the new vocabulary; leave --vocab out or use a new store"
            )
    if len(genes) > len(stored):
        data = _lines([*stored, *genes[len(stored) :]])
        write_file(path / "genes.tsv", data)
        manifest["vocabulary"] = {"kind": kind, "n_genes": len(genes), "crc32c": crc32c(data)}
        write(path, manifest)


def trim_genes(path: pathlib.Path, manifest: dict) -> None:
    """Drop the genes at the end of a union that no study came with: those of studies that failed."""
    used = max((record["shape"][1] for record in manifest["studies"].values()), default=0)
    if manifest["vocabulary"]["kind"] == "union" and used < manifest["vocabulary"]["n_genes"]:
        data = _lines(read_genes(path, manifest)[:used])
        manifest["vocabulary"] |= {"n_genes": used, "crc32c": crc32c(data)}
        write(path, manifest)
        write_file(path / "genes.tsv", data)


def read_genes(path: str | os.PathLike, manifest: dict) -> list[tuple[str, str]]:
    """Return the vocabulary that the manifest speaks of, pairs of (gene, second name); OSError where it is damaged.

    Lines behind the last one the manifest knows are what an interrupted ingest appended, and are left out.
    """
    place, vocabulary = pathlib.Path(path) / "genes.tsv", manifest["vocabulary"]
    data = place.read_bytes() if place.is_file() else b""
    lines = data.split(b"\n")[: vocabulary["n_genes"]]
    if crc32c(b"".join(line + b"\n" for line in lines)) != vocabulary["crc32c"]:
        raise OSError(f"{place}: {DAMAGED}; restore it from a copy or ingest again")
    return [tuple(line.decode().split("\t")) for line in lines]


def _lines(genes: list[tuple[str, str]]) -> bytes:
    for gene, other in genes:
        if "\t" in gene + other or "\n" in gene + other:
            raise ValueError(f"gene name {gene!r}: a tab or a line break cannot be part of a gene name; rename it")
    return "".join(f"{gene}\t{other}\n" for gene, other in genes).encode()


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[dict]:
    """Make or open the store at `path` for writing, alone, and yield its manifest.

    What a dead ingest left is removed first; a store that holds no study in the end is removed again.
    Raises ValueError where another process writes to it or `path` is a folder of something else.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path}: a file, not a folder; choose another --store")
    ours = (".lock", *_temporaries(path))
    if path.is_dir() and not (path / "manifest.json").exists() and (others := set(os.listdir(path)) - set(ours)):
        raise ValueError(
            f"{path}: a folder of other things ({sorted(others)[0]}, …), not a store; choose another --store"
        )
    made = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    with open(path / ".lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{path}: another ingest is writing to it; wait for it or stop it") from None
        if not (path / "manifest.json").exists():
            write(path, empty())
        manifest = read(path)
        _clean(path, manifest)
        (path / "studies").mkdir(exist_ok=True)
        try:
            yield manifest
        finally:
            shutil.rmtree(path / PARTIAL, ignore_errors=True)
            if not manifest["studies"]:
                _discard(path, made)


def _temporaries(path: pathlib.Path) -> list[str]:
    """Return the names of the files that `write_file` was writing into the store when it was killed."""
    return [file.name for name in ("manifest.json", "genes.tsv") for file in path.glob(f".{name}.*")]


def _clean(path: pathlib.Path, manifest: dict) -> None:
    """Remove what an interrupted ingest left: partial files, and studies moved in place but not yet listed."""
    for name in _temporaries(path):
        (path / name).unlink()
    shutil.rmtree(path / PARTIAL, ignore_errors=True)
    (path / PARTIAL).mkdir()
    listed = {f"{name}.zarr" for name in manifest["studies"]}
    for folder in (path / "studies").glob("*.zarr"):
        if folder.name not in listed:
            shutil.rmtree(folder)


def _discard(path: pathlib.Path, made: bool) -> None:
    """Remove a store without studies, and its folder too where this process made it."""
    with contextlib.suppress(OSError):
        write(path, empty())
        shutil.rmtree(path / "studies", ignore_errors=True)
        for name in ("genes.tsv", "manifest.json", ".lock"):
            (path / name).unlink(missing_ok=True)
        if made:
            path.rmdir()


def commit(path: pathlib.Path, manifest: dict, partial: pathlib.Path, record: dict) -> None:
    """Make the finished study in folder `partial` part of the store: one rename, then one manifest."""
    name = record["name"]
    os.replace(partial, path / "studies" / f"{name}.zarr")
    sync_folder(path / "studies")
    manifest["studies"][name] = record
    write(path, manifest)


def damage(path: pathlib.Path, record: dict, under: str = "") -> list[str]:
    """Return what is wrong with the files of one study (those whose path starts with `under`), one line each."""
    lines = (_file_damage(path, record, name) for name in record["files"] if name.startswith(under))
    return [line for line in lines if line]


def _file_damage(path: pathlib.Path, record: dict, name: str) -> str | None:
    """Return what is wrong with a file of a study, None where it is whole."""
    place = f"studies/{record['name']}.zarr/{name}"
    if not (path / place).is_file():
        return f"{place}: missing"
    return None if checksum(path / place) == record["files"][name] else f"{place}: {DAMAGED}"


def verify(path: str | os.PathLike, progress: Progress = silent) -> list[str]:
    """Check every file of a store against its checksum; return a line per file that is damaged, missing or unknown.

    `progress` is that of the files.
    """
    path = pathlib.Path(os.path.expanduser(path))
    try:
        manifest = read(path)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        return [str(error)]
    wrong = []
    try:
        read_genes(path, manifest)
    except OSError as error:
        wrong.append(str(error))
    records = manifest["studies"].values()
    names = [(record, name) for record in records for name in record["files"]]
    for record, name in progress(names, "checked file", len(names)):
        wrong += filter(None, [_file_damage(path, record, name)])
    listed = {f"{record['name']}.zarr/{name}" for record, name in names}
    return wrong + [f"studies/{name}: not in the manifest" for name in files(path / "studies") if name not in listed]
