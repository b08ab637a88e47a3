"""What a file of a stranger may not do: run code, read other files, or claim to hold what would fill any memory.

Nothing is decoded before these checks: they read metadata alone.
"""

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

SAFE_CODECS = {
    *("blosc", "zstd", "lz4", "zlib", "gzip", "bz2", "lzma", "pcodec", "zfpy", "shuffle", "bitshuffle", "packbits"),
    *("vlen-utf8", "vlen-bytes", "vlen-array", "delta", "fixedscaleoffset", "quantize", "bitround", "astype"),
    *("crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3", "bytes", "transpose", "sharding_indexed"),
}
"""Codecs and filters of zarr that turn bytes into numbers and text and can do nothing else; "pickle" runs code."""
HDF5_FILTERS = {1, 2, 3, 4, 5, 6, 32000}  # deflate, shuffle, fletcher32, szip, nbit, scale-offset, lzf
PLUGINS = {
    307: "bzip2",
    32001: "Blosc",
    32004: "LZ4",
    32008: "Bitshuffle",
    32013: "ZFP",
    32015: "Zstandard",
    32017: "SZ",
    32024: "SZ3",
    32026: "Blosc2",
    32028: "Sperr",
}
"""Filters of HDF5 that the package hdf5plugin has."""
READ = ("X", "obs", "var", "layers", "raw", "obsm", "mod", "matrix")
"""Parts of a file that are read here: a dangling link elsewhere does no harm."""
METADATA = ("zarr.json", ".zarray")
MANY, RATIO = 1 << 24, 1000
"""Entries from which on it is asked whether they are stored, and how many of them a stored byte may stand for."""
LARGE, INFLATION = 1 << 26, 250
"""Bytes from which on it is asked how much a compressed file grows, and how much it may."""


def check_hdf5(path: Path, file: h5py.File) -> None:
    """Raise ValueError where an HDF5 file points outside itself or needs a filter that is not there or not known."""
    seen: set[int] = set()
    stack: list[tuple[str, h5py.Group]] = [("", file)]
    while stack:
        place, group = stack.pop()
        for key in group:
            name, link = f"{place}{key}", group.get(key, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise ValueError(f"{path}: {name} is a link into another file, {link.filename}; {_whole('it')}")
            try:
                item = group[key]
            except (KeyError, OSError, RuntimeError) as error:
                if name.split("/")[0] in READ and isinstance(link, h5py.SoftLink):
                    text = f"{name} is a link to {link.path}, which is not in the file"
                    raise ValueError(f"{path}: damaged file: {text}") from error
                if name.split("/")[0] in READ:
                    raise ValueError(f"{path}: damaged file: {name}: {' '.join(str(error).split())}") from error
                continue
            if isinstance(link, h5py.SoftLink) or not isinstance(item, h5py.Group | h5py.Dataset):
                continue  # what it points to is looked at where it lies
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                continue
            seen.add(address)
            if isinstance(item, h5py.Group):
                stack.append((f"{name}/", item))
            else:
                _check_dataset(path, name, item)


def _check_dataset(path: Path, name: str, data: h5py.Dataset) -> None:
    properties = data.id.get_create_plist()
    if properties.get_layout() == h5py.h5d.VIRTUAL:
        raise ValueError(f"{path}: {name} is put together from other files (a virtual dataset); {_whole('it')}")
    if properties.get_external_count():
        other = os.fsdecode(properties.get_external(0)[0])
        raise ValueError(f"{path}: {name} lies in another file, {other} (external storage); {_whole('it')}")
    for i in range(properties.get_nfilters()):
        code = properties.get_filter(i)[0]
        if code in HDF5_FILTERS:
            continue
        if code not in PLUGINS:
            raise ValueError(f"{path}: {name} is compressed by the filter {code}, which is unknown; {_anew()}")
        if not h5py.h5z.filter_avail(code) and not _plugins(code):
            raise ValueError(
                f"{path}: {name} is compressed with {PLUGINS[code]}, a plug-in of HDF5: pip install hdf5plugin, "
                "or write the file again with gzip: adata.write_h5ad(path, compression='gzip')"
            )


def _plugins(code: int) -> bool:
    """Load hdf5plugin, if it is installed, and return whether it has brought the filter."""
    try:
        import hdf5plugin  # noqa: F401
    except ImportError:
        return False
    return bool(h5py.h5z.filter_avail(code))


def check_zarr(path: Path) -> None:
    """Raise ValueError where a zarr folder has a link out of it, or an array with a codec that is not safe."""
    root = os.path.realpath(path)
    stack = [str(path)]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                target = os.path.realpath(entry.path) if entry.is_symlink() else None
                if target and os.path.commonpath([root, target]) != root:
                    name = os.path.relpath(entry.path, path)
                    raise ValueError(f"{path}: {name} is a link out of the folder, to {target}; {_whole('it')}")
                if target:
                    continue  # what it points to is looked at where it lies
                if entry.is_dir():
                    stack.append(entry.path)
                elif entry.name in METADATA:
                    check_metadata(path, os.path.relpath(entry.path, path), Path(entry.path).read_bytes())


def check_zip(path: Path) -> str:
    """Return the folder within a zip file that is a zarr group, "" for its root.

    ValueError where there is none, where a codec is not safe, and where a member inflates beyond all measure.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.filename.startswith("__MACOSX")]
            for member in members:
                check_inflation(f"{path}: {member.filename}", member.compress_size, member.file_size)
                if member.filename.rpartition("/")[2] in METADATA:
                    check_metadata(path, member.filename, archive.read(member))
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        raise ValueError(f"{path}: a damaged or encrypted zip file: {' '.join(str(error).split())}") from error
    names = (member.filename.rpartition("/") for member in members)
    groups = [folder for folder, _, name in names if name in ("zarr.json", ".zgroup")]
    if not groups:
        raise ValueError(f"{path}: a zip file without a zarr group in it: unzip it and give what is in it")
    return min(groups, key=lambda folder: (folder.count("/") + bool(folder), folder))


def check_inflation(what: str, stored: int, inflated: int) -> None:
    """Raise ValueError where compressed bytes give so many that they were made to fill a memory or disk."""
    if inflated > LARGE and inflated > INFLATION * max(stored, 1):
        raise ValueError(
            f"{what}: refused: {stored:,} bytes that inflate to over {inflated:,}, as no table of counts does"
        )


def check_metadata(path: Path, name: str, data: bytes) -> None:
    """Raise ValueError where the metadata of a zarr array names a codec that is not safe, or cannot be read."""
    try:
        content = json.loads(data)
        unsafe = sorted({codec for codec in _codecs(content) if codec not in SAFE_CODECS})
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: damaged file: {name} is not metadata of zarr: {error}") from error
    if unsafe:
        runs = ", which can run code" if "pickle" in unsafe else ""
        raise ValueError(f"{path}: {name} is stored with the codec {unsafe[0]!r}{runs}; refused: {_anew()}")


def _codecs(content: dict[str, Any]) -> Iterator[str]:
    """Yield the codecs of an array's metadata, of zarr 2 and 3, those within others too."""
    steps = [content.get("compressor"), *(content.get("filters") or ()), *(content.get("codecs") or ())]
    while steps:
        step = steps.pop()
        if step is None:
            continue
        step = {"name": step} if isinstance(step, str) else step
        yield str(step.get("id", step.get("name"))).rpartition("/")[2].removeprefix("numcodecs.").lower()
        inner = step.get("configuration") or {}
        steps += [*(inner.get("codecs") or ()), *(inner.get("index_codecs") or ())]


def check_stored(array: Any, name: str) -> None:
    """Raise ValueError where an array of HDF5 or zarr claims many more entries, all different, than it can hold.

    For arrays that are read whole and hold no long runs of one value: names, and the pointers of a sparse matrix.
    """
    entries = int(np.prod(array.shape, dtype=object))
    if entries > MANY and (stored := _stored(array)) * RATIO < entries:
        raise ValueError(f"damaged file: {name} claims {entries:,} entries in {stored:,} stored bytes")
    check_chunks(array, name)


def check_chunks(array: Any, name: str) -> None:
    """Raise ValueError where one chunk of an array would take more than two GiB of memory and is hardly stored."""
    chunk = int(np.prod(getattr(array, "chunks", None) or (0,), dtype=object)) * array.dtype.itemsize
    if chunk > 2 << 30 and _stored(array) * RATIO < chunk:
        raise ValueError(f"damaged file: a chunk of {name} claims {chunk:,} bytes")


def check_table(group: Any, index: str, columns: list[str], name: str) -> None:
    """Raise ValueError where the columns of a table are not as long as its index, or the index is not stored."""
    rows = 0
    for part, array in _parts(group[index]).items():
        check_stored(array, f"{name}/{index}/{part}".rstrip("/"))
        rows = array.shape[0] if part in ("", "codes", "values") else rows
    for column in (column for column in columns if column in group):
        for part, array in _parts(group[column]).items():
            place = f"{name}/{column}/{part}".rstrip("/")
            if not getattr(array, "shape", ()):
                continue
            if part not in ("", "codes", "values", "mask"):
                check_stored(array, place)
            elif array.shape[0] != rows:
                raise ValueError(f"damaged file: {place} has {array.shape[0]:,} entries, the table {rows:,} rows")
            else:
                check_chunks(array, place)


def _parts(column: Any) -> dict[str, Any]:
    """Return the arrays of a column of a table: itself, or those of its group (text and mask, categories and codes)."""
    return {"": column} if hasattr(column, "shape") else {part: column[part] for part in column}


def _stored(array: Any) -> int:
    return array.id.get_storage_size() if isinstance(array, h5py.Dataset) else int(array.nbytes_stored())


def _whole(what: str) -> str:
    return f"refused: read {what} where those files are and write one that holds everything"


def _anew() -> str:
    return "have it written again, as adata.write_zarr or write_h5ad does"
