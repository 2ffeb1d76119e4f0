#!/usr/bin/env python
"""Train a recipe: all its stages, one after the other, each with its weights handed to the next.

The same command continues a run that was interrupted; a finished stage is not run again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.base.door import run

EXAMPLES = """\
examples:
  python -m pipelines.train fcn/camvid_resnet50s data=/data/shards backbone.weights=/weights/resnet50s.pth
  python -m pipelines.train reconet/voc12_coco_resnet101s stages.coco_pretrain.epochs=2 workers.count=4
  python -m pipelines.train my_recipe.yaml --print
"""


def train(description: str | None, default: str | None = None, examples: str = EXAMPLES) -> None:
    """Read the command line, then run or print the recipe."""
    parser = argparse.ArgumentParser(
        description=description, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "recipe",
        nargs="?" if default else None,
        default=default,
        help="a YAML file, or a name below pipelines/recipes" + (f" (default: {default})" if default else ""),
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="replaces a key of the recipe: head.rank=32"
    )
    parser.add_argument("--print", action="store_true", help="show the resolved recipe, every default written out; end")
    args = parser.parse_intermixed_args()
    if default and "=" in args.recipe:  # `voc_pretrain key=value`: the default recipe with an override
        args.overrides, args.recipe = [args.recipe, *args.overrides], default
    from pipelines.recipes.reading import load_recipe
    from pipelines.recipes.recipe import to_yaml

    recipe = load_recipe(args.recipe, args.overrides)
    if args.print:
        print(to_yaml(recipe), end="")
        return
    from pipelines.driver.run import run_recipe  # after the names were checked, and not for --help

    run_recipe(recipe)


if __name__ == "__main__":
    run(lambda: train(__doc__), resumes=True)
