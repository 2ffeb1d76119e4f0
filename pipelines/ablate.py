#!/usr/bin/env python
"""Run a study: every variant under every seed, and the table of what they gained next to what was published.

The same command continues a study that was interrupted: trials that ended are not run again, those that failed are.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.base.door import VERSION, add_plan, program, run

if TYPE_CHECKING:
    from pipelines.studies.study import StudyPlan

EXAMPLES = """\
examples:
  python -m pipelines.ablate sample/rank
  python -m pipelines.ablate reconet/rank --recipe reconet/camvid_resnet50s --seeds 3 data=/data/shards
  python -m pipelines.ablate my_study.yaml --at-once 2 workers.count=2 --print
  ray job submit --working-dir . -- python pipelines/ablate.py reconet/rank data=s3://BUCKET/shards output=/shared
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        program(), description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("study", nargs="?", help="a YAML file, or a name below pipelines/studies")
    add("overrides", nargs="*", default=[], metavar="key=value", help="replaces a key of the recipe, for all variants")
    add("--recipe", help="replaces the study's recipe")
    add("--benchmark", metavar="B", help="train on B/train, validate on B/val; for recipes of one stage")
    add("--seeds", type=int, metavar="N", help="seeds 0 to N-1 instead of the study's")
    add("--interval", type=float, metavar="PERCENT", help="confidence of the intervals (default 95; two seeds or more)")
    add("--at-once", type=int, metavar="N", help="trials at the same time (default: as many as the cluster carries)")
    add("--name", help="the study's folder, OUTPUT/studies/NAME (default: from its file and its recipe)")
    add("--print", action="store_true", help="show the study with its trials; end")
    add_plan(parser)
    add("--list", action="store_true", help="show the bundled studies; end")
    add("--version", action="version", version=VERSION)
    return parser


def main() -> None:
    parser = build_parser()
    args = parser.parse_intermixed_args()
    from pipelines.studies.study import STUDIES, load_study

    if args.list:
        from pipelines.recipes.bundled import listing

        print(listing(STUDIES))
        return
    if args.study is None:
        parser.error("name a study; --list shows those that are bundled")
    plan = load_study(args.study, recipe=args.recipe, benchmark=args.benchmark, seeds=args.seeds, name=args.name,
                      overrides=args.overrides)  # fmt: skip
    check_wishes(args, plan)
    if args.gpu and not args.dry_run:
        parser.error("--gpu belongs to --dry-run: a study takes the GPUs that are there")
    if args.dry_run:
        from pipelines.studies.dry_run import dry_run_study

        dry_run_study(plan, args.gpu, args.at_once)
        return
    if args.print:
        show(plan)
        return
    announce(plan)
    from pipelines.studies.run import run_study  # after the names were checked, and not for --help

    run_study(plan, at_once=args.at_once, confidence=(args.interval or 95.0) / 100)


def announce(plan: StudyPlan) -> None:
    """Say what begins and where it is."""
    from pipelines.cluster.nodes import output_folder
    from pipelines.recipes.recipe import Recipe

    folder = output_folder(plan.page.get("output") or Recipe.output) / "studies" / plan.name
    print(f"{plan.name} in {folder}: PyTorch is imported, then every trial is checked", flush=True)


def check_wishes(args: argparse.Namespace, plan: StudyPlan) -> None:
    """What the command line asks of the study.

    Raises:
        InputError: an interval of one number, or impossible numbers.
    """
    from pipelines.base.errors import InputError

    seeds = list(plan.study.seeds)
    if args.interval is not None and not 0 < args.interval < 100:
        raise InputError(f"--interval {args.interval:g}: a confidence in percent, above 0 and below 100")
    if args.interval is not None and len(seeds) < 2:
        raise InputError(
            f"--interval {args.interval:g} with the seeds {seeds}: one number has no interval; give two seeds or more, "
            "e.g. --seeds 3"
        )
    if args.at_once is not None and args.at_once < 1:
        raise InputError(f"--at-once {args.at_once}: one trial or more")


def show(plan: StudyPlan) -> None:
    """The page with all that the command line set, and the names of the trials."""
    from pipelines.studies.fair import check_fair, check_models, expand
    from pipelines.studies.study import to_yaml

    trials: list[Any] = expand(plan)
    check_models(plan, trials)
    check_fair(plan, trials)
    print(to_yaml(plan), end="")
    count = len(trials) or (plan.study.search.trials if plan.study.search else 0)
    print(f"# {plan.name}: {count} trials: {', '.join(trial.name for trial in trials) or 'points of the search'}")


if __name__ == "__main__":
    run(main, resumes=True)
