#!/usr/bin/env python
"""Answer over HTTP what a checkpoint sees in images: a page for people, JSON, PNG and npz for programs.

Ray Serve's replicas predict, several images at a time; the checkpoint knows its model, its classes and how its recipe
predicts. Only this machine can ask, unless --host says otherwise. Ctrl-C or SIGTERM ends it, after what was begun.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.base.door import VERSION, program, run
from pipelines.base.errors import InputError, SetupError
from pipelines.serving.limits import TOKEN, Limits, read_token
from pipelines.serving.listening import address_of, answer, is_loopback, listener

if TYPE_CHECKING:
    import socket


STORE = 1 << 30  # bytes of a local session's object store: images on their way to replicas, answers on theirs
NEEDED = ("fastapi", "uvicorn", "prometheus_client")  # what the group `serve` brings
EXAMPLES = """\
examples:
  python -m pipelines.serve ~/context-heads/runs/NAME/camvid/best.pt          # then open http://127.0.0.1:8000
  curl --data-binary @street.jpg http://127.0.0.1:8000/predict
  curl --data-binary @street.jpg -o mask.png 'http://127.0.0.1:8000/predict?answer=mask'
  python -m pipelines.serve best.pt --replicas 4 --gpus 1 --batch 8 --host 0.0.0.0 --token-file token.txt
  curl --data-binary @street.jpg -H "Authorization: Bearer $(cat token.txt)" http://HOST:8000/predict
"""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        program(), description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    limits = Limits()
    parser.add_argument(
        "checkpoint", help="best.pt or step-….pt of a run, or what export wrote for use; a path or a URI"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default %(default)s)")
    parser.add_argument("--token-file", type=Path, help=f"file with the token that a client sends (default: ${TOKEN})")
    parser.add_argument("--open", action="store_true", help="other machines may ask without a token")
    parser.add_argument("--replicas", type=int, default=1, help="processes with the model (default %(default)s)")
    parser.add_argument("--gpus", type=int, choices=[0, 1], help="GPUs of each (default: 1 where there are any)")
    parser.add_argument("--batch", type=int, default=8, help="most images predicted together (default %(default)s)")
    parser.add_argument(
        "--batch-wait",
        type=float,
        default=10,
        metavar="MS",
        help="that an image waits for others (default %(default)s)",
    )
    parser.add_argument("--mode", choices=["whole", "slide"], help="whole image or sliding window (default: recipe)")
    parser.add_argument("--window", type=int, nargs=2, metavar=("H", "W"), help="pixels (default: the training crop)")
    parser.add_argument(
        "--stride", type=int, nargs=2, metavar=("H", "W"), help="pixels (default: the recipe's, else 2/3 of the window)"
    )
    parser.add_argument("--scales", type=float, nargs="+", help="image scales to average over (default: the recipe's)")
    parser.add_argument("--flip", action="store_true", default=None, help="average with the mirrored image")
    parser.add_argument(
        "--precision", choices=["auto", "bf16", "fp16", "fp32"], default="auto",
        help="default: bf16 on GPUs that have it, else fp32",
    )  # fmt: skip
    parser.add_argument(
        "--max-mib", type=float, default=limits.bytes / 2**20, help="of an image file (default %(default)g)"
    )
    parser.add_argument(
        "--max-megapixels", type=float, default=limits.pixels / 1e6, help="of an image (default %(default)g)"
    )
    parser.add_argument(
        "--max-waiting", type=int, default=limits.waiting, help="requests at a time; more get 503 (default %(default)s)"
    )
    parser.add_argument(
        "--timeout", type=float, default=limits.answer_s, metavar="S", help="of an answer (default %(default)g)"
    )
    parser.add_argument("--log", action="store_true", help="print a line for each request")
    parser.add_argument("--version", action="version", version=VERSION)
    return parser.parse_args()


def main() -> None:
    args = parse()
    limits = limits_of(args)
    from pipelines.runs.named import named_checkpoint

    path = named_checkpoint(args.checkpoint)
    if not path.is_file():
        raise InputError(f"no checkpoint {path}; those of a run are RUN/STAGE/best.pt")
    token = read_token(args.token_file)
    if not is_loopback(args.host) and token is None and not args.open:
        raise InputError(
            f"--host {args.host}: other machines could ask, and there is no token. Give --token-file FILE or {TOKEN}, "
            "or --open to let everybody ask who reaches this address"
        )
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise SetupError(
            f"no package {', '.join(missing)}, which a server needs: uv sync --group serve, or pip install 'ray[serve]'"
        )
    with listener(args.host, args.port) as listening:
        serve(args, path, limits, token, listening)


def limits_of(args: argparse.Namespace) -> Limits:
    """What a request may ask for.

    Raises:
        InputError: a number that is too small.
    """
    least = {"replicas": 1, "batch": 1, "batch_wait": 0, "max_waiting": 1, "port": 0}
    for name, number in least.items():
        if getattr(args, name) < number:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: {number} or more")
    for name in ("max_mib", "max_megapixels", "timeout"):
        if not 0 < getattr(args, name) < float("inf"):
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: a number above 0")
    if args.port > 65535:
        raise InputError(f"--port {args.port}: 65535 or less")
    return Limits(
        bytes=int(args.max_mib * 2**20), pixels=int(args.max_megapixels * 1e6), waiting=args.max_waiting,
        answer_s=args.timeout,
    )  # fmt: skip


def serve(args: argparse.Namespace, path: Path, limits: Limits, token: str | None, listening: socket.socket) -> None:
    """Start the replicas, and answer until the end."""
    print(f"{path}: PyTorch is imported, the checkpoint is read", flush=True)
    from pipelines.cluster.session import ray_cluster
    from pipelines.recipes.recipe import Workers
    from pipelines.serving.front import Front
    from pipelines.serving.opened import Plan, check_seen, look

    plan = Plan(path, overrides(args), args.precision, limits, args.batch, args.batch_wait / 1000)
    about = look(plan)
    print(f"{about.name}: {len(about.classes)} classes, {about.protocol}; Ray starts", flush=True)
    workers = Workers(count=args.replicas, gpus=args.gpus, feed_tasks=1)
    with ray_cluster(workers, store=lambda sizes: STORE) as sizes:
        from pipelines.serving.replica import deployed  # Ray reads its environment when it is imported

        check_seen(path)
        with deployed(plan, sizes) as replicas:
            asks = "with the token" if token else "without a token"
            print(f"{replicas.told}; answers {asks} at {address_of(listening)} (Ctrl-C ends it)", flush=True)
            answer(Front(replicas, about, limits, token).app(), listening, limits.waiting, args.log)


def overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The keys of the recipe's `inference` that the command line gives."""
    keys = ("mode", "window", "stride", "scales", "flip")
    return {key: getattr(args, key) for key in keys if getattr(args, key) is not None}


if __name__ == "__main__":
    run(main)
