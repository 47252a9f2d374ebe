"""The state of the served model is refreshed in the background: load and short outages do not make probes flap."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError

from gtvray.errors import NotReadyError, NotReproducedError
from gtvray.serving.arguments import AppArguments
from gtvray.serving.versions import served as module
from gtvray.serving.versions.pointer import Pointer, RejectedVersion, ServedVersion, Versions
from gtvray.serving.versions.served import Served

READY = {"version": "1", "digest": "digest", "golden": "none"}


class Model:
    """A handle whose next answers are given: a description, an error, or None for no answer."""

    def __init__(self, *answers: Any) -> None:
        self.describe, self._answers, self.calls = self, list(answers), 0

    def remote(self) -> Model:
        self.calls += 1
        return self

    def cancel(self) -> None: ...

    def __await__(self) -> Any:
        return self._answer().__await__()

    async def _answer(self) -> Any:
        answer = self._answers.pop(0)
        if answer is None:
            await asyncio.sleep(60)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_probe_asks_no_replica_once_the_model_has_answered() -> None:
    async def run() -> int:
        model = Model(READY)
        served = Served(AppArguments(), model)
        for _ in range(20):
            assert await served.describe() == READY
        return model.calls

    assert asyncio.run(run()) == 1


@pytest.mark.parametrize("outage", [None, RayActorError()])
def test_busy_or_replaced_model_stays_ready_for_a_while(outage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TIMEOUT_S", 0.01)

    async def run() -> None:
        served = Served(AppArguments(), Model(READY, outage, outage, READY, NotReproducedError("other masks")))
        assert await served.describe() == READY
        await served.refresh()
        assert await served.describe() == READY
        monkeypatch.setattr(module, "_VALID_S", 0.0)
        await served.refresh()
        with pytest.raises(NotReadyError, match="still loading"):
            await served.describe()
        await served.refresh()
        assert await served.describe() == READY

    asyncio.run(run())


def test_one_replica_that_does_not_reproduce_golden_cases_makes_the_model_unready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        failed = RayTaskError("describe", "", NotReproducedError("other masks"))
        served = Served(AppArguments(), Model(READY, failed, *[READY] * 5))
        for _ in range(2):
            await served.refresh()
        for _ in range(3):
            await served.refresh()
            with pytest.raises(NotReproducedError, match="other masks"):
                await served.describe()
        # Until no replica has failed for a while.
        monkeypatch.setattr(module, "_VALID_S", 0.0)
        await served.refresh()
        assert await served.describe() == READY

    asyncio.run(run())


def test_without_a_version_the_reason_is_reported(tmp_path: Path) -> None:
    pointer = Pointer(tmp_path / "versions.json")
    loading = ServedVersion("app", "1", "digest")
    rejected = RejectedVersion("1", "digest", "golden case 1;  where: /srv/secret;  found: 2 voxels", "2026-01-01")

    async def reason(versions: Versions) -> str:
        pointer.write(versions)
        served = Served(AppArguments(versions=tmp_path / "versions.json"), None)
        with pytest.raises((NotReadyError, NotReproducedError)) as refused:
            await served.describe()
        return str(refused.value)

    assert "no model has been promoted yet" in asyncio.run(reason(Versions()))
    assert "still loading" in asyncio.run(reason(Versions(loading=loading)))
    assert "version 1: golden case 1" in asyncio.run(reason(Versions(rejected=(rejected,))))
    assert "secret" not in asyncio.run(reason(Versions(rejected=(rejected,))))
    assert "cannot reach MLflow" in asyncio.run(reason(Versions(problem="cannot reach MLflow")))
