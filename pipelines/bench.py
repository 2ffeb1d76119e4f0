#!/usr/bin/env python
"""Measure the speed of the project: each command prints a Markdown table of medians and ratios.

Every speed is next to that of something that takes turns with it in the same process or session: absolute numbers
are the machine's, ratios are the project's. Commands need no data: they draw what they read, unless told otherwise.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.base.door import VERSION, run

EXAMPLES = """\
examples:
  python -m pipelines.bench transform --images data/CamVid      # the loader's own work, on one core
  python -m pipelines.bench feed --workers 1 2 --epochs 4       # Ray Data against a torch DataLoader
  python -m pipelines.bench startup                             # where the seconds of the sample chain go
  python -m pipelines.bench step --forms fp32 bf16 --json step.json
  python -m pipelines.bench inference srnet/cityscapes_df2 --size 1024 2048                # FPS of a whole model
  python -m pipelines.bench inference ocnet attention=sa ocnet --size 512 512 --size 1024 1024 --picture curves.png
  python -m pipelines.bench accuracy --data data                # CamVid: minutes on a GPU, a try-out on CPUs
  python -m pipelines.bench prepare --gib 5 --repeats 1         # shards against bare reading and encoding
  python -m pipelines.bench storage --images data/CamVid        # encodings of masks, layouts of files
  python -m pipelines.bench ablate                              # what a study costs on top of its trials
  python -m pipelines.bench evaluate                            # protocols in one pass against a loop
  python -m pipelines.bench serve --checkpoint best.pt          # a server against a bare loop; a flood of bad uploads
  python -m pipelines.bench scaling                             # what 1 to 512 GPUs would train; --validate: 4 CPUs
  python -m pipelines.bench rows --rows 10000000                # a stage over ten million rows
  python -m pipelines.bench gpu --out DIR                        # eight minutes on a GPU; --device cpu --size small
  python -m pipelines.bench COMMAND --help                      # options of one command
"""
# A further command is a line here and a module of that name in the room speed/. The module holds a docstring (its first
# line is the help), `add_options(parser)` and `measure(args) -> Report`; what it imports at its top must be light.
COMMANDS = (
    "transform",
    "feed",
    "startup",
    "step",
    "heads",
    "inference",
    "accuracy",
    "prepare",
    "storage",
    "ablate",
    "evaluate",
    "serve",
    "scaling",
    "rows",
    "gpu",
)


def main(words: list[str] | None = None) -> None:
    """Read the command line, measure, print header and table."""
    args = build_parser().parse_args(words)
    from pipelines.base.errors import InputError
    from pipelines.speed.report import header, write_json

    if args.repeats < 1:
        raise InputError(f"--repeats {args.repeats}: one round or more")
    if args.json and not args.json.absolute().parent.is_dir():
        raise InputError(f"--json {args.json}: there is no folder {args.json.absolute().parent}; make it first")
    args.check(args)
    print(f"bench {args.command}: {args.repeats} round(s)", flush=True)
    facts = header()
    print(" · ".join(facts.values()), flush=True)
    report = args.measure(args)
    print(f"\n{report.markdown()}", flush=True)
    if args.json:
        write_json(args.json, args.command, facts, report)
        print(f"as data: {args.json}")


def build_parser() -> argparse.ArgumentParser:
    """The parser with a sub-command for each module of COMMANDS."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.bench",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=VERSION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        add_command(commands, name, importlib.import_module(f"pipelines.speed.{name}"))
    return parser


def add_command(commands: Any, name: str, module: Any) -> None:
    """A sub-command with the options that all share, and its own."""
    text = module.__doc__.strip()
    command = commands.add_parser(
        name, help=text.splitlines()[0], description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument(
        "--repeats", type=int, default=getattr(module, "REPEATS", 5), help="rounds (default %(default)s)"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="write header, table and every value as data too")
    module.add_options(command)
    command.set_defaults(measure=module.measure, check=getattr(module, "check", lambda args: None))


if __name__ == "__main__":
    sys.argv[0] = "python -m pipelines.bench"
    run(main)
