"""The number of replicas of an endpoint follows the load, and no request fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from gtvray.config import InferenceConfig, ServingConfig
from gtvray.inference import Predictor
from gtvray.io import decode_nifti, encode_nifti
from gtvray.runtime import Cluster
from gtvray.serving import Follow, Server, start_server

from ...bundles import random_bundle
from ...ports import free_port
from ..conftest import TOKEN, make_scan
from ..versions.test_following import Champion, serves

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(500)]
SCAN = make_scan((72, 72, 60))
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


@contextmanager
def serving(champion: Champion, folder: Path, smallest: int) -> Iterator[Server]:
    settings = ServingConfig(
        port=free_port(),
        follow_s=0.2,
        cpus_per_replica=0.5,
        memory_gb_per_replica=0.1,
        model_replicas=smallest,
        max_model_replicas=2,
        replica_queue_s=0.2,
        replica_idle_s=6,
    )
    server = start_server(
        None, settings, TOKEN, follow=Follow(champion.find, folder / "versions.json", champion.reject)
    )
    try:
        server.wait_ready(200)
        yield server
    finally:
        server.stop()


def get(server: Server, path: str) -> httpx.Response:
    return httpx.get(f"{server.url}{path}", headers=HEADERS, timeout=60, trust_env=False)


def wait_for(server: Server, path: str, reached: Callable[[Any], bool]) -> Any:
    while not reached(found := get(server, path).json()):
        time.sleep(0.1)
    return found


def runs(number: int) -> Callable[[Any], bool]:
    return lambda found: [each["running"] for each in found["replicas"]] == [number]


def send(server: Server) -> httpx.Response:
    content = encode_nifti(SCAN, compress=True)
    return httpx.post(f"{server.url}/v1/segment", content=content, headers=HEADERS, timeout=300, trust_env=False)


class Clients:
    """Clients that send scans until the end of the block."""

    def __init__(self, server: Server, count: int = 4) -> None:
        self.answers: list[httpx.Response] = []
        self._server, self._ended = server, threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(count)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(300)

    def _send(self) -> None:
        while not self._ended.is_set():
            self.answers.append(send(self._server))


def require_masks(answers: list[httpx.Response], expected: np.ndarray[Any, Any]) -> None:
    assert answers
    for answer in answers:
        assert answer.status_code == httpx.codes.OK, answer.text
        assert np.array_equal(decode_nifti(answer.content).array, expected)


@pytest.fixture
def champion(tmp_path: Path) -> Champion:
    champion = Champion()
    champion.set("1", random_bundle(tmp_path / "1", 1, inference=InferenceConfig(threshold=0.5)))
    return champion


def mask_of(champion: Champion) -> np.ndarray[Any, Any]:
    from gtvray.models import Bundle

    assert champion.candidate is not None
    return Predictor(Bundle.load(champion.candidate.bundle), threads=1).predict(SCAN).array


def test_load_starts_a_second_replica_and_idleness_stops_it(
    local_ray: Cluster, champion: Champion, tmp_path: Path
) -> None:
    with serving(champion, tmp_path, smallest=1) as server:
        wait_for(server, "/v1/queue", runs(1))
        with Clients(server) as clients:
            wait_for(server, "/v1/queue", runs(2))
            before = len(clients.answers)
            while len(clients.answers) < before + 8:
                time.sleep(0.1)
        wait_for(server, "/v1/queue", runs(1))
        clients.answers.append(send(server))
    require_masks(clients.answers, mask_of(champion))


def test_without_requests_there_is_no_replica_and_a_request_waits_for_one(
    local_ray: Cluster, champion: Champion, tmp_path: Path
) -> None:
    with serving(champion, tmp_path, smallest=0) as server:
        wait_for(server, "/v1/queue", runs(0))
        # Status requests do not start a replica.
        for _ in range(30):
            assert get(server, "/readyz").status_code == httpx.codes.OK
            assert runs(0)(get(server, "/v1/queue").json())
            time.sleep(0.2)
        with Clients(server, 1) as clients:
            wait_for(server, "/v1/queue", lambda found: found["scans"] == 1 and found["replicas"][0]["starting"] == 1)
            wait_for(server, "/v1/queue", runs(1))
        require_masks(clients.answers, mask_of(champion))
        wait_for(server, "/v1/queue", runs(0))
        # A new version is started, checked and scaled to zero too; a waiting request is answered by it.
        champion.set("2", random_bundle(tmp_path / "2", 2, inference=InferenceConfig(threshold=0.5)))
        wait_for(server, "/v1/models", serves("2"))
        wait_for(server, "/v1/queue", runs(0))
        answer = send(server)
        assert answer.headers["X-Gtvray-Model-Version"] == "2"
        require_masks([answer], mask_of(champion))
