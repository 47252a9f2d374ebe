"""The table of jobs, on SQLite and PostgreSQL: claims, leases, fencing, order, cancelling, expiry."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from gtvray.errors import ConfigError, FailureError, NotFoundError
from gtvray.serving.jobs import store as module
from gtvray.serving.jobs.records import Claim, NewJob, NewVolume, Priority
from gtvray.serving.jobs.store import JobStore, due_at, new_job_id
from gtvray.serving.jobs.table import metadata, open_database

from ...databases import postgres


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else None
    engine = open_database(url, tmp_path)
    yield engine
    metadata.drop_all(engine)
    engine.dispose()


@pytest.fixture
def store(engine: Engine) -> JobStore:
    return JobStore(engine, 60)


def add(
    store: JobStore, volumes: int = 1, owner: str = "me", key: str | None = None, priority: Priority = "normal"
) -> str:
    inputs = tuple(NewVolume(False, 100, str(number), b"input") for number in range(volumes))
    return store.accept(NewJob(new_job_id(), owner, key, "digest", priority, inputs)).id


def claim(store: JobStore) -> Claim:
    claimed = store.claim()
    assert claimed is not None
    return claimed


def expire_leases(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE gtvray_job_volumes SET lease_until = 0"))


def test_every_volume_is_claimed_once(store: JobStore) -> None:
    jobs = [add(store, 5) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        claims = [each for each in pool.map(lambda _: store.claim(), range(30)) if each is not None]
    assert sorted(each.volume for each in claims) == sorted((job, number) for job in jobs for number in range(5))
    assert {each.attempt for each in claims} == {1}


def test_job_ends_with_its_last_volume(store: JobStore) -> None:
    job = add(store, 2)
    first, second = claim(store), claim(store)
    assert store.finish(first, b"result", 7)
    assert store.status("me", job).ended_at is None
    assert store.stored_bytes() == 107
    assert store.fail(second, FailureError("no mask", found="x"))
    found = store.status("me", job)
    assert found.ended_at is not None
    assert [each.state for each in found.volumes] == ["done", "failed"]
    assert found.volumes[0].result == b"result"
    assert found.volumes[1].problem is not None
    assert found.volumes[1].problem["title"] == "no mask"
    assert store.claim() is None


def test_both_last_volumes_may_end_at_once(store: JobStore) -> None:
    for _ in range(10):
        job = add(store, 2)
        claims = [claim(store), claim(store)]
        with ThreadPoolExecutor(2) as pool:
            assert all(pool.map(lambda each: store.finish(each, b"", 0), claims))
        assert store.status("me", job).ended_at is not None


def test_claim_that_was_taken_over_changes_nothing(store: JobStore, engine: Engine) -> None:
    job = add(store)
    old = claim(store)
    assert store.claim() is None, "its lease is valid"
    assert store.renew({old: 10.0}) == set()
    expire_leases(engine)
    new = claim(store)
    assert (new.volume, new.attempt) == (old.volume, 2)
    assert store.renew({old: 50.0}) == {old}
    assert not store.finish(old, b"old", 1)
    assert not store.fail(old, FailureError("old"))
    store.release(old)
    assert store.status("me", job).volumes[0].state == "running"
    assert store.finish(new, b"new", 1)
    assert not store.finish(new, b"twice", 1)
    assert store.status("me", job).volumes[0].result == b"new"


def test_volume_that_is_interrupted_again_and_again_fails(store: JobStore, engine: Engine) -> None:
    job = add(store)
    for _ in range(module.MOST_INTERRUPTIONS + 1):
        claim(store)
        expire_leases(engine)
    assert store.claim() is None
    problem = store.status("me", job).volumes[0].problem
    assert problem is not None
    assert "interrupted" in problem["title"]
    assert store.status("me", job).ended_at is not None


def test_released_volume_waits_and_is_not_an_interruption(store: JobStore) -> None:
    add(store)
    for _ in range(module.MOST_INTERRUPTIONS + 5):
        store.release(claim(store))
    store.release(claim(store), 60)
    assert store.claim() is None


def test_order_of_the_queue(store: JobStore) -> None:
    large = add(store, 30)
    small = add(store)
    low, high = add(store, priority="low"), add(store, priority="high")
    order = [claim(store) for _ in range(33)]
    assert order[0].job_id == high
    assert order[1].volume == (large, 0)
    assert order[2].job_id == small, "before the second volume of a job that came first"
    assert order[-1].job_id == low
    assert due_at(0.0, 0, "low") < due_at(3601.0, 0, "normal"), "a low priority waits for a limited time"


def test_cancelled_job_ends_and_its_claims_are_void(store: JobStore) -> None:
    job = add(store, 3)
    done = claim(store)
    store.finish(done, b"result", 5)
    running = claim(store)
    with pytest.raises(NotFoundError):
        store.cancel("another", job)
    found = store.cancel("me", job)
    assert (found.cancelled, found.ended_at is not None) == (True, True)
    assert [each.state for each in found.volumes] == ["done", "cancelled", "cancelled"]
    assert found.volumes[0].result is None
    assert store.renew({running: 1.0}) == {running}
    assert not store.finish(running, b"late", 1)
    assert store.claim() is None
    assert store.stored_bytes() == 0
    assert store.cancel("me", job) == found


def test_repeated_key_returns_the_first_job(store: JobStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: add(store, key="key"), range(8)))) == 1
    assert add(store, key="key", owner="another") != add(store, key="key")
    assert add(store) != add(store), "without a key every job is new"


def test_jobs_of_an_owner_newest_first(store: JobStore) -> None:
    jobs = [add(store) for _ in range(5)]
    add(store, owner="another")
    assert [each.id for each in store.listing("me", 3)] == jobs[:1:-1]
    assert [each.id for each in store.listing("me", 3, before=jobs[2])] == jobs[1::-1]
    with pytest.raises(NotFoundError):
        store.listing("another", 3, before=jobs[0])
    with pytest.raises(NotFoundError):
        store.status("another", jobs[0])


def test_expiry(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    old = add(store)
    store.finish(claim(store), b"", 1)
    waiting = add(store)
    assert {each.job_id for each in store.expire()} == {old, waiting}
    now = time.time()
    monkeypatch.setattr(module.time, "time", lambda: now + 61)
    assert {each.job_id for each in store.expire()} == {waiting}
    problem = store.status("me", waiting).volumes[0].problem
    assert problem is not None
    assert "not processed in time" in problem["title"]
    monkeypatch.setattr(module.time, "time", lambda: now + 200)
    assert store.expire() == []


def test_job_that_has_expired_is_not_found_before_it_is_removed(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = add(store, key="key")
    store.finish(claim(store), b"", 1)
    assert store.status("me", old).id == old
    now = time.time()
    monkeypatch.setattr(module.time, "time", lambda: now + 61)
    for find in (lambda: store.status("me", old), lambda: store.cancel("me", old)):
        with pytest.raises(NotFoundError, match="no such job"):
            find()
    assert store.listing("me", 10) == []
    again = add(store, key="key")
    assert again != old
    assert store.status("me", again).id == again


def test_queue_and_pace(store: JobStore) -> None:
    add(store, 3)
    first = claim(store)
    assert (store.queue().queued, store.queue().running, store.queue().mean_s) == (2, 1, None)
    store.finish(first, b"", 1)
    assert store.queue().mean_s is not None


@pytest.mark.parametrize("url", ["nonsense", "mysql://host/db"])
def test_other_databases_are_rejected(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        open_database(url, tmp_path)


def test_sqlite_survives_a_power_failure(tmp_path: Path) -> None:
    engine = open_database(None, tmp_path)
    with engine.begin() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2
    engine.dispose()
