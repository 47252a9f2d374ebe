"""The API in this process, without a socket and without Serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from gtvray.config import ServingConfig
from gtvray.inference import Coverage
from gtvray.serving.arguments import AppArguments
from gtvray.serving.gateway.api import Api
from gtvray.serving.gateway.segmenter import Segmenter
from gtvray.serving.routing import ServedModels
from gtvray.serving.shadow import Shadow
from gtvray.serving.tracing import Tracing
from gtvray.serving.transfer.spool import Spool
from gtvray.serving.transfer.stream import BodyStream
from gtvray.serving.transfer.work import Answer, Prediction, Work
from gtvray.serving.versions.served import Served

from .conftest import TOKEN

Behaviour = Callable[[Work, bytes], Awaitable[None]]


class Response:
    """The response of a call to a deployment handle."""

    def __init__(self, task: asyncio.Task[Answer]) -> None:
        self._task = task

    def __await__(self) -> Generator[Any, None, Answer]:
        return self._task.__await__()

    def cancel(self) -> None:
        self._task.cancel()


class Description:
    """Stands in for a replica's `describe` method; `answer` is the description."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] = {"version": "1", "digest": "digest", "golden": "none"}

    def remote(self) -> Any:
        """Return the description immediately."""
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        answer.set_result(self.answer)
        return answer


class Replica:
    """Returns the reversed scan as the mask, after a function of the test that may wait or raise."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.predict, self.describe, self._behaviour, self.calls = self, Description(), behaviour, 0

    def remote(self, work: Work, request_id: str) -> Response:
        return Response(asyncio.ensure_future(self._answer(work)))

    def options(self, *, stream: bool) -> _Reporting:
        """Return a handle whose calls report progress, as used for volumes of jobs."""
        assert stream
        return _Reporting(self)

    async def _answer(self, work: Work) -> Answer:
        self.calls += 1
        with work.body.open() as file:
            content = file.read()
        await self._behaviour(work, content)
        work.write_result(content[::-1])
        coverage = Coverage("body", None, 1, 0, 0.0)
        return Answer(Prediction(b"", 0.0, coverage, "digest", "1"), len(content))


class _Reporting:
    """Reports two of two patches before the answer."""

    def __init__(self, replica: Replica) -> None:
        self.predict_reporting, self._replica = self, replica

    async def remote(self, work: Work, request_id: str) -> AsyncIterator[tuple[int, int] | Answer]:
        for done in range(2):
            yield done, 2
        yield await self._replica.remote(work, request_id)


def make_api(
    folder: Path,
    serving: ServingConfig,
    model: Any = None,
    spool: Spool | None = None,
    jobs: bool = False,
    make_shadow: Callable[[Spool, Segmenter], Shadow] | None = None,
    **further: Any,
) -> FastAPI:
    """The application with its tokens, audit log, spool and jobs in a folder.

    Args:
        folder: folder for all files.
        serving: settings.
        model: object in place of the handle of the Model deployment.
        spool: upload spool; by default one in the folder.
        jobs: whether jobs are accepted.
        make_shadow: factory of the shadow of the default model.
        further: objects in place of the handles of further models, by name.
    """
    token_file = folder / "token"
    token_file.write_text(TOKEN)
    args = AppArguments(
        token_file=token_file,
        tokens=folder / "tokens.json",
        audit=folder / "audit",
        jobs_dir=folder / "jobs" if jobs else None,
        serving=serving,
    )
    served = Served(args, model if model is not None else object())
    spool = spool or Spool(folder, serving.spool_limit_bytes, serving.client_spool_limit_bytes)
    others = [Served(args.model_copy(update={"model_name": name}), each) for name, each in further.items()]
    models = ServedModels([served, *others])
    tracing = Tracing(serving.traces_url, "gtvray-gateway")
    segmenter = Segmenter(args, spool, BodyStream(), "node", tracing)
    shadow = make_shadow(spool, segmenter) if make_shadow is not None else None
    return Api(args, models, spool, segmenter, shadow, tracing=tracing).build_app()


def problem_of(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """The problem document of a response, checked for status, type, and the same request id in header and body."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert (problem["type"], problem["status"]) == (kind, status)
    assert response.headers.get_list("X-Request-ID") == [problem["instance"]]
    return problem
