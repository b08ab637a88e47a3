"""Which of equal values torch's `topk` takes on a CPU: a recorded network read those, and no array says which.

It calls the `nth_element` of GNU's library, so the choice follows from the steps of that selection: the median of three
as pivot, partition, the part that holds the wanted place again, and insertion sort at the end.
"""

import numpy as np

FEW = 64
"""Where not even one in so many is wanted torch sorts a heap instead; then the first of equal values are taken here."""


def largest(values: np.ndarray, number: int) -> np.ndarray:
    """Return the places of the largest values, in no order. [N] -> [number]"""
    keys, places = (-np.asarray(values, np.float64)).tolist(), list(range(len(values)))
    if number * FEW <= len(keys):
        return np.argsort(keys, kind="stable")[:number]
    first, end, nth = 0, len(keys), number - 1
    while end - first > 3:
        cut = _partition(keys, places, first, end)
        first, end = (cut, end) if cut <= nth else (first, cut)
    part = sorted(range(first, end), key=lambda i: keys[i])  # stable, as insertion sort is
    places[first:end] = [places[i] for i in part]
    return np.array(places[:number])


def _partition(keys: list[float], places: list[int], first: int, end: int) -> int:
    """Put what is less than a pivot before the rest, in place, and return where the rest begins."""

    def exchange(i: int, j: int) -> None:
        for row in (keys, places):
            row[i], row[j] = row[j], row[i]

    a, b, c = first + 1, first + (end - first) // 2, end - 1
    exchange(first, _median(keys, a, b, c))
    pivot, low, high = keys[first], first + 1, end
    while True:
        while keys[low] < pivot:
            low += 1
        high -= 1
        while pivot < keys[high]:
            high -= 1
        if low >= high:
            return low
        exchange(low, high)
        low += 1


def _median(keys: list[float], a: int, b: int, c: int) -> int:
    """Return which of three places has the median, by the comparisons of the original where some are equal."""
    if keys[a] < keys[b]:
        return b if keys[b] < keys[c] else c if keys[a] < keys[c] else a
    return a if keys[a] < keys[c] else c if keys[b] < keys[c] else b
