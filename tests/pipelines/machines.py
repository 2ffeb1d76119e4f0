"""Machines on one machine: each has a network address, processes, a host name, /dev/shm and a home of its own.

They are network namespaces on a bridge without a way out, joined by `ray start`. The file system is the one that all
nodes share. It takes root, iproute2 and util-linux.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
from disturbed import below, until

from pipelines.base.door import ROOT

BIN = Path(sys.executable).parent
# As the head of the shipped cluster.yaml is started: a node that is silent for 16 s is lost
PATIENCE = {"period_ms": 1000, "timeout_ms": 3000, "failure_threshold": 4}
INNER = """set -e
hostname {name}
mount --make-rprivate /
mkdir -p {home}/ray {ray} && mount --bind {home}/ray {ray}
printf '127.0.0.1 localhost\\n127.0.1.1 {name}\\n' > {home}/hosts && mount --bind {home}/hosts /etc/hosts
mount -t tmpfs -o size=1g tmpfs /dev/shm
cd {home} && exec {command}
"""


def why_not():
    """Why this machine cannot make machines; empty where it can."""
    if missing := [name for name in ("ip", "unshare", "nsenter") if not shutil.which(name)]:
        return f"{', '.join(missing)} not found"
    name = f"ch-try-{os.getpid()}"
    for words in (["ip", "netns", "add", name], ["unshare", "-m", "-u", "-p", "-f", "--mount-proc", "true"]):
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            return f"{' '.join(words)}: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return ""


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Machines:
    """A Ray cluster of so many machines; the first is the head, and has no CPUs.

    A machine's own name means loopback, as on Debian: the address of the network is another.
    """

    def __init__(self, count, folder):
        self.folder, self.tag = folder, secrets.token_hex(2)
        self.ray = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: sockets lie in it
        (folder / "token").write_text(secrets.token_hex(32))
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.environment |= {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{BIN}:{os.environ['PATH']}", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "PYTHONPATH": str(ROOT),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",  # other tests stay on loopback
        }  # fmt: skip
        self.names, self.processes = [f"ch{self.tag}-{i}" for i in range(count)], {}
        self.bridge = f"ch{self.tag}-br"
        ip("netns", "add", self.bridge)
        ip("-n", self.bridge, "link", "add", "br0", "type", "bridge")
        ip("-n", self.bridge, "link", "set", "br0", "up")
        for number in range(count):
            self.wire(number)
            self.boot(number)

    @property
    def address(self):
        return "192.0.2.10:6379"

    def wire(self, number):
        """A cable from the machine to the bridge."""
        name, here, there = self.names[number], f"v{self.tag}a{number}", f"v{self.tag}b{number}"
        ip("netns", "add", name)
        ip("link", "add", here, "netns", name, "type", "veth", "peer", "name", there, "netns", self.bridge)
        ip("-n", self.bridge, "link", "set", there, "master", "br0")
        ip("-n", self.bridge, "link", "set", there, "up")
        ip("-n", name, "link", "set", here, "name", "eth0")
        ip("-n", name, "addr", "add", f"192.0.2.{10 + number}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "lo", "up")

    def boot(self, number):
        """Start the machine with its node."""
        home = self.folder / f"home{number}"
        home.mkdir(exist_ok=True)
        command = f"ray start --block --node-ip-address=192.0.2.{10 + number} --object-store-memory=200000000"
        command += " --disable-usage-stats"
        if number:
            command += f" --address={self.address} --num-cpus=2"
        else:
            command += f" --head --port=6379 --num-cpus=0 --include-dashboard=false --temp-dir={self.ray}"
        inner, log = home / "inner.sh", home / "log"
        inner.write_text(INNER.format(name=self.names[number], home=home, ray=self.ray, command=command))
        patience = {f"RAY_health_check_{name}": str(value) for name, value in PATIENCE.items()}
        words = ["ip", "netns", "exec", self.names[number], "unshare", "-m", "-u", "-p", "-f", "--kill-child"]
        with log.open("w") as sink:
            self.processes[number] = subprocess.Popen(
                [*words, "--mount-proc", "bash", str(inner)], stdout=sink, stderr=sink, start_new_session=True,
                env=self.environment | patience | {"HOME": str(home)},
            )  # fmt: skip
        until(lambda: "Ray runtime started" in log.read_text() or self.processes[number].poll(), 120, log.read_text)

    def words(self, number, *words):
        """A command as it is run on a machine."""
        init = psutil.Process(self.processes[number].pid).children()[0]
        return ["nsenter", "-t", str(init.pid), "-n", "-m", "-u", "-p", *map(str, words)]

    def holder(self, process):
        """The number of the machine that a process runs on."""
        return next(number for number, p in self.processes.items() if process in below(p.pid))

    def cut(self, number):
        """Take its network away."""
        ip("-n", self.names[number], "link", "set", "eth0", "down")

    def plug(self, number):
        """Give it back."""
        ip("-n", self.names[number], "link", "set", "eth0", "up")

    def freeze(self, number, stop=True):
        """Halt all of its processes, as a paused virtual machine; or let them go on."""
        for process in below(self.processes[number].pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP if stop else signal.SIGCONT)

    def switch_off(self, number):
        for process in below(self.processes[number].pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.processes.pop(number).wait(60)

    def close(self):
        for number in list(self.processes):
            self.switch_off(number)
        for name in [*self.names, self.bridge]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        shutil.rmtree(self.ray, ignore_errors=True)
