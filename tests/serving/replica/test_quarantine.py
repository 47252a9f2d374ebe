"""Scans that kill replicas are found, and the others keep their attempts."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gtvray.errors import DataError
from gtvray.serving.replica.quarantine import Journal, Quarantine, read_point


def test_scan_that_ends_two_replicas_at_one_point_is_refused_for_that_model() -> None:
    quarantine = Quarantine()
    quarantine.record_death("v1", "bad", "patch 3")
    quarantine.require_harmless("v1", "bad")
    quarantine.record_death("v1", "bad", "patch 3")
    with pytest.raises(DataError, match="crashes the process of the model") as refused:
        quarantine.require_harmless("v1", "bad")
    assert refused.value.http_status == 422
    assert refused.value.fields["found"] == "2 replicas died at the same point: patch 3"
    quarantine.require_harmless("v1", "good")
    quarantine.require_harmless("v2", "bad")


def test_scan_that_was_elsewhere_each_time_has_more_attempts() -> None:
    quarantine = Quarantine()
    for number in range(4):
        quarantine.record_death("v1", "unlucky", f"patch {number}")
        quarantine.require_harmless("v1", "unlucky")
    quarantine.record_death("v1", "unlucky", "mask")
    with pytest.raises(DataError, match="crashes the process"):
        quarantine.require_harmless("v1", "unlucky")


def test_refused_scan_is_accepted_again_after_an_hour() -> None:
    now = 0.0
    quarantine = Quarantine(clock=lambda: now)
    for begin in (0.0, 3600.0):
        now = begin
        quarantine.record_death("v1", "unlucky", "patch 0")
        quarantine.require_harmless("v1", "unlucky")
        quarantine.record_death("v1", "unlucky", "patch 0")
        now = begin + 3599.0
        with pytest.raises(DataError, match="crashes the process") as refused:
            quarantine.require_harmless("v1", "unlucky")
        assert "again after an hour" in refused.value.fields["do"]
        now = begin + 3600.0
        quarantine.require_harmless("v1", "unlucky")


def test_success_clears_a_suspect() -> None:
    quarantine = Quarantine()
    for _ in range(3):
        quarantine.record_death("v1", "innocent", "patch 0")
        quarantine.record_success("v1", "innocent")
    quarantine.require_harmless("v1", "innocent")


def test_suspects_are_repeated_one_at_a_time_and_others_are_not_held_up() -> None:
    quarantine, running, most = Quarantine(), set(), [0, 0]
    for digest in ("a", "b", "c"):
        quarantine.record_death("v1", digest, "patch 0")

    async def process(digest: str) -> None:
        async with quarantine.suspicion("v1", digest):
            running.add(digest)
            suspects = running & {"a", "b", "c"}
            most[:] = max(most[0], len(suspects)), max(most[1], len(running - suspects))
            await asyncio.sleep(0.01)
            running.discard(digest)

    async def run() -> None:
        await asyncio.gather(*map(process, ("a", "b", "c", "x", "y", "z")))

    asyncio.run(run())
    assert most == [1, 3]


def test_journal_states_what_is_processed_and_nothing_while_it_waits(tmp_path: Path) -> None:
    path = tmp_path / "x.at"
    assert read_point(path) is None
    with Journal(path) as journal:
        assert read_point(path) is None
        journal.write("patch of the locator 123")
        assert read_point(path) == "patch of the locator 123"
        journal.write("patch 4")
        assert read_point(path) == "patch 4"
        journal.wait()
        assert read_point(path) is None
        assert journal.at("mask", read_point)(path) == "mask"
        assert read_point(path) is None
    journal.write("patch 5")
    assert read_point(path) is None


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_scan_that_kills_every_replica_is_refused_by_the_endpoint(tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("deadly_scan.py"))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    subprocess.run([sys.executable, script, str(tmp_path / "found")], env=environment, timeout=280, check=True)
    found = json.loads((tmp_path / "found").read_text())
    assert found["status"] == [422, 422, 200]
    assert found["reason"] == "2 replicas died at the same point: patch 4"
