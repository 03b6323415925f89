"""A report for people: one self-contained HTML file with its images inlined."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from PIL import Image

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1f24; --soft: #5b6470; --line: #d9dde3; --paper: #fff; --band: #f4f6f8 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --soft: #9aa4b2; --line: #333a44; --paper: #14171c; --band: #1c2129 }
}
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem;
  margin: 2.5rem auto; padding: 0 1.25rem }
h1 { font-size: 1.7rem; margin: 0 0 .25rem } h2 { font-size: 1.15rem; margin: 2.5rem 0 .25rem }
p { margin: .4rem 0 } .lead, figcaption, .note { color: var(--soft) }
figure { margin: 1rem 0; overflow-x: auto } img { image-rendering: pixelated; max-width: 100%; border-radius: 4px }
table { border-collapse: collapse; margin: .75rem 0; width: 100% }
td, th { text-align: left; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap }
pre { background: var(--band); padding: .75rem 1rem; overflow-x: auto; border-radius: 6px; font-size: .9rem }
"""


@dataclass(frozen=True)
class Figure:
    """A picture with its caption."""

    picture: Image.Image
    caption: str


@dataclass(frozen=True)
class Section:
    """One part of a report: a title, a sentence with its figure, then pictures, a table and commands."""

    title: str
    summary: str
    figures: Sequence[Figure] = ()
    table: Sequence[Sequence[str]] = ()
    commands: Sequence[str] = field(default=())


def render(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The HTML text; tables take their first row as the header."""
    body = "\n".join(_section(section) for section in sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{escape(title)}</title><style>{_STYLE}</style></head>\n'
        f'<body><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>\n{body}\n</body></html>\n'
    )


def _section(section: Section) -> str:
    parts = [f"<section><h2>{escape(section.title)}</h2><p>{escape(section.summary)}</p>"]
    parts += [_figure(figure) for figure in section.figures]
    if section.table:
        parts.append(_table(section.table))
    if section.commands:
        parts.append("<pre>" + escape("\n".join(section.commands)) + "</pre>")
    return "\n".join([*parts, "</section>"])


def _figure(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.picture.save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    caption = escape(figure.caption)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    header = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td{_number(cell)}>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:]
    )
    return f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"


def _number(cell: str) -> str:
    return ' class="number"' if cell[:1].isdigit() else ""
