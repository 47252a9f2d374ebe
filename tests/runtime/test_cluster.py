"""A local cluster runs for the duration of its `with` block and leaves no process, even if its driver is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray

from gtvray.errors import InputError, ResourceError
from gtvray.runtime import Cluster, connect

# Prints the address of its cluster and keeps it running until stdin is closed.
_HOLDER = """
import os, sys
from gtvray.runtime import connect, use_token
use_token()
with connect(sys.argv[1] or None, cpus=1 if not sys.argv[1] else None) as cluster:
    import ray
    assert os.environ["RAY_ADDRESS"] == cluster.address
    two = ray.get(ray.remote(lambda: 1 + 1).remote())
    if not cluster.is_local:
        # The worker's variables, although the cluster was started without them.
        assert ray.get(ray.remote(lambda: os.environ["RAY_AIR_NEW_OUTPUT"]).remote()) == "1"
    session = ray._private.worker._global_node.get_session_dir_path()
    print(cluster.address, cluster.is_local, cluster.cpus, two, session, flush=True)
    sys.stdin.read()
assert "RAY_ADDRESS" not in os.environ
"""


@contextmanager
def holding(address: str = "", **variables: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Run a process inside `connect`; yields the process and the words that it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | variables
    command = [sys.executable, "-c", _HOLDER, address]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as holder:
        try:
            assert holder.stdout is not None
            yield holder, holder.stdout.readline().split()
        finally:
            holder.kill()


def processes_of(session: str) -> list[str]:
    """Command lines of the processes of a Ray session."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if session in line:
            found.append(line[:200])
    return found


def wait_until_gone(session: str, *names: str) -> None:
    """Wait until the session has no process left, or none of these names; limited by pytest's timeout."""
    while any(not names or any(name in line for name in names) for line in processes_of(session)):
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.ray
def test_only_a_started_cluster_ends_with_its_block() -> None:
    with holding() as (holder, (address, is_local, cpus, two, session)):
        assert (is_local, cpus, two) == ("True", "1.0", "2")
        assert any("raylet" in line for line in processes_of(session))
        with holding(address, RAY_AIR_NEW_OUTPUT="1") as (guest, (joined, guest_is_local, *_)):
            assert (joined, guest_is_local) == (address, "False")
            guest.communicate()
            assert guest.returncode == 0
        assert holder.poll() is None
        assert any("gcs_server" in line for line in processes_of(session))
        holder.communicate()
        assert holder.returncode == 0
    wait_until_gone(session)


@pytest.mark.ray
@pytest.mark.timeout(90)
def test_killed_driver_leaves_no_cluster() -> None:
    with holding() as (holder, (*_, session)):
        assert any("gcs_server" in line for line in processes_of(session))
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        wait_until_gone(session, "raylet/raylet", "gcs/gcs_server")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "nowhere", "host.invalid:6379"])
def test_unreachable_address_is_reported_at_once(address: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = address.format(port=taken.getsockname()[1])
        with pytest.raises(ResourceError, match="cannot connect to Ray") as caught, connect(address):
            pass
    assert caught.value.fields["where"] == address
    assert len(str(caught.value).splitlines()) <= 5


@pytest.mark.parametrize(("address", "dashboard"), [
    ("ray://head:10001", "http://head:8265"),
    ("http://head:8265", "http://head:8265"),
])  # fmt: skip
def test_addresses_of_other_services_are_refused_by_name(address: str, dashboard: str) -> None:
    with pytest.raises(InputError) as caught, connect(address):
        pass
    assert caught.value.fields["where"] == address
    assert f"gtvray submit --address {dashboard} --" in caught.value.fields["do"]


def test_ray_address_is_refused_like_an_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(InputError, match="Ray Client"), connect():
        pass


@pytest.mark.ray
def test_connection_of_this_process_is_used_and_stays_open(local_ray: Cluster) -> None:
    for address in (None, "auto", local_ray.address):
        with connect(address) as cluster:
            assert (cluster.address, cluster.is_local) == (local_ray.address, False)
    assert ray.is_initialized()
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(InputError, match="connected to another Ray cluster") as caught, connect(address):
            pass
    assert caught.value.fields["found"] == local_ray.address
