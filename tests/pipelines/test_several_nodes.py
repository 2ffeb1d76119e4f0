"""Workers spread over nodes compute what those of one node compute, to the last digit."""

import contextlib
import hashlib
import os
import subprocess
import sys
import threading

import psutil
import pytest
import torch
import yaml
from disturbed import door

from pipelines.base.door import ROOT
from pipelines.driver.run import run_recipe
from pipelines.recipes.reading import load_recipe
from pipelines.runs import checkpoint
from pipelines.runs.record import read_record

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]
STAGES = [
    {"name": "first", "train": "voc12_aug/train", "val": "voc12/val", "steps": 6, "val_every": 0.5},
    {"name": "second", "train": "voc12/train", "val": "voc12/val", "steps": 4, "val_every": 0},
]
MEASURED = ("time", "images_per_s", "data_wait", "save_wait", "eta_s", "gpu_mib", "counts", "overlays")


def numbers(run):
    """All that the records of a run say, but for its times and speeds."""
    lines = [line for name in ("first", "second") for line in read_record(run / name / "record.jsonl")[0]]
    kept = [line for line in lines if line["kind"] in ("train", "val", "test")]
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in kept]


def weights(run, step):
    return checkpoint.load(run / f"checkpoints/step-{step:08}.pt")["model"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Watch(threading.Thread):
    """Sees on which nodes Ray's workers were at work."""

    def __init__(self, nodes):
        super().__init__(daemon=True)
        self.nodes, self.seen, self.ending = nodes, set(), threading.Event()

    def run(self):
        while not self.ending.wait(0.1):
            for pid in map(self.nodes.pid, self.nodes.cluster.worker_nodes):
                if any(name.startswith("ray::") and "IDLE" not in name for name in self.names(pid)):
                    self.seen.add(pid)

    def names(self, pid):
        """What the processes of a node show as theirs: of a worker what it does."""
        found = []
        with contextlib.suppress(psutil.Error):  # it may end meanwhile
            for process in psutil.Process(pid).children():
                with contextlib.suppress(psutil.Error):
                    found.append(" ".join(process.cmdline()))
        return found

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *error):
        self.ending.set()
        self.join()


def alone(name, *words):
    """A door on this machine only."""
    done = subprocess.run(
        [sys.executable, "-m", f"pipelines.{name}", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, timeout=280, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def runs(ray_session, three_nodes, tracking, shards, tiny, tmp_path_factory):
    """A chain with validations of two workers on one node, and the same on several."""
    folder = tmp_path_factory.mktemp("chain")
    page = {**tiny, "stages": STAGES, "workers": {"count": 2, "gpus": 0}, "feed": "ray", "data": str(shards)}
    page |= {"output": str(folder / "out"), "tracking": tracking}
    for name in ("one", "several"):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(page | {"name": name}))
    run_recipe(load_recipe(folder / "one.yaml"))
    with Watch(three_nodes) as watch:
        shown = door(three_nodes.address, "train", folder / "several.yaml")
    assert len(watch.seen) > 1
    assert "mIoU before" in shown
    return folder / "out/runs"


def test_a_chain_and_its_validations(runs):
    one, several = numbers(runs / "one"), numbers(runs / "several")
    assert [line["kind"] for line in one].count("val") > 4
    assert one == several
    for stage, step in (("first", 6), ("second", 4)):
        assert same(weights(runs / f"one/{stage}", step), weights(runs / f"several/{stage}", step))


def test_an_evaluation(runs, three_nodes, shards, tmp_path):
    words = [runs / "several/second/best.pt", shards / "voc12/val", "--boundary", "--out"]
    alone("evaluate", *words, tmp_path / "one")
    with Watch(three_nodes) as watch:
        door(three_nodes.address, "evaluate", *words, tmp_path / "several", "--workers", 2, "--gpus", 0)
    assert len(watch.seen) > 1
    one, several = (yaml.safe_load((tmp_path / name / "scores.json").read_text()) for name in ("one", "several"))
    assert one == several


def test_prepare(three_nodes, release, tmp_path):
    words = ["voc12_aug", "--partial", "--source", release, "--out"]
    alone("prepare", *words, tmp_path / "one", "--workers", 0)
    with Watch(three_nodes) as watch:
        door(three_nodes.address, "prepare", *words, tmp_path / "several")
    assert watch.seen
    one, several = (
        {
            path.relative_to(root): digest(path)
            for path in sorted(root.rglob("*"))
            if path.suffix in (".json", ".parquet")
        }
        for root in (tmp_path / "one", tmp_path / "several")
    )
    assert len(one) > 2
    assert one == several


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_study(three_nodes, recipe_file, tracking, tmp_path):
    stages = [{"name": "first", "train": "voc12/train", "val": "voc12/val", "steps": 3, "val_every": 0}]
    recipe = recipe_file(stages=stages, workers={"count": 1, "gpus": 0}, feed="ray", tracking=tracking)
    page = {"title": "Aux weight", "recipe": str(recipe), "baseline": "none", "seeds": [1, 2],
            "variants": {"none": {"set": {"loss.aux.cross_entropy": 0.0}}, "full": {}}}  # fmt: skip
    study = tmp_path / "aux.yaml"
    study.write_text(yaml.safe_dump(page, sort_keys=False))
    with Watch(three_nodes) as watch:
        shown = door(three_nodes.address, "ablate", study, "--name", "several")
    assert len(watch.seen) > 1
    assert "4 trial(s) to run" in shown
    alone("ablate", study, "--name", "one")
    tables, losses = [], []
    for name in ("one", "several"):
        folder = tmp_path / "out/studies" / name
        lines = (folder / "table.txt").read_text().splitlines()
        tables.append([line.split()[:-1] for line in lines if line.startswith(("none ", "full "))])
        records = sorted(folder.glob("trials/*/first/record.jsonl"))
        losses.append([line["loss"] for path in records for line in read_record(path)[0] if line["kind"] == "train"])
    assert len(tables[0]) == 2
    assert len(losses[0]) == 12
    assert tables[0] == tables[1]
    assert losses[0] == losses[1]
