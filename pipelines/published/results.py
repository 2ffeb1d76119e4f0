"""Read the published results and trainings: one YAML page per paper, strict about every key and column.

Published numbers are what the papers print, in percent; nothing here was measured by this project.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from pipelines.published.tables import FOLDER, PAPERS, known
from segmodels.checks import choose, nearest

NAMES = {"reconet": "RecoNet", "srnet": "SRNet", "ctnet": "CTNet", "ocnet": "OCNet"}
TABLE = ("id", "title", "benchmark", "split", "protocol", "classes", "columns", "note", "models", "also", "rows")
# What a column of numbers is a measurement of; a study, and `compare results`, set only like next to like.
QUANTITIES = {
    "mIoU": "mIoU", "mIoU_SS": "mIoU", "mIoU_MS": "mIoU", "SS": "mIoU", "MS": "mIoU", "pascal_context": "mIoU",
    "ade20k": "mIoU", "pixAcc": "pixel accuracy", "mean": "boundary F-score", "std": "standard deviation of mIoU",
    "delta": "difference of mIoU", "GFLOPs": "GFLOPs", "GFLOPs_delta": "GFLOPs", "dGFLOPs": "GFLOPs",
    "params_M": "parameters", "dParams_MB": "parameters", "memory_MB": "memory", "mem_M": "memory",
    "dMemory_MB": "memory", "time_ms": "time", "fps": "images a second", "ISA_over_SA": "ratio of costs",
    "AP_box": "box AP", "AP_box50": "box AP50", "AP_box75": "box AP75",
    "AP_mask": "mask AP", "AP_mask50": "mask AP50", "AP_mask75": "mask AP75",
    "PQ": "PQ", "PQ_things": "PQ things", "PQ_stuff": "PQ stuff", "top1": "top-1",
    "sheep": "IoU of a class", "sofa": "IoU of a class", "train": "IoU of a class", "tv": "IoU of a class",
}  # fmt: skip
COMPARED = (  # what runs measure: segmentation's scores, and of other tasks as runs name them
    "mIoU", "pixel accuracy", "box AP", "box AP50", "box AP75", "mask AP", "mask AP50", "mask AP75", "PQ", "PQ things",
    "PQ stuff", "top-1",
)  # fmt: skip
SCALES = {"mIoU_SS": "single", "SS": "single", "mIoU_MS": "multi", "MS": "multi"}  # columns of tables that have both
TRAINING = ("id", "benchmark", "stated", "silent", "stages", "note", "pages")
STAGE = ("at", "train", "epochs", "steps", "lr")
PLACE = re.compile(r"(Table |Fig\. )?(\d+|[IVX]+)([.-](\d+|[A-Z]))*")  # a section, table or figure of a paper
FACTS = (
    "train", "lr", "batch", "crop", "epochs", "steps", "weight_decay", "momentum", "power", "aux_weight", "cp_weight",
    "scale", "rotate", "brightness", "output_stride", "neck", "scales", "ohem",
)  # fmt: skip


@dataclass(frozen=True)
class ResultTable:
    """A table of results as printed.

    Attributes:
        id: `PAPER/tableN`.
        title: what it compares.
        benchmark, split: what was scored; None for tables of cost.
        protocol: how, as far as the paper says.
        classes: those that the lists of a `per_class` column are in the order of.
        columns: of every row.
        rows: column -> value; None where nothing is printed.
        note: what to know before reading it.
        also: `row`, as `row` takes it, `column`, and what another place `says` of this number.
        models: page of pipelines/recipes -> the rows that it is to meet, as `row` takes them.
    """

    id: str
    title: str
    benchmark: str | None
    split: str | None
    protocol: Mapping[str, Any]
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]
    note: str
    models: Mapping[str, Sequence[Mapping[str, Any]]]
    also: tuple[Mapping[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """ "RecoNet Table 8" """
        paper, _, place = self.id.partition("/")
        return f"{NAMES[paper]} {place.replace('table', 'Table ').replace('fig', 'Fig. ')}"

    def row(self, where: Mapping[str, Any]) -> Mapping[str, Any]:
        """The one row that has these values in these columns.

        Raises:
            ValueError: an unknown column, or no row or several.
        """
        for column in where:
            choose(dict.fromkeys(self.columns), column, f"column of {self.id}:")
        found = [row for row in self.rows if all(row[column] == value for column, value in where.items())]
        if len(found) != 1:
            values = [", ".join(f"{column}: {row[column]}" for column in where) for row in self.rows]
            given = ", ".join(f"{column}: {value}" for column, value in where.items())
            many = "no row" if not found else f"{len(found)} rows, name more columns than {', '.join(where)}"
            raise ValueError(
                f"{self.id} has {many} of {{{given}}}; it has {'; '.join(values)}.{nearest(given, values)}"
            )
        return found[0]

    @property
    def compared(self) -> bool:
        """Whether it has numbers that runs measure."""
        return bool(self.benchmark) and any(QUANTITIES.get(column) in COMPARED for column in self.columns)

    def columns_of(self, quantity: str) -> list[str]:
        """The columns that hold a quantity."""
        return [column for column in self.columns if QUANTITIES.get(column) == quantity]

    def elsewhere(self, row: Mapping[str, Any], column: str) -> str:
        """What another place of the papers says of a number; empty where none says otherwise."""
        return "; ".join(e["says"] for e in self.also if e["column"] == column and self.row(e["row"]) is row)

    def scales(self, row: Mapping[str, Any], column: str) -> str:
        """`single` or `multi`, how many scales a number was tested at; empty where the page does not say."""
        if column in SCALES:
            return SCALES[column]
        if "ms_flip" in row:
            return "multi" if row["ms_flip"] else "single"
        mode = str(self.protocol.get("mode", ""))
        if mode in ("MS", "MS+flip"):
            return "multi"
        return "single" if mode.startswith("SS") and "MS" not in mode and "unless" not in mode else ""

    def label(self, column: str) -> str:
        """Where a column is printed, and under which protocol, for captions."""
        choose(dict.fromkeys(self.columns), column, f"column of {self.id}:")
        parts = [f"{self.benchmark} {self.split}"] if self.benchmark else []
        parts += [str(value) if key == "mode" else f"{key} {words(value)}" for key, value in self.protocol.items()]
        return f"{self.name}, {column}: {', '.join(parts)}"


@dataclass(frozen=True)
class Training:
    """How a paper trained a model.

    Attributes:
        id: `PAPER/NAME`.
        benchmark: what it was scored on.
        stated: section, table or figure -> what it says of `FACTS`. `lr` is the trunk's, `brightness` of 255.
        silent: those of which the paper says nothing.
        stages: facts of each stage where there are several, None where the paper is silent, and the place, `at`.
        note: what to know.
        pages: the recipes of pipelines/recipes that follow it.
    """

    id: str
    benchmark: str
    stated: Mapping[str, Mapping[str, Any]]
    silent: tuple[str, ...]
    stages: tuple[Mapping[str, Any], ...]
    note: str
    pages: tuple[str, ...]

    @property
    def facts(self) -> dict[str, Any]:
        """All that is stated, wherever."""
        return {fact: value for said in self.stated.values() for fact, value in said.items()}


@functools.cache
def result_tables(paper: str) -> tuple[str, tuple[ResultTable, ...], tuple[Training, ...]]:
    """The citation of a paper of `PAPERS`, its tables of results, and how its models were trained.

    Raises:
        ValueError: an unknown paper; or the page has an unknown key, or a row other columns than its table.
    """
    choose(dict.fromkeys(PAPERS), paper, "paper")
    page = yaml.safe_load((FOLDER / f"{paper}_results.yaml").read_text())
    known("page", page, ("paper", "tables", "recipes"))
    return page["paper"], tuple(map(read_table, page["tables"])), tuple(map(read_training, page["recipes"]))


def read_table(entry: Mapping[str, Any]) -> ResultTable:
    """A table of a page."""
    known("table", entry, TABLE)
    for other in entry.get("also", ()):
        known(f"contradiction of {entry['id']}", other, ("row", "column", "says"))
    columns, classes = tuple(entry["columns"]), tuple(entry.get("classes", ()))
    for row in entry["rows"]:
        known(f"row of {entry['id']}", row, columns)
        if missing := [column for column in columns if column not in row]:
            raise ValueError(f"{entry['id']}: {row} lacks {', '.join(missing)}; write null where nothing is printed")
        if row.get("per_class") is not None and len(row["per_class"]) != len(classes):
            raise ValueError(f"{entry['id']}: {len(row['per_class'])} values per class, {len(classes)} classes")
    return ResultTable(
        entry["id"], entry["title"], entry["benchmark"], entry["split"], entry.get("protocol", {}), classes, columns,
        tuple(entry["rows"]), entry.get("note", ""), entry.get("models", {}),
        tuple(entry.get("also", ())),
    )  # fmt: skip


def read_training(entry: Mapping[str, Any]) -> Training:
    """A training of a page: every fact once, and with its place."""
    known("recipe", entry, TRAINING)
    id, stated, stages = entry["id"], entry.get("stated", {}), tuple(entry.get("stages", ()))
    for place in (*stated, *(stage.get("at") for stage in stages)):
        if not PLACE.fullmatch(str(place)):
            raise ValueError(f"training {id}: {place!r} is no section, table or figure, such as '4.1' or 'Table 7'")
    silent = dict.fromkeys(entry.get("silent", ()))
    for facts in (*stated.values(), silent):
        known(f"training {id}", facts, FACTS)
    for stage in stages:
        known(f"stage of training {id}", stage, STAGE)
    named = [fact for facts in (*stated.values(), silent) for fact in facts]
    if twice := sorted({fact for fact in named if named.count(fact) > 1}):
        raise ValueError(f"training {id} has {', '.join(twice)} twice; a fact is stated in one place, or silent")
    return Training(id, entry["benchmark"], stated, tuple(silent), stages, entry.get("note", ""), tuple(entry["pages"]))


def results_table(id: str) -> ResultTable:
    """The table of an id such as "reconet/table8".

    Raises:
        ValueError: there is none; names the nearest.
    """
    tables = {table.id: table for paper in PAPERS for table in result_tables(paper)[1]}
    return choose(tables, id, "published table")


def published_values(
    table: str, column: str, wanted: Mapping[str, Mapping[str, Any] | None], quantity: str = "mIoU"
) -> dict[str, float | None]:
    """Variant -> the published number of its row; None for a variant that names no row, or where none is printed.

    Args:
        table: the id of a results table.
        column: which number.
        wanted: variant -> column -> value, which must fit exactly one row.
        quantity: what is measured: the column must hold it too.

    Raises:
        ValueError: an unknown table or column, one of another quantity, a row that does not exist or is not unique, or
            no number.
    """
    source = results_table(table)
    choose(dict.fromkeys(source.columns), column, f"column of {table}:")
    check_quantity(source, column, quantity)
    values = {name: None if where is None else source.row(where)[column] for name, where in wanted.items()}
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{table}, {column} of {name!r} is {value!r}, no number")
    return values


def check_quantity(table: ResultTable, column: str, quantity: str) -> None:
    """A published number may only stand next to measurements of the same quantity.

    Raises:
        ValueError: the column holds another.
    """
    if (holds := QUANTITIES.get(column, "no number that is compared")) != quantity:
        fits = ", ".join(table.columns_of(quantity)) or f"none of {table.id}; `compare results` shows all tables"
        raise ValueError(
            f"column {column!r} of {table.id} holds {holds}, but measured is {quantity}, which is in: {fits}"
        )


def words(value: Any) -> str:
    """A list without brackets."""
    return " ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
