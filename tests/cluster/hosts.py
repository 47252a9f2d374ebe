"""Hosts simulated with Linux namespaces: each has its own network, processes, /tmp/ray and /dev/shm.

Hosts must not see each other's processes, because a driver takes its node address from the raylet that it finds.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest

# Without this pause after the links are up, a head did not find its own GCS.
_LINKS_UP_S = 2.0
_STORE_BYTES = 100_000_000
_GCS_PORT = 6379
_JOIN_S = 120.0


def why_not() -> str | None:
    """Return why hosts cannot be created on this machine; None if they can."""
    missing = [name for name in ("ip", "tc", "unshare", "nsenter") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} missing (packages iproute2, util-linux)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"gtv-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"no network namespace can be made: {tried.stderr.strip()}"
    _run("ip", "netns", "delete", name)
    return None


def cluster_environment(folder: Path) -> dict[str, str]:
    """Return the variables for all hosts, with a token file in this folder and without those of the tests' cluster."""
    token = folder / "token"
    token.write_text(secrets.token_hex(16))
    # Interfaces are not given either: a host must find that of its Ray node by itself.
    hidden = ("RAY_ADDRESS", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return kept | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}


def wait_for_nodes(host: Host, head: Host, count: int, environment: dict[str, str], logs: Path) -> None:
    """Wait until a cluster has this number of live nodes, as seen from one of its hosts."""
    ask = (
        "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); "
        "print('nodes', sum(row['Alive'] for row in ray.nodes()))"
    )
    deadline = time.monotonic() + _JOIN_S
    while time.monotonic() < deadline:
        command = (sys.executable, "-c", ask, f"{head.address}:{_GCS_PORT}")
        done = host.run(*command, environment=environment, timeout_s=120)
        if f"nodes {count}" in done.stdout:
            return
        time.sleep(1)
    pytest.fail("\n".join(log.read_text()[-2000:] for log in logs.iterdir()) + done.stderr[-2000:])


@dataclass
class Host:
    """A host.

    Attributes:
        number: from 1; the head is host 1.
        space: name of its network namespace.
        address: its IP address.
        link: name of its network interface outside of the namespace.
    """

    number: int
    space: str
    address: str
    link: str
    _first: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start_ray(self, head: str, cpus: int, environment: dict[str, str], log: Path) -> None:
        """Run `ray start --block` on this host.

        Args:
            head: address of the head, which may be this host.
            cpus: number of CPUs.
            environment: its environment variables.
            log: file for its output.
        """
        role = (
            ["--head", "--port", str(_GCS_PORT), "--include-dashboard", "true"]
            if head == self.address
            else ["--address", f"{head}:{_GCS_PORT}"]
        )
        ray = [str(Path(sys.executable).with_name("ray")), "start", *role, "--node-ip-address", self.address]
        ray += ["--num-cpus", str(cpus), "--object-store-memory", str(_STORE_BYTES), "--block"]
        self.start_first(*ray, environment=environment, log=log)

    def start_first(
        self,
        *command: str,
        environment: dict[str, str],
        log: Path,
        own: tuple[str, ...] = ("/tmp/ray",),  # of this host only
        name: str | None = None,
    ) -> None:
        """Start the command that lasts as long as this host.

        Args:
            command: program and arguments.
            environment: its environment variables.
            log: file for its output.
            own: folders that this host does not share with others, in addition to /dev/shm.
            name: host name; None keeps that of this machine.
        """
        mounts = " && ".join(f"mkdir -p {folder} && mount -t tmpfs tmpfs {folder}" for folder in (*own, "/dev/shm"))
        named = f"hostname {name} && " if name else ""
        # The shell is process 1 of the host and reaps orphans.
        inside = ["unshare", "-u", "-m", "-p", "--fork", "--mount-proc", "--kill-child", "sh", "-c"]
        inside += [f'{named}{mounts} && "$@" & wait', "sh", *command]
        with log.open("wb") as file:
            # Unlike `ip netns exec`, this keeps /sys/fs/cgroup, which Slurm needs.
            enter = ("nsenter", f"--net=/run/netns/{self.space}")
            self._first = subprocess.Popen([*enter, *inside], env=environment, stdout=file, stderr=subprocess.STDOUT)

    def run(self, *command: object, environment: dict[str, str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Run a command on this host, where Ray has been started."""
        inside = self._inside(*command)
        return subprocess.run(inside, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)

    def start(
        self, *command: object, environment: dict[str, str], output: IO[str] | int = subprocess.PIPE
    ) -> subprocess.Popen[str]:
        """Start a command on this host, with both streams to a file or to pipes of their own."""
        return subprocess.Popen(self._inside(*command), env=environment, stdout=output, stderr=output, text=True)

    def _inside(self, *command: object) -> list[str]:
        assert self._first is not None
        children = Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children")
        deadline = time.monotonic() + _JOIN_S
        while not children.read_text():
            assert time.monotonic() < deadline, "the first process of the host has not started"
            time.sleep(0.1)
        first = children.read_text().split()[0]
        return ["nsenter", "-t", first, "-n", "-m", "-p", "--wd=.", *map(str, command)]

    def set_link(self, state: str) -> None:
        """Connect (`up`) or disconnect (`down`) its network."""
        _run("ip", "link", "set", self.link, state)

    def limit_rate(self, rate_mbit: int) -> None:
        """Limit the network bandwidth to and from this host."""
        bucket = f"root tbf rate {rate_mbit}mbit burst 64kb latency 100ms".split()
        _run("tc", "qdisc", "replace", "dev", self.link, *bucket)
        _run("tc", "-n", self.space, "qdisc", "replace", "dev", "eth0", *bucket)

    def end(self) -> None:
        """End every process of this host."""
        for _ in range(50):
            pids = _run("ip", "netns", "pids", self.space).split()
            for pid in pids:
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    continue
            if not pids:
                break
            time.sleep(0.1)
        if self._first is not None:
            self._first.wait()


@contextmanager
def several_hosts(count: int) -> Iterator[list[Host]]:
    """Make hosts on a network of their own, and remove them with their processes.

    This machine has address 254 of the network.
    """
    mark = os.getpid() % 60_000
    bridge, net = f"gtvb{mark}", f"10.{64 + mark // 250 % 60}.{mark % 250}"
    hosts = [
        Host(number, f"gtv{mark}-{number}", f"{net}.{number}", f"gtvv{mark}{number}") for number in range(1, count + 1)
    ]
    try:
        _run("ip", "link", "add", bridge, "type", "bridge")
        _run("ip", "addr", "add", f"{net}.254/24", "dev", bridge)
        _run("ip", "link", "set", bridge, "up")
        for host in hosts:
            _run("ip", "netns", "add", host.space)
            _run("ip", "link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.space)
            _run("ip", "link", "set", host.link, "master", bridge, "up")
            _run("ip", "-n", host.space, "addr", "add", f"{host.address}/24", "dev", "eth0")
            for name in ("eth0", "lo"):
                _run("ip", "-n", host.space, "link", "set", name, "up")
        time.sleep(_LINKS_UP_S)
        yield hosts
    finally:
        for host in hosts:
            host.end()
            subprocess.run(["ip", "netns", "delete", host.space], capture_output=True, check=False)
        subprocess.run(["ip", "link", "delete", bridge], capture_output=True, check=False)


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
