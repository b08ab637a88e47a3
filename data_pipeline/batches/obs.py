"""What is known of each cell: columns of a study's obs, class lists over a store, filter expressions.

Two columns exist in every study without being stored: `study` and `group`; `n_genes` (expressed genes, from the index
pointers) stands in where obs has none. An empty text is as unknown as a missing value.

Names of batches, donors and groups mean something only inside their study (batch "1" of two studies is not one batch),
so their classes and split values are scoped: "study/batch".
"""

import ast
import operator
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import pandas as pd

from data_pipeline.files.columns import codes

SCOPED = ("batch", "donor", "group")
IMPLICIT = ("study", "group", "n_genes")
LONGEST = 200
"""Characters of a filter that errors repeat."""
DEEP = "is nested too deeply; write it with fewer parentheses"


def studies(store) -> list:
    """Return the Study objects of the store in the order of their index."""
    return [store.study(name) for name in store.studies]


def require(store, names: Iterable[str], what: str) -> None:
    """Raise ValueError that lists the columns there are, unless at least one study has each of `names`."""
    present = {*IMPLICIT, *(c for study in studies(store) for c in study.obs.columns)}
    for name in names:
        if name not in present:
            raise ValueError(f"{what}: no obs column {name!r} in the store; there are {', '.join(sorted(present))}")


def column(study, name: str) -> pd.Series | pd.Categorical | np.ndarray:
    """Return column `name` of a study as it is stored; all unknown where the study has none. [n]"""
    if name == "study":
        return pd.Categorical.from_codes(np.zeros(study.n_cells, np.int8), [study.name])
    if name == "group":
        member = np.repeat(np.arange(len(study.groups)), np.diff(study.group_starts))
        return pd.Categorical.from_codes(member, list(study.groups))
    if name in study.obs.columns:
        return study.obs[name]
    return np.diff(study.indptr) if name == "n_genes" else np.full(study.n_cells, np.nan)


def coded(study, name: str) -> tuple[np.ndarray, list[str]]:
    """Return (index into the values, -1 where unknown [n]; the values as text) of a column of a study."""
    return codes(column(study, name))


def scoped(study, name: str, value: str) -> str:
    """Return the class name of a value: "study/value" where the column means something only inside its study."""
    return f"{study.name}/{value}" if name in SCOPED else value


def class_names(store, columns: Sequence[str], unlabelled: Collection[str] = ()) -> dict[str, list[str]]:
    """Return the sorted class names of each column over all studies of the store; "study" keeps the store's order.

    `unlabelled`: words, in lower case, that are as unknown as a missing value.
    """
    require(store, columns, "labels")
    classes = {"study": list(store.studies)}
    for name in columns:
        if name != "study":
            values = ((s, v) for s in studies(store) for v in coded(s, name)[1])
            classes[name] = sorted({scoped(s, name, v) for s, v in values if v and v.strip().lower() not in unlabelled})
    return classes


def class_codes(study, name: str, classes: Sequence[str]) -> np.ndarray:
    """Return the class index of each cell of a study, -1 where unknown, int32. [n]"""
    index = {value: i for i, value in enumerate(classes)}
    codes, text = coded(study, name)
    return np.array([*(index.get(scoped(study, name, v), -1) for v in text), -1], np.int32)[codes]


_COMPARE = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda value, choices: np.isin(value, choices),
    ast.NotIn: lambda value, choices: ~np.isin(value, choices),
}
_MIRROR = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE, ast.Eq: ast.Eq, ast.NotEq: ast.NotEq}


class Filter:
    """An expression over obs columns: `tissue == "lung" and 500 < n_genes < 6000 or not donor in ["a", "b"]`.

    Comparisons of a column with a value, `in`, `not in`, `and`, `or`, `not`, parentheses; text in quotes; a name may
    have dots (percent.mt). Of an unknown value only `!=` and `not in` are true. Nothing else is ever executed.
    Raises ValueError that says in one line what is wrong, when built or when called.
    """

    def __init__(self, expression: str):
        self.expression = expression
        self.columns: set[str] = set()
        try:
            parsed = ast.parse(expression.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # of CPython's parser
            raise self._wrong("cannot be read; an example is: tissue == 'lung' and n_genes > 500") from error
        try:
            self._test = self._compile(parsed)
        except RecursionError as error:
            raise self._wrong(DEEP) from error

    def __call__(self, study) -> np.ndarray:
        """Return which cells of a study the expression keeps, bool. [n]"""
        try:
            return self._test(study)
        except RecursionError as error:
            raise self._wrong(DEEP) from error

    def _wrong(self, why: str) -> ValueError:
        shown = self.expression if len(self.expression) <= LONGEST else f"{self.expression[:LONGEST]}…"
        return ValueError(f"filter {shown!r}: {why}")

    def _compile(self, node: ast.expr):
        """Return the function study -> bool [n] that the node means."""
        turned = False
        while isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            turned, node = not turned, node.operand
        if turned:
            test = self._compile(node)
            return lambda study: ~test(study)
        match node:
            case ast.BoolOp(op=op, values=nodes):
                combine = np.logical_and if isinstance(op, ast.And) else np.logical_or
                tests = [self._compile(n) for n in nodes]
                return lambda study: combine.reduce([test(study) for test in tests])
            case ast.Compare(left=left, ops=ops, comparators=rights):
                pairs = zip([left, *rights], ops, rights, strict=False)
                tests = [self._comparison(a, type(op), b) for a, op, b in pairs]
                return lambda study: np.logical_and.reduce([test(study) for test in tests])
        raise self._wrong(f"{ast.unparse(node)!r} is not a comparison; join comparisons with and, or, not")

    def _comparison(self, left: ast.expr, op: type, right: ast.expr):
        """Return the function study -> bool [n] of one comparison of a column with a literal."""
        if not isinstance(left, ast.Name | ast.Attribute) and op in _MIRROR:
            left, op, right = right, _MIRROR[op], left
        if not isinstance(left, ast.Name | ast.Attribute):
            raise self._wrong(f"{ast.unparse(left)!r} is not a column")
        try:
            value = ast.literal_eval(right)
        except (ValueError, TypeError) as error:  # TypeError: a set of lists
            raise self._wrong(f"{ast.unparse(right)!r} is not a value; text is written in quotes") from error
        many = op in (ast.In, ast.NotIn)
        values = value if many and isinstance(value, tuple | list) else [value]
        texts = {isinstance(v, str) for v in values}
        if any(not isinstance(v, str | bool | int | float) or (isinstance(v, int) and abs(v) >= 2**63) for v in values):
            raise self._wrong(f"{ast.unparse(right)!r} is not a text or a number that a column can hold")
        if op not in _COMPARE or many != isinstance(value, tuple | list) or len(texts) != 1:
            raise self._wrong(f"{ast.unparse(right)!r} does not fit; `in` takes a list of texts or a list of numbers")
        name, is_text = ast.unparse(left), texts.pop()
        self.columns.add(name)

        def test(study) -> np.ndarray:
            cells = pd.Categorical(column(study, name))
            categories = cells.categories
            if len(categories) and is_text == pd.api.types.is_numeric_dtype(categories.dtype):
                raise self._wrong(f"column {name!r} of study {study.name!r} holds {'numbers' if is_text else 'text'}")
            hits = _COMPARE[op]((categories.astype(str) if is_text else categories).to_numpy(), value)
            return np.array([*hits, op in (ast.NotEq, ast.NotIn)], bool)[cells.codes]

        return test
