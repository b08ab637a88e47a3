"""The HTML of a report: one file that loads nothing, for screen, phone, keyboard, screen reader and print."""

import base64
import datetime
import html
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.pages import names, output
from experiments.pages.style import STYLE

LONGEST = 400
"""Letters of a table's cell; the whole is its title."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What the page may load: nothing but the pictures that are inside it. The browser enforces it."""


class Section(NamedTuple):
    """A part of a page with a heading and a place in its contents; `body` is HTML."""

    title: str
    body: str


class Html(str):
    """Text that is HTML already; everything else is escaped."""

    __slots__ = ()


def write(path: str | os.PathLike, title: str, facts: Mapping[str, Any], sections: Sequence[Section]) -> pathlib.Path:
    """Write a page with a few facts at its top, in one go, and return its path; empty sections are left out."""
    path = pathlib.Path(path)
    output.write_file(path, page(title, facts, sections))
    return path


def page(title: str, facts: Mapping[str, Any], sections: Sequence[Section]) -> str:
    """Return the whole page."""
    filled = [section for section in sections if section.body]
    links = "".join(f'<li><a href="#{anchor(s.title)}">{text(s.title)}</a></li>' for s in filled)
    parts = "".join(
        f'<section id="{anchor(s.title)}" aria-labelledby="{anchor(s.title)}-title">'
        f'<h2 id="{anchor(s.title)}-title">{text(s.title)}</h2>{s.body}</section>'
        for s in filled
    )
    cards = "".join(f"<div><dt>{text(name)}</dt><dd>{clipped(value)}</dd></div>" for name, value in facts.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body>"
        '<a class="skip" href="#content">Skip to the content</a>'
        f"<header><p>scfm_jax report</p><h1>{clipped(title)}</h1><dl>{cards}</dl>"
        f'<nav aria-label="Contents"><ul>{links}</ul></nav></header>'
        f'<main id="content" tabindex="-1">{parts}</main></body></html>\n'
    )


def table(caption: str, head: Sequence[Any], rows: Sequence[Sequence[Any]], css: str = "") -> str:
    """Return a table whose first column names its rows; it scrolls by itself where the screen is narrower.

    Args:
      rows: cells; `Html` is taken as it is, of longer text the beginning. A row of one cell is a heading over those
        that follow.
      css: its class in the style sheet.
    """
    lines = []
    for first, *others in rows:
        if not others:
            heading = f'<th colspan="{len(head)}" scope="rowgroup"><span>{clipped(first)}</span></th>'
            lines.append(f'<tr class="group">{heading}</tr>')
            continue
        cells = (clipped(cell, LONGEST) for cell in others)
        cells = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{clipped(first)}</th>{cells}</tr>')
    top = "".join(f'<th scope="col">{clipped(name)}</th>' for name in head)
    top = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    style = f' class="{css}"' if css else ""
    return (
        f'<div class="wide" role="region" aria-label="{text(caption)}" tabindex="0"><table{style}>'
        f"<caption>{text(caption)}</caption>{top}<tbody>{''.join(lines)}</tbody></table></div>"
    )


def figure(caption: str, picture: bytes, kind: str, alt: str, below: str = "") -> str:
    """Return a picture that is part of the page; `kind` is "png" or "svg+xml", `below` HTML under it."""
    data = base64.b64encode(picture).decode()
    image = f'<img alt="{text(alt)}" src="data:image/{kind};base64,{data}">'
    return f"<figure><figcaption>{clipped(caption)}</figcaption>{image}{below}</figure>"


def folded(title: str, body: str) -> str:
    """Return HTML that is shown when its title is opened."""
    return f"<details><summary>{text(title)}</summary>{body}</details>"


def note(words: Any) -> str:
    """Return a paragraph in a smaller voice."""
    return f'<p class="note">{text(words)}</p>'


def listed(lines: Sequence[Any]) -> str:
    """Return a list, nothing for no lines."""
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>" if lines else ""


def moment(text: Any) -> str:
    """Return a time in ISO format as "2026-11-27 05:10 UTC", and anything else, a time without a zone too, as it is."""
    try:
        time = datetime.datetime.fromisoformat(str(text))
    except ValueError:
        return str(text)
    return str(text) if time.tzinfo is None else f"{time.astimezone(datetime.UTC):%Y-%m-%d %H:%M} UTC"


def anchor(title: str) -> str:
    """Return the name of a section in links."""
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def text(value: Any) -> str:
    """Return a value as HTML; signs that would act, such as one that turns the direction of text, are written out."""
    return value if isinstance(value, Html) else html.escape(names.visible(value))


def clipped(value: Any, most: int = names.MOST) -> str:
    """Return a name as HTML, of a long one the beginning; the whole is its title."""
    if isinstance(value, Html) or len(str(value)) <= most:
        return text(value)
    return f'<span title="{text(value)}">{text(names.short(value, most))}</span>'
