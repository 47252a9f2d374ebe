"""The client with failing servers: which requests are retried, and when; many scans in parallel."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gtvray.client import AsyncClient, Client, Retry, Timeouts
from gtvray.errors import (
    BusyError,
    DeadlineError,
    FailureError,
    GtvrayError,
    NotReproducedError,
    ResourceError,
    VolumeError,
)
from gtvray.geometry import Volume
from gtvray.inference import Coverage
from gtvray.io import decode_volume, encode_nifti, write_volume
from gtvray.serving.client.transport import retry_after_s
from gtvray.serving.gateway.results import result_document, result_response
from gtvray.serving.jobs.documents import JobDocument
from gtvray.serving.problems import problem_response
from gtvray.serving.transfer.work import Prediction

from ...ports import free_port
from ..conftest import TOKEN, make_scan

SCAN = make_scan((12, 14, 16))
FAST = Retry(first_s=0.01, longest_s=0.02)
Answer = Callable[[bytes], Response | None]


def mask_response(content: bytes, mask: Volume | None = None) -> Response:
    scan = decode_volume(content)
    shown = mask or scan.with_array((scan.array > 0).astype(np.uint8))
    prediction = Prediction(encode_nifti(shown, compress=True), 1.0, Coverage("body", None, 1, 0, 0.0), "d", "7")
    response = result_response(result_document(prediction, "r", 0.1), prediction.mask_gz, "application/gzip")
    response.headers["X-Request-ID"] = "r"
    return response


class Scripted:
    """An endpoint that gives the listed answers in order, and then masks; None closes the connection."""

    def __init__(self, *answers: Answer | GtvrayError | int) -> None:
        self.answers = list(answers)
        self.times: list[float] = []
        self.at_once = self.most_at_once = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # Lifespan events are not supported.
            raise NotImplementedError
        request = Request(scope, receive)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        content = await request.body()
        self.times.append(time.monotonic())
        await asyncio.sleep(0.02)
        self.at_once -= 1
        answer = self.answers.pop(0) if self.answers else mask_response
        if isinstance(answer, GtvrayError):
            response: Response | None = problem_response(answer, "0" * 32)
        elif isinstance(answer, int):
            response = Response("gateway", answer)
        else:
            response = answer(content)
        if response is not None:
            await response(scope, receive, send)
        else:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
            raise ConnectionAbortedError


@contextmanager
def running(app: ASGIApp, port: int | None = None) -> Iterator[str]:
    """A uvicorn server in a thread."""
    config = uvicorn.Config(app, port=port or free_port(), log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{config.port}"
    finally:
        server.should_exit = True
        thread.join()


def segment(url: str, retry: Retry = FAST, scan: Any = SCAN, **timeouts: float) -> Any:
    with Client(url, TOKEN, retry=retry, timeouts=Timeouts(**timeouts)) as client:
        return client.segment(scan)


@pytest.mark.parametrize("failures", [[502, 503, 504], [BusyError("full"), ResourceError("lost")], [lambda _: None]])
def test_request_is_sent_again_until_it_succeeds(failures: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gtvray.serving.problems._RETRY_AFTER_S", 0)
    app = Scripted(*failures)
    with running(app) as url:
        assert segment(url).mask.same_grid(SCAN)
    assert len(app.times) == len(failures) + 1


@pytest.mark.parametrize("error", [VolumeError("bad"), NotReproducedError("golden"), FailureError("internal")])
def test_error_that_a_repetition_does_not_change_is_raised_at_once(error: GtvrayError) -> None:
    app = Scripted(error)
    with running(app) as url, pytest.raises(type(error), match=error.what):
        segment(url)
    assert len(app.times) == 1


def test_last_error_is_raised_when_attempts_or_time_are_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Scripted(*[503] * 20)
    with running(app) as url:
        with pytest.raises(ResourceError, match="not from a gtvray server"):
            segment(url, Retry(attempts=3, first_s=0.01))
        assert len(app.times) == 3
        with pytest.raises(ResourceError):
            segment(url, Retry(attempts=100, first_s=0.05, longest_s=0.05, total_s=0.12))
        assert len(app.times) <= 10


def test_pauses_double_and_vary_and_follow_retry_after() -> None:
    retry = Retry(attempts=6, first_s=1.0, longest_s=4.0, total_s=60.0)
    for attempt, longest in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 4.0)):
        pauses = {retry.pause_s(attempt, 0.0) for _ in range(20)}
        assert len(pauses) > 1
        assert all(pause is not None and longest / 2 <= pause <= longest for pause in pauses)
    assert retry.pause_s(1, 0.0, 30.0) == 30.0
    assert retry.pause_s(1, 31.0, 30.0) is None
    assert retry.pause_s(6, 0.0) is None
    assert retry.pause_s(5, 59.5) == 0.5, "the last attempt is as late as possible"
    assert retry.pause_s(1, 5.9, reached=False) == pytest.approx(0.1)
    assert retry.pause_s(1, 6.1, reached=False) is None


@pytest.mark.parametrize(
    ("value", "seconds"), [("5", 5.0), ("", 0.0), ("-1", 0.0), ("soon", 0.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)]
)
def test_retry_after_is_read(value: str, seconds: float) -> None:
    assert retry_after_s(httpx.Response(503, headers={"Retry-After": value})) == seconds


def test_retry_after_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gtvray.serving.problems._RETRY_AFTER_S", 1)
    app = Scripted(BusyError("full"))
    with running(app) as url:
        segment(url)
    assert app.times[1] - app.times[0] >= 0.9


def test_server_that_is_started_again_answers_the_request() -> None:
    port = free_port()
    found: list[Any] = []
    retry = Retry(first_s=0.1, longest_s=0.2)
    asking = threading.Thread(target=lambda: found.append(segment(f"http://127.0.0.1:{port}", retry)))
    asking.start()
    time.sleep(0.3)
    config = uvicorn.Config(Scripted(), port=port, log_level="critical")
    server = uvicorn.Server(config)
    serving = threading.Thread(target=server.run)
    serving.start()
    asking.join(20)
    server.should_exit = True
    serving.join()
    assert found[0].mask.same_grid(SCAN)


def test_connection_that_breaks_during_a_long_scan_is_retried_by_a_new_and_by_a_known_client() -> None:
    def break_late(_: bytes) -> None:
        time.sleep(0.3)

    retry = Retry(first_s=0.01, longest_s=0.02, first_contact_s=0.2, total_s=5.0)
    app = Scripted(break_late, break_late)
    with running(app) as url:
        assert segment(url, retry).mask.same_grid(SCAN), "a broken connection had reached the server"
    assert len(app.times) == 3

    app = Scripted(mask_response, break_late)
    with running(app) as url, Client(url, TOKEN, retry=replace(retry, total_s=0.2)) as client:
        client.segment(SCAN)
        assert client.segment(SCAN).mask.same_grid(SCAN), "the time limit counts from the failure"
    assert len(app.times) == 3


def test_unreachable_server_is_tried_for_the_time_of_the_first_contact() -> None:
    began = time.monotonic()
    with pytest.raises(ResourceError, match="no server responds"):
        segment(f"http://127.0.0.1:{free_port()}", Retry(attempts=1000, first_s=0.05, first_contact_s=0.3))
    assert 0.3 <= time.monotonic() - began < 5


def test_event_stream_that_is_open_again_ends_a_row_of_failures() -> None:
    ended = JobDocument(
        id="0" * 32,
        state="done",
        priority="normal",
        percent=100.0,
        created_at=datetime.now(UTC),
        ended_at=datetime.now(UTC),
        expires_at=None,
        volumes=[],
    )
    streams = [": unchanged\n\n"] * 4 + [f"event: end\ndata: {ended.model_dump_json()}\n\n"]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": streams.pop(0).encode(), "more_body": True})
        await asyncio.sleep(0.15)
        raise ConnectionAbortedError

    with running(app) as url, Client(url, TOKEN, retry=Retry(attempts=2, first_s=0.01, total_s=0.1)) as client:
        assert list(client.events(ended.id)) == [ended]
    assert not streams


def test_server_without_an_answer_is_a_deadline_and_not_asked_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DeadlineError, match="did not respond in time") as late:
            segment(url, read_s=0.2)
        assert late.value.fields["expected"] == "data from the server within 0.2 s"


def test_mask_on_another_grid_is_refused(tmp_path: Path) -> None:
    write_volume(tmp_path / "scan.nii.gz", SCAN)
    shifted = SCAN.affine.copy()
    shifted[0, 3] += 1.0
    for mask in (
        Volume(np.zeros((12, 14, 15), np.uint8), SCAN.affine),
        Volume(np.zeros(SCAN.shape, np.uint8), shifted),
    ):
        for scan in (SCAN, tmp_path / "scan.nii.gz"):
            app = Scripted(lambda content, mask=mask: mask_response(content, mask))  # type: ignore[misc]
            with running(app) as url, pytest.raises(FailureError, match="not on the grid of the scan"):
                segment(url, scan=scan)


def test_many_scans_in_order_with_their_errors(tmp_path: Path) -> None:
    scans: list[Any] = [make_scan((8 + n, 8, 8)) for n in range(10)]
    (tmp_path / "text.nii").write_bytes(b"a sentence")
    scans.insert(3, tmp_path / "text.nii")
    scans.insert(5, tmp_path / "none.nii")
    app = Scripted()
    with running(app) as url, Client(url, TOKEN) as client:
        outcomes = list(client.segment_many(scans, at_once=3))
    assert [scan for scan, _ in outcomes] == scans
    for scan, outcome in outcomes:
        if isinstance(scan, Volume):
            assert not isinstance(outcome, GtvrayError)
            assert outcome.mask.same_grid(scan)
        else:
            assert isinstance(outcome, GtvrayError)
            assert str(scan) in str(outcome)
    assert 1 < app.most_at_once <= 3


def test_iteration_may_be_ended_early_and_the_client_used_again() -> None:
    app = Scripted()
    with running(app) as url, Client(url, TOKEN) as client:
        scans = client.segment_many([SCAN] * 50, at_once=2)
        next(scans)
        scans.close()  # type: ignore[attr-defined]
        assert client.segment(SCAN).mask.same_grid(SCAN)
        client.close()
        assert client.segment(SCAN).mask.same_grid(SCAN), "it opens again"
    assert len(app.times) < 10


def test_closing_the_client_ends_a_call_in_another_thread() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Client(f"http://127.0.0.1:{silent.getsockname()[1]}", TOKEN)
        ended: list[BaseException] = []

        def ask() -> None:
            try:
                client.segment(SCAN)
            except BaseException as error:  # noqa: BLE001
                ended.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        connection, _ = silent.accept()
        client.close()
        asking.join(20)
        connection.close()
    assert [type(error) for error in ended] == [CancelledError]


def test_asynchronous_client() -> None:
    async def run(url: str) -> None:
        async with AsyncClient(url, TOKEN) as client:
            results = await asyncio.gather(*(client.segment(SCAN) for _ in range(3)))
            assert all(result.mask.same_grid(SCAN) for result in results)
            assert [scan async for scan, _ in client.segment_many([SCAN, SCAN])] == [SCAN, SCAN]

    with running(Scripted()) as url:
        asyncio.run(run(url))
