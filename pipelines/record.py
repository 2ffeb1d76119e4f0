"""The run's own record: one JSON line per event, only ever appended to. MLflow and the screen are fed from it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Record:
    """Writes the record of one stage; steps that stand in it already are not written again after a resume.

    Training is a pure function of recipe, shards and step, so what a resumed run repeats is what it wrote before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.last = dict.fromkeys(("train", "val"), -1)
        for line in read_record(path)[0]:
            if line["kind"] in self.last:
                self.last[line["kind"]] = max(self.last[line["kind"]], line["step"])
        self.file = path.open("a")
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            self.file.write("\n")  # a killed writer's torn line stays alone on its line, unreadable and skipped

    def add(self, kind: str, step: int, **values: Any) -> None:
        """Append an event: `train` and `val` carry numbers, `note` a text."""
        if kind in self.last:
            if step <= self.last[kind]:
                return
            self.last[kind] = step
        line = {"kind": kind, "step": step, "time": int(time.time() * 1000), **values}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, then rename: the file is whole or as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


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
