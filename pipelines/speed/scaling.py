"""How many images a second 1 to 512 GPUs would train, and what holds them back first: a model on one page.

From the step of one GPU, the gradients' bytes, what decoding an image costs and how fast links and storage are. Every
input is a flag. With --validate the same formulas predict 1, 2 and 4 CPU workers of this machine, which are then
measured: the error says how far the page is to be believed.
The formulas are in speed/many_gpus.py.
"""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from pipelines.speed.many_gpus import FLAGS, Setup, setup_of

if TYPE_CHECKING:
    from pipelines.speed.report import Report

REPEATS = 3
GPUS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--recipe", default="reconet/voc12_coco_resnet101s", help="whose model it is (%(default)s)")
    parser.add_argument("--gpus", type=int, nargs="+", default=GPUS, help="default 1 2 4 … 512")
    parser.add_argument("--gradient-bytes", type=int, choices=(2, 4), default=4, help="of a number (default 4)")
    parser.add_argument("--norm", choices=("sync", "local"), default="sync", help="batch norms (default sync)")
    parser.add_argument("--validate", action="store_true", help="predict and measure 1, 2, 4 CPU workers here instead")
    parser.add_argument("--steps", type=int, default=60, help="of each measured run (default %(default)s)")
    for flag, (default, meaning, source) in FLAGS.items():
        parser.add_argument(
            f"--{flag}", type=float, default=default, metavar="X", help=f"{meaning} (default {default:.4g}: {source})"
        )


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be computed.

    Raises:
        InputError: a value that is not above 0, or no such recipe.
    """
    from pipelines.base.errors import InputError
    from pipelines.recipes.reading import find_recipe

    find_recipe(args.recipe)
    for flag in FLAGS:
        if not 0 < (value := getattr(args, flag.replace("-", "_"))) < math.inf:
            raise InputError(f"--{flag} {value:g}: above 0, and finite")
    if min(args.gpus) < 1:
        raise InputError(f"--gpus {min(args.gpus)}: 1 or more")
    if args.steps < 24:
        raise InputError(f"--steps {args.steps}: 24 or more, of which a quarter warms up")


def measure(args: argparse.Namespace) -> Report:
    """The table; or, with --validate, prediction and measurement side by side."""
    if args.validate:
        from pipelines.speed.validated import validated

        return validated(args)
    return report(args, setup_of(args))


def report(args: argparse.Namespace, setup: Setup) -> Report:
    """A row per number of GPUs; below, for each limit, from where on it holds."""
    from pipelines.speed.report import Report

    rows, values = [], {}
    for n in args.gpus:
        alone = setup.rate(1) * n
        broken = [name for name, is_so in setup.broken(n).items() if is_so]
        times = [setup.step(n), setup.exposed(n), setup.norm_seconds(n)]
        limits = [setup.input(n), setup.storage(n), setup.driver(n)]
        rows.append([
            str(n), str(setup.nodes(n)), f"{setup.rate(n):,.0f}", f"{setup.rate(n) / alone:.2f}",
            *(f"{1e3 * seconds:.1f}" for seconds in times), *(f"{limit:,.0f}" for limit in limits),
            ", ".join(broken) or "nothing",
        ])  # fmt: skip
        values[str(n)] = {"images_per_s": setup.rate(n), "step_s": times, "limits": limits, "broken": broken}
    notes = [
        f"{args.recipe}: {setup.gradients / 2**20:.0f} MiB of gradients, {setup.norms} synchronised norms, "
        f"{setup.tasks()} feeding tasks a GPU, the split {setup.rows * setup.image_kb / 1e6:.1f} GB; nothing here was "
        "measured on several GPUs",
        *(told(name, args.gpus, setup) for name in setup.broken(1)),
    ]
    columns = ["GPUs", "nodes", "images/s", "of N times one", "step, ms", "all-reduce, ms", "norms, ms", "input allows",
               "storage allows", "driver allows", "what breaks"]  # fmt: skip
    return Report("What N GPUs would train, by a model", columns, rows, notes, values)


def told(name: str, gpus: list[int], setup: Setup) -> str:
    """From how many GPUs on something breaks."""
    first = next((n for n in sorted(gpus) if setup.broken(n)[name]), None)
    return f"{name}: {f'from {first} GPUs on' if first else f'nowhere up to {max(gpus)} GPUs'}"
