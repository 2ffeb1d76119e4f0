"""Show what a recipe can name: heads, trunks, loss terms."""

import argparse
import inspect
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence

from segmodels import cards
from segmodels.checks import nearest
from segmodels.cost import CONVENTIONS
from segmodels.heads.catalog import HEADS

EXAMPLES = """\
examples:
  python -m segmodels             all heads: paper, parameters, GMACs
  python -m segmodels reconet     one head: its paper, equations, keywords and cost
  python -m segmodels backbones   the trunks
  python -m segmodels losses      the loss terms and their options

Everything is read off the code and counted on the meta device: no weights, no GPU, nothing downloaded.
"""


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m segmodels",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", default="heads", help="a head, or one of: heads, backbones, losses")
    name = parser.parse_args(words).name
    if name in HEADS:
        show_head(name)
    elif name in LISTINGS:
        LISTINGS[name]()
    else:
        allowed = [*HEADS, *LISTINGS]
        parser.error(f"unknown name {name!r}; allowed: {', '.join(allowed)}.{nearest(name, allowed)}")


def list_heads() -> None:
    """All heads, one line each."""
    rows, problems = [["head", "paper", "arXiv", "parameters", "GMACs", "map size"]], []
    for name, builder in HEADS.items():
        paper = cards.paper_of(builder)
        row = [name, ", ".join(filter(None, (paper.authors, paper.venue))), paper.arxiv]
        try:
            cost = cards.head_cost(name, {"conv+matmul": CONVENTIONS["conv+matmul"]})
        except ValueError as error:
            rows.append([*row, "-", "-", "-"])
            problems.append(f"{name}: {error}")
            continue
        bound = "bound to its crop" if cost.bound else "any"
        rows.append([*row, f"{cost.parameters:,}", f"{cost.macs['conv+matmul'] / 1e9:.3f}", bound])
    print_table(rows, right=(3, 4))
    print(f"\n{SETTING}; MACs of convolutions and matrix products.\nOne head in full: python -m segmodels NAME")
    for problem in problems:
        print(f"not counted: {problem}")


SETTING = (
    f"The head by itself with its defaults, {cards.CLASSES} classes, on the features of resnet101s at output stride 8 "
    f"and {cards.SIZE[0]}x{cards.SIZE[1]} pixels"
)


def show_head(name: str) -> None:
    """One head: docstrings, keywords, cost."""
    builder = HEADS[name]
    paper = cards.paper_of(builder)
    print_paragraph(f"{name}: {paper.title}")
    print(", ".join(filter(None, (paper.authors, paper.venue, paper.arxiv and f"arXiv:{paper.arxiv}"))) + "\n")
    about = cards.description(sys.modules[builder.__module__].__doc__).partition("\n\n")[2]
    modules = [f"{title}\n{textwrap.indent(text, '  ')}" for title, text in cards.modules_of(builder).items()]
    print("\n\n".join(filter(None, [about, *modules, f"{builder.__name__}\n{indented(builder)}"])))
    print("\nKeywords")
    print_keywords(builder)
    cost = cards.head_cost(name)
    print()
    print_paragraph(f"{SETTING}:")
    rows = [["parameters", f"{cost.parameters:,}", ""]]
    rows += [[f"GMACs, {rule}", f"{macs / 1e9:,.3f}", RULES.get(rule, "")] for rule, macs in cost.macs.items()]
    rows += [["MiB of maps", f"{cost.activation_bytes / 2**20:,.1f}", "outputs of all leaf modules in float32"]]
    print_table(rows, right=(1,), indent=2)
    print("  gives " + ", ".join(f"{key} {shape}" for key, shape in cost.outputs.items()))
    if maps := cards.given_by(name)[0]:
        print_paragraph("context maps, for `python -m pipelines.explain`: " + ", ".join(maps), 2)
    if cost.bound:
        print(f"  bound to the map of its training crop, here {cost.bound} cells: sliding windows keep to that crop")


RULES = {
    "conv+matmul": "convolutions and matrix products, FlopCounterMode / 2",
    "leaf-modules": "torchstat's rule: only modules; batch norm 2 and ReLU 1 per value",
}


def list_backbones() -> None:
    """All trunks at the smallest output stride that they take."""
    import torch

    from segmodels.backbone import BACKBONES, build_backbone
    from segmodels.cost import measure

    rows = [["backbone", "strides", "widths", "parameters", "GMACs"]]
    for name, kind in BACKBONES.items():
        with torch.device("meta"):
            trunk = build_backbone(name, min(kind.output_strides))
        cost = measure(trunk, cards.SIZE)
        strides, widths = (" ".join(map(str, values)) for values in (trunk.strides, trunk.channels))
        rows.append([name, strides, widths, f"{cost.parameters:,}", f"{cost.macs / 1e9:.3f}"])
    print_table(rows, right=(3, 4))
    print(f"\n{cards.SIZE[0]}x{cards.SIZE[1]} pixels at the smallest output stride that the trunk takes, no classifier")


def list_losses() -> None:
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


LISTINGS: dict[str, Callable[[], None]] = {"heads": list_heads, "backbones": list_backbones, "losses": list_losses}


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
