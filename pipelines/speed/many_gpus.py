"""How many images a second N GPUs train, by formulas.

With N GPUs on m nodes, b images of each, G bytes of gradients:

  compute     b / (images a second of one GPU), at least the CPU's time to launch a step
  all-reduce  2 (N-1)/N G / slowest link + latency of a ring or tree; all of it but the last bucket hides behind the
              backward pass, as long as that takes
  norms       two collectives for each synchronised norm, with nothing to hide behind: gathering is a ring's N-1 hops
  input       feeding tasks of all nodes / seconds of decoding an image
  storage     every node copies the whole split once, in its first epoch, which takes at least as long
  driver      tasks that Ray starts in a second x images of a task
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Any

MOST = 0.1  # share of a step, or of the rate, from which on something counts as broken
# flag -> default, meaning, and where the default is from
FLAGS: dict[str, tuple[float, str, str]] = {
    "images-per-s": (217, "of one GPU with --images at once", "RecoNet R101s, 512x512, bf16, one H200, version 0.3.5"),
    "images": (16, "of a GPU in a step", "the papers' batch"),
    "launch-ms": (33, "of the CPU, to launch a step", "R101s without waits for the device, one EPYC core"),
    "backward": (2 / 3, "share of a step that is its backward pass", "its products are two thirds of a step's"),
    "per-node": (8, "GPUs of a node", "8 x H200"),
    "cores": (96, "CPU cores of a node", "p5en.48xlarge, 192 hardware threads"),
    "link-gb-s": (360, "GB/s of a GPU to others of its node", "NVLink 4: 450, of which NCCL's rings reach 0.8"),
    "net-gb-s": (320, "GB/s of a node to others", "EFA of p5en.48xlarge: 400, of which 0.8"),
    "base-us": (6.7, "µs of a collective", "NCCL's src/graph/tuning.cc, protocol LL"),
    "link-us": (0.6, "µs of a hop within a node", "the same"),
    "net-us": (5.0, "µs of a hop between nodes", "the same, its trees"),
    "bucket-mb": (25, "MiB of gradients that are sent together", "PyTorch's DDP"),
    "decode-ms": (1.3, "of a core, for an image's view", "VOC, COCO, ADE20K JPEG to 512x512: 650 to 910 a second"),
    "rows": (118_287, "images of the split", "COCO's train2017"),
    "image-kb": (163, "kB of an image in the shards", "COCO's train2017"),
    "epochs": (30, "of the training", "RecoNet's pretraining"),
    "stream-mb-s": (90, "MB/s of one download", "Amazon's guidelines for S3: 85 to 90 a request"),
    "store-gb-s": (100, "GB/s of the storage to all nodes", "an assumption; S3 states no bound"),
    "tasks-per-s": (300, "tasks that Ray starts in a second", "an assumption; --validate measures this machine"),
}


@dataclass(frozen=True)
class Setup:
    """The flags, and what the recipe's model has.

    `shared`: workers and feeding tasks compute on the same cores, as on a machine without GPUs.
    """

    images_per_s: float
    images: float
    launch_ms: float
    backward: float
    per_node: float
    cores: float
    link_gb_s: float
    net_gb_s: float
    base_us: float
    link_us: float
    net_us: float
    bucket_mb: float
    decode_ms: float
    rows: float
    image_kb: float
    epochs: float
    stream_mb_s: float
    store_gb_s: float
    tasks_per_s: float
    gradients: int
    norms: int
    task_rows: int
    shared: bool = False

    def nodes(self, n: int) -> int:
        """Nodes of n GPUs."""
        return math.ceil(n / self.per_node)

    def compute(self, n: int) -> float:
        """Seconds of a step's own work on one GPU."""
        alone = max(self.images / self.images_per_s, self.launch_ms / 1e3)
        together = n * self.images * (1 / self.images_per_s + self.decode_ms / 1e3) / self.cores
        return max(alone, together) if self.shared else alone

    def latency(self, n: int, steps: int) -> float:
        """Seconds that an empty collective of n takes around a ring, `steps` times."""
        if n == 1:
            return 0.0
        across = self.nodes(n) if self.nodes(n) > 1 else 0
        return (self.base_us + steps * ((n - across) * self.link_us + across * self.net_us)) / 1e6

    def sum_latency(self, n: int) -> float:
        """Seconds of an empty all-reduce: the ring goes round twice; a tree is a chain in a node, doubling between."""
        if n == 1:
            return 0.0
        depth = (min(n, self.per_node) - 1) * self.link_us + math.log2(self.nodes(n)) * self.net_us
        return min(self.latency(n, 2), (self.base_us + 2 * depth) / 1e6)

    def sent(self, n: int, size: float) -> float:
        """Seconds of an all-reduce of `size` bytes."""
        if n == 1:
            return 0.0
        link = self.link_gb_s if self.nodes(n) == 1 else min(self.link_gb_s, self.net_gb_s)
        return 2 * (n - 1) / n * size / (link * 1e9) + self.sum_latency(n)

    def exposed(self, n: int) -> float:
        """Seconds of the gradients' all-reduce that a step waits for."""
        last = self.sent(n, min(self.gradients, self.bucket_mb * 2**20))
        buckets = max(1, math.ceil(self.gradients / (self.bucket_mb * 2**20)))
        whole = self.sent(n, self.gradients) + (buckets - 1) * self.sum_latency(n)
        return last + max(0.0, whole - last - self.backward * self.compute(n))

    def norm_seconds(self, n: int) -> float:
        """Seconds of a step that synchronised norms wait for each other: one gathering forward, one sum backward."""
        return self.norms * (self.latency(n, 1) + self.sum_latency(n))

    def step(self, n: int) -> float:
        """Seconds of a step, as far as the GPUs and their links go."""
        return self.compute(n) + self.norm_seconds(n) + self.exposed(n)

    def tasks(self) -> int:
        """Feeding tasks of a worker, as a run takes them: a share of the cores, at most 8."""
        return max(1, min(8, int((self.cores - self.per_node) // self.per_node)))

    def gpus(self, n: int) -> float:
        """Images a second that the GPUs allow."""
        return n * self.images / self.step(n)

    def input(self, n: int) -> float:
        """Images a second that decoding allows; on shared cores it is part of `compute`."""
        return math.inf if self.shared else n * self.tasks() / (self.decode_ms / 1e3)

    def driver(self, n: int) -> float:
        """Images a second that Ray's tasks allow."""
        return self.tasks_per_s * self.task_rows

    def fill(self, n: int) -> float:
        """Seconds in which every node has copied the split."""
        streams = min(n, self.per_node) * self.tasks() * self.stream_mb_s * 1e6
        each = min(streams, self.net_gb_s * 1e9, self.store_gb_s * 1e9 / self.nodes(n))
        return self.rows * self.image_kb * 1e3 / each

    def storage(self, n: int) -> float:
        """Images a second, over all epochs, that storage allows; the first lasts as long as the copy."""
        epoch = self.rows / min(self.gpus(n), self.input(n), self.driver(n))
        return self.epochs * self.rows / (max(epoch, self.fill(n)) + (self.epochs - 1) * epoch)

    def rate(self, n: int) -> float:
        """Images a second of n GPUs."""
        return min(self.gpus(n), self.input(n), self.driver(n), self.storage(n))

    def broken(self, n: int) -> dict[str, bool]:
        """What takes `MOST` of a step, or of the rate that all else would allow."""
        free = min(self.gpus(n), self.input(n), self.driver(n))
        return {
            "all-reduce": self.exposed(n) > MOST * self.step(n),
            "synchronised norms": self.norm_seconds(n) > MOST * self.step(n),
            "input": self.input(n) < self.gpus(n),
            "storage": self.storage(n) < (1 - MOST) * free,
            "driver": self.driver(n) < min(self.gpus(n), self.input(n)),
        }


def setup_of(args: argparse.Namespace, **replaced: Any) -> Setup:
    """The flags, with parameters and norms of the recipe's model."""
    from pipelines.feed.batches import TASK_ROWS
    from pipelines.recipes.model import count_norms, meta_model
    from pipelines.recipes.reading import load_recipe

    model = meta_model(load_recipe(args.recipe, ["backbone.weights=null"]), 21)
    flags = {name: getattr(args, name) for name in (flag.replace("-", "_") for flag in FLAGS)}
    own: dict[str, Any] = {
        "gradients": args.gradient_bytes * sum(p.numel() for p in model.parameters() if p.requires_grad),
        "norms": count_norms(model) if args.norm == "sync" else 0,
        "task_rows": TASK_ROWS,
    }
    return Setup(**flags | own | replaced)
