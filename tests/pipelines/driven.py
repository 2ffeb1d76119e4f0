"""A driver whose batches take their time, so that it can be disturbed: driven.py RECIPE SECONDS [FAULT].

They take so many seconds each, until there is a file `hurry` beside the recipe.

A FAULT is one that only a worker, or its task, can have; the process that has had it leaves a mark beside the recipe.
"""

import sys
from pathlib import Path

from pipelines.base.door import run
from pipelines.driver.run import run_recipe
from pipelines.recipes.reading import load_recipe

FAULTS = ("", "third-write", "clock", "task")


def main():
    page, seconds, fault = Path(sys.argv[1]), float(sys.argv[2]), "".join(sys.argv[3:])
    assert fault in FAULTS

    def once():
        """Whether no process had the fault yet."""
        mark = page.with_name(f"{fault}.mark")
        if mark.exists():
            return False
        mark.write_text("")
        return True

    def fail_at_third_write():
        import errno
        import os

        sync, count = os.fsync, iter(range(1, 1000))

        def fsync(file):
            if next(count) == 3:
                raise OSError(errno.EIO, "Input/output error")
            sync(file)

        os.fsync = fsync

    def go_a_day_ahead():
        import time

        now, now_ns = time.time, time.time_ns
        time.time, time.time_ns = lambda: now() + 86400, lambda: now_ns() + 86400 * 10**9

    def kill_a_task():
        from pipelines.feed import batches

        read = batches.read_blocks

        def read_and_die(*words, **named):
            import os
            import signal

            for block in read(*words, **named):
                if once():
                    os.kill(os.getpid(), signal.SIGKILL)
                yield block

        batches.read_blocks = read_and_die

    def feed(plan, kind, tasks, cpus):
        import time

        from pipelines.feed.batches import train_batches

        if fault == "task":
            kill_a_task()
        elif fault and plan.rank == 0 and once():
            {"third-write": fail_at_third_write, "clock": go_a_day_ahead}[fault]()
        for batch in train_batches(plan, kind, tasks, cpus):
            until = time.monotonic() + seconds
            while time.monotonic() < until and not page.with_name("hurry").exists():
                time.sleep(0.05)
            yield batch

    run_recipe(load_recipe(page), feed)


if __name__ == "__main__":
    run(main, resumes=True)
