"""The asynchronous HTTP client of an endpoint. Imports neither torch nor ray."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from os import PathLike
from types import TracebackType
from typing import Any, Self

import httpx

from gtvray.errors import BusyError, DeadlineError, GtvrayError, InputError
from gtvray.serving.client.transport import (
    Failures,
    Retry,
    Timeouts,
    as_httpx,
    has_connected,
    is_repeatable,
    is_repeatable_status,
    open_async_client,
    parse_document,
    require_address,
    require_token,
    response_error,
    retry_after_s,
    transport_error,
)
from gtvray.serving.client.volumes import (
    RemoteResult,
    Scan,
    decode_result,
    grid_of,
    is_result,
    open_scan,
    require_grid,
)
from gtvray.serving.jobs.documents import JobDocument, JobList, QueueDocument
from gtvray.serving.jobs.records import Priority
from gtvray.serving.request_log import REQUEST_ID_FORM, REQUEST_ID_HEADER, is_request_id

Body = Callable[[ExitStack], dict[str, Any]]
Failed = tuple[GtvrayError, float | None]  # an error, and the pause before the next attempt if one may succeed

_POLL_S = 1.0
_EVENTS_READ_S = 60.0


class AsyncClient:
    """A client of one endpoint; it may be used by many tasks of one event loop at once.

    Requests to an endpoint on this machine bypass proxies; others use the proxy configured in the environment. All
    errors are classes of gtvray.errors; an error reported by the endpoint has the class that the endpoint names.

    Args:
        url: address of the endpoint, such as http://127.0.0.1:8000.
        token: the bearer token.
        model: name of one of the endpoint's models, for all scans; None for its default model.
        timeouts: time limits by phase.
        retry: retry policy.
        ca_file: PEM file of the certificate authorities that are trusted, in place of the public ones.

    Raises:
        AuthError: the token is empty or cannot be a header's value.
        InputError: the environment sets a proxy that cannot be used, or `ca_file` has no certificate that can be read.
        ResourceError: the address is invalid.
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
        self._url, self._timeouts, self._retry = url.rstrip("/"), timeouts or Timeouts(), retry or Retry()
        self._authorization = {"Authorization": f"Bearer {token}"}
        self._reached, self._model = False, {"model": model} if model is not None else {}
        require_address(url, self._timeouts)
        require_token(token)
        self._http = open_async_client(url, self._timeouts, ca_file)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def segment(self, scan: Scan, *, request_id: str | None = None) -> RemoteResult:
        """Send a scan and return its mask, whose grid is compared with that of the scan.

        Args:
            scan: a volume, or a NIfTI or NRRD file, whose content is sent unchanged and whose name is not sent.
            request_id: a UUID or 32 hexadecimal digits; by default the server assigns one.

        Raises:
            NotFoundError: the file does not exist.
            VolumeError: the file is not a valid volume; detected before sending if the first bytes show it.
            ContentTypeError: the file has another known format; detected before sending.
            InputError: the request id is invalid.
            ResourceError: no server responds, or the response is not from a gtvray server; the error names its source.
            DeadlineError: the server did not respond in time.
            FailureError: the mask is not on the grid of the scan.
            GtvrayError: an error reported by the server, in the class that the server names.
        """
        headers = {"Content-Type": "application/octet-stream"}
        if request_id is not None:
            if not is_request_id(request_id):
                raise InputError("invalid request id", where="request_id", expected=REQUEST_ID_FORM)
            headers[REQUEST_ID_HEADER] = request_id
        with await asyncio.to_thread(open_scan, scan) as file:
            content = await asyncio.to_thread(file.read)
        grid = asyncio.create_task(asyncio.to_thread(grid_of, scan))
        try:
            response = await self._send(
                "POST",
                "/v1/segment",
                lambda _: {"content": content, "params": self._model},
                headers=headers,
                succeeded=is_result,
            )
            result = await asyncio.to_thread(decode_result, response, self._url)
            require_grid(result, await grid)
        finally:
            grid.cancel()
            await asyncio.gather(grid, return_exceptions=True)
        return result

    async def segment_many(
        self, scans: Iterable[Scan], *, at_once: int = 4
    ) -> AsyncIterator[tuple[Scan, RemoteResult | GtvrayError]]:
        """Segment many scans concurrently; a scan that fails does not stop the others.

        Args:
            scans: as in `segment`.
            at_once: maximum number of scans in progress.

        Yields:
            each scan with its result or its error, in the given order.
        """
        slots = asyncio.Semaphore(at_once)
        waiting, begun = iter(scans), deque[tuple[Scan, asyncio.Task[RemoteResult | GtvrayError]]]()

        async def attempt(scan: Scan) -> RemoteResult | GtvrayError:
            try:
                async with slots:
                    return await self.segment(scan)
            except GtvrayError as error:
                return error

        try:
            while True:
                # Results are yielded in order, so the number of finished ones kept in memory is bounded, too.
                while len(begun) < 2 * at_once and (scan := next(waiting, None)) is not None:
                    begun.append((scan, asyncio.create_task(attempt(scan))))
                if not begun:
                    return
                first, task = begun[0]
                outcome = await task
                begun.popleft()
                yield first, outcome
        finally:
            for _, task in begun:
                task.cancel()
            await asyncio.gather(*(task for _, task in begun), return_exceptions=True)

    async def submit(
        self, scans: Sequence[Scan], *, priority: Priority = "normal", idempotency_key: str | None = None
    ) -> JobDocument:
        """Send scans as one job. When this returns, the job is accepted and survives a restart of the endpoint.

        Args:
            scans: as in `segment`.
            priority: priority of the job.
            idempotency_key: if a job was submitted with this key before, it is returned instead of a new one; by
                default a new key, so that retries of this call do not create a second job.

        Raises:
            InputError: there is no scan, or the key was used for another request.
            GtvrayError: as `segment`.
        """
        if not scans:
            raise InputError("a job needs at least one scan")

        def body(stack: ExitStack) -> dict[str, Any]:
            # Names are not sent, as they may be those of patients.
            files = [("scan", (str(number), stack.enter_context(open_scan(scan)))) for number, scan in enumerate(scans)]
            return {"files": files}

        return await self._submit(body, priority, idempotency_key)

    async def submit_paths(
        self,
        paths: Sequence[str | PathLike[str]],
        *,
        priority: Priority = "normal",
        idempotency_key: str | None = None,
    ) -> JobDocument:
        """Submit scans that the server reads itself, below the folders of `serving.jobs.roots` or `serving.jobs.uris`.

        Args:
            paths: absolute paths on the server, or URIs of objects, as strings.
            priority: as in `submit`.
            idempotency_key: as in `submit`.

        Raises:
            NotFoundError: a path is not below an allowed folder, or there is no such file.
            GtvrayError: as `submit`.
        """
        volumes = [{"path": str(path)} for path in paths]
        return await self._submit(lambda _: {"json": {"volumes": volumes}}, priority, idempotency_key)

    async def job(self, job_id: str) -> JobDocument:
        """Return a job.

        Raises:
            NotFoundError: no such job of this client.
        """
        return parse_document(JobDocument, await self._send("GET", f"/v1/jobs/{job_id}"), self._url)

    async def jobs(self, limit: int = 100, *, of_all: bool = False) -> list[JobDocument]:
        """Return this client's jobs, or those of all clients for the role admin, newest first, at most 1000."""
        asked = {"limit": limit, **({"all": True} if of_all else {})}
        response = await self._send("GET", "/v1/jobs", lambda _: {"params": asked})
        return parse_document(JobList, response, self._url).jobs

    async def wait(
        self, job_id: str, *, timeout_s: float | None = None, on_change: Callable[[JobDocument], None] | None = None
    ) -> JobDocument:
        """Wait until a job has ended, successfully or not, and return it; the server may restart in the meantime.

        Args:
            job_id: the job.
            timeout_s: maximum wait in seconds; None waits without a limit.
            on_change: called whenever the job has changed.

        Raises:
            DeadlineError: the job did not end in time; it continues on the server.
        """
        began, shown = time.monotonic(), None
        while True:
            job = await self.job(job_id)
            if on_change is not None and job != shown:
                on_change(job)
            shown = job
            if job.ended_at is not None:
                return job
            if timeout_s is not None and time.monotonic() - began > timeout_s:
                raise DeadlineError(
                    "the job has not ended",
                    where=job_id,
                    expected=f"within {timeout_s:g} s",
                    do="wait for it again, or cancel it; it continues on the server",
                )
            await asyncio.sleep(_POLL_S)

    async def events(self, job_id: str) -> AsyncIterator[JobDocument]:
        """Yield a job after each change until it has ended; reconnect if the connection is lost."""
        timeout = as_httpx(replace(self._timeouts, read_s=_EVENTS_READ_S))
        failures = Failures(self._retry)
        while True:
            pause: float | None
            try:
                async with self._http.stream(
                    "GET", f"{self._url}/v1/jobs/{job_id}/events", headers=self._authorization, timeout=timeout
                ) as response:
                    if response.status_code != httpx.codes.OK:
                        await response.aread()
                        raise _Unanswered(response)
                    self._reached = True
                    async for line in response.aiter_lines():
                        # Any line shows that the server responds, also the comments sent while the job is unchanged.
                        failures.clear()
                        if line.startswith("data: "):
                            job = JobDocument.model_validate_json(line.removeprefix("data: "))
                            yield job
                            if job.ended_at is not None:
                                return
                # The server ended the stream, for example as it stops.
                pause, error = failures.next_pause_s(), None
            except (httpx.TransportError, httpx.InvalidURL) as lost:
                error, pause = self._lost(lost, failures)
            except _Unanswered as refused:
                error, pause = self._refused(refused.response, failures)
            if pause is None:
                raise error or BusyError(
                    "the server closed the event stream before the job ended",
                    where=self._url,
                    do="poll the job instead: `wait` of the client, or GET /v1/jobs/ID",
                )
            await asyncio.sleep(pause)

    async def result(self, job_id: str, number: int, *, scan: Scan | None = None) -> RemoteResult:
        """Return the mask of a volume of a job.

        Args:
            job_id: the job.
            number: position of the volume in the job.
            scan: the scan that was sent; the mask must be on its grid. None skips this check.

        Raises:
            ConflictError: the volume has not ended.
            NotFoundError: no such job or volume, or its result was deleted.
            GtvrayError: the error with which the volume failed.
        """
        response = await self._send("GET", f"/v1/jobs/{job_id}/results/{number}", succeeded=is_result)
        result = replace(await asyncio.to_thread(decode_result, response, self._url), request_id=job_id)
        if scan is not None:
            require_grid(result, await asyncio.to_thread(grid_of, scan))
        return result

    async def results(
        self, job_id: str, *, scans: Sequence[Scan] | None = None
    ) -> AsyncIterator[tuple[int, RemoteResult | GtvrayError]]:
        """Wait for a job and yield each of its volumes with its result or its error.

        Args:
            job_id: the job.
            scans: the scans that were sent, as in `result`.

        Raises:
            NotFoundError: no such job of this client.
        """
        for volume in (await self.wait(job_id)).volumes:
            try:
                scan = scans[volume.number] if scans is not None else None
                outcome: RemoteResult | GtvrayError = await self.result(job_id, volume.number, scan=scan)
            except GtvrayError as error:
                outcome = error
            yield volume.number, outcome

    async def cancel(self, job_id: str) -> JobDocument:
        """Cancel a job, and delete its inputs and results.

        Raises:
            NotFoundError: no such job of this client.
        """
        return parse_document(JobDocument, await self._send("DELETE", f"/v1/jobs/{job_id}"), self._url)

    async def queue(self) -> QueueDocument:
        """Return the length of the queue of all clients' jobs, and the expected wait."""
        return parse_document(QueueDocument, await self._send("GET", "/v1/queue"), self._url)

    async def ready(self) -> str:
        """Return the outcome of the golden cases, `identical`, `reproduced` or `none`, if the endpoint is ready.

        Raises:
            NotReadyError: no model is loaded.
            NotReproducedError: the model does not reproduce its golden cases.
        """
        return str((await self._send("GET", "/readyz", succeeded=_is_ready)).json()["golden"])

    async def models(self) -> dict[str, Any]:
        """Return the versions of each model (served, loading, rejected) and the shadow version."""
        found: dict[str, Any] = (await self._send("GET", "/v1/models")).json()
        return found

    async def _submit(self, body: Body, priority: Priority, idempotency_key: str | None) -> JobDocument:
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}

        def with_priority(stack: ExitStack) -> dict[str, Any]:
            return {**body(stack), "params": {"priority": priority, **self._model}}

        return parse_document(
            JobDocument, await self._send("POST", "/v1/jobs", with_priority, headers=headers), self._url
        )

    async def _send(
        self,
        method: str,
        path: str,
        body: Body = lambda _: {},
        *,
        headers: dict[str, str] | None = None,
        succeeded: Callable[[httpx.Response], bool] = lambda response: response.is_success,
    ) -> httpx.Response:
        """Send a request, and retry it while a retry may succeed.

        Args:
            method: HTTP method.
            path: path of the route.
            body: returns the httpx arguments of an attempt; files that it opens are closed after the attempt.
            headers: further headers.
            succeeded: whether a response is the expected one.
        """
        failures = Failures(self._retry)
        while True:
            try:
                with ExitStack() as stack:
                    arguments = await asyncio.to_thread(body, stack)
                    response = await self._http.request(
                        method, self._url + path, headers={**self._authorization, **(headers or {})}, **arguments
                    )
            except (httpx.TransportError, httpx.InvalidURL) as lost:
                error, pause = self._lost(lost, failures)
            else:
                if succeeded(response):
                    self._reached = True
                    return response
                error, pause = self._refused(response, failures)
            if pause is None:
                raise error
            await asyncio.sleep(pause)

    def _lost(self, lost: httpx.TransportError | httpx.InvalidURL, failures: Failures) -> Failed:
        """The failure of a request without a response."""
        self._reached |= has_connected(lost)
        error = transport_error(lost, self._url, self._timeouts)
        error.__cause__ = lost
        if not is_repeatable(lost):
            return error, None
        return error, failures.next_pause_s(reached=self._reached)

    def _refused(self, response: httpx.Response, failures: Failures) -> Failed:
        """The failure that a response reports."""
        self._reached = True
        error = response_error(response, self._url)
        if not is_repeatable_status(response, error):
            return error, None
        return error, failures.next_pause_s(retry_after_s(response))


def _is_ready(response: httpx.Response) -> bool:
    return response.is_success and response.headers.get("content-type") == "application/json"


class _Unanswered(Exception):  # noqa: N818  # not an error of its own
    """An error response to a request for a stream."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__()
        self.response = response
