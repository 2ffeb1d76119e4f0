"""The run's own record: one JSON line per event, only ever appended to. MLflow and the screen are fed from it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from pipelines.base.files import to_json


class Record:
    """Writes the record of one stage; steps that it holds already are not written again after a resume.

    Training is a pure function of recipe, shards and step, so what a resumed run repeats is what it wrote before.

    Args:
        path: of the record; None for a worker that only takes part, whose events go nowhere.
    """

    def __init__(self, path: Path | None) -> None:
        self.last, self.file, self.lock = dict.fromkeys(("train", "val", "test", "head"), -1), None, threading.Lock()
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in read_record(path)[0]:
            if line["kind"] in self.last:
                self.last[line["kind"]] = max(self.last[line["kind"]], line["step"])
        self.file = path.open("a")
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            self.file.write("\n")  # a killed writer's torn line stays on a line of its own, unreadable and skipped

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *error: object) -> None:
        if self.file:
            self.file.close()

    def add(self, kind: str, step: int, **values: Any) -> None:
        """Append an event: `train`, `val`, `test` and `head` carry numbers, `note` a text."""
        with self.lock:  # the thread that saves has notes too
            if self.file is None or step <= self.last.get(kind, -1):
                return
            if kind in self.last:
                self.last[kind] = step
            append(self.file, {"kind": kind, "step": step, "time": int(time.time() * 1000), **values})


def append(file: TextIO, line: Mapping[str, Any]) -> None:
    """Write a line, whole."""
    file.write(to_json(line) + "\n")
    file.flush()


def read_record(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Whole lines from byte `offset` on, and the offset behind them; a torn line is passed over."""
    if not path.exists():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    end = data.rfind(b"\n") + 1
    return list(parse(data[:end])), offset + end


def parse(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue
