"""The description of a run in MLflow: written again as the run grows, never over what somebody wrote there."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from pipelines.runs.mlflow_client import NOTE, TEXT_CHARS, set_tags

MARK = re.compile(r"\n*<!-- context-heads ([0-9a-f]{12}) -->\s*$")  # a line that the page does not show
OLD = ("**Failed:**", "`final/mIoU` in percent:", "mIoU in percent: ")  # how descriptions began up to 0.4.0
WHOLE = "note.md"


def send_note(client: Any, run: str, text: str) -> None:
    """Describe a run in Markdown; a text that MLflow would refuse is cut, and whole in an artifact."""
    text, there = spaced(text), client.get_run(run).data.tags.get(NOTE)
    note = marked(fitted(text))
    if there == note or not is_ours(there):
        return
    if fitted(text) != text:
        client.log_text(run, text, WHOLE)
    set_tags(client, run, {NOTE: note})


def spaced(text: str) -> str:
    """The text with a wide space at the end of each cell of its tables: the page draws columns side by side."""
    return re.sub(r"(?m)^\|.*[^-:|\s].*$", lambda row: row[0].replace(" |", "&emsp; |"), text)


def fitted(text: str) -> str:
    """The text, or as many of its lines as a tag holds."""
    most = TEXT_CHARS - 100  # the lines below and the mark
    if len(text) <= most:
        return text
    lines, _, _ = text[:most].rpartition("\n")
    return f"{lines}\n\n… (whole in the artifact `{WHOLE}`)"


def marked(text: str) -> str:
    """A note with the line by which `is_ours` knows it."""
    return f"{text}\n\n<!-- context-heads {digest(text)} -->"


def is_ours(note: str | None) -> bool:
    """Whether a description may be replaced: there is none, or it is as `marked` made it and nobody wrote in it."""
    if not note or note.startswith(OLD):
        return True
    found = MARK.search(note)
    return found is not None and digest(MARK.sub("", note)) == found[1]


def digest(text: str) -> str:
    """Twelve digits that name a text."""
    return hashlib.sha256(text.strip().encode()).hexdigest()[:12]
