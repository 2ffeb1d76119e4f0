"""Show what a recipe can name: heads, trunks, loss terms."""

import argparse
import inspect
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence

from segmodels import cards
from segmodels.checks import TIMM, nearest
from segmodels.cost import CONVENTIONS
from segmodels.heads.catalog import HEADS

Size = tuple[int, int]  # (h, w) in pixels
EXAMPLES = """\
examples:
  python -m segmodels             all heads: paper, parameters, GMACs
  python -m segmodels reconet     one head: its paper, equations, keywords and cost
  python -m segmodels backbones   the trunks
  python -m segmodels losses      the loss terms and their options
  python -m segmodels ocnet --size 1024 2048               its cost at an image of 1024 x 2048 pixels
  python -m segmodels ocnet --size 512 512 --size 1024 1024 --batch 4    at several sizes; memory of 4 images
  python -m segmodels backbones --size 1024 2048           the trunks at that size
  python -m segmodels timm/convnext_tiny                   any of timm's networks as a trunk: output strides, cost
  python -m segmodels timm/convnext                        timm's networks with that word in their names

Everything is read off the code and counted on the meta device: no weights, no GPU, nothing downloaded.
"""


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m segmodels",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "name", nargs="?", default="heads", help="a head, or one of: heads, backbones, losses, timm/NAME"
    )
    parser.add_argument(
        "--size", nargs=2, type=int, action="append", metavar=("H", "W"), dest="sizes",
        help="of the image, in pixels (default 512 512); a head takes several",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=1, help="images at once, for a head's memory (default 1)")
    args = parser.parse_args(words)
    name, sizes = args.name, [tuple(size) for size in args.sizes or [cards.SIZE]]
    of_timm = name.startswith(TIMM)
    if name not in HEADS and name not in LISTINGS and not of_timm:
        allowed = [*HEADS, *LISTINGS]
        parser.error(f"unknown name {name!r}; allowed: {', '.join(allowed)}, {TIMM}NAME.{nearest(name, allowed)}")
    if name not in HEADS and (len(sizes) > 1 or args.batch != 1 or (args.sizes and name == "losses")):
        parser.error(f"{name}: heads and backbones take one --size H W; several, and --batch N, are for one head")
    if min(min(sizes)) < 1 or args.batch < 1:
        parser.error("--size H W and --batch N are 1 or more")
    try:
        if name in HEADS:
            show_head(name, sizes, args.batch)
        elif of_timm:
            show_trunk(name, sizes[0])
        else:
            LISTINGS[name](sizes[0])
    except ValueError as error:
        parser.error(str(error))


def list_heads(size: Size) -> None:
    """All heads, one line each."""
    rows, problems = [["head", "paper", "arXiv", "parameters", "GMACs", "map size"]], []
    for name, builder in HEADS.items():
        paper = cards.paper_of(builder)
        row = [name, ", ".join(filter(None, (paper.authors, paper.venue))), paper.arxiv]
        try:
            cost = cards.head_cost(name, size, conventions={"conv+matmul": CONVENTIONS["conv+matmul"]}, peak=False)
        except ValueError as error:
            rows.append([*row, "-", "-", "-"])
            problems.append(f"{name}: {error}")
            continue
        bound = "bound to its crop" if cost.bound else "any"
        rows.append([*row, f"{cost.parameters:,}", f"{cost.macs['conv+matmul'] / 1e9:.3f}", bound])
    print_table(rows, right=(3, 4))
    print(f"\n{setting(size)}; MACs of convolutions and matrix products.\nOne head in full: python -m segmodels NAME")
    for problem in problems:
        print(f"not counted: {problem}")


def setting(*sizes: Size, batch: int = 1) -> str:
    """What the costs are of."""
    return (
        f"The head by itself with its defaults, {cards.CLASSES} classes, on the features of resnet101s at output "
        f"stride 8 and {', '.join(map(by, sizes))} pixels" + (f", {batch} images" if batch > 1 else "")
    )


def by(size: Size) -> str:
    """512x512"""
    return f"{size[0]}x{size[1]}"


def show_head(name: str, sizes: list[Size], batch: int) -> None:
    """One head: docstrings, keywords, costs."""
    builder = HEADS[name]
    paper = cards.paper_of(builder)
    print_paragraph(f"{name}: {paper.title}")
    print(", ".join(filter(None, (paper.authors, paper.venue, paper.arxiv and f"arXiv:{paper.arxiv}"))) + "\n")
    about = cards.description(sys.modules[builder.__module__].__doc__).partition("\n\n")[2]
    modules = [f"{title}\n{textwrap.indent(text, '  ')}" for title, text in cards.modules_of(builder).items()]
    print("\n\n".join(filter(None, [about, *modules, f"{builder.__name__}\n{indented(builder)}"])))
    print("\nKeywords")
    print_keywords(builder)
    show_costs(name, {size: cards.head_cost(name, size, batch) for size in sizes}, batch)


def show_costs(name: str, costs: dict[Size, cards.HeadCost], batch: int) -> None:
    """A head's costs, a column for each size."""
    print()
    print_paragraph(f"{setting(*costs, batch=batch)}:")
    rows = [["", *map(by, costs), ""]] if len(costs) > 1 else []
    rows += [["parameters", *(f"{cost.parameters:,}" for cost in costs.values()), ""]]
    for rule, text in RULES.items():
        rows += [[f"GMACs, {rule}", *(f"{cost.macs[rule] / 1e9:,.3f}" for cost in costs.values()), text]]
    rows += [["MiB of maps", *(f"{cost.activation_bytes / 2**20:,.1f}" for cost in costs.values()), MAPS]]
    rows += [["MiB at once", *(f"{(cost.peak_bytes or 0) / 2**20:,.1f}" for cost in costs.values()), PEAK]]
    print_table(rows, right=tuple(range(1, 1 + len(costs))), indent=2)
    for size, cost in costs.items():
        at = f"at {by(size)} " if len(costs) > 1 else ""
        print(f"  {at}gives " + ", ".join(f"{key} {shape}" for key, shape in cost.outputs.items()))
    if maps := cards.given_by(name)[0]:
        print_paragraph("context maps, for `python -m pipelines.explain`: " + ", ".join(maps), 2)
    if bound := next(iter(costs.values())).bound:
        print(f"  bound to the map of its training crop, here {bound} cells: sliding windows keep to that crop")
    print(f"How fast: python -m pipelines.bench inference {name} --size {' '.join(map(str, next(iter(costs))))}")


MAPS = "outputs of all leaf modules in float32"
PEAK = "the most that evaluation holds besides weights and features, float32, a CPU's kernels"
RULES = {
    "conv+matmul": "convolutions and matrix products, FlopCounterMode / 2",
    "leaf-modules": "torchstat's rule: only modules; batch norm 2 and ReLU 1 per value",
}


def list_backbones(size: Size) -> None:
    """All trunks at the smallest output stride that they take."""
    import torch

    from segmodels.backbone import BACKBONES, build_backbone
    from segmodels.cost import measure

    rows = [["backbone", "strides", "widths", "parameters", "GMACs"]]
    for name, kind in BACKBONES.items():
        with torch.device("meta"):
            trunk = build_backbone(name, min(kind.output_strides))
        cost = measure(trunk, size)
        strides, widths = (" ".join(map(str, values)) for values in (trunk.strides, trunk.channels))
        rows.append([name, strides, widths, f"{cost.parameters:,}", f"{cost.macs / 1e9:.3f}"])
    print_table(rows, right=(3, 4))
    print(f"\n{by(size)} pixels at the smallest output stride that the trunk takes, no classifier")
    print(f"All else that timm has is {TIMM}NAME, such as python -m segmodels {TIMM}convnext_tiny")


def show_trunk(name: str, size: Size) -> None:
    """One of timm's networks as a trunk, at each output stride; or the names that hold a word.

    Raises:
        ValueError: there is no such name, or the network cannot be a trunk.
    """
    import torch
    from timm.models import is_model, list_models, list_pretrained

    from segmodels.backbone import build_backbone, kind_of
    from segmodels.cost import measure

    network = name.removeprefix(TIMM).partition(".")[0]
    if not is_model(network) and (names := list_models(f"*{network}*")):
        print_paragraph(", ".join(f"{TIMM}{one}" for one in names))
        return
    kind = kind_of(name)
    rows = [["output stride", "strides", "widths", "parameters", "GMACs"]]
    for stride in kind.output_strides:
        with torch.device("meta"):
            trunk = build_backbone(name, stride)
        cost = measure(trunk, size)
        strides, widths = (" ".join(map(str, values)) for values in (trunk.strides, trunk.channels))
        rows.append([str(stride), strides, widths, f"{cost.parameters:,}", f"{cost.macs / 1e9:.3f}"])
    print_table(rows, right=(0, 3, 4))
    print(f"\n{by(size)} pixels, without what only classifies: {', '.join(kind.classifier) or 'nothing'}")
    print(f"mean {trunk.mean}, std {trunk.std} of RGB in 0..1")
    if trunk.taps is not None and trunk.taps.multiple > 1:
        print(f"sides are filled up to multiples of {trunk.taps.multiple} pixels with the mean colour")
    if trunk.pyramid is not None:
        print("one map, of which a pyramid makes four (ViTDet); its weights are new, and learn at the heads' rate")
    print_paragraph(f"weights of `hub:`: {', '.join(list_pretrained(f'{network}.*')) or 'none'}")


def list_losses(_: Size) -> None:
    """All loss terms with their options."""
    from segmodels.losses import KINDS, TERMS

    for name, term in TERMS.items():
        print(name)
        print(indented(term.function))
        exact = "add up exactly" if term.exact else "add up to a mean of the parts' own values only"
        print_paragraph(f"Takes {KINDS[term.takes]}. Per {term.per[:-1]}: parts of a batch {exact}.", 2)
        print_keywords(term.function)
        print()
    print("In a recipe: loss: {logits: {cross_entropy: 1.0}, aux: {ohem: {weight: 0.4, threshold: 0.7}}}")


LISTINGS: dict[str, Callable[[Size], None]] = {"heads": list_heads, "backbones": list_backbones, "losses": list_losses}


def indented(thing: Callable[..., object]) -> str:
    """The description of a docstring, indented."""
    return textwrap.indent(cards.description(inspect.getdoc(thing)), "  ")


def width() -> int:
    """Columns of the terminal, at most 120."""
    return min(120, shutil.get_terminal_size((120, 24)).columns)


def print_paragraph(text: str, indent: int = 0) -> None:
    """Text wrapped to the terminal."""
    print(textwrap.fill(text, width(), initial_indent=" " * indent, subsequent_indent=" " * indent))


def print_keywords(builder: Callable[..., object]) -> None:
    """Keywords with type and default, each with its description below."""
    found = cards.keywords(builder)
    for keyword in found:
        default = "required" if keyword.default is inspect.Parameter.empty else f"= {keyword.default!r}"
        print(f"  {keyword.name}: {keyword.kind} {default}")
        print_paragraph(keyword.text or "(not described)", 6)
    if not found:
        print("  none")


def print_table(rows: list[list[str]], right: tuple[int, ...] = (), indent: int = 0) -> None:
    """Rows in columns, those of `right` flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            f"{cell:>{w}}" if i in right else f"{cell:<{w}}"
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        print((" " * indent + "  ".join(cells)).rstrip())


if __name__ == "__main__":
    main()
