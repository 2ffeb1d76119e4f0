"""What happens to a training on several nodes; each time it ends at the weights of the undisturbed run.

With `-s` each prints the seconds until the fault is noticed and until training goes on, and the steps that it repeats.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from disturbed import Clock, Driver, Nodes, check_end, slow_page, until

from pipelines.base.door import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]


@pytest.fixture
def disturbed(two_workers, recipe_file, three_nodes):
    """Starts the run of `pair` on three nodes, slowly; afterwards nothing of it is left, and three nodes are there."""
    drivers = []

    def start(minutes=0.05, pause=0.5, fault="", begin=True, hang_minutes=30.0, **environment):
        page = recipe_file(**slow_page(two_workers, minutes, hang_minutes))
        drivers.append(Driver(page, three_nodes.address, pause, fault, begin, **environment))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.kill()
    while len(three_nodes.cluster.worker_nodes) < 3:
        three_nodes.add()


@pytest.fixture
def ends_well(pair):
    """Makes sure that a driver ends, and its run as if nothing had happened."""
    return lambda driver: check_end(driver, pair[0] / "first")


def test_the_notice_that_a_node_will_be_taken_away_brings_a_checkpoint(disturbed, ends_well, three_nodes):
    """Without it the run would begin again: the recipe wants a checkpoint each hour."""
    driver = disturbed(minutes=60, pause=3.0, RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S="0.5")
    workers = driver.both()
    driver.reach(3)
    clock, node = Clock(driver, "notice, then rank 0's node is lost"), three_nodes.of(workers[0])
    drain(three_nodes.address, node.node_id, seconds=300)
    driver.until(driver.notices)
    noticed = clock.seconds()
    three_nodes.switch_off(node)
    clock.stop(noticed)
    assert driver.continued()[0] >= driver.notices()[0] >= 3
    ends_well(driver)


def test_until_its_time_is_over_training_goes_on_and_then_on_other_nodes(disturbed, ends_well, three_nodes):
    driver = disturbed(minutes=60, pause=4.0, RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S="0.5")
    workers = driver.both()
    driver.reach(2)
    clock, node = Clock(driver, "notice, whose time is over after 30 s"), three_nodes.of(workers[0])
    drain(three_nodes.address, node.node_id, seconds=30)
    driver.until(driver.notices)
    noticed = clock.seconds()
    clock.stop(noticed)
    assert driver.continued()[0] >= driver.notices()[0]
    assert all(three_nodes.of(process) is not node for process in driver.both().values())
    three_nodes.switch_off(node)
    ends_well(driver)
    assert driver.failures() == []
    assert "restart 1 of" not in driver.text()


def drain(address, node, seconds):
    """What `ray drain-node` does, without the seconds that it takes to start."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    reason, until = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), int((time.time() + seconds) * 1000)
    accepted, why = GcsClient(address=address).drain_node(node, reason, "spot", until)
    assert accepted, why


@pytest.mark.parametrize("rank", [0, 1])
def test_a_train_worker_is_killed(disturbed, ends_well, rank):
    driver = disturbed()
    workers = driver.both()
    driver.reach(5)
    clock = Clock(driver, f"SIGKILL of rank {rank}")
    workers[rank].kill()
    clock.stop()
    ends_well(driver)
    assert "restart 1 of 6" in driver.text()


def test_a_data_task_is_killed(disturbed, ends_well):
    driver = disturbed(fault="task")
    ends_well(driver)
    assert driver.page.with_name("task.mark").exists()
    assert driver.continued() == []
    assert driver.failures() == []


def test_the_node_of_rank_0_is_lost(disturbed, ends_well, three_nodes):
    driver = disturbed()
    workers = driver.both()
    driver.reach(5)
    clock = Clock(driver, "node of rank 0 lost")
    three_nodes.switch_off(three_nodes.of(workers[0]))
    clock.stop()
    ends_well(driver)


def test_the_driver_is_killed_and_the_same_command_goes_on(disturbed, ends_well):
    driver = disturbed()
    driver.both()
    driver.reach(5)
    clock = Clock(driver, "SIGKILL of the driver")
    driver.kill()
    driver.start()
    clock.stop(noticed=0.0)
    ends_well(driver)


def test_a_worker_hangs_in_a_collective(disturbed, ends_well):
    driver = disturbed(hang_minutes=0.75)
    workers = driver.both()
    driver.reach(5)
    clock = Clock(driver, "SIGSTOP of rank 1, hang_minutes = 0.75")
    workers[1].send_signal(signal.SIGSTOP)
    clock.stop()
    ends_well(driver)
    assert any("Workers hung and were replaced" in line["text"] for line in driver.lines("note"))


def test_storage_fails_at_the_third_write(disturbed, ends_well):
    driver = disturbed(fault="third-write", minutes=0)
    driver.until(driver.failures)
    clock, since = Clock(driver, "EIO at the third write"), time.time() - driver.lines("train")[-1]["time"] / 1000
    clock.began, clock.times = clock.began - since, 0
    clock.stop(noticed=since)
    ends_well(driver)
    assert driver.page.with_name("third-write.mark").exists()
    assert "Input/output error" in driver.text()


def test_the_newest_checkpoint_is_cut_off(disturbed, ends_well):
    driver = disturbed(minutes=0)
    workers = driver.both()
    driver.reach(6)
    workers[1].suspend()
    time.sleep(3)  # rank 0 writes what it had begun, and no newer one
    newest = sorted(driver.stage.glob("checkpoints/step-*.pt"))[-1]
    os.truncate(newest, newest.stat().st_size // 2)
    clock = Clock(driver, "newest checkpoint cut in half, SIGKILL of rank 1")
    workers[1].kill()
    clock.stop()
    ends_well(driver)
    assert any("passed over" in line["text"] for line in driver.lines("note"))


def test_clocks_differ_by_a_day(disturbed, ends_well):
    """Rank 0's clock is ahead in the first attempt only; and the oldest file has the latest time."""
    driver = disturbed(fault="clock", minutes=0)
    workers = driver.both()
    driver.reach(6)
    times = [line["time"] for line in driver.lines("train")]
    oldest = sorted(driver.stage.glob("checkpoints/step-*.pt"))[0]
    os.utime(oldest, (times[-1] / 1000 + 86400,) * 2)
    clock = Clock(driver, "rank 0's clock a day ahead, then SIGKILL of it")
    workers[0].kill()
    clock.stop()
    ends_well(driver)
    after = [line["time"] for line in driver.lines("train")]
    assert times[-1] - after[-1] > 80_000_000  # the clock went back


@pytest.fixture(scope="module")
def with_jobs():
    """A cluster of two nodes with its job server: (nodes, its address); a job has a minute to end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_JOB_STOP_WAIT_TIME_S", "60")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        port, agent = free_port(), free_port()
        nodes = Nodes(
            2,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            dashboard_port=port,
            dashboard_agent_listen_port=agent,
        )
    yield nodes, f"http://127.0.0.1:{port}"
    nodes.close()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_a_job_is_stopped_and_submitted_again(disturbed, ends_well, with_jobs):
    """It ends with a checkpoint of its last step, however seldom the recipe wants one."""
    driver, job = disturbed(minutes=60, begin=False), with_jobs[1]

    def ray_job(action, *words):
        words = [Path(sys.executable).with_name("ray"), "job", action, "--address", job, *words]
        return subprocess.run(words, check=True, cwd=ROOT, timeout=240, capture_output=True, text=True).stdout

    ray_job("submit", "--no-wait", "--submission-id", "first", "--working-dir", ".", "--", *driver.words)
    until(lambda: (driver.steps() or [0])[-1] >= 5, why=lambda: ray_job("logs", "first"))
    clock = Clock(driver, "ray job stop, then resubmit")
    ray_job("stop", "first")
    stopped = clock.seconds()
    last = driver.steps()[-1]
    assert "STOPPED" in ray_job("status", "first")
    assert driver.stage.joinpath(f"checkpoints/step-{last:08}.pt").exists()
    shown = ray_job("submit", "--submission-id", "second", "--working-dir", ".", "--", *driver.words)
    assert driver.continued() == [last], shown
    print(json.dumps({"fault": clock.fault, "stopped": round(stopped, 1), "repeated": 0}), flush=True)
    ends_well(driver)
