"""HTTP routes of jobs: POST and GET /v1/jobs, their events and results, and the queue."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Path, Query
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from gtvray.errors import ForbiddenError, NotFoundError
from gtvray.serving.gateway.openapi import ACCEPTED_RESPONSE, RESULT_RESPONSE, VOLUME_BODY, ModelQuery, errors
from gtvray.serving.gateway.results import negotiate, result_response
from gtvray.serving.jobs.documents import JobDocument, JobList, QueueDocument
from gtvray.serving.jobs.intake import PART
from gtvray.serving.jobs.records import Priority, Requester
from gtvray.serving.jobs.references import references_schema
from gtvray.serving.jobs.service import Jobs

EVENTS = "text/event-stream"
_KEEP_ALIVE_AFTER = 20
_METHODS = ("DELETE", "OPTIONS", "PATCH", "POST", "PUT")
_ID = "^[0-9a-f]{32}$"
_JobId = Annotated[str, Path(pattern=_ID)]
_BODY: dict[str, Any] = {
    "description": "one volume, a form with several volumes, or paths below folders that the operator allows",
    "required": True,
    "content": {
        **VOLUME_BODY["content"],
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {PART: {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}},
                "required": [PART],
                "additionalProperties": False,
            }
        },
        "application/json": {"schema": references_schema()},
    },
}

_EVENT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "event": {"enum": ["progress", "end"]},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/JobDocument"},
        },
    },
    "required": ["event", "data"],
}
_EVENTS_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "server-sent events of this schema; the data of each is the job",
        "content": {EVENTS: {"schema": _EVENT}},
    }
}


class JobRoutes:
    """The routes.

    Args:
        jobs: the job service; None if jobs are disabled.
        who: returns the client of a request.
        choose: checks that the client of a request may use a model, and returns its name; None is the default.
        load: returns the fields `scans` and `replicas` of the queue.
    """

    def __init__(
        self,
        jobs: Jobs | None,
        who: Callable[[Request], Requester],
        choose: Callable[[Request, str | None], str | None],
        load: Callable[[], Awaitable[Mapping[str, Any]]],
    ) -> None:
        self._jobs, self._who, self._choose, self._load = jobs, who, choose, load

    def router(self) -> APIRouter:
        """Return the routes, which run the worker within the application's lifespan."""
        router = APIRouter(prefix="/v1", lifespan=self._lifespan)
        router.add_api_route(
            "/jobs",
            self.submit,
            methods=["POST"],
            status_code=202,
            responses=ACCEPTED_RESPONSE | errors(404, 408, 413, 415, 422, 507),
            openapi_extra={"requestBody": _BODY},
            response_model=JobDocument,
        )
        router.add_api_route(
            "/jobs", self.jobs, methods=["GET"], response_model=JobList, responses=errors(404, 422, 507)
        )
        router.add_api_route(
            "/jobs/{job_id}", self.job, methods=["GET"], response_model=JobDocument, responses=errors(404, 507)
        )
        router.add_api_route(
            "/jobs/{job_id}", self.cancel, methods=["DELETE"], response_model=JobDocument, responses=errors(404, 507)
        )
        router.add_api_route(
            "/jobs/{job_id}/events",
            self.events,
            methods=["GET"],
            response_class=StreamingResponse,
            responses=_EVENTS_RESPONSE | errors(404, 507),
        )
        router.add_api_route(
            "/jobs/{job_id}/results/{number}",
            self.result,
            methods=["GET"],
            response_class=Response,
            responses=RESULT_RESPONSE | errors(404, 406, 409, 422, 507),
        )
        for path, allowed in (("/jobs", ("GET", "POST")), ("/jobs/{job_id}", ("GET", "DELETE"))):
            others = [method for method in _METHODS if method not in allowed]
            router.add_api_route(path, _refuse(allowed), methods=others, include_in_schema=False)
        router.add_api_route("/queue", self.queue, methods=["GET"], response_model=QueueDocument, responses=errors(507))
        return router

    async def submit(
        self,
        request: Request,
        model: ModelQuery = None,
        priority: Annotated[
            Priority, Query(description="`high` is one hour ahead of normal jobs in the queue, `low` one hour behind")
        ] = "normal",
        idempotency_key: Annotated[
            str | None,
            Header(
                min_length=1,
                max_length=255,
                description="a repeated request with the same key returns the job of the first request",
            ),
        ] = None,
    ) -> Response:
        """Accept a job; its encrypted inputs are on disk before the response is sent."""
        jobs, who = self._require(), self._who(request)
        chosen = self._choose(request, model)
        job_id, repeated = await jobs.accept(who.name, request, priority, idempotency_key, chosen)
        document = await jobs.document(who, job_id)
        headers = {"Location": f"/v1/jobs/{job_id}", **({"Idempotency-Replayed": "true"} if repeated else {})}
        return JSONResponse(document.model_dump(mode="json"), 202, headers)

    async def jobs(
        self,
        request: Request,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        before: Annotated[str | None, Query(pattern=_ID, description="list only jobs older than this id")] = None,
        every_client: Annotated[
            bool, Query(alias="all", description="list the jobs of all clients; requires the role admin")
        ] = False,
    ) -> JobList:
        """List the client's own jobs, newest first, or those of all clients."""
        jobs, who = self._require(), self._who(request)
        if every_client and not who.sees_all:
            raise ForbiddenError(
                "the token does not permit this request", expected="the role admin", do="list your own jobs: all=false"
            )
        return JobList(jobs=await jobs.listing(who.owner if every_client else who.name, limit, before))

    async def job(self, request: Request, job_id: _JobId) -> JobDocument:
        """Return the state and progress of a job."""
        return await self._require().document(self._who(request), job_id)

    async def cancel(self, request: Request, job_id: _JobId) -> JobDocument:
        """Cancel a job, including volumes in progress, and delete its inputs and results."""
        return await self._require().cancel(self._who(request), job_id)

    async def events(self, request: Request, job_id: _JobId) -> Response:
        """Stream the job as server-sent events: `progress` whenever it changes, then `end`."""
        jobs, who = self._require(), self._who(request)
        # Errors raised before the stream starts become problem documents.
        jobs.require_free_watch(who.name)
        await jobs.document(who, job_id)
        # The middleware passes HEAD on as GET; its response must not wait for the end of the job.
        stream = _events(jobs, who, job_id) if request.state.method != "HEAD" else ()
        return StreamingResponse(stream, media_type=EVENTS, headers={"Cache-Control": "no-store"})

    async def result(self, request: Request, job_id: _JobId, number: Annotated[int, Path(ge=0)]) -> Response:
        """Return the mask of a volume, or its metadata as JSON."""
        media_type = negotiate(request.headers.get("accept"))
        document, mask = await self._require().result(self._who(request), job_id, number)
        return result_response(document, mask, media_type)

    async def queue(self) -> QueueDocument:
        """Return the length of the queue of all clients, the expected wait, and the model's replicas."""
        queue = QueueDocument(queued=0, running=0, expected_wait_s=None)
        if self._jobs is not None:
            queue = await self._jobs.queue()
        return queue.model_copy(update=dict(await self._load()))

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        if self._jobs is None:
            yield
            return
        async with self._jobs.running():
            yield

    def _require(self) -> Jobs:
        if self._jobs is None:
            raise NotFoundError(
                "jobs are disabled on this endpoint", do="use /v1/segment, or set jobs_dir in the config file"
            )
        return self._jobs


def _refuse(allowed: Sequence[str]) -> Callable[[], Coroutine[Any, Any, None]]:
    """Return a handler for all other methods: the `Allow` header of Starlette lists only one route of a path."""

    async def refuse() -> None:
        raise HTTPException(HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": ", ".join(allowed)})

    return refuse


async def _events(jobs: Jobs, who: Requester, job_id: str) -> AsyncIterator[str]:
    unchanged = 0
    with jobs.watching(who.name):
        async for job in jobs.changes(who, job_id):
            unchanged = unchanged + 1 if job is None else 0
            if job is not None:
                name = "progress" if job.ended_at is None else "end"
                yield f"event: {name}\ndata: {job.model_dump_json()}\n\n"
            elif unchanged % _KEEP_ALIVE_AFTER == 0:
                # Proxies close connections that transfer no data.
                yield ": unchanged\n\n"
