"""A server under load against a bare loop: images per second, seconds to an answer, and a flood of bad uploads.

All on this machine, over its loopback only: one server of `pipelines.serve` in a session of its own, clients in threads
of this process. The loop decodes, predicts and encodes the same images in this process, one after the other, with as
many threads for PyTorch as the replica has. Without a checkpoint the model is `sample_small`'s, from random weights.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import re
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.serving.batching import Predictor
    from pipelines.speed.report import Report

REPEATS = 3
START_S = 240.0
READY = re.compile(r"http://127\.0\.0\.1:(\d+)")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--checkpoint", type=Path, help="what is served (default: sample_small from random weights)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), default=(256, 320), help="of images, pixels")
    parser.add_argument("--images", type=int, default=48, help="of a round (default %(default)s)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8], help="at a time (default %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="the server's (default %(default)s)")
    parser.add_argument("--bad", type=int, default=2000, help="bad uploads (default %(default)s)")


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be measured.

    Raises:
        InputError: numbers that are too small, or no such checkpoint.
    """
    from pipelines.base.errors import InputError

    if min(*args.size, args.images, *args.clients, args.batch, args.bad) < 1:
        raise InputError("--size, --images, --clients, --batch, --bad: 1 or more each")
    if args.checkpoint and not args.checkpoint.is_file():
        raise InputError(f"--checkpoint {args.checkpoint}: no such file; a run's are RUN/STAGE/best.pt")


@dataclass
class Load:
    """What clients measured: seconds to each answer, seconds of all, and how often each status came."""

    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0
    statuses: dict[int, int] = field(default_factory=dict)


def measure(args: argparse.Namespace) -> Report:
    """Loop and clients take turns, then the flood comes."""
    import torch

    from pipelines.cluster.sizes import Sizes, threads
    from pipelines.serving.batching import Predictor
    from pipelines.serving.limits import Limits
    from segmodels.loading import load

    torch.set_num_threads(threads(Sizes(1, torch.cuda.device_count(), 1.0, 1, 1.0)))  # as the one replica does
    with tempfile.TemporaryDirectory() as folder:
        path = args.checkpoint or drawn(Path(folder))
        images = pictures(args.images, *args.size)
        predictor = Predictor(load(path), Limits())
        with server(path, args.batch) as (port, pid):
            loops, loads = rounds(args, predictor, images, port)
            flooded = flood(port, pid, args.bad)
            last = upload(port, images[0])
    return report(args, loops, loads, flooded, last)


def drawn(folder: Path) -> Path:
    """A checkpoint of `sample_small` from random weights."""
    import numpy as np
    import torch

    from pipelines.recipes.model import build_model
    from pipelines.recipes.reading import load_recipe
    from pipelines.runs.checkpoint import Checkpoint, Progress

    recipe = load_recipe("sample_small", [f"output={folder}"])
    torch.manual_seed(0)
    colours = tuple((i, 7 * i % 256, 31 * i % 256) for i in range(21))
    Checkpoint(
        model=build_model(recipe, 21).state_dict(), recipe=recipe, stage="drawn", step=0, progress=Progress(),
        classes=tuple(map(str, range(21))), palette=colours, seen=np.zeros(0, np.int64),
    ).write(folder / "drawn.pt")  # fmt: skip
    return folder / "drawn.pt"


def pictures(count: int, height: int, width: int) -> list[bytes]:
    """JPEG files of drawn images."""
    import cv2
    import numpy as np

    generator, made = np.random.default_rng(0), []
    for _ in range(count):
        small = generator.integers(0, 255, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
        made.append(cv2.imencode(".jpg", cv2.resize(small, (width, height)))[1].tobytes())
    return made


@contextlib.contextmanager
def server(path: Path, batch: int) -> Iterator[tuple[int, int]]:
    """A server of the checkpoint in processes of its own; gives its port and the id of the process that speaks HTTP."""
    from pipelines.base.errors import RunFailed

    words = [sys.executable, "-m", "pipelines.serve", str(path), "--port", "0", "--batch", str(batch)]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True)
        timer = threading.Timer(START_S, process.kill)
        timer.start()
        try:
            port = next((int(found[1]) for line in process.stdout or () if (found := READY.search(line))), None)
            timer.cancel()
            if port is None:
                errors.seek(0)
                raise RunFailed(f"the server did not start: {errors.read()[-2000:]}")
            yield port, process.pid
        finally:
            timer.cancel()
            process.terminate()
            process.wait()


def rounds(
    args: argparse.Namespace, predictor: Predictor, images: Sequence[bytes], port: int
) -> tuple[list[float], dict[int, list[Load]]]:
    """Seconds of the bare loop, and what each number of clients measured, by round; a first round is not counted."""
    loops: list[float] = []
    loads: dict[int, list[Load]] = {count: [] for count in args.clients}
    for turn in range(args.repeats + 1):
        seconds = loop(predictor, images)
        measured = {count: clients(port, images, count) for count in args.clients}
        if turn:
            loops.append(seconds)
            for count, value in measured.items():
                loads[count].append(value)
    return loops, loads


def loop(predictor: Predictor, images: Sequence[bytes]) -> float:
    """Seconds in which this process alone answers the images, one after the other."""
    began = time.perf_counter()
    for data in images:
        (found,) = predictor.predict([predictor.decode(data, "mask")])
        predictor.encode(found, "mask", False)  # type: ignore[arg-type]
    return time.perf_counter() - began


def clients(port: int, images: Sequence[bytes], count: int) -> Load:
    """What so many clients measure that share the images, each sending the next when the last is answered."""
    load, todo, lock = Load(), iter(images), threading.Lock()

    def client() -> None:
        while True:
            with lock:
                data = next(todo, None)
            if data is None:
                return
            began = time.perf_counter()
            status = upload(port, data)
            with lock:
                load.latencies.append(time.perf_counter() - began)
                load.statuses[status] = load.statuses.get(status, 0) + 1

    began = time.perf_counter()
    threads = [threading.Thread(target=client) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.seconds = time.perf_counter() - began
    return load


def upload(port: int, data: bytes) -> int:
    """The status of the answer to an image file whose mask is asked for; its body is read."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    with contextlib.closing(connection):
        connection.request("POST", "/predict?answer=mask", data)
        answer = connection.getresponse()
        answer.read()
        return answer.status


@dataclass(frozen=True)
class Flood:
    """Bad uploads: how often each status came, their seconds, and MiB of server and replicas before and after."""

    statuses: dict[int, int]
    seconds: float
    before: float
    after: float


def flood(port: int, pid: int, count: int) -> Flood:
    """So many bad uploads from eight clients, after a tenth of them that are not counted."""
    bad = bad_uploads()
    clients(port, [bad[i % len(bad)] for i in range(max(1, count // 10))], 8)
    before = memory(pid)
    load = clients(port, [bad[i % len(bad)] for i in range(count)], 8)
    return Flood(dict(sorted(load.statuses.items())), load.seconds, before, memory(pid))


def bad_uploads() -> list[bytes]:
    """Nothing, text, a cut JPEG, noise that begins as a PNG, an announced 3.6 thousand million pixels, 21 MiB."""
    whole, start = pictures(1, 64, 64)[0], b"\x89PNG\r\n\x1a\n"
    head = (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    bomb = start + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    return [b"", b"<!doctype html>", whole[: len(whole) // 2], start + bytes(1000), bomb, bytes(21 << 20)]


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def memory(pid: int) -> float:
    """MiB of the process and of the replicas below it that nothing else shares."""
    import psutil

    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    ours = [process for process in processes if process.pid == pid or "Replica" in "".join(process.cmdline()[:1])]
    return sum(process.memory_full_info().uss for process in ours) / 2**20


def report(
    args: argparse.Namespace, loops: list[float], loads: dict[int, list[Load]], flooded: Flood, last: int
) -> Report:
    """The table: a line for the loop, one for each number of clients."""
    import numpy as np

    from pipelines.speed.report import Report, ratios, spread

    rates = [args.images / seconds for seconds in loops]
    rows = [["bare loop", spread(rates), "1", spread([1000 / rate for rate in rates]), "–"]]
    for count, measured in loads.items():
        own = [args.images / load.seconds for load in measured]
        middle, late = (
            [1000 * float(np.percentile(load.latencies, q)) for load in measured] for q in (50, 95)
        )  # fmt: skip
        name = f"{count} client{'s' if count > 1 else ''}"
        rows.append([name, spread(own), spread(ratios(own, rates), 2), spread(middle), spread(late)])
    said = ", ".join(f"{count:,} x {status}" for status, count in flooded.statuses.items())
    notes = [
        f"images of {args.size[0]}x{args.size[1]} pixels (H x W) as JPEG, answered with their mask as PNG; "
        f"{args.images} a round, batches of up to {args.batch}, one replica",
        f"{args.bad:,} bad uploads from 8 clients in {flooded.seconds:.1f} s: {said}; memory of server and replica "
        f"{flooded.before:.0f} MiB before, {flooded.after:.0f} MiB after; a good image after them: status {last}",
    ]
    data = {
        "loop_s": loops,
        "clients": {str(count): [vars(load) for load in measured] for count, measured in loads.items()},
        "flood": vars(flooded),
    }
    columns = ["", "images/s", "ratio", "p50 ms", "p95 ms"]
    return Report("A server against a bare loop", columns, rows, notes, data)
