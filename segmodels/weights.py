"""Files of a trunk's weights as other code writes them, and how their entries become the trunk's.

Taken are state dicts of torchvision, timm, MMSegmentation and PyTorch-Encoding, and checkpoints of our own, plain or
under a key, whatever stands before the trunk's names in theirs. Where no name fits, a file whose entries stand in the
trunk's order, with its shapes, is taken by that order. Nothing in a file is run.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from segmodels.weight_files import Entries, Shapes, read_entries, shapes

COUNTER = "num_batches_tracked"  # of batch norms; files of before PyTorch 0.4.1 lack it, and it decides nothing
SPARE = (COUNTER, "relative_position_index", "attn_mask", "total_ops", "total_params")  # computed again, or thop's
# MMSegmentation's ResNetV1c and V1d: a stem of convolution, norm, ReLU, three times; timm's last norm stands outside.
STEM = {"stem.7.": "bn1."} | {f"stem.{place}.": f"conv1.{place}." for place in (0, 1, 3, 4, 6)}
TAIL = 16  # entries that a classifier has at most


@dataclass(frozen=True)
class Match:
    """Which entries of a file are the trunk's.

    Attributes:
        names: the trunk's name -> the file's.
        how: in words, how they were found.
        odd: entries of the file that are no classifier's: they are of a larger trunk.
    """

    names: Mapping[str, str]
    how: str
    odd: tuple[str, ...] = ()

    def fit(self, own: Shapes, found: Shapes) -> int:
        """How many of the trunk's entries, counters aside, are there with their shape."""
        return sum(own[key] == found[name] for key, name in self.names.items() if not counts(key))

    def whole(self, own: Shapes, found: Shapes) -> bool:
        """Whether the file is this trunk's."""
        return not self.odd and self.fit(own, found) == sum(not counts(key) for key in own)


@dataclass(frozen=True)
class Taken:
    """What of a file was taken, what was left, what is missing: a sentence each."""

    taken: str
    left: str
    missing: str


def load_weights(
    trunk: nn.Module, path: str, name: str, classifier: Sequence[str] = (), added: Sequence[str] = ()
) -> Taken:
    """Load a file of a trunk's weights.

    All entries of the trunk must be there, but for counters of batch norms; of the file are left a classifier, heads,
    and whatever else is no part of a trunk.

    Args:
        trunk: takes them; on the meta device it only compares.
        path: of the file.
        name: of the trunk, for messages.
        classifier: how the names begin that a file of the whole network has and the trunk does not.
        added: how those begin that a plain trunk's file lacks: all are taken or, if the file has none, left fresh.

    Raises:
        Unreadable: no state dict, or one that only a pickle that runs code can give.
        ValueError: another kind of file, or names or shapes that are not the trunk's.
        FileNotFoundError: no such file.
    """
    entries = read_entries(path)
    own, found = shapes(trunk.state_dict()), entries.shapes
    match = match_entries(own, found, entries.ordered, classifier)
    fresh = [key for key in own if key.startswith(tuple(added))]
    if any(key in match.names for key in fresh):
        fresh = []
    elif fresh:
        own = {key: shape for key, shape in own.items() if key not in fresh}
        match = match_entries(own, found, entries.ordered, classifier)
    if not match.whole(own, found):
        raise ValueError(f"{path} holds another model's weights: {told(match, own, found, name)}")
    if not any(value.is_meta for value in trunk.state_dict().values()):
        trunk.load_state_dict({key: entries.tensors[n] for key, n in match.names.items()}, strict=False)
    return account(match, own, entries, name, len(fresh))


def counts(key: str) -> bool:
    """Whether an entry is the counter of a batch norm."""
    return key.endswith(COUNTER)


def match_entries(own: Shapes, found: Shapes, ordered: bool, classifier: Sequence[str] = ()) -> Match:
    """Which entries of a file are a trunk's: by name, else, where hardly any name is the trunk's, by their order.

    Args:
        own: shapes of the trunk's entries.
        found: of the file's.
        ordered: whether these stand as they were written.
        classifier: how the names begin that only the whole network has, within what stands before them.
    """
    match = by_name(own, found, tuple(classifier))
    known = match.fit(own, found) > len(own) / 10
    return match if known or not ordered else by_order(own, found) or match


def by_name(own: Shapes, found: Shapes, classifier: tuple[str, ...]) -> Match:
    """Entries of the trunk's names, below the prefix that most of them have.

    timm writes the names of a trunk's parts with `_` where those of its whole network have a point (`stages_0.blocks`
    for `stages.0.blocks`), or below a name of their own (`model.`); both are seen through.
    """
    plain = {flat(key.removeprefix(common(own))): key for key in own}
    prefix = prefix_of(plain, own, found)
    names, rest = dict[str, str](), list[str]()
    for name in found:
        if not name.startswith(prefix):
            continue
        end = name.removeprefix(prefix)
        if key := own_name(end, plain):
            names[key] = name
        elif not end.startswith(classifier):
            rest.append(name)
    tops = {key.removeprefix(common(own)).split(".")[0] for key in own}
    roots = tops | {re.sub(r"_\d+$", "", top) for top in tops}
    odd = (n for n in rest if n.removeprefix(prefix).split(".")[0] in roots and n.split(".")[-1] not in SPARE)
    return Match(names, f"without {prefix!r} before their names" if prefix else "by their names", tuple(odd))


def by_order(own: Shapes, found: Shapes) -> Match | None:
    """Entries in the trunk's order, of its shapes and kinds, from the first on; None where they are not all there."""
    mine, theirs = ([key for key in keys if not counts(key)] for keys in (own, found))
    if not 0 <= len(theirs) - len(mine) <= TAIL:
        return None
    names = dict(zip(mine, theirs, strict=False))
    if any(own[key] != found[n] or key.split(".")[-1] != n.split(".")[-1] for key, n in names.items()):
        return None
    counters = {f"{parent(key)}.{COUNTER}": f"{parent(n)}.{COUNTER}" for key, n in names.items()}
    names |= {key: n for key, n in counters.items() if key in own and n in found}
    return Match(names, "by their order, since the names are others; shapes and kinds agree one to one")


def common(own: Shapes) -> str:
    """What stands before all of a trunk's names: `model.` of timm's wrapper of a ViT; mostly nothing."""
    first = next(iter(own), "").split(".")[0] + "."
    return first if all(key.startswith(first) for key in own) else ""


def prefix_of(plain: Mapping[str, str], own: Shapes, found: Shapes) -> str:
    """What most often comes before an entry of the trunk's name and shape; empty where nothing does."""
    prefixes: Counter[str] = Counter()
    for name, shape in found.items():
        parts = name.split(".")
        ends = (".".join(parts[first:]) for first in range(len(parts)))
        if end := next((end for end in ends if (key := own_name(end, plain)) and own[key] == shape), ""):
            prefixes[name.removesuffix(end)] += 1
    return prefixes.most_common(1)[0][0] if prefixes else ""


def own_name(name: str, plain: Mapping[str, str]) -> str | None:
    """The trunk's name of an entry; None where it has none."""
    if key := plain.get(flat(name)):
        return key
    start = next((start for start in STEM if name.startswith(start)), None)
    return plain.get(flat(STEM[start] + name.removeprefix(start))) if start else None


def flat(name: str) -> str:
    """A name in which a point and `_` are the same."""
    return name.replace(".", "_")


def parent(key: str) -> str:
    """The module of an entry."""
    return key.rpartition(".")[0]


def told(match: Match, own: Shapes, found: Shapes, name: str) -> str:
    """Why a file is not a trunk's."""
    if other := [key for key, n in match.names.items() if own[key] != found[n]]:
        key = other[0]
        why = f"{match.names[key]!r} has the shape {list(found[match.names[key]])}, {name} wants {list(own[key])}"
        return f"{len(other)} shapes differ, such as {why}; name the backbone that they are of"
    missing = [key for key in own if key not in match.names and not counts(key)]
    return (
        f"{len(missing)} keys missing, such as {missing[:3]}, {len(match.odd)} more than {name} has, such as "
        f"{list(match.odd[:3])}; give the file of {name}, or name the backbone that these are of"
    )


def account(match: Match, own: Shapes, entries: Entries, name: str, fresh: int) -> Taken:
    """What to tell of weights that were taken; `fresh` entries of the trunk are not looked for in the file."""
    used = set(match.names.values())
    under = f" below {entries.under!r}" if entries.under else ""
    millions = sum(entries.tensors[n].numel() for n in used) / 1e6
    left = parts_of([n for n in entries.tensors if n not in used])
    lacking = len([key for key in own if key not in match.names])
    missing = [f"{lacking} counters of batch norms, which decide nothing"] * bool(lacking)
    missing += [f"{fresh} of the trunk's context, which are fresh"] * bool(fresh)
    return Taken(
        f"{len(used)} entries{under}, {millions:.2f} M values, are all of {name}: found {match.how}",
        ", ".join(f"{number} of {part}" for part, number in left.items()) or "nothing",
        ", ".join(missing) or "nothing",
    )


def parts_of(names: Sequence[str]) -> dict[str, int]:
    """How many entries each part of a model has, by the first of its names that tells parts apart."""
    shared = "module." if all(name.startswith("module.") for name in names) else ""
    return dict(Counter(name.removeprefix(shared).split(".")[0] for name in names))
