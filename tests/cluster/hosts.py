"""Hosts with an address, a network and a /tmp/ray and /dev/shm of their own, as network namespaces on this machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

# Without this pause after the links are up, a head did not find its own control store.
_LINKS_UP_S = 2.0
_STORE_BYTES = 100_000_000
_GCS_PORT = 6379


def why_not() -> str | None:
    """Why hosts cannot be made here; None if they can."""
    missing = [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]
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


@dataclass
class Host:
    """A host.

    Attributes:
        number: from 1; the head is host 1.
        space: name of its network namespace.
        address: its IP address.
    """

    number: int
    space: str
    address: str
    _ray: subprocess.Popen[bytes] | None = field(default=None, repr=False)

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
        mounts = "mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && mount -t tmpfs tmpfs /dev/shm"
        inside = ["unshare", "-m", "sh", "-c", f'{mounts} && exec "$@"', "sh", *ray]
        with log.open("wb") as file:
            self._ray = subprocess.Popen(
                ["ip", "netns", "exec", self.space, *inside], env=environment, stdout=file, stderr=subprocess.STDOUT
            )

    def run(self, *command: object, environment: dict[str, str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Run a command on this host, where Ray has been started."""
        inside = self._inside(*command)
        return subprocess.run(inside, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)

    def start(self, *command: object, environment: dict[str, str]) -> subprocess.Popen[str]:
        """Start a command on this host."""
        pipe = subprocess.PIPE
        return subprocess.Popen(self._inside(*command), env=environment, stdout=pipe, stderr=pipe, text=True)

    def _inside(self, *command: object) -> list[str]:
        assert self._ray is not None
        return ["nsenter", "-t", str(self._ray.pid), "-n", "-m", "--wd=.", *map(str, command)]

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
        if self._ray is not None:
            self._ray.wait()


@contextmanager
def several_hosts(count: int) -> Iterator[list[Host]]:
    """Make hosts on a network of their own, and remove them with their processes."""
    mark = os.getpid() % 60_000
    bridge, net = f"gtvb{mark}", f"10.{64 + mark // 250 % 60}.{mark % 250}"
    hosts = [Host(number, f"gtv{mark}-{number}", f"{net}.{number}") for number in range(1, count + 1)]
    try:
        _run("ip", "link", "add", bridge, "type", "bridge")
        _run("ip", "addr", "add", f"{net}.254/24", "dev", bridge)
        _run("ip", "link", "set", bridge, "up")
        for host in hosts:
            outside = f"gtvv{mark}{host.number}"
            _run("ip", "netns", "add", host.space)
            _run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", host.space)
            _run("ip", "link", "set", outside, "master", bridge, "up")
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
