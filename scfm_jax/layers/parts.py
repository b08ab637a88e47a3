"""In how many equal parts an axis is worked on, so that what is made of each of them fits."""


def equal_parts(length: int, most: int = 0) -> int:
    """Return the least number of equal parts of `length` that are at most `most` long each; 0 for no limit."""
    most = most or length
    return next((n for n in range(1, length + 1) if length % n == 0 and length <= n * most), max(1, length))


def chunk_parts(shape: tuple[int, int, int], chunk: int) -> int:
    """Return that number for the last axis of [B, C, T], with at most `chunk` elements of all cells in each part."""
    n_bags, n_cells, length = shape
    return equal_parts(length, max(1, chunk // (n_bags * n_cells)) if chunk else 0)
