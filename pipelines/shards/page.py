"""The report of a benchmark as one HTML page that needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

STYLE = """\
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1080px; padding: 0 1em; color: #222 }
h1 { font-size: 1.5em } h2 { font-size: 1.2em; margin-top: 2em; border-top: 1px solid #ccc; padding-top: 1em }
table { border-collapse: collapse; margin: .6em 0 } th, td { padding: 2px 10px; text-align: right }
th { border-bottom: 1px solid #999; font-weight: 600 }
td:first-child, th:first-child { text-align: left; white-space: nowrap }
tr:nth-child(even) td { background: #f6f6f6 } td.text, th.text { text-align: left }
.swatch { display: inline-block; width: 12px; height: 12px; border: 1px solid #444; margin-right: 6px }
.bar { display: inline-block; height: 10px; background: #4a78b5 } td.bars { width: 260px; text-align: left }
.warning { background: #fff3cd; border-left: 4px solid #d39e00; padding: 4px 10px; margin: 4px 0 }
.fine { background: #e6f4ea; border-left: 4px solid #3c8d50; padding: 4px 10px }
code { font-size: 12px; overflow-wrap: anywhere } img { max-width: 100%; border: 1px solid #ccc } .never { color: #a00 }
"""


def page(facts: Mapping[str, Any], sheets: Mapping[str, np.ndarray]) -> str:
    """The page.

    Args:
        facts: of `report.gather`.
        sheets: split -> pictures, RGB uint8 (H, W, 3); may lack some.
    """
    title = escape(f"{facts['benchmark']}: {', '.join(facts['splits'])}")
    warned = "".join(f'<div class="warning">{escape(text)}</div>' for text in facts["warnings"])
    source = f"Published at {escape(facts['home'])}" if facts["home"] else "Your own folder"
    parts = [
        f"<h1>{title}</h1><p>{source}</p>",
        warned or '<div class="fine">No warnings.</div>',
        "".join(f"<p>{escape(text)}</p>" for text in facts["notes"]),
        overview(facts),
        shared(facts["overlaps"], len(facts["splits"])),
        *(split_section(facts, name, sheets.get(name)) for name in facts["splits"]),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of cells that are HTML already."""
    head = "".join(f"<th>{column}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(c if c.startswith('<td') else f'<td>{c}</td>' for c in row)}</tr>\n" for row in rows)
    return f"<table><tr>{head}</tr>\n{body}</table>"


def overview(facts: Mapping[str, Any]) -> str:
    """A line per split: its rows next to the official count, and the hash of its shards."""
    columns = ["split", "rows", "official", "files", "size", "same image twice", "image and mask of two sizes", "hash"]
    rows = [
        [
            escape(name), f"{s['rows']:,}", count(s["official_rows"]) + (" (partial)" if s["partial"] else ""),
            str(s["files"]), f"{s['bytes'] / 1e6:,.1f} MB", str(s["duplicates"]), str(s["size_mismatches"]),
            f'<td class="text"><code>{s["hash"]}</code></td>',
        ]
        for name, s in facts["splits"].items()
    ]  # fmt: skip
    rows += [
        [escape(name), "not prepared", count(official), *[""] * 5] for name, official in facts["not_prepared"].items()
    ]
    note = "<p>A row whose image and mask differ in size ends the preparation with an error, so that column is 0.</p>"
    return table(columns, rows) + note


def count(rows: int | None) -> str:
    """A published number of rows."""
    return "none published" if rows is None else f"{rows:,}"


def shared(overlaps: Iterable[Mapping[str, Any]], splits: int) -> str:
    """The images that two splits share."""
    rows = [
        [
            f"{escape(a)} and {escape(b)}",
            f"{pair['rows'][0]} of {escape(a)}, {pair['rows'][1]} of {escape(b)}",
            f'<td class="text">{MEANINGS[pair["kind"]]}</td>',
            f'<td class="text">{escape(first_ids(pair))}</td>',
        ]
        for pair in overlaps
        for a, b in [pair["splits"]]
    ]
    if not rows:
        return f"<p>No two of the {splits} splits share an image.</p>" if splits > 1 else ""
    return "<h2>Images in two splits</h2>" + table(["splits", "rows", "what it is", "first ids"], rows)


def first_ids(pair: Mapping[str, Any]) -> str:
    """The first images that two splits share, and how many more."""
    ids = [x if x == y else f"{x} = {y}" for x, y in pair["first"]]
    more = pair["rows"][0] - len(ids)
    return ", ".join(ids) + (f", ... and {more} more" if more > 0 else "")


MEANINGS = {
    "by design": "by design: one is the union of the other and further splits",
    "leak": "<b>a leak</b>: one is for training, the other is not",
    "shared": "shared, both for training or neither",
}


def split_section(facts: Mapping[str, Any], name: str, sheet: np.ndarray | None) -> str:
    """Classes and pictures of a split."""
    split = facts["splits"][name]
    sizes = ", ".join(f"{s['width']}x{s['height']} ({s['rows']})" for s in split["sizes"])
    least, greatest = ("x".join(map(str, reversed(split[f"{key}_size"]))) for key in ("least", "greatest"))
    edges = "; ".join(f"{share:.1%} within {reach} pixel(s)" for reach, share in split["boundary"].items())
    body = class_table(split) if split["labelled"] else image_table(split) if split["classified"] else NO_LABELS
    return (
        f"<h2>{escape(name)}</h2><p>Sizes (width x height), the commonest: {sizes}; least {least}, "
        f"greatest {greatest}. Labelled pixels that have another class: {edges}.</p>{body}"
        + ("" if sheet is None else pictures(name, sheet, split["pictured"]))
    )


def pictures(name: str, sheet: np.ndarray, ids: Iterable[str]) -> str:
    """Some rows of a split, and their ids as text: the pictures' font lacks some letters."""
    image = f'<img alt="rows of {escape(name)}" src="data:image/jpeg;base64,{jpeg(sheet)}">'
    return f"<p>{image}</p><p>Shown: {escape(', '.join(ids))}</p>"


NO_LABELS = "<p>No labels.</p>"


def image_table(split: Mapping[str, Any]) -> str:
    """The classes of whole images, and how many images each has."""
    rows = [[escape(name), f"{images:,}"] for name, images in zip(split["classes"], split["images"], strict=False)]
    return table(["class", "images"], rows)


def class_table(split: Mapping[str, Any]) -> str:
    """Pixels, images and weights of each class; a class that is never seen is red."""
    pixels, total = split["histogram"], max(1, sum(split["histogram"]))
    colours, weights = [*split["palette"], (255, 255, 255)], list(split["weights"].values())
    rows = []
    for k, name in enumerate([*split["classes"], "(ignored)"]):
        red, green, blue = colours[k]
        label = f'<span class="swatch" style="background:rgb({red},{green},{blue})"></span>{escape(name)}'
        width = 250 * pixels[k] / max(1, *pixels)
        share = f'<td class="bars"><span class="bar" style="width:{width:.1f}px"></span></td>'
        if name in split["unseen"]:
            share = '<td class="bars never">never</td>'
        weight = [f"{values[k]:.4f}" if k < len(values) else "" for values in weights]
        rows.append([label, f"{pixels[k]:,}", f"{pixels[k] / total:.3%}", share, f"{split['images'][k]:,}", *weight])
    names = [f"weight: {escape(name)}" for name in split["weights"]]
    return table(["class", "pixels", "share", "", "images that hold it", *names], rows)


def jpeg(sheet: np.ndarray) -> str:
    """An RGB picture as a JPEG file in base64."""
    import cv2

    data = cv2.imencode(".jpg", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return base64.b64encode(data.tobytes()).decode()
