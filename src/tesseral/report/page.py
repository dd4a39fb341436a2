"""One self-contained page of HTML: sections of words, tables and charts; nothing is fetched.

Every function returns HTML and escapes the text that it is given; a ``body`` is HTML already.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

_CSS = Path(__file__).with_name("page.css")


def page(title: str, body: Iterable[str]) -> str:
    """Return a complete document; it carries its style and needs nothing beside itself."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            '<head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{_CSS.read_text(encoding='utf-8')}</style></head>",
            "<body>",
            f"<h1>{escape(title)}</h1>",
            *body,
            "</body></html>",
            "",
        ]
    )


def section(title: str, body: Iterable[str], *, anchor: str = "") -> str:
    """Return a part of the page under a heading; ``anchor`` is what links inside the page name."""
    opened = f'<section id="{escape(anchor)}">' if anchor else "<section>"
    return "\n".join([opened, f"<h2>{escape(title)}</h2>", *body, "</section>"])


def contents(entries: Mapping[str, str]) -> str:
    """Return links to parts of the page; ``entries`` are words by anchor."""
    links = [
        f'<a href="#{escape(anchor)}">{escape(words)}</a>' for anchor, words in entries.items()
    ]
    return "\n".join(["<nav>", *links, "</nav>"])


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph; ``kind`` is a class of the style sheet, such as ``"note"``."""
    return f'<p class="{escape(kind)}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def facts(entries: Iterable[tuple[str, str]]) -> str:
    """Return large values side by side, each above the words that say what it is."""
    boxes = [
        f'<div class="fact"><b>{escape(value)}</b><span>{escape(words)}</span></div>'
        for value, words in entries
    ]
    return "\n".join(['<div class="facts">', *boxes, "</div>"])


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table under its caption; it scrolls sideways where the page is narrow."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return "\n".join(
        [
            # a caption inside the table would be as wide as the table and be cut off with it
            f'<div class="table"><p class="note">{escape(caption)}</p>',
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>',
            *(f"<tr>{line}</tr>" for line in lines),
            "</tbody></table></div></div>",
        ]
    )


def figure(svg: str, caption: str) -> str:
    """Return a chart with its caption."""
    return f"<figure>\n{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def grid(parts: Iterable[str]) -> str:
    """Return parts side by side where there is room, below each other where there is not."""
    return "\n".join(['<div class="grid">', *parts, "</div>"])


def key(names: Mapping[str, str]) -> str:
    """Return which colour stands for what; ``names`` is by role of :mod:`.charts`."""
    entries = [
        f'<span><i style="background:var(--{escape(role)})"></i>{escape(name)}</span>'
        for role, name in names.items()
    ]
    return "\n".join(['<div class="key">', *entries, "</div>"])


def quotation(heading: str, text: str) -> str:
    """Return a text as it was written, line breaks kept."""
    return f"<blockquote><b>{escape(heading)}</b><p>{escape(text)}</p></blockquote>"
