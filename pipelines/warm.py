"""The door for Ray's processes: what each kind imports first. Nobody imports this module; Ray is told its name."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Import in the body without the garbage collector, a fifth faster; its later searches pass by what was loaded.

    An error only ends the body: it comes again where the module is used, and is told there.
    """
    gc.disable()
    try:
        with contextlib.suppress(Exception):
            yield
    finally:
        gc.freeze()
        gc.enable()


def worker_imports() -> None:
    """What a train worker imports."""
    with imports():
        import ray.data
        import ray.train.torch  # noqa: F401

        import pipelines.cluster.group
        import pipelines.training.worker  # noqa: F401


def controller_imports() -> None:
    """What Ray Train's controller imports: no torch, it trains nothing."""
    with imports():
        import pipelines.cluster.group  # noqa: F401


def feed_imports() -> None:
    """What a feeding task imports: no torch either."""
    with imports():
        import ray.data  # noqa: F401

        import pipelines.feed.plan  # noqa: F401


def trial_imports() -> None:
    """What a trial's own actor imports."""
    with imports():
        import ray.tune  # noqa: F401

        import pipelines.driver.run  # noqa: F401
