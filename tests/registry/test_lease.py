"""The lease of the champion: one holder at a time over all hosts, whatever their clocks say."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from gtvray.errors import ResourceError
from gtvray.registry import Holder, Lease, hold_lease

from ..stores import open_store

ELSEWHERE = Holder("Ada", "other-host", "another boot", 7, "123")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    folder = tmp_path_factory.mktemp("mlflow")
    return open_store(folder / "mlflow.db", folder / "artifacts")


def test_holders_on_several_hosts_are_serialised(client: MlflowClient, tmp_path: Path) -> None:
    shared, numbers, inside = tmp_path / "count", [], []

    def work(host: str) -> None:
        own = MlflowClient(client.tracking_uri)
        for _ in range(3):
            with hold_lease(own, "serial", replace(ELSEWHERE, host=host)) as lease:
                inside.append(host)
                assert len(inside) == 1, "two holders at once"
                value = int(shared.read_text() or 0)
                time.sleep(0.02)
                shared.write_text(str(value + 1))
                lease.require_held()
                numbers.append(lease.number)
                inside.clear()

    shared.touch()
    threads = [threading.Thread(target=work, args=(f"host-{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert shared.read_text() == "9"
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 9
    left = [model.name for model in client.search_registered_models() if model.name.startswith("serial.lease.")]
    assert left == [f"serial.lease.{numbers[-1]}"], "earlier leases are removed"


def test_unrenewed_lease_of_another_host_is_taken_over_and_its_holder_notices(client: MlflowClient) -> None:
    suspended = Lease(client, "expired", 1, ELSEWHERE, expiry_s=1.0)
    suspended._ended.set()
    client.create_registered_model("expired.lease.1", tags={"gtvray.holder": "not JSON"})
    waited: list[str] = []
    start = time.monotonic()
    with hold_lease(client, "expired", ELSEWHERE, waited.append, expiry_s=1.0) as lease:
        assert lease.number == 2
        assert time.monotonic() - start >= 1.0
        with pytest.raises(ResourceError, match="right to change the champion was lost") as caught:
            suspended.require_held()
        assert "lease 2, Ada, process 7 on other-host" in caught.value.fields["found"]
    assert waited == ["another process"]


def test_lease_that_was_deleted_and_created_again_by_another_is_noticed(client: MlflowClient) -> None:
    with hold_lease(client, "deleted", ELSEWHERE, above=6) as lease:
        lease.require_held()
        client.delete_registered_model("deleted.lease.7")
        with hold_lease(client, "deleted", replace(ELSEWHERE, by="Grace"), above=6) as other:
            assert lease.number == other.number == 7
            other.require_held()
            with pytest.raises(ResourceError, match="right to change the champion was lost"):
                lease.require_held()


@pytest.mark.slow
def test_renewed_lease_is_waited_for(client: MlflowClient) -> None:
    waited: list[str] = []
    order: list[str] = []

    def second() -> None:
        with hold_lease(MlflowClient(client.tracking_uri), "renewed", ELSEWHERE, waited.append, expiry_s=5.0):
            order.append("second")

    with hold_lease(client, "renewed", replace(ELSEWHERE, by="Grace"), expiry_s=5.0) as lease:
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(6.0)
        lease.require_held()
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]
    assert waited == ["Grace, process 7 on other-host"]


def test_lease_of_an_ended_process_of_this_host_is_taken_over_at_once(client: MlflowClient) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    here = Holder.this_process("Ada")
    holder = replace(here, pid=process.pid, started=Path(f"/proc/{process.pid}/stat").read_text().split()[21])
    assert not holder.has_ended
    process.communicate()
    assert holder.has_ended
    assert not here.has_ended
    assert not replace(holder, machine="another boot").has_ended, "of other hosts nothing is known"
    Lease(client, "ended", 1, ELSEWHERE, expiry_s=60.0)._ended.set()
    client.create_registered_model("ended.lease.1", tags={"gtvray.holder": str(vars(holder)).replace("'", '"')})
    with hold_lease(client, "ended", here, expiry_s=60.0) as lease:
        assert lease.number == 2


def test_store_that_stops_answering_costs_the_lease(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may have taken over by then; nothing may be changed without a recent renewal."""
    with hold_lease(client, "silent", ELSEWHERE, expiry_s=1.0) as lease:
        monkeypatch.setattr(client, "set_registered_model_tag", lambda *_: (_ for _ in ()).throw(OSError("away")))
        time.sleep(0.8)
        with pytest.raises(ResourceError, match="last renewal"):
            lease.require_held()
