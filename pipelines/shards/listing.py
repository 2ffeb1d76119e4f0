"""What labels hold, printed before a row is written: format, splits, classes, and what was decided."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.shards.splits import say

if TYPE_CHECKING:
    from datasets.exports.records import Own


def show_own(own: Own) -> None:
    """Print what the user's own folder comes to.

    Args:
        own: the folder, read.
    """
    how = f", recognised: {own.why}" if own.why else ""
    say(f"labels: {own.format}{how}")
    from datasets.exports.records import BACKGROUND

    counts = {tally.name: tally for tally in own.tallies}
    objects = any(tally.objects is not None for tally in own.tallies)
    head = f"{'objects':>9}  {'images':>7}  {'pixels':>15}" if objects else f"{'images':>7}  {'pixels':>15}"
    say(f"{len(own.benchmark.classes)} classes:\n{'':>5}  {'name':<24}" + (head if counts else ""))
    names = [(str(k), name) for k, name in enumerate(own.benchmark.classes)]
    names += [("255", name) for name in counts if name not in own.benchmark.classes]
    for number, name in names:
        line = f"{number:>5}  {name:<24}"
        tally = counts.get(name)
        if tally and not tally.objects and objects and name == BACKGROUND:
            line += f"{'–':>9}  {'–':>7}  {'unlabelled area':>15}"
        elif tally:
            line += f"{tally.objects:>9,}  " if tally.objects is not None else ""
            line += f"{tally.images:>7,}  {tally.pixels:>15,}"
        say(line.rstrip())
    if objects:
        say(f"{'':>7}(pixels of objects, before smaller ones hide parts of larger ones)")
    for line in own.benchmark.notes:
        say(line if line.startswith("WARNING") else f"note  {line}")
    say("")
