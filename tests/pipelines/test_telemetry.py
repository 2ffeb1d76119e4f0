"""What is known of the workers' GPUs while they train, with a stand-in for NVML."""

import sys
import time
from types import ModuleType, SimpleNamespace

import pytest
import torch

from pipelines.runs.mlflow_lines import values_of
from pipelines.training.telemetry import Telemetry, unheard

CUDA = torch.device("cuda", 0)


@pytest.fixture
def nvml(monkeypatch):
    """A module pynvml, as nvidia-ml-py has it, of two GPUs; the counts of PyTorch's allocator beside it."""
    module = ModuleType("pynvml")
    busy = iter(range(10, 1000, 10))
    module.NVMLError_DriverNotLoaded = type("NVMLError_DriverNotLoaded", (Exception,), {})
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetHandleByIndex = lambda index: index
    module.nvmlDeviceGetUtilizationRates = lambda handle: SimpleNamespace(gpu=next(busy), memory=1)
    module.nvmlDeviceGetMemoryInfo = lambda handle: SimpleNamespace(used=(handle + 3) << 30)
    module.nvmlDeviceGetPowerUsage = lambda handle: 100_000 * (handle + 1)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(torch.cuda, "pynvml", module, raising=False)
    monkeypatch.setattr(torch.cuda, "_HAS_PYNVML", True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    monkeypatch.setattr(torch._utils, "_get_current_device_index", lambda: 0)  # of a process that has a GPU
    module.peak = 5 << 20
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: module.peak)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: setattr(module, "peak", 0))
    return module


def rows(telemetry):
    """What `take` gives, on a machine where a table on a GPU can only be on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        zeros = torch.zeros
        patch.setattr(torch, "zeros", lambda *size, device, dtype: zeros(*size, dtype=dtype))
        return telemetry.take()


def test_busy_memory_power_and_peak_of_an_interval_and_then_of_the_next(nvml):
    telemetry = Telemetry(CUDA)
    assert telemetry.look()
    assert telemetry.look()
    # the worker's GPU 0 is the machine's GPU 1
    assert rows(telemetry) == [{"utilization": 15.0, "memory_mib": 4096.0, "power_w": 200.0, "peak_mib": 5.0}]
    telemetry.restart()
    nvml.peak = 2 << 20
    assert telemetry.look()
    assert rows(telemetry) == [{"utilization": 30.0, "memory_mib": 4096.0, "power_w": 200.0, "peak_mib": 2.0}]


def test_a_thread_looks_beside_the_training_and_ends_with_it(nvml):
    with Telemetry(CUDA, every=0.01) as telemetry:
        until = time.monotonic() + 5
        while len(telemetry.samples) < 3 and time.monotonic() < until:
            time.sleep(0.01)
    assert len(telemetry.samples) >= 3
    time.sleep(0.05)
    after = len(telemetry.samples)
    time.sleep(0.05)
    assert len(telemetry.samples) == after


def test_a_gpu_that_does_not_answer_is_told_and_its_figures_are_unknown(nvml, monkeypatch):
    def fails(handle):
        raise RuntimeError("NVML: not supported")

    nvml.nvmlDeviceGetUtilizationRates = fails
    with Telemetry(CUDA) as telemetry:
        (row,) = rows(telemetry)
    assert row["peak_mib"] == 5.0
    assert row["utilization"] != row["utilization"]
    assert unheard(CUDA) == "; how busy the GPU is will not be known: RuntimeError: NVML: not supported"
    monkeypatch.setattr(torch.cuda, "_HAS_PYNVML", False)
    monkeypatch.setattr(torch.cuda, "_PYNVML_ERR", ImportError("none"), raising=False)
    assert "nvidia-ml-py is not installed (uv sync --group gpu)" in unheard(CUDA)


def test_without_a_gpu_nothing_is_looked_at():
    with Telemetry(torch.device("cpu"), read=lambda index: pytest.fail("it looks")) as telemetry:
        assert telemetry.take() == []
    assert unheard(torch.device("cpu")) == ""


def test_every_workers_figures_reach_the_line_of_rank_0(nvml, monkeypatch):
    """Each worker knows its own row; what the others add arrives by the sum."""
    tables = []
    for rank in range(2):
        telemetry = Telemetry(CUDA, rank, 2, read=lambda index, rank=rank: (50.0 + rank, 1.0, 2.0))
        telemetry.look()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.distributed, "all_reduce", lambda table: tables.append(table.clone()))
            rows(telemetry)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda table: table.copy_(sum(tables)))
    assert [row["utilization"] for row in rows(telemetry)] == [50.0, 51.0]


def test_the_figures_are_metrics_of_mlflow_by_worker():
    line = {"kind": "train", "step": 3, "loss": 1.0, "gpu_mib": 7.0, "gpus": [
        {"utilization": 97.0, "memory_mib": 900.0, "power_w": 350.0, "peak_mib": 7.0},
        {"utilization": None, "memory_mib": None, "power_w": None, "peak_mib": 6.0},
    ]}  # fmt: skip
    assert values_of(line, []) == {
        "train/loss": 1.0, "speed/gpu_peak_mib": 7.0, "gpu/0/utilization_percent": 97.0, "gpu/0/memory_mib": 900.0,
        "gpu/0/power_w": 350.0, "gpu/0/torch_peak_mib": 7.0, "gpu/1/torch_peak_mib": 6.0,
    }  # fmt: skip
