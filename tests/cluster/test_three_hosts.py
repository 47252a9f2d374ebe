"""Three hosts with TLS, a token, and the state of the head in Redis: recovery from the loss of each part."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from gtvray.inference import Predictor
from gtvray.io import read_volume, write_volume
from gtvray.models import Bundle

from ..bundles import random_bundle
from ..serving.conftest import TOKEN, make_scan
from .hosts import Host, cluster_environment, several_hosts, wait_for_nodes, why_not
from .test_several_hosts import SPACE
from .three_hosts import redis_server, tls_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
_GTVRAY = (sys.executable, "-m", "gtvray")
_CUT_S = 8.0
_LONGER = SPACE.replace("steps_per_epoch: 2", "steps_per_epoch: 60")


@dataclass
class Site:
    """Three hosts: the head, which takes no work, and two workers with one CPU each."""

    hosts: list[Host]
    environment: dict[str, str]
    logs: Path

    @property
    def address(self) -> str:
        return f"{self.hosts[0].address}:6379"

    def start_ray(self, host: Host) -> None:
        cpus = 0 if host is self.hosts[0] else 1
        host.start_ray(self.hosts[0].address, cpus, self.environment, self.logs / f"{host.number}.log")

    def wait(self, count: int) -> None:
        wait_for_nodes(self.hosts[1], self.hosts[0], count, self.environment, self.logs)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    reason = why_not() or ("Redis is missing (package redis-server)" if shutil.which("redis-server") is None else None)
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("site")
    (folder / "logs").mkdir()
    with several_hosts(3) as hosts:
        gateway = hosts[0].address.rpartition(".")[0] + ".254"
        with redis_server(gateway, 6399, folder) as redis:
            environment = cluster_environment(folder) | tls_environment([host.address for host in hosts], folder)
            site = Site(hosts, environment | {"RAY_REDIS_ADDRESS": redis}, folder / "logs")
            for host in hosts:
                site.start_ray(host)
                # A later host finds the head only once it answers.
                wait_for_nodes(host, hosts[0], host.number, site.environment, site.logs)
            yield site


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_bundle(tmp_path_factory.mktemp("three") / "bundle")


def begun(site: Site, space: str, phantoms: Path, folder: Path) -> subprocess.Popen[str]:
    """A sweep whose command runs on a worker host and whose first checkpoint is written."""
    (folder / "pair.yaml").write_text(space)
    command = ["sweep", folder / "pair.yaml", "--data", phantoms, "--workspace", folder / "runs", "--json"]
    sweep = site.hosts[1].start(*_GTVRAY, *command, "--address", site.address, environment=site.environment)
    deadline = time.monotonic() + 300
    while not list(folder.glob("runs/sweeps/*/trials/*/epoch-*")):
        if time.monotonic() > deadline or sweep.poll() is not None:
            sweep.kill()
            pytest.fail(sweep.communicate()[1][-3000:])
        time.sleep(0.5)
    return sweep


def ended(sweep: subprocess.Popen[str], fault: str) -> None:
    """Wait until a sweep ends with all its epochs."""
    began = time.monotonic()
    try:
        output, errors = sweep.communicate(timeout=500)
    finally:
        sweep.kill()
    assert sweep.returncode == 0, errors[-3000:]
    print(f"a sweep ended {time.monotonic() - began:.0f} s after {fault}")  # noqa: T201
    assert [trial["epochs"] for trial in json.loads(output)["trials"]] == [2, 2, 2]


def test_masks_from_several_hosts_equal_single_prediction(site: Site, bundle: Bundle, tmp_path: Path) -> None:
    for number in range(6):
        write_volume(tmp_path / "scans" / f"ct_{number}.nii.gz", make_scan((24, 24, 20 + number)))
    command = ["predict", tmp_path / "scans", "-o", tmp_path / "masks", "-m", bundle.folder, "--memory-gb", "0.5"]
    done = site.hosts[0].run(
        *_GTVRAY, *command, "--address", site.address, "--json", environment=site.environment, timeout_s=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for row in json.loads(done.stdout)["masks"]:
        expected = Predictor(bundle, threads=1).predict(read_volume(tmp_path / "scans" / f"{row['scan']}.nii.gz"))
        np.testing.assert_array_equal(read_volume(row["mask"]).array, expected.array)


def test_a_sweep_continues_when_a_host_is_cut_off_and_comes_back(site: Site, phantoms: Path, tmp_path: Path) -> None:
    """Both hosts have a worker of the trial. The cut is shorter than the time after which Ray gives a node up."""
    sweep = begun(site, _LONGER, phantoms, tmp_path)
    site.hosts[2].set_link("down")
    time.sleep(_CUT_S)
    site.hosts[2].set_link("up")
    ended(sweep, "a host came back")


def test_a_sweep_continues_when_the_head_is_killed_and_restarted(site: Site, phantoms: Path, tmp_path: Path) -> None:
    sweep = begun(site, _LONGER, phantoms, tmp_path)
    site.hosts[0].end()
    site.start_ray(site.hosts[0])
    ended(sweep, "the head was restarted")
    site.wait(3)


def test_a_sweep_continues_when_the_disk_of_a_host_is_full(site: Site, phantoms: Path, tmp_path: Path) -> None:
    """The host's own disk, with Ray's logs and spilled objects; that of the checkpoints is shared."""
    sweep = begun(site, _LONGER, phantoms, tmp_path)
    fill = "mount -o remount,size=64m /tmp/ray; dd if=/dev/zero of=/tmp/ray/filler bs=64k 2>/dev/null; df /tmp/ray"
    host = site.hosts[2]
    full = host.run("sh", "-c", fill, environment=site.environment, timeout_s=60).stdout
    assert "100%" in full, full
    try:
        ended(sweep, "the disk of a host was full")
    finally:
        host.run("sh", "-c", "rm /tmp/ray/filler", environment=site.environment, timeout_s=60)
        host.run("mount", "-o", "remount,size=50%", "/tmp/ray", environment=site.environment, timeout_s=60)


def test_sweep_completes_over_a_slow_link(site: Site, phantoms: Path, tmp_path: Path) -> None:
    site.hosts[2].limit_rate(20)
    ended(begun(site, SPACE, phantoms, tmp_path), "the first checkpoint over a slow link")


def test_the_endpoint_answers_when_the_host_of_a_replica_is_killed(site: Site, bundle: Bundle, tmp_path: Path) -> None:
    """Requests go to the gateway of the head. Afterwards the killed host joins again."""
    token = tmp_path / "token"
    token.write_text(TOKEN)
    write_volume(tmp_path / "scan.nii.gz", make_scan((24, 24, 24)))
    command = ["serve", "--address", site.address, "--model", bundle.folder, "--token-file", token, "--workspace"]
    settings = ["serving.host=0.0.0.0", "serving.port=8123", "serving.model_replicas=2", "serving.timeout_s=60"]
    log = (tmp_path / "serve.log").open("w")
    serve = site.hosts[0].start(
        *_GTVRAY, *command, tmp_path / "runs", *settings, environment=site.environment, output=log
    )
    try:
        asked = (sys.executable, Path(__file__).with_name("ask_endpoint.py"), "http://127.0.0.1:8123", tmp_path)
        asking = site.hosts[0].start(*asked, environment=site.environment | {"GTVRAY_TOKEN": TOKEN})
        deadline = time.monotonic() + 240
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < deadline, (tmp_path / "serve.log").read_text()[-3000:]
            assert asking.poll() is None, asking.communicate()[1][-3000:]
            time.sleep(0.5)
        site.hosts[2].end()
        time.sleep(20)
        (tmp_path / "enough").touch()
        output, errors = asking.communicate(timeout=120)
        assert asking.returncode == 0, errors[-3000:]
    finally:
        serve.terminate()
        serve.wait(120)
        log.close()
    found = json.loads(output)
    print(f"host of a replica killed: {found}")  # noqa: T201
    assert found["failed"] == []
    assert found["answers"] > 0
    expected = Predictor(bundle, threads=1).predict(read_volume(tmp_path / "scan.nii.gz"))
    np.testing.assert_array_equal(read_volume(tmp_path / "mask.nii.gz").array, expected.array)
    assert found["digests"] == 1
    site.start_ray(site.hosts[2])
    site.wait(3)
