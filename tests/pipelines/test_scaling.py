"""The model of many GPUs by hand; many rows: what is generated, held and measured."""

import argparse
import contextlib
import json
import math
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from datasets.shards import Shards
from pipelines.base.errors import InputError
from pipelines.bench import build_parser
from pipelines.feed.batches import Steps
from pipelines.feed.plan import SamplePlan
from pipelines.scoring.seen import digests
from pipelines.speed import gpu, scaling
from pipelines.speed.many import many_shards
from pipelines.speed.many_gpus import FLAGS, Setup
from pipelines.speed.processes import KindPeaks


def setup(**changed):
    flags = {flag.replace("-", "_"): default for flag, (default, *_) in FLAGS.items()}
    return Setup(**flags | {"gradients": 4 * 10**8, "norms": 100, "task_rows": 256} | changed)


def test_one_gpu_waits_for_nobody():
    one = setup()
    assert one.step(1) == one.compute(1) == pytest.approx(16 / 217)
    assert one.rate(1) == pytest.approx(217)
    assert not any(one.broken(1).values())
    assert setup(images=2).step(1) == pytest.approx(0.033)  # the CPU launches no faster


def test_an_all_reduce_is_bytes_over_the_slowest_link_and_hops():
    links = setup(link_gb_s=100, net_gb_s=10, base_us=7, link_us=1, net_us=5)
    assert links.sent(8, 10**9) == pytest.approx(2 * 7 / 8 / 100 + (7 + 2 * 7) / 1e6)  # a chain of 7 hops, up and down
    assert links.sent(16, 10**9) == pytest.approx(2 * 15 / 16 / 10 + (7 + 2 * (7 * 1 + 1 * 5)) / 1e6)
    assert links.latency(16, 1) == pytest.approx((7 + 14 * 1 + 2 * 5) / 1e6)
    assert links.norm_seconds(16) == pytest.approx(100 * (7 + 14 + 10 + 7 + 24) / 1e6)


def test_only_what_the_backward_pass_does_not_hide_and_the_last_bucket_are_waited_for():
    whole = {"gradients": 10**9, "bucket_mb": 10**9 / 2**20, "base_us": 1e-9, "link_us": 1e-9}
    assert setup(**whole, link_gb_s=1000).exposed(8) == pytest.approx(2 * 7 / 8 / 1000)  # all in one bucket
    parts = setup(**whole | {"bucket_mb": 100 * 10**6 / 2**20}, link_gb_s=10)
    hidden = 2 / 3 * 16 / 217
    assert parts.exposed(8) == pytest.approx(2 * 7 / 8 / 10 - hidden, rel=1e-6)
    assert setup(**whole | {"bucket_mb": 100 * 10**6 / 2**20}, link_gb_s=1000).exposed(8) == pytest.approx(
        2 * 7 / 8 / 10_000
    )


@pytest.mark.parametrize(
    ("changed", "breaks"),
    [
        ({"net_gb_s": 1}, "all-reduce"),
        ({"net_us": 500}, "synchronised norms"),
        ({"decode_ms": 60}, "input"),
        ({"store_gb_s": 0.05}, "storage"),
        ({"tasks_per_s": 5}, "driver"),
    ],
)
def test_what_breaks_is_named(changed, breaks):
    base = {"norms": 0, "store_gb_s": 1e6, "stream_mb_s": 1e6}
    assert not any(setup(**base).broken(32).values())
    broken = setup(**base | {"norms": 100 * ("net_us" in changed)} | changed).broken(32)
    assert [name for name, is_so in broken.items() if is_so] == [breaks]
    assert not any(setup(**base | changed).broken(1).values()) or breaks in ("input", "storage")


def test_the_first_epoch_lasts_as_long_as_the_copy_of_the_split():
    slow = setup(rows=1000, image_kb=1000, epochs=2, store_gb_s=0.01)  # 1 GB in 100 s
    assert slow.fill(1) == pytest.approx(100)
    assert slow.storage(1) == pytest.approx(2000 / (100 + 1000 / 217))
    assert setup(rows=1000, image_kb=1000, epochs=2, store_gb_s=1e6, stream_mb_s=1e6).storage(1) == pytest.approx(217)


def test_workers_that_share_cores_share_their_time():
    cores = setup(shared=True, cores=2, images=8, images_per_s=10, decode_ms=25, launch_ms=1e-3, per_node=1e9)
    assert cores.compute(1) == pytest.approx(0.8)
    assert cores.compute(4) == pytest.approx(4 * 8 * (0.1 + 0.025) / 2)
    assert cores.input(4) == math.inf


def test_the_table_has_a_row_for_each_number_and_says_what_breaks_first(capsys):
    args = build_parser().parse_args(["scaling", "--recipe", "fcn/camvid_resnet50s", "--gpus", "1", "64", "512"])
    args.check(args)
    report = args.measure(args)
    assert [row[0] for row in report.rows] == ["1", "64", "512"]
    assert report.rows[0][2] == "217"
    assert "synchronised norms: from 512 GPUs on" in report.notes
    local = build_parser().parse_args(["scaling", "--recipe", "fcn/camvid_resnet50s", "--norm", "local"])
    assert "synchronised norms: nowhere up to 512 GPUs" in local.measure(local).notes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scaling", "--net-gb-s", "0"], "--net-gb-s 0: above 0"),
        (["scaling", "--gpus", "0"], "--gpus 0: 1 or more"),
        (["scaling", "--recipe", "reconet/voc"], "reconet/voc"),
        (["rows", "--rows", "0"], "--rows 0 --per-file 1280 --group 64: each 1 or more"),
        (["gpu"], "--out DIR is needed"),
        (["gpu", "--out", "{tmp}", "--device", "cpu", "--seconds", "0"], "--seconds 0: above 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, message, tmp_path):
    args = build_parser().parse_args([word.format(tmp=tmp_path) for word in words])
    with pytest.raises(InputError, match=message):
        args.check(args)


def test_without_a_gpu_the_rehearsal_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    args = build_parser().parse_args(["gpu", "--out", str(tmp_path)])
    with pytest.raises(InputError, match=r"sees no GPU here.*--device cpu --size small"):
        args.check(args)


def running(process):
    """Whether it still runs; an orphan that nobody has buried does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def test_a_step_ends_at_its_limit_with_all_that_it_started():
    child = (
        "import subprocess, sys, time\n"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid, flush=True)\n"
        "time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", child], start_new_session=True, stdout=subprocess.PIPE, text=True)
    below = psutil.Process(int(process.stdout.readline()))
    with gpu.ended_after(process, 0.1) as over:
        assert process.wait(5) < 0
    assert over.is_set()
    until = time.monotonic() + 5
    while running(below) and time.monotonic() < until:
        time.sleep(0.05)
    assert not running(below)
    gpu.end_group(process, 9)  # nobody is left: no error


def test_what_a_kill_cut_off_is_left_out(tmp_path):
    lines = [{"step": "machine", "name": "copy", "value": 4.0, "unit": "TB/s", "predicted": "4.3", "good": None},
             {"step": "heads", "name": "fcn", "value": 1.0, "unit": "", "predicted": "", "good": False}]  # fmt: skip
    path = tmp_path / gpu.RESULTS
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": "he')
    found = gpu.read_results(path)
    assert found == lines
    args = argparse.Namespace(device="cpu", size="small")
    report = gpu.report(args, {"machine": "done in 3 s"}, found)
    assert report.rows == [["machine: copy", "4 TB/s", "4.3", ""], ["heads: fcn", "1", "", "NO"]]
    assert report.notes == ["machine: done in 3 s", "not as they should be: heads: fcn"]
    assert gpu.read_results(tmp_path / "none") == []


def test_the_steps_take_eight_minutes():
    assert sum(step.seconds for step in gpu.STEPS.values()) <= gpu.SECONDS
    assert all(step.seconds < step.limit < 150 for step in gpu.STEPS.values())


def test_generated_rows_are_all_different_and_read(tmp_path):
    many_shards(tmp_path / "train", 300, 128)
    shards = Shards(str(tmp_path / "train"), tmp_path / "cache")
    assert len(shards) == len(set(shards.ids)) == len(digests(shards)) == 300
    assert shards.ids != sorted(shards.ids)
    image, mask = shards.sample(299)
    assert image.shape == (64, 64, 3)
    assert len(np.unique(mask)) > 1
    assert shards.histograms.sum(0).tolist() == list(shards.manifest.histogram)


def test_digests_are_the_first_bytes_of_the_images_sums(shards):
    split = Shards(str(shards / "voc12" / "train"))
    wanted = sorted(np.array([int(text[:16], 16) for text in split.sha256], np.uint64).view(np.int64))
    assert digests(split).tolist() == wanted


def test_a_loaders_steps_are_made_as_they_are_asked_for():
    plan = SamplePlan("unused", rows=10**7, view=None, seed=0, batch=16, steps=10**9, world=2, rank=1, start=5)
    steps = Steps(plan)
    assert len(steps) == 10**9 - 5
    assert next(iter(steps)) == plan.positions(5)


def test_memory_is_told_by_kind_of_process():
    held = "'RayTrainWorker'; x = bytearray(50_000_000); import time; time.sleep(5)"
    process = subprocess.Popen([sys.executable, "-c", held])
    with KindPeaks(process.pid) as peaks:
        time.sleep(0.8)
    process.kill()
    kinds = peaks.kinds()
    assert kinds["driver"] == kinds["worker"] > 50_000_000
    assert kinds["task"] == 0


def test_defaults_name_their_source():
    assert all(meaning and source for _, meaning, source in FLAGS.values())
    assert scaling.GPUS[0] == 1
    assert scaling.GPUS[-1] == 512


@pytest.mark.long
def test_the_whole_sequence_is_rehearsed_on_a_cpu(tmp_path):
    """Every step at its small size, each in its process: minutes. On a GPU the same lines are measured."""
    words = ["gpu", "--out", str(tmp_path), "--device", "cpu", "--size", "small", "--seconds", "1200"]
    done = subprocess.run([sys.executable, "-m", "pipelines.bench", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    ends = [line for line in done.stdout.splitlines() if line.startswith("- ")]
    assert sum(": done in " in line for line in ends) == len(gpu.STEPS), done.stdout
    assert ends[-1] == "- not as they should be: none"
    found = gpu.read_results(tmp_path / gpu.RESULTS)
    assert {line["step"] for line in found} == set(gpu.STEPS)
    assert not [line for line in found if isinstance(line["value"], float) and not math.isfinite(line["value"])]


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.xdist_group("rows")
def test_a_stage_over_many_rows_at_its_smallest(capsys):
    args = build_parser().parse_args(["rows", "--rows", "600", "--per-file", "64"])
    args.check(args)
    report = args.measure(args)
    assert [row[0] for row in report.rows] == ["600 rows, cache empty", "600 rows, cache filled"]
    for run in report.measured.values():
        (values,) = run
        assert 0 < values["first_s"] <= values["end_s"]
        assert min(values["driver"], values["worker"], values["task"]) > 20 * 2**20
