"""IoU, or another task's metric, of each class over the variants of a study (as SRNet's Table I): a table a protocol.

Where the papers print the IoU of each class of a variant, it stands in a column of its own, behind all measured ones.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from pipelines.base.text import padded
from pipelines.studies.scores import VALIDATION, Further, short

PRINTED = " published"
MOST = 40  # classes of a table on a terminal


def tables(more: Further, variants: Sequence[str]) -> Iterator[tuple[str, list[list[str]]]]:
    """The title of each table, and its cells with their head."""
    for name, classes in (more.classes or {}).items():
        title = f"{more.of_class} of each class, percent" + ("" if name == VALIDATION else f", {name}")
        printed = {v: values for v, values in (more.printed or {}).items() if len(values) == len(classes)}
        rows = [
            [
                label,
                *(short(cells.get(variant)) for variant in variants),
                *(f"{values[k]:g}" for values in printed.values()),
            ]
            for k, (label, cells) in enumerate(classes.items())
        ]
        yield title, [["class", *variants, *(f"{variant}{PRINTED}" for variant in printed)], *rows]


def in_text(more: Further, variants: Sequence[str]) -> Iterator[str]:
    """Lines for a terminal; tables of many classes are only named."""
    for title, rows in tables(more, variants):
        if len(rows) - 1 > MOST:
            yield f"\n{title}: {len(rows) - 1} classes, in the Markdown and HTML tables"
            continue
        yield f"\n{title}"
        yield from ("  ".join(line).rstrip() for line in padded(rows, range(1, len(rows[0]))))


def in_markdown(more: Further, variants: Sequence[str]) -> Iterator[str]:
    """Lines of Markdown."""
    for title, (head, *rows) in tables(more, variants):
        yield f"\n## {title}\n"
        for line in (head, [":---", *["---:"] * (len(head) - 1)], *rows):
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"


def in_html(more: Further, variants: Sequence[str]) -> Iterator[str]:
    """Parts of a page."""
    for title, (head, *rows) in tables(more, variants):
        kinds = ["text", *("published" if name.endswith(PRINTED) else "measured" for name in head[1:])]
        yield f"<h2>{html.escape(title)}</h2><table><tr>{cells('th', head, kinds)}</tr>"
        yield from (f"<tr>{cells('td', line, kinds)}</tr>\n" for line in rows)
        yield "</table>"


def cells(tag: str, line: Sequence[str], kinds: Sequence[str]) -> str:
    """A row of cells, each of its kind."""
    return "".join(f'<{tag} class="{kind}">{html.escape(cell)}</{tag}>' for kind, cell in zip(kinds, line, strict=True))
