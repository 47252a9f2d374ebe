"""Thousands of damaged and hostile volumes over a few connections, against an endpoint on a local Ray.

GTVRAY_HOSTILE_VOLUMES sets their number, and GTVRAY_HOSTILE_SEED which ones they are.
"""

from __future__ import annotations

import gzip
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import httpx
import numpy as np
import pytest

from gtvray.datasets import make_phantom
from gtvray.errors import GtvrayError
from gtvray.geometry import Volume
from gtvray.inference import Predictor
from gtvray.io import HEAD_BYTES, decode_nifti, decode_volume, read_volume
from gtvray.models import Bundle
from gtvray.serving import Server
from gtvray.serving.transfer.uploads import check_body

from ..conftest import REPOSITORY
from ..io.mutate import broken_claim
from .conftest import TOKEN, make_scan
from .hostile import Attack, attacks, coarse
from .test_endpoint import replicas

pytestmark = [pytest.mark.ray, pytest.mark.slow]
COUNT = int(os.environ.get("GTVRAY_HOSTILE_VOLUMES", "600"))
SEED = int(os.environ.get("GTVRAY_HOSTILE_SEED", "1"))
CONNECTIONS = 4
# Bodies before memory is measured for the first time.
WARM_UP = 200
# The largest scan that is admitted may take 0.19 GB; freed memory stays in the process in part.
MOST_GROWTH_MB = {"Gateway": 64, "Model": 256}
VOLUME_MB = 64
REAL = REPOSITORY.parent / "shared" / "data" / "openkbp_ptv70" / "train" / "pt_1" / "data.nii.gz"

_log = logging.getLogger(__name__)


class Sender:
    """Sends bodies and compares the answers with those of the same code without a server.

    Args:
        server: the endpoint.
        bundle: that it serves.
    """

    def __init__(self, server: Server, bundle: Bundle) -> None:
        self.findings: list[str] = []
        self.answers: Counter[str] = Counter()
        self._server, self._predictor = server, Predictor(bundle, threads=1)
        self._lock = threading.Lock()

    def send_all(self, bodies: Iterator[Attack]) -> None:
        """Send bodies over several connections that stay open."""
        shared = _Shared(bodies)
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            for done in [pool.submit(self._send_over_one, shared) for _ in range(CONNECTIONS)]:
                done.result()

    def expected(self, content: bytes) -> tuple[str, Volume | None]:
        """The class of the error without a server, or the mask."""
        try:
            if content:
                check_body(content[:HEAD_BYTES])
            scan = decode_volume(content, "upload", VOLUME_MB << 20)
            with self._lock:
                return "mask", self._predictor.predict(scan)
        except GtvrayError as error:
            return type(error).__name__, None

    def _send_over_one(self, bodies: _Shared) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        limits = httpx.Limits(max_connections=1)
        with httpx.Client(
            base_url=self._server.url, headers=headers, timeout=300, trust_env=False, limits=limits
        ) as http:
            for attack in bodies:
                try:
                    answer = http.post("/v1/segment", content=attack.content)
                except httpx.HTTPError as error:
                    self.findings.append(f"{attack.name}: {error!r}")
                    continue
                if (found := self._judge(attack, answer)) is not None:
                    self.findings.append(f"{attack.name}: {found}")

    def _judge(self, attack: Attack, answer: httpx.Response) -> str | None:
        """What is wrong with an answer."""
        if answer.status_code == 200:
            self.answers["200"] += 1
            return self._judge_mask(attack, answer.content)
        if answer.headers["content-type"] != "application/problem+json":
            return f"{answer.status_code} without a problem document"
        found = answer.json()["type"].rpartition(":")[2]
        self.answers[f"{answer.status_code} {found}"] += 1
        if answer.status_code not in {413, 415, 422}:
            return f"{answer.status_code} {answer.text}"
        # 413 by the estimate of memory, of which there is none without a server; an empty body is no file there.
        if answer.status_code == 413 or not attack.content:
            return None
        expected, _ = self.expected(attack.content)
        return None if found == expected else f"offline {expected}: {answer.text}"

    def _judge_mask(self, attack: Attack, content: bytes) -> str | None:
        expected, mask = self.expected(attack.content)
        if mask is None:
            return f"a mask, offline {expected}"
        if not np.array_equal(decode_nifti(gzip.decompress(content)).array, mask.array):
            return "another mask than offline"
        if attack.original is None:
            return None
        return broken_claim(attack.claim, attack.original, attack.content, decode_volume(attack.content))


class _Shared:
    """An iterator that several threads use."""

    def __init__(self, bodies: Iterator[Attack]) -> None:
        self._bodies, self._lock = bodies, threading.Lock()

    def __iter__(self) -> Iterator[Attack]:
        return self

    def __next__(self) -> Attack:
        with self._lock:
            return next(self._bodies)


def resident_mb(pid: int) -> float:
    """Private resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:"))


def spool_of(pid: int) -> Path:
    """The upload spool of a gateway, which holds a lock in it."""
    found = {Path(os.readlink(each)) for each in Path(f"/proc/{pid}/fd").iterdir() if each.exists()}
    return next(path.parent for path in found if path.parent.name.startswith("gtvray-spool-"))


def scans() -> list[Volume]:
    """A body of noise, a phantom, and a real scan where there is one; each of a few kilobytes."""
    found = [make_scan((20, 20, 16)), coarse(make_phantom(0, 0)[0], 6)]
    return [*found, coarse(read_volume(REAL), 6)] if REAL.exists() else found


@pytest.mark.timeout(600 + COUNT)
def test_damaged_and_hostile_volumes_are_answered_as_offline(
    start: Callable[..., Server], bundle: Bundle, tmp_path: Path
) -> None:
    server = start(
        bundle,
        jobs_dir=tmp_path / "jobs",
        client_requests_per_minute=10_000_000,
        max_volume_mb=VOLUME_MB,
        scan_memory_gb=0.25,
    )
    sender, bodies = Sender(server, bundle), attacks(scans(), SEED, COUNT)
    before = replicas()
    sender.send_all(islice(bodies, WARM_UP))
    memory = {name: resident_mb(pid) for name, pid in before.items()}
    began = time.monotonic()
    sender.send_all(bodies)
    seconds = time.monotonic() - began
    grown = {name: round(resident_mb(pid) - memory[name], 1) for name, pid in replicas().items()}
    _log.info("%d bodies in %.0f s: %s", COUNT - WARM_UP, seconds, dict(sender.answers))
    _log.info("MB after %d bodies: %s; grown until the end: %s", WARM_UP, memory, grown)
    assert replicas() == before, "no replica has died"
    assert sender.findings == []
    assert sender.answers["200"] > COUNT / 20
    for name, most in MOST_GROWTH_MB.items():
        assert grown[name] < most, name
    check_jobs(sender, server, 60, tmp_path / "jobs")
    assert [path.name for path in spool_of(before["Gateway"]).iterdir()] == ["lock"]
    shown = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False).text
    assert "gtvray_scans_in_progress 0.0" in shown
    assert replicas() == before


def check_jobs(sender: Sender, server: Server, count: int, folder: Path) -> None:
    """Send bodies as jobs, compare the ends of their volumes with those offline, and delete them."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    accepted: dict[str, Attack] = {}
    with httpx.Client(base_url=server.url, headers=headers, timeout=300, trust_env=False) as http:
        for attack in attacks(scans(), SEED + 1000, count):
            answer = http.post("/v1/jobs", content=attack.content)
            assert answer.status_code in {202, 413, 415, 422}, f"{attack.name}: {answer.text}"
            if answer.status_code == 202:
                accepted[answer.json()["id"]] = attack
        assert len(accepted) > count / 3
        for job, attack in accepted.items():
            while (found := http.get(f"/v1/jobs/{job}").json())["ended_at"] is None:
                time.sleep(0.05)
            (volume,) = found["volumes"]
            expected, mask = sender.expected(attack.content)
            if volume["state"] == "done":
                content = gzip.decompress(http.get(volume["result"]).content)
                assert mask is not None, attack.name
                assert np.array_equal(decode_nifti(content).array, mask.array), attack.name
            else:
                assert volume["problem"]["type"].rpartition(":")[2] in {expected, "TooLargeError"}, attack.name
            assert http.delete(f"/v1/jobs/{job}").status_code == 200
    left = [path for path in (folder / "files").rglob("*") if path.is_file()]
    assert left == []
