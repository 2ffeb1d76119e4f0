"""prepare against its own work done bare: read and encode, on all cores at once.

Both go over the same drawn release, in turn. "Pure" is the reader and the mask's encoding in as many processes as
there are workers, nothing else: no checksums, no counts, no Parquet, no Ray. Ray's start, paid once, is told apart.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets.sample import Benchmark, Item
    from pipelines.speed.report import Report

REPEATS = 3
DISTINCT = 32  # pictures that are drawn; the files are these, each with a number of its own in it
PURE_ROWS = 2048  # at most so many are read and encoded bare in a round
FORMS = {
    "jpeg": (".jpg", [1, 95]),  # cv2.IMWRITE_JPEG_QUALITY
    "png": (".png", [16, 0]),  # cv2.IMWRITE_PNG_COMPRESSION
}
GOAL, STORE = 0.8, 2 << 30  # share of the pure speed; bytes of object store that must suffice


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--gib", type=float, default=0.25, help="images to prepare, GiB (default %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(375, 500), metavar=("H", "W"), help="default 375 500")
    parser.add_argument("--form", choices=FORMS, default="jpeg", help="jpeg (quality 95), or png, stored without "
                        "compression: seven times the bytes for the same pixels (default %(default)s)")  # fmt: skip
    parser.add_argument(
        "--workers", type=int, metavar="N", help="files written at once (default: this machine's cores)"
    )
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keep the drawn release there for the next time")


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be measured.

    Raises:
        InputError: an option out of its range, or a disk too small.
    """
    from pipelines.base.errors import InputError

    if args.gib <= 0 or min(args.size) < 16 or (args.workers or 1) < 1:
        raise InputError("--gib must be above 0, --size at least 16 16, --workers 1 or more")
    wanted = (args.folder or Path(tempfile.gettempdir())).absolute()
    place = next(path for path in [wanted, *wanted.parents] if path.exists())
    if (free := shutil.disk_usage(place).free / 2**30) < 2.2 * args.gib:
        raise InputError(f"--gib {args.gib:g} takes twice that on disk, {place} has {free:.1f} GiB free; ask for less")


def measure(args: argparse.Namespace) -> Report:
    """Draw the release, start Ray, and let both take turns."""
    from datasets.catalog import BENCHMARKS
    from pipelines.base.machine import cores
    from pipelines.cluster.session import ray_cluster
    from pipelines.recipes.recipe import Workers
    from pipelines.speed.drawn import scratch
    from pipelines.speed.processes import MemoryPeak
    from pipelines.speed.store import StorePeak

    workers = args.workers or cores()
    with scratch() as folder:
        source = draw_release(args.folder or folder, args.gib, tuple(args.size), args.form)
        benchmark = BENCHMARKS["folder"](source)
        items = benchmark.index("train")
        began = time.monotonic()
        with (
            ProcessPoolExecutor(workers, get_context("spawn")) as pool,
            ray_cluster(Workers(count=1, gpus=0), lambda sizes: STORE),
        ):
            started = time.monotonic() - began
            pure(pool, workers, benchmark, items[: 8 * workers])  # imports
            prepared(workers, benchmark, items[: 8 * workers], folder / "first")
            with StorePeak() as store, MemoryPeak() as memory:
                rounds = [
                    {
                        "pure": pure(pool, workers, benchmark, items[:: -(-len(items) // PURE_ROWS)]),
                        "prepare": prepared(workers, benchmark, items, folder / "out"),
                    }
                    for _ in range(args.repeats)
                ]
            again = prepared(workers, benchmark, items, folder / "out", keep=True)
        facts = {
            "workers": workers, "rows": len(items), "start": started, "store": store.bytes, "spilled": store.spilled,
            "largest": memory.largest, "together": memory.together, "again": again, "rounds": rounds,
        }  # fmt: skip
    return report(args, facts)


def draw_release(parent: Path, gib: float, size: tuple[int, int], form: str) -> Path:
    """A folder of one's own of so many GiB of images, no two of them alike; kept if it is there already."""
    import json

    import cv2

    from datasets.readers.voc import CLASSES
    from pipelines.speed.drawn import draw

    folder = parent / f"drawn-{gib:g}gib-{size[0]}x{size[1]}-{form}"
    if (folder / "classes.yaml").exists():  # written last
        return folder
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    ending, options = FORMS[form]
    files = [
        (cv2.imencode(ending, image[..., ::-1], options)[1].tobytes(), cv2.imencode(".png", mask)[1].tobytes())
        for image, mask in draw(DISTINCT, size)
    ]
    written, number = 0, 0
    while written < gib * 2**30:
        image, mask = files[number % DISTINCT]
        image = numbered(image, number)
        (folder / f"images/{number:08d}{ending}").write_bytes(image)
        (folder / f"masks/{number:08d}.png").write_bytes(mask)
        written, number = written + len(image), number + 1
    (folder / "classes.yaml").write_text(json.dumps({"classes": list(CLASSES)}))
    return folder


def numbered(image: bytes, number: int) -> bytes:
    """The file with a comment that holds a number: other bytes, the same pixels."""
    note = f"number\0{number:08d}".encode()
    if image.startswith(b"\xff\xd8"):
        return image[:2] + b"\xff\xfe" + (len(note) + 2).to_bytes(2, "big") + note + image[2:]
    chunk = b"tEXt" + note
    return image[:33] + len(note).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + image[33:]


def pure(pool: ProcessPoolExecutor, workers: int, benchmark: Benchmark, items: list[Item]) -> dict[str, float]:
    """Read and encode in all processes at once: the sum of their rates, rows/s, and processor seconds a row."""
    done = list(pool.map(read_and_encode, [benchmark] * workers, [items[i::workers] for i in range(workers)]))
    return {"rate": sum(rows / wall for rows, wall, _ in done), "cpu": sum(c for *_, c in done) / len(items)}


def read_and_encode(benchmark: Benchmark, items: list[Item]) -> tuple[int, float, float]:
    """Rows, seconds and processor seconds of one process on one core."""
    import cv2

    from datasets.sample import encode_mask

    cv2.setNumThreads(1)
    wall, cpu = time.monotonic(), time.process_time()
    for item in items:
        mask = benchmark.read(item).mask
        assert mask is not None  # the drawn release is labelled
        encode_mask(mask)
    return len(items), time.monotonic() - wall, time.process_time() - cpu


def prepared(workers: int, benchmark: Benchmark, items: list[Item], out: Path, keep: bool = False) -> dict[str, float]:
    """Write the split as `prepare` does: rows/s, and processor seconds a row of all processes, Ray's own included."""
    from pipelines.shards.writing import write_split
    from pipelines.speed.processes import processor_seconds, processor_seconds_since

    if not keep:
        shutil.rmtree(out, ignore_errors=True)
    wall, cpu = time.monotonic(), processor_seconds()
    write_split(benchmark, "train", items, str(out), workers, lambda line: print(line, flush=True))
    return {"rate": len(items) / (time.monotonic() - wall), "cpu": processor_seconds_since(cpu) / len(items)}


def report(args: argparse.Namespace, facts: dict[str, Any]) -> Report:
    """Both cases, and the same once more with every file there already."""
    from pipelines.speed.report import Report, goal, ratios, spread

    values = {
        case: {key: [r[case][key] for r in facts["rounds"]] for key in ("rate", "cpu")} for case in ("pure", "prepare")
    }
    kib = args.gib * 2**20 / facts["rows"]
    shares = ratios(values["prepare"]["rate"], values["pure"]["rate"])
    spent = ratios(values["pure"]["cpu"], values["prepare"]["cpu"])

    def row(name: str, numbers: dict[str, list[float]], *cells: str) -> list[str]:
        return [
            name,
            spread(numbers["rate"], 0),
            spread(numbers["rate"], 1, kib / 1024),
            spread(numbers["cpu"], 2, 1000),
            *cells,
        ]

    again = {key: [facts["again"][key]] for key in ("rate", "cpu")}
    rows = [
        row("pure read + encode", values["pure"], "1.00", "1.00"),
        row("prepare", values["prepare"], spread(shares, 2), spread(spent, 2)),
        row("prepare again, all kept", again, "", ""),
    ]
    mib = {key: facts[key] / 2**20 for key in ("store", "spilled", "largest", "together")}
    notes = [
        f"{facts['rows']} drawn {args.form} images of {args.size[1]}x{args.size[0]} pixels, {args.gib:g} GiB, "
        f"{kib:.0f} KiB each; {facts['workers']} worker(s); {args.repeats} round(s); pure: "
        f"up to {PURE_ROWS} of the rows a round",
        f"start of the session and the processes {facts['start']:.1f} s, not counted above",
        f"object store at most {mib['store']:.1f} MiB, {mib['spilled']:.0f} MiB spilled; memory of one worker's own "
        f"at most {mib['largest']:.0f} MiB, of all of the session together {mib['together']:.0f} MiB",
        goal("prepare / pure, rows/s", median(shares), GOAL),
        goal("prepare / pure, by processor time", median(spent), GOAL),
        goal("object store, GiB", mib["store"] / 1024, STORE / 2**30, least=False),
    ]
    columns = ["prepare", "rows/s", "MiB/s", "processor ms a row", "to pure", "to pure, processor"]
    return Report("prepare against bare reading and encoding", columns, rows, notes, facts)
