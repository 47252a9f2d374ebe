"""Two hosts with their own addresses: real `ray start` on each, with a token, and a sweep of two-worker trainers."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .hosts import Host, cluster_environment, several_hosts, wait_for_nodes, why_not

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
_GTVRAY = (sys.executable, "-m", "gtvray")
SPACE = """
trials: 3
searcher: random
scheduler: {kind: none}
base:
  preprocessing.spacing_mm: [8.0, 8.0, 8.0]
  network.features: [4, 8, 8]
  training.patch_ijk: [16, 16, 16]
  training.epochs: 2
  training.steps_per_epoch: 2
  training.precision: fp32
  training.num_workers: 2
space:
  optimizer.lr: {low: 1.0e-3, high: 6.0e-3, log: true}
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return cluster_environment(tmp_path_factory.mktemp("secret"))


@pytest.fixture(scope="module")
def hosts(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    """A head and a worker host with one CPU each."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    logs = tmp_path_factory.mktemp("logs")
    with several_hosts(2) as made:
        head = made[0]
        for host in made:
            host.start_ray(head.address, 1, environment, logs / f"{host.number}.log")
            wait_for_nodes(head, head, host.number, environment, logs)
        yield made


def test_two_worker_trials_run_across_hosts(
    hosts: list[Host], environment: dict[str, str], phantoms: Path, tmp_path: Path
) -> None:
    space = tmp_path / "pair.yaml"
    space.write_text(SPACE)
    head = hosts[0]
    address = ["--address", f"{head.address}:6379", "--workspace", tmp_path / "runs"]
    looked = head.run(
        *_GTVRAY, "doctor", "--cluster", *address, "--data", phantoms, "--json", environment=environment, timeout_s=200
    )
    assert looked.returncode == 0, looked
    assert sorted(row["check"].split()[0] for row in json.loads(looked.stdout)["checks"]) == [
        host.address for host in hosts
    ]
    command = ["sweep", space, "--data", phantoms, *address, "--json"]
    began = time.monotonic()
    done = head.run(*_GTVRAY, *command, environment=environment, timeout_s=600)
    assert done.returncode == 0, done.stderr[-3000:]
    print(f"sweep of 3 trials across two hosts: {time.monotonic() - began:.0f} s")  # noqa: T201
    # Each host has one CPU, so the two workers of a trial were on different hosts.
    assert [trial["epochs"] for trial in json.loads(done.stdout)["trials"]] == [2, 2, 2]
    left = head.run(sys.executable, "-c", _STANDING, address[1], environment=environment, timeout_s=120)
    assert left.stdout.split() == ["standing", "0"], left


def test_a_sweep_survives_a_host_that_dies(
    hosts: list[Host], environment: dict[str, str], phantoms: Path, tmp_path: Path
) -> None:
    """The host of a worker is killed in the middle of a trial; a third one takes its place."""
    head, victim = hosts
    (tmp_path / "pair.yaml").write_text(SPACE.replace("steps_per_epoch: 2", "steps_per_epoch: 60"))
    address = f"{head.address}:6379"
    command = ["sweep", tmp_path / "pair.yaml", "--data", phantoms, "--workspace", tmp_path / "runs", "--json"]
    sweep = head.start(*_GTVRAY, *command, "--address", address, environment=environment)
    try:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("runs/sweeps/*/trials/*/epoch-*")):
            assert time.monotonic() < deadline
            assert sweep.poll() is None
            time.sleep(0.5)
        victim.end()
        killed = time.monotonic()
        victim.start_ray(head.address, 1, environment, tmp_path / "again.log")
        output, errors = sweep.communicate(timeout=500)
    finally:
        sweep.kill()
    assert sweep.returncode == 0, errors[-3000:]
    print(f"a sweep ended {time.monotonic() - killed:.0f} s after a host was killed")  # noqa: T201
    assert [trial["epochs"] for trial in json.loads(output)["trials"]] == [2, 2, 2]
    notes = [line for file in tmp_path.glob("runs/sweeps/*/trials.jsonl") for line in file.read_text().splitlines()]
    # The process of the trial may have been on that host too; then Tune restarts the trial.
    assert any("restarted after" in line for line in notes), notes


_STANDING = """
import sys, time, ray
from ray.util.placement_group import placement_group_table
ray.init(address=sys.argv[1], log_to_driver=False)
for _ in range(100):
    standing = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
    if not standing:
        break
    time.sleep(0.2)
print("standing", len(standing))
"""
