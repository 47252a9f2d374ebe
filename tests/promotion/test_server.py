"""Promotions through `mlflow server` on PostgreSQL: several hosts, one champion."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from gtvray import failpoints
from gtvray.errors import InputError, ResourceError
from gtvray.promotion import require_champion
from gtvray.registry import DecisionLog, Holder, hold_lease
from gtvray.tracking import connect_mlflow

from ..databases import postgres
from ..stores import MlflowServer
from .conftest import MakeEvidence, Promotions

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
NAME = "several-hosts"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("server")
    with postgres() as uri:
        server = MlflowServer(uri, folder)
        server.start()
        yield server
        server.kill()


def _host(server: MlflowServer, root: Path, make_evidence: MakeEvidence, by: str) -> Promotions:
    """A workspace of its own on the server."""
    client = connect_mlflow(server.uri, root / "artifacts")
    found = client.get_experiment_by_name("training")
    experiment = found.experiment_id if found is not None else client.create_experiment("training")
    host = Promotions(client, root, str(client.create_run(experiment).info.run_id), make_evidence)
    host.name = host.registry._name = NAME
    host.log = DecisionLog(client, NAME, None, by)
    return host


def test_hosts_share_champion_history_and_records(
    server: MlflowServer, tmp_path: Path, make_evidence: MakeEvidence
) -> None:
    one, two = (_host(server, tmp_path / by, make_evidence, by) for by in ("ada", "grace"))
    assert one.promote(0) == "1"
    assert two.promote(1) == "2"
    assert require_champion(one.registry, one.log) == two.registry.champion()
    assert one.rollback() == "1"
    assert [(decision.kind, decision.by) for decision in two.log.decisions()] == [
        ("promoted", "ada"),
        ("promoted", "grace"),
        ("rolled_back", "ada"),
    ]
    record = two.log.download_record(two.log.decisions()[0], tmp_path / "record")
    assert record.with_name("card.md").is_file()
    assert two.registry.fetch(two.registry.champion()).digest == one.bundle(0).digest


def test_promotions_of_several_hosts_at_once_are_serialised(
    server: MlflowServer, tmp_path: Path, make_evidence: MakeEvidence
) -> None:
    hosts = [_host(server, tmp_path / f"host-{seed}", make_evidence, f"host-{seed}") for seed in (2, 3, 4)]

    def work(seed: int, host: Promotions) -> None:
        done = 0
        while done < 2:
            # Another host was faster: the candidate must be compared with the new champion.
            with contextlib.suppress(InputError):
                host.promote(seed)
                done += 1

    before = len(hosts[0].log.decisions())
    with ThreadPoolExecutor(len(hosts)) as pool:
        for done in [pool.submit(work, seed, host) for seed, host in zip((2, 3, 4), hosts, strict=True)]:
            done.result(400)
    decisions = hosts[0].log.decisions()[before:]
    assert len(decisions) == len({decision.number for decision in decisions}) == 6
    assert {decision.state for decision in decisions} == {"completed"}
    assert hosts[1].registry.champion().version == decisions[-1].version


@pytest.mark.parametrize(
    "step",
    ["registry.uploaded", "promotion.registered", "decision.recorded", "promotion.recorded", "promotion.moved"],
)
def test_server_that_is_killed_in_a_promotion_leaves_one_champion(
    server: MlflowServer, tmp_path: Path, make_evidence: MakeEvidence, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    one, two = (_host(server, tmp_path / by, make_evidence, by) for by in ("ada", "grace"))
    for host in (one, two):
        host.registry._name = host.log._model = host.name = f"killed-at-{step.replace('.', '-')}"
    assert one.promote(0) == "1"
    evidence = one.evidence(1)

    def kill(_: str) -> bool:
        server.kill()
        return False

    monkeypatch.setitem(failpoints._ACTIONS, "down", kill)
    failpoints.arm(f"{step}=down")
    try:
        with pytest.raises((MlflowException, ResourceError)):
            one.promote(1, evidence)
    finally:
        failpoints.arm("")
        server.start()
    moved = step == "promotion.moved"
    champion = require_champion(two.registry, two.log)
    assert champion is not None
    assert champion.version == ("2" if moved else "1")
    # The lease of the interrupted process, which still runs, has to expire.
    assert two.promote(2, two.evidence(2)) == ("2" if step == "registry.uploaded" else "3")
    states = [decision.state for decision in two.log.decisions()]
    undone = step in ("decision.recorded", "promotion.recorded")
    assert states == ["completed", *(["undone"] if undone else ["completed"] if moved else []), "completed"]
    assert two.rollback() == champion.version


def test_lease_is_unique_on_postgres(server: MlflowServer, tmp_path: Path) -> None:
    numbers: list[int] = []
    inside = threading.Lock()

    def work(host: str) -> None:
        client = connect_mlflow(server.uri, tmp_path)
        for _ in range(5):
            with hold_lease(client, "contended", Holder("Ada", host, "", 1, "")) as lease:
                assert inside.acquire(blocking=False), "two holders at once"
                numbers.append(lease.number)
                inside.release()

    threads = [threading.Thread(target=work, args=(f"host-{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert len(numbers) == 20
    assert numbers == sorted(set(numbers))
