"""The pool of actors on a real cluster, with steps that take no time: deaths, replacements and interruption."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gtvray.batch import ActorPool, PoolPlan, Result, Scan
from gtvray.errors import BundleError, DeviceLostError, ResourceError
from gtvray.runtime import Cluster, Needs

pytestmark = pytest.mark.ray


def opener(behaviour: Callable[[Scan, str], None]) -> Callable[[], Any]:
    """Steps that call a function with the scan and the name of the step."""

    class Steps:
        def load(self, scan: Scan) -> None:
            behaviour(scan, "load")

        def run(self, scan: Scan, loaded: None) -> None:
            behaviour(scan, "run")

        def store(self, scan: Scan, ran: None) -> Result:
            behaviour(scan, "store")
            return Result(scan.name, {"scan": scan.name}, "input", "mask")

    return Steps


def scans(folder: Path, count: int) -> list[Scan]:
    return [Scan(f"s{number}", folder / f"s{number}", folder / f"m{number}") for number in range(count)]


def pool(open_steps: Callable[[], Any], actors: int, ended: Callable[[Result], None]) -> ActorPool:
    plan = PoolPlan(actors, Needs(0.5))
    return ActorPool(open_steps, plan, wait_s=60, started=lambda scan: None, ended=ended)


def test_a_scan_that_kills_twice_is_reported_and_no_other(local_ray: Cluster, tmp_path: Path) -> None:
    def behave(scan: Scan, step: str) -> None:
        if scan.name == "s2" and step == "run":
            (tmp_path / f"death-{os.getpid()}").touch()
            os._exit(1)

    results: list[Result] = []
    pool(opener(behave), 2, results.append).run(scans(tmp_path, 9))
    assert sorted(result.scan for result in results) == [f"s{number}" for number in range(9)]
    (failed,) = [result for result in results if result.error is not None]
    assert failed.scan == "s2"
    assert failed.error is not None
    assert failed.error.what == "the process that predicted this scan died 2 times"
    assert len(list(tmp_path.glob("death-*"))) == 2


@pytest.mark.slow
def test_a_scan_whose_process_died_once_is_predicted(local_ray: Cluster, tmp_path: Path) -> None:
    once = tmp_path / "died"

    def behave(scan: Scan, step: str) -> None:
        if scan.name == "s0" and step == "store" and not once.exists():
            once.touch()
            os._exit(1)

    results: list[Result] = []
    pool(opener(behave), 1, results.append).run(scans(tmp_path, 4))
    assert sorted(result.scan for result in results if result.error is None) == ["s0", "s1", "s2", "s3"]


@pytest.mark.slow
def test_a_process_whose_gpu_failed_is_replaced(local_ray: Cluster, tmp_path: Path) -> None:
    failed = tmp_path / "failed"

    def behave(scan: Scan, step: str) -> None:
        # Once a GPU has failed, every call of its process fails.
        if step == "run" and scan.name == "s1" and not failed.exists():
            failed.write_text(str(os.getpid()))
        if step == "run" and failed.exists() and failed.read_text() == str(os.getpid()):
            raise DeviceLostError("the GPU has failed")

    results: list[Result] = []
    pool(opener(behave), 1, results.append).run(scans(tmp_path, 4))
    assert sorted(result.scan for result in results if result.error is None) == ["s0", "s1", "s2", "s3"]


def test_a_model_that_cannot_be_loaded_is_an_error(local_ray: Cluster, tmp_path: Path) -> None:
    def refuse() -> Any:
        raise BundleError("damaged", where="here")

    with pytest.raises(BundleError, match="damaged"):
        pool(refuse, 2, lambda result: None).run(scans(tmp_path, 3))


@pytest.mark.slow
def test_a_process_that_dies_while_loading_is_given_up(local_ray: Cluster, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="died 3 times while it loaded"):
        pool(lambda: os._exit(1), 1, lambda result: None).run(scans(tmp_path, 3))


@pytest.mark.slow
def test_interruption_completes_what_is_being_written(local_ray: Cluster, tmp_path: Path) -> None:
    def behave(scan: Scan, step: str) -> None:
        if step == "store":
            (tmp_path / f"begun-{scan.name}").touch()
            time.sleep(1.0)
            (tmp_path / f"written-{scan.name}").touch()

    results: list[Result] = []

    def ended(result: Result) -> None:
        results.append(result)
        if len(results) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool(opener(behave), 2, ended).run(scans(tmp_path, 12))
    begun = {path.name.removeprefix("begun-") for path in tmp_path.glob("begun-*")}
    written = {path.name.removeprefix("written-") for path in tmp_path.glob("written-*")}
    assert begun == written
    assert {result.scan for result in results} == written
    assert len(written) < 12


def test_missing_resources_are_an_error_after_a_time_limit(local_ray: Cluster, tmp_path: Path) -> None:
    plan = PoolPlan(1, Needs(64))
    waiting = ActorPool(opener(lambda scan, step: None), plan, wait_s=2, started=print, ended=print)
    with pytest.raises(ResourceError, match="no prediction process could be started"):
        waiting.run(scans(tmp_path, 1))
