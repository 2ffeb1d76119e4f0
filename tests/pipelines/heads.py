"""Ray heads of tests: on loopback, with a token, in a folder of their own; whatever else runs here stays alone."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import psutil

RAY = Path(sys.executable).parent / "ray"
# a head ends with the process that tests, also where that is killed
BOUND = ("setpriv", "--pdeathsig", "TERM") if shutil.which("setpriv") else ()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def with_token(path):
    """The environment of a head and of its clients: this one's, and a new token in a file."""
    path.write_text(secrets.token_hex(32))
    plain = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_TMPDIR", "PYTHONPATH")}
    plain |= {"PATH": f"{RAY.parent}:{os.environ['PATH']}", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    return plain | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


@contextlib.contextmanager
def head(log, environment, *words):
    """A head that `ray start --head` with these words starts; yields what it says, and the folder of its logs."""
    short = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets lie in it
    own = environment | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_TMPDIR": short}
    fixed = ["start", "--head", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
    with log.open("w") as sink:
        process = subprocess.Popen(
            [*BOUND, RAY, *fixed, *words], stdout=sink, stderr=sink, env=own, start_new_session=True
        )
    try:
        wait_for(lambda: "Ray runtime started" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield SimpleNamespace(says=log.read_text, logs=Path(short) / "ray/session_latest/logs")
    finally:
        end(process.pid, short)
        process.wait(60)
        shutil.rmtree(short, ignore_errors=True)


def end(pid, short):
    """Kill a head with all that came of it: its children, and whatever names its folder."""
    found = [p for p in psutil.process_iter(["cmdline"]) if any(short in word for word in p.info["cmdline"] or ())]
    with contextlib.suppress(psutil.NoSuchProcess):
        found += [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def wait_for(what, seconds=120.0):
    """What a function returns once it is true."""
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until
        time.sleep(0.1)
    return found
