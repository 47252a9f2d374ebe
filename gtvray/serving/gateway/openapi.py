"""The OpenAPI document: bodies, security scheme and error responses, which FastAPI cannot derive from the routes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.openapi.utils import get_openapi

from gtvray.serving.gateway.results import GZIP, JSON, MASK_TYPES, SegmentationResult
from gtvray.serving.problems import MEDIA_TYPE, Problem

_BINARY = {"type": "string", "format": "binary"}
VOLUME_BODY: dict[str, Any] = {
    "description": "a NIfTI (.nii, .nii.gz) or NRRD (.nrrd) file, recognised by its first bytes",
    "required": True,
    "content": {"application/octet-stream": {"schema": _BINARY}, GZIP: {"schema": _BINARY}},
}


def _header(description: str, kind: str, *, required: bool = True) -> dict[str, Any]:
    return {"description": description, "schema": {"type": kind}, "required": required}


_REQUEST_ID = {"X-Request-ID": _header("id of the request in the server's log", "string")}
_RESULT_HEADERS = {
    "X-Gtvray-Model-Digest": _header("sha256 of the manifest of the model's bundle", "string"),
    "X-Gtvray-Model-Version": _header("version of the model", "string"),
    "X-Gtvray-Volume-Ml": _header("volume of the mask in ml", "number"),
    "X-Gtvray-Mode": _header("inference mode", "string"),
    "X-Gtvray-Fallback": _header("why another mode than the model's was used", "string", required=False),
    "X-Gtvray-Out-Of-Domain": _header("how the scan differs from the training data", "string", required=False),
    "X-Gtvray-Patches": _header("patches that the network was run on", "integer"),
    "X-Gtvray-Patches-Skipped": _header("further patches that mode `exhaustive` would have run", "integer"),
    "X-Gtvray-Volume-Skipped-Share": _header("share of the scan's volume that no patch covered", "number"),
    "X-Gtvray-Milliseconds": _header("time on the server", "integer"),
    "X-Gtvray-Notice": _header("the intended use", "string"),
}
_JOB_HEADERS = {
    "Location": _header("address of the job", "string"),
    "Idempotency-Replayed": _header("`true` for the job of an earlier request", "string", required=False),
}
# Without Retry-After, a 503 means that an operator has to intervene: the golden cases are not reproduced.
_RETRY = {"Retry-After": _header("seconds after which to try again", "integer", required=False)}
_ERROR_HEADERS = {
    401: {"WWW-Authenticate": _header("how to authenticate", "string")},
    429: _RETRY,
    503: _RETRY,
}
_HEADERS = {**_REQUEST_ID, **_RESULT_HEADERS, **_JOB_HEADERS, **_ERROR_HEADERS[401], **_RETRY}


def _references(headers: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in headers}


RESULT_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the mask, or with `Accept: application/json` its metadata",
        "headers": _references(_RESULT_HEADERS),
        "model": SegmentationResult,
        "content": {**{kind: {"schema": _BINARY} for kind in MASK_TYPES}, JSON: {}},
    }
}
ACCEPTED_RESPONSE: dict[int | str, dict[str, Any]] = {
    202: {"description": "the job", "headers": _references(_JOB_HEADERS)}
}
ModelQuery = Annotated[
    str | None,
    Query(alias="model", max_length=256, description="name of a served model; by default the endpoint's default model"),
]
_STATUS = {
    400: "malformed request",
    401: "no valid bearer token",
    403: "not permitted for this token",
    404: "not found, or not owned by this client",
    406: "none of the accepted media types is available",
    408: "the body arrives too slowly",
    409: "not possible in the current state",
    413: "the body or the volume exceeds its limit",
    415: "unsupported type of body",
    422: "the body is not a valid volume, or a parameter is invalid",
    429: "rate limit or upload limit of this client exceeded; see Retry-After",
    500: "unexpected error; the server's log has the details under `instance`",
    503: "not available; see Retry-After, which is absent if an operator has to intervene",
    504: "not ready within the time limit",
    507: "the disk is full",
}
_ALWAYS = (400, 500, 503)
# Additional statuses of every route that requires a token.
_PROTECTED = (401, 403, 429)
_SCHEME = "bearer"


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that can fail with these statuses, beside those of every route."""
    return {status: _problem(status) for status in sorted({*_ALWAYS, *statuses})}


def install_openapi(app: FastAPI, open_paths: frozenset[str]) -> None:
    """Complete the OpenAPI document of an application.

    Args:
        app: the application.
        open_paths: paths that need no token.
    """
    app.openapi = _builder(app, open_paths)  # type: ignore[method-assign]  # FastAPI's way to extend the document


def _builder(app: FastAPI, open_paths: frozenset[str]) -> Callable[[], dict[str, Any]]:
    def build() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            components = document.setdefault("components", {})
            components["headers"] = _HEADERS
            components["securitySchemes"] = {_SCHEME: {"type": "http", "scheme": "bearer"}}
            schemas = components.setdefault("schemas", {})
            schemas["Problem"] = Problem.model_json_schema()
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    _complete(operation, path not in open_paths)
            app.openapi_schema = document
        return app.openapi_schema

    return build


def _complete(operation: dict[str, Any], protected: bool) -> None:
    responses = operation["responses"]
    # FastAPI's own validation errors are answered as problem documents.
    if "HTTPValidationError" in str(responses.get("422")):
        responses["422"] = _problem(422)
    if protected:
        operation["security"] = [{_SCHEME: []}]
        responses |= {str(status): _problem(status) for status in _PROTECTED}
    for response in responses.values():
        response["headers"] = _references(_REQUEST_ID) | response.get("headers", {})
    operation["responses"] = dict(sorted(responses.items()))


def _problem(status: int) -> dict[str, Any]:
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    headers = {"headers": _references(_ERROR_HEADERS[status])} if status in _ERROR_HEADERS else {}
    return {"description": _STATUS[status], **headers, "content": {MEDIA_TYPE: schema}}
