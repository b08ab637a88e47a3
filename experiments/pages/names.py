"""Names that others chose, as pages, pictures and tables show them: each is text, and nothing in it acts.

File names, cell types, genes and obs columns may hold anything: signs that turn the direction of writing, line breaks,
dollar signs, which start a formula in a picture, or three thousand letters.
"""

import unicodedata
from typing import Any

MOST = 120
"""Letters of a name that a page shows; the whole is its title."""
BREAKS = "\t\n\r"
JOINERS = "\u200c\u200d"
"""Signs without a width that words of some languages and emoji need."""


def visible(name: Any) -> str:
    """Return a name with each sign that is not shown, but acts, written out: U+202E, which reverses what follows.

    They are controls, marks of direction, separators of lines, and halves of characters; line breaks and tabs stay.
    """
    text = str(name)
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(sign) for sign in text)


def _visible(sign: str) -> str:
    acts = unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp") and sign not in BREAKS + JOINERS
    return f"⟨U+{ord(sign):04X}⟩" if acts else sign


def short(name: Any, most: int = MOST) -> str:
    """Return a visible name of at most `most` letters, the rest as an ellipsis."""
    text = visible(name)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def label(name: Any, most: int = 40) -> str:
    """Return a short name in one line for a picture: matplotlib takes no part of it for a formula."""
    return " ".join(short(name, most).split()).replace("$", r"\$")
