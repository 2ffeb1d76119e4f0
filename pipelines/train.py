#!/usr/bin/env python
"""Train a recipe: all its stages, one after the other, each from the weights of the one before.

The same command continues a run that was interrupted; a finished stage is not run again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.base.door import VERSION, add_plan, program, run

EXAMPLES = """\
examples:
  python -m pipelines.train own/small data=data/mine                     # your own folder, see the README
  python -m pipelines.train fcn/camvid_resnet50s data=/data/shards backbone.weights=hub:
  python -m pipelines.train reconet/voc12_coco_resnet101s stages.coco_pretrain.epochs=2 workers.count=4
  python -m pipelines.train --copy own/small my.yaml                     # a page of your own
  python -m pipelines.train my.yaml --print
  python -m pipelines.train my.yaml --dry-run --gpu H200 --gpu L4 workers.count=4     # memory, time, what is wrong
"""


def train(description: str | None, default: str | None = None, examples: str = EXAMPLES) -> None:
    """Read the command line, then run the recipe, or show or copy what is asked for."""
    parser = build_parser(description, default, examples)
    args = parser.parse_intermixed_args()
    if default and "=" in args.recipe:  # `voc_pretrain key=value`: the default recipe with an override
        args.overrides, args.recipe = [args.recipe, *args.overrides], default
    if args.list or args.keys or args.copy:
        show(args)
        return
    if args.recipe is None:
        parser.error("name a recipe; --list shows those that are bundled")
    from pipelines.recipes.reading import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    if args.gpu and not args.dry_run:
        parser.error("--gpu belongs to --dry-run: a run takes the GPUs that are there")
    if args.dry_run:
        from pipelines.driver.dry_run import dry_run

        dry_run(recipe, args.gpu)
        return
    if args.print:
        from pipelines.driver.checks import check_model
        from pipelines.recipes.recipe import to_yaml

        check_model(recipe)  # takes the import of PyTorch, and finds names that do not exist
        print(to_yaml(recipe), end="")
        return
    from pipelines.driver.opening import open_run

    open_run(recipe)
    from pipelines.driver.run import run_recipe  # after the files were checked, and not for --help

    run_recipe(recipe)


def build_parser(description: str | None, default: str | None, examples: str) -> argparse.ArgumentParser:
    """The parser of a door that trains."""
    parser = argparse.ArgumentParser(
        program(), description=description, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("recipe", nargs="?", default=default, help="a YAML file, or a name below pipelines/recipes"
        + (f" (default: {default})" if default else ""))  # fmt: skip
    add("overrides", nargs="*", default=[], metavar="key=value", help="replaces a key of the recipe: head.rank=32")
    add("--print", action="store_true", help="show the resolved recipe, every default written out; end")
    add_plan(parser)
    add("--list", action="store_true", help="show the bundled recipes; end")
    add("--keys", action="store_true", help="show every key of a recipe with its type, default and meaning; end")
    add("--copy", nargs=2, metavar=("NAME", "FILE"), help="copy a bundled recipe to a file, to change it there; end")
    add("--version", action="version", version=VERSION)
    return parser


def show(args: argparse.Namespace) -> None:
    """List the recipes, explain their keys, or copy one."""
    if args.list:
        from pipelines.recipes.bundled import listing

        print(listing(Path(__file__).resolve().parent / "recipes"))
    if args.keys:
        from pipelines.recipes.keys import describe_keys

        print(describe_keys())
    if args.copy:
        from pipelines.recipes.reading import RECIPES, copy_page

        name, target = args.copy
        copy_page(name, RECIPES, "recipe", Path(target).expanduser())
        print(f"{target}: a copy of {name}; change it, then python -m pipelines.train {target}")


if __name__ == "__main__":
    run(lambda: train(__doc__), resumes=True)
