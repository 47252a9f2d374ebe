"""The HTTP client of an endpoint, for programs without an event loop. Imports neither torch nor ray."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Self, TypeVar

from gtvray.errors import GtvrayError
from gtvray.serving.client.async_client import AsyncClient
from gtvray.serving.client.transport import Retry, Timeouts
from gtvray.serving.client.volumes import RemoteResult, Scan
from gtvray.serving.jobs.documents import JobDocument, QueueDocument
from gtvray.serving.jobs.records import Priority

T = TypeVar("T")


class Client:
    """A client of one endpoint; it may be used by many threads at once.

    The methods are those of `AsyncClient`, with the same arguments, results and errors. They run in an event loop of a
    thread that the first call starts.

    Args:
        url: address of the endpoint, such as http://127.0.0.1:8000.
        token: the bearer token.
        model: name of one of the endpoint's models, for all scans; None for its default model.
        timeouts: time limits by phase.
        retry: retry policy.
        ca_file: PEM file of the certificate authorities that are trusted, in place of the public ones.

    Raises:
        as `AsyncClient`, at the first call.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        model: str | None = None,
        timeouts: Timeouts | None = None,
        retry: Retry | None = None,
        ca_file: str | PathLike[str] | None = None,
    ) -> None:
        self._open: Callable[[], AsyncClient] = lambda: AsyncClient(
            url, token, model=model, timeouts=timeouts, retry=retry, ca_file=ca_file
        )
        self._client: AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and stop the thread. Calls in progress are cancelled; a later call starts both again.

        Does nothing during interpreter shutdown, for example when a generator that holds the client is collected: the
        thread no longer runs, and waiting for it would never return.
        """
        if sys.is_finalizing():
            return
        with self._lock:
            client, loop = self._client, self._loop
            self._client = self._loop = None
        if client is not None and loop is not None:
            _result(client.close(), loop)
            loop.call_soon_threadsafe(loop.stop)

    def segment(self, scan: Scan, *, request_id: str | None = None) -> RemoteResult:
        """Send a scan and return its mask; see `AsyncClient.segment`."""
        return self._call(lambda client: client.segment(scan, request_id=request_id))

    def segment_many(
        self, scans: Iterable[Scan], *, at_once: int = 4
    ) -> Iterator[tuple[Scan, RemoteResult | GtvrayError]]:
        """Segment many scans concurrently; see `AsyncClient.segment_many`."""
        return self._iterate(lambda client: client.segment_many(scans, at_once=at_once))

    def submit(
        self, scans: Sequence[Scan], *, priority: Priority = "normal", idempotency_key: str | None = None
    ) -> JobDocument:
        """Send scans as one job; see `AsyncClient.submit`."""
        return self._call(lambda client: client.submit(scans, priority=priority, idempotency_key=idempotency_key))

    def submit_paths(
        self,
        paths: Sequence[str | PathLike[str]],
        *,
        priority: Priority = "normal",
        idempotency_key: str | None = None,
    ) -> JobDocument:
        """Submit scans that the server reads itself; see `AsyncClient.submit_paths`."""
        return self._call(lambda client: client.submit_paths(paths, priority=priority, idempotency_key=idempotency_key))

    def job(self, job_id: str) -> JobDocument:
        """Return a job; see `AsyncClient.job`."""
        return self._call(lambda client: client.job(job_id))

    def jobs(self, limit: int = 100, *, of_all: bool = False) -> list[JobDocument]:
        """Return this client's jobs, or those of all clients; see `AsyncClient.jobs`."""
        return self._call(lambda client: client.jobs(limit, of_all=of_all))

    def wait(
        self, job_id: str, *, timeout_s: float | None = None, on_change: Callable[[JobDocument], None] | None = None
    ) -> JobDocument:
        """Return a job once it has ended; see `AsyncClient.wait`. `on_change` is called in the client's thread."""
        return self._call(lambda client: client.wait(job_id, timeout_s=timeout_s, on_change=on_change))

    def events(self, job_id: str) -> Iterator[JobDocument]:
        """Yield a job whenever it has changed; see `AsyncClient.events`."""
        return self._iterate(lambda client: client.events(job_id))

    def result(self, job_id: str, number: int, *, scan: Scan | None = None) -> RemoteResult:
        """Return the mask of a volume of a job; see `AsyncClient.result`."""
        return self._call(lambda client: client.result(job_id, number, scan=scan))

    def results(
        self, job_id: str, *, scans: Sequence[Scan] | None = None
    ) -> Iterator[tuple[int, RemoteResult | GtvrayError]]:
        """Wait for a job and yield its results; see `AsyncClient.results`."""
        return self._iterate(lambda client: client.results(job_id, scans=scans))

    def cancel(self, job_id: str) -> JobDocument:
        """Cancel a job, and delete its inputs and results; see `AsyncClient.cancel`."""
        return self._call(lambda client: client.cancel(job_id))

    def queue(self) -> QueueDocument:
        """Return the queue; see `AsyncClient.queue`."""
        return self._call(lambda client: client.queue())

    def ready(self) -> str:
        """Return the outcome of the golden cases if the endpoint is ready; see `AsyncClient.ready`."""
        return self._call(lambda client: client.ready())

    def models(self) -> dict[str, Any]:
        """Return the served versions; see `AsyncClient.models`."""
        return self._call(lambda client: client.models())

    def _call(self, method: Callable[[AsyncClient], Coroutine[Any, Any, T]]) -> T:
        client, loop = self._started()
        return _result(method(client), loop)

    def _iterate(self, method: Callable[[AsyncClient], AsyncIterator[T]]) -> Iterator[T]:
        client, loop = self._started()
        items = method(client)
        try:
            while (found := _result(_next(items), loop)) is not None:
                yield found[0]
        finally:
            # A stopped loop has closed its generators; at interpreter shutdown its thread no longer runs.
            if self._loop is loop and not sys.is_finalizing():
                _result(_close(items), loop)

    def _started(self) -> tuple[AsyncClient, asyncio.AbstractEventLoop]:
        with self._lock:
            if self._client is None or self._loop is None:
                client, loop = self._open(), asyncio.new_event_loop()
                # A daemon, so that a program that forgets to close the client can end.
                threading.Thread(target=_run, args=(loop,), name="gtvray-client", daemon=True).start()
                self._client, self._loop = client, loop
            return self._client, self._loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(_cancel(asyncio.all_tasks(loop)))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def _result(coroutine: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
    """Run a coroutine in the client's thread; if the caller is interrupted, cancel it and wait until it has ended."""
    tasks: set[asyncio.Task[Any]] = set()

    async def run() -> T:
        task = asyncio.current_task()
        assert task is not None, "a coroutine runs in a task"
        tasks.add(task)
        return await coroutine

    future = asyncio.run_coroutine_threadsafe(run(), loop)
    try:
        return future.result()
    except BaseException:
        if not future.done():
            asyncio.run_coroutine_threadsafe(_cancel(tasks), loop).result()
        raise


async def _cancel(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _next(items: AsyncIterator[T]) -> tuple[T] | None:
    async for item in items:
        return (item,)
    return None


async def _close(items: AsyncIterator[T]) -> None:
    close = getattr(items, "aclose", None)
    if close is not None:
        await close()
