"""The endpoint follows the champion: swaps lose no request, and a version that cannot be served is rejected."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from gtvray.config import InferenceConfig, ServingConfig
from gtvray.errors import InputError, ResourceError
from gtvray.inference import Predictor
from gtvray.io import encode_nifti, sha256_of, write_volume
from gtvray.models import Bundle
from gtvray.runtime import Cluster
from gtvray.serving import Candidate, Follow, Server, start_server

from ...bundles import random_bundle
from ...ports import free_port
from ..conftest import TOKEN, make_scan

pytestmark = pytest.mark.ray
SCAN = encode_nifti(make_scan((24, 24, 24)), compress=True)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Two versions."""
    folder = tmp_path_factory.mktemp("versions")
    return {
        str(seed): random_bundle(folder / str(seed), seed, inference=InferenceConfig(threshold=0.5)) for seed in (1, 2)
    }


class Champion:
    """A stand-in for the registry; `set` changes the champion."""

    def __init__(self) -> None:
        self.candidate: Candidate | None = None
        self.rejected: list[tuple[str, str]] = []
        self.problem: InputError | ResourceError | None = None

    def find(self) -> Candidate | None:
        if self.problem is not None:
            raise self.problem
        return self.candidate

    def set(self, version: str, bundle: Bundle, golden: Path | None = None, digest: str | None = None) -> None:
        self.candidate = Candidate(version, digest or bundle.digest, bundle.folder, golden)

    def reject(self, candidate: Candidate, reason: str) -> None:
        self.rejected.append((candidate.version, reason))


@pytest.fixture(scope="module")
def champion() -> Champion:
    return Champion()


@pytest.fixture(scope="module")
def server(local_ray: Cluster, champion: Champion, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An endpoint that follows `champion`, started before the first promotion."""
    versions = tmp_path_factory.mktemp("served") / "versions.json"
    follow = Follow(champion.find, versions, champion.reject)
    # Small, so that two versions fit on two CPUs beside each other.
    settings = ServingConfig(
        port=free_port(),
        follow_s=0.2,
        cpus_per_replica=0.5,
        memory_gb_per_replica=0,
        client_requests_per_minute=100_000,
    )
    server = start_server(None, settings, TOKEN, follow=follow)
    yield server
    server.stop()


def call(server: Server, path: str = "/v1/models") -> httpx.Response:
    return httpx.get(f"{server.url}{path}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60, trust_env=False)


def wait_for(server: Server, reached: Callable[[dict], bool]) -> dict:
    """Wait until the answer of /v1/models is as expected, and return it."""
    while not reached(found := call(server).json()):
        time.sleep(0.1)
    return dict(found)


def serves(version: str) -> Callable[[dict], bool]:
    return lambda found: (found.get("current") or {}).get("version") == version


class Load:
    """Clients that send scans until `stop`, and count the answers by version."""

    def __init__(self, server: Server, clients: int = 3) -> None:
        self.answers: Counter[str] = Counter()
        self.masks: dict[str, set[bytes]] = {}
        self.failed: list[str] = []
        self._server, self._ended = server, threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(100)

    def wait(self, version: str, count: int = 3) -> None:
        while self.answers[version] < count and not self.failed:
            time.sleep(0.05)

    def _send(self) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(timeout=60, trust_env=False, headers=headers) as client:
            while not self._ended.is_set():
                response = client.post(f"{self._server.url}/v1/predict", content=SCAN)
                if response.status_code != httpx.codes.OK:
                    self.failed.append(response.text)
                    return
                version = response.headers["X-Gtvray-Model-Version"]
                self.answers[version] += 1
                self.masks.setdefault(version, set()).add(response.content)


def write_golden(folder: Path, bundle: Bundle, wrong: bool = False) -> Path:
    """Golden cases of a bundle: one scan with its mask, or with another one."""
    folder.mkdir()
    scan = make_scan((24, 24, 24))
    mask = Predictor(bundle, threads=1).predict(scan)
    write_volume(folder / "scan-0.nii.gz", scan)
    write_volume(folder / "mask-0.nii.gz", mask.with_array(1 - mask.array) if wrong else mask)
    files = {file.name: sha256_of(file) for file in sorted(folder.iterdir())}
    (folder / "golden.json").write_text(json.dumps({"digest": bundle.digest, "threads": 1, "files": files}))
    return folder


@pytest.mark.slow
def test_endpoint_is_not_ready_before_the_first_promotion(server: Server) -> None:
    while (answer := call(server, "/readyz")).status_code == httpx.codes.NOT_FOUND:
        time.sleep(0.1)
    assert answer.status_code == httpx.codes.SERVICE_UNAVAILABLE
    assert "promoted" in answer.text
    assert call(server).json()["current"] is None
    assert call(server, "/healthz").status_code == httpx.codes.OK


def swap_under_load(server: Server, champion: Champion, bundles: dict[str, Bundle], version: str) -> None:
    """Swap to a version while clients send scans; every mask must be that of the version that it names."""
    load = Load(server)
    load.wait(next(each for each in bundles if each != version))
    champion.set(version, bundles[version])
    wait_for(server, serves(version))
    load.answers.clear()
    load.wait(version)
    load.stop()
    assert load.failed == []
    assert set(load.masks) == {"1", "2"}
    for name, masks in load.masks.items():
        mask = Predictor(bundles[name], threads=1).predict(make_scan((24, 24, 24)))
        assert masks == {encode_nifti(mask, compress=True)}, "every mask is that of the version it names"


@pytest.mark.slow
def test_swap_loses_no_request(server: Server, champion: Champion, bundles: dict[str, Bundle], tmp_path: Path) -> None:
    champion.set("1", bundles["1"], write_golden(tmp_path / "golden", bundles["1"]))
    wait_for(server, serves("1"))
    assert call(server, "/readyz").json()["golden"] == "identical"
    swap_under_load(server, champion, bundles, "2")


FAULTS = ("damaged", "another digest", "golden")
# Enough for every fault; more take a minute for every three.
SWAPS = int(os.environ.get("GTVRAY_SWAPS", "6"))


def set_broken(champion: Champion, version: str, bundle: Bundle, fault: str, folder: Path) -> None:
    """Make a version champion that cannot be served."""
    shutil.copytree(bundle.folder, folder / "bundle")
    broken = Bundle.load(folder / "bundle")
    if fault == "damaged":
        (broken.folder / "weights-0.safetensors").write_bytes(b"")
        champion.set(version, broken)
    elif fault == "another digest":
        champion.set(version, broken, digest="0" * 64)
    else:
        champion.set(version, broken, write_golden(folder / "golden", bundle, wrong=True))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_swaps_of_which_half_are_broken_lose_no_request(
    server: Server, champion: Champion, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    masks = {
        name: encode_nifti(Predictor(bundle, threads=1).predict(make_scan((24, 24, 24))), compress=True)
        for name, bundle in bundles.items()
    }
    expected = {"1": masks["1"]}
    champion.set("1", bundles["1"])
    wait_for(server, serves("1"))
    load, broken = Load(server), []
    load.wait("1")
    for number in range(SWAPS // 2):
        name, other = ("2", "1") if number % 2 == 0 else ("1", "2")
        version = f"good-{number}"
        champion.set(version, bundles[name])
        expected[version] = masks[name]
        wait_for(server, serves(version))
        load.wait(version)
        broken.append(f"broken-{number}")
        (folder := tmp_path / broken[-1]).mkdir()
        set_broken(champion, broken[-1], bundles[other], FAULTS[number % len(FAULTS)], folder)
        found = wait_for(server, lambda found: any(each["version"] == broken[-1] for each in found["rejected"]))
        assert found["current"]["version"] == version
        assert champion.rejected[-1] == (broken[-1], found["rejected"][-1]["reason"])
    load.answers.clear()
    load.wait(version)
    load.stop()
    assert load.failed == []
    assert load.masks == {version: {mask} for version, mask in expected.items()}
    assert [version for version, _ in champion.rejected] == broken
    champion.rejected.clear()


@pytest.mark.slow
def test_registry_that_does_not_answer_changes_nothing(server: Server, champion: Champion) -> None:
    before = wait_for(server, lambda found: found["current"] is not None)
    champion.problem = ResourceError("cannot reach MLflow")
    found = wait_for(server, lambda found: found["problem"] != "")
    assert (found["problem"], found["current"]) == ("cannot reach MLflow", before["current"])
    assert call(server, "/readyz").status_code == httpx.codes.OK
    champion.problem = None
    wait_for(server, lambda found: found["problem"] == "")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("interrupt", [False, True])
def test_versions_that_do_not_fit_beside_each_other(
    server: Server, bundles: dict[str, Bundle], tmp_path: Path, interrupt: bool
) -> None:
    """Refused by default; with the setting the old one is stopped, and comes back if the new one fails."""
    server.stop()
    own = Champion()
    own.set("1", bundles["1"])
    settings = ServingConfig(
        port=free_port(), follow_s=0.2, cpus_per_replica=1.5, memory_gb_per_replica=0, interrupt_to_swap=interrupt
    )
    endpoint = start_server(None, settings, TOKEN, follow=Follow(own.find, tmp_path / "versions.json", own.reject))
    try:
        endpoint.wait_ready(200)
        own.set("2", bundles["2"])
        if interrupt:
            wait_for(endpoint, serves("2"))
            own.set("3", bundles["1"], digest="0" * 64)
            wait_for(endpoint, lambda found: found["rejected"] and serves("2")(found))
        else:
            found = wait_for(endpoint, lambda found: "does not fit" in found["problem"])
            assert serves("1")(found)
        assert call(endpoint, "/readyz").status_code == httpx.codes.OK
    finally:
        endpoint.stop()
