"""The published tables as people read them: costs and results, each figure with its source."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.base.text import padded

if TYPE_CHECKING:
    from pipelines.published.results import ResultTable
    from pipelines.published.tables import Figure

WIDTH = 120
COSTS: tuple[Callable[[str, int], str], ...] = (
    str.ljust, str.ljust, str.rjust, str.rjust, str.rjust, str.ljust, str.ljust,
)  # fmt: skip
NAMES = {"macs": "FLOPs", "parameters": "parameters", "memory": "memory", "time": "time", "order": "order",
         "speed": "speed", "affinity": "affinity memory"}  # fmt: skip


def print_costs(paper: str) -> None:
    """All tables of a paper, and how many of their figures were met."""
    from pipelines.published.tables import cost_tables

    citation, tables = cost_tables(paper)
    print(citation)
    verdicts: list[str] = []
    for table in tables:
        print("\n" + textwrap.fill(f"{table.name}: {table.caption}", WIDTH))
        lines = [["row", "quantity", "published", "computed", "error", "convention", "verdict", ""]]
        for figure in table.figures:
            lines += figure_lines(figure)
        verdicts += ["within the stated error" if "within" in line[6] else line[6] for line in lines[1:] if line[6]]
        print_lines(lines, COSTS)
    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
    print(f"\n{paper}: " + ", ".join(f"{number} {verdict}" for verdict, number in counts.items()) + "\n")


def print_results(
    paper: str,
    beside: Callable[[ResultTable, Mapping[str, Any]], Sequence[str]] | None = None,
    below: Callable[[ResultTable], Sequence[str]] = lambda table: (),
) -> None:
    """All tables of results of a paper as published, each row with what was measured of it, and its trainings.

    Args:
        beside: what was measured of a row, in words; None where nothing was looked up.
        below: what is to be said below a table.
    """
    from pipelines.published.results import result_tables

    citation, tables, trainings = result_tables(paper)
    print(citation)
    met = 0
    for table in tables:
        print("\n" + textwrap.fill(f"{table.name} [{table.id}], published: {table.title}", WIDTH))
        print(textwrap.fill("; ".join(part for part in (conditions(table), table.note.rstrip(".")) if part), WIDTH))
        columns = [column for column in table.columns if column != "per_class"]
        found = [beside(table, row) if beside and table.compared else [] for row in table.rows]
        met += sum(map(bool, found))
        lines = [[*columns, "measured here" if beside and table.compared else ""]]
        for row, texts in zip(table.rows, found, strict=True):
            first, *others = texts or ["–" if beside and table.compared else ""]
            lines += [[*(marked(table, row, column) for column in columns), first]]
            lines += [[*[""] * len(columns), other] for other in others]
        print_lines(lines, [str.rjust if is_numeric(table, column) else str.ljust for column in columns])
        for line in [*contradictions(table), *below(table)]:
            print(textwrap.fill(line, WIDTH, subsequent_indent="  "))
    for training in trainings:
        pages = f"; recipes: {', '.join(training.pages)}" if training.pages else ""
        parts = [f"{place}: {facts_in_words(said)}" for place, said in training.stated.items()]
        for stage in training.stages:
            said = {key: value for key, value in stage.items() if key != "at" and value is not None}
            parts.append(f"{stage['at']}: stage {facts_in_words(said) or 'of which nothing is stated'}")
        silent = ", ".join(training.silent)
        parts += [f"not stated: {silent}"] * bool(silent) + [training.note.rstrip(".")] * bool(training.note)
        print("\n" + textwrap.fill(f"training [{training.id}]: {'; '.join(filter(None, parts))}{pages}", WIDTH))
    measured = "" if beside is None else f"; {met} of them measured here"
    rows = sum(len(table.rows) for table in tables)
    print(f"\n{paper}: {len(tables)} tables, {rows} rows, all published{measured}\n")


def facts_in_words(said: Mapping[str, Any]) -> str:
    """What is said at one place of a paper."""
    return ", ".join(f"{key} {words(value)}" for key, value in said.items())


def marked(table: ResultTable, row: Mapping[str, Any], column: str) -> str:
    """A printed value, with a * where the papers print another one elsewhere."""
    return cell(row[column]) + "*" * bool(table.elsewhere(row, column))


def contradictions(table: ResultTable) -> list[str]:
    """What the marked numbers of a table are elsewhere, a line each."""
    return [
        f"* {row_words(table, row)}: {column} {cell(row[column])}; {table.elsewhere(row, column)}"
        for row in table.rows
        for column in table.columns
        if table.elsewhere(row, column)
    ]


def row_words(table: ResultTable, row: Mapping[str, Any]) -> str:
    """What tells a row from the others: its columns that hold no measurement."""
    from pipelines.published.results import QUANTITIES

    told = [column for column in table.columns if column not in QUANTITIES and column != "per_class"]
    return ", ".join(f"{column} {cell(row[column])}" for column in told)


def conditions(table: ResultTable) -> str:
    """Benchmark, split and protocol of a table."""
    parts = [f"{table.benchmark} {table.split}"] if table.benchmark else []
    return ", ".join([*parts, *(f"{key} {words(value)}" for key, value in table.protocol.items())])


def words(value: Any) -> str:
    """A value without brackets."""
    if isinstance(value, dict):
        return " ".join(f"{key} {words(entry)}" for key, entry in value.items() if entry is not None)
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def cell(value: Any) -> str:
    """A value as printed; a dash where nothing is."""
    return "-" if value is None else words(value)


def is_numeric(table: ResultTable, column: str) -> bool:
    """Whether a column holds numbers, which are flush right."""
    return all(isinstance(row[column], int | float | None) for row in table.rows)


def figure_lines(figure: Figure) -> list[list[str]]:
    """The cells of a figure, and below it those of other countings."""
    from pipelines.published.counts import computed, verdict

    value = None if figure.count is None else computed(figure, figure.count)
    rule = "" if figure.count is None else figure.count.rule
    first = [figure.row, NAMES[figure.quantity], f"{figure.published} {figure.unit}".strip(), shown(figure, value),
             error(figure, value), rule, verdict(figure, value), figure.reason]  # fmt: skip
    others = []
    for what, count in figure.also.items():
        other = computed(figure, count)
        others.append(["", "", "", shown(figure, other), error(figure, other), count.rule, "", f"({what})"])
    return [first, *others]


def shown(figure: Figure, value: float | None) -> str:
    """A computed value with two digits more than are printed."""
    decimals = len(figure.published.partition(".")[2])
    return "-" if value is None else f"{value:.{min(4, decimals + 2)}f}"


def error(figure: Figure, value: float | None) -> str:
    """Relative to the published value."""
    return "-" if value is None else f"{value / float(figure.published) - 1:+.1%}"


def print_lines(lines: list[list[str]], align: Sequence[Callable[[str, int], str]]) -> None:
    """Rows in columns, each flush left or right; the last column, prose, is not padded."""
    right = [i for i, put in enumerate(align) if put is str.rjust]
    for cells, line in zip(padded([line[:-1] for line in lines], right), lines, strict=True):
        print("  ".join([*cells, line[-1]]).rstrip())
