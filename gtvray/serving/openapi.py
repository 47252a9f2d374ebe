"""The OpenAPI document: bodies, the security scheme and error responses, which FastAPI cannot read from the routes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.openapi.utils import get_openapi

from gtvray.serving.problems import MEDIA_TYPE, Problem
from gtvray.serving.results import GZIP, JSON, SegmentationResult

_BINARY = {"type": "string", "format": "binary"}
VOLUME_BODY: dict[str, Any] = {
    "description": "a NIfTI (.nii, .nii.gz) or NRRD (.nrrd) file, recognised by its first bytes",
    "required": True,
    "content": {"application/octet-stream": {"schema": _BINARY}, GZIP: {"schema": _BINARY}},
}
RESULT_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the mask, or with `Accept: application/json` its metadata",
        "model": SegmentationResult,
        "content": {GZIP: {"schema": _BINARY}, JSON: {}},
    }
}
ModelQuery = Annotated[
    str | None,
    Query(alias="model", max_length=256, description="name of a served model; by default the endpoint's default model"),
]
_STATUS = {
    400: "a request that HTTP or the endpoint does not permit",
    401: "no valid bearer token",
    403: "the token's role does not permit it",
    404: "unknown, or not of this client",
    406: "no media type that the client accepts",
    408: "the body arrives too slowly",
    409: "not possible in the present state",
    413: "the body or the volume exceeds its limit",
    415: "the body is of another known type",
    422: "the body is no valid volume, or a parameter is invalid",
    429: "too many requests or bytes of this client; Retry-After says when to try again",
    500: "unexpected; the server's log has the details under the instance",
    503: "not available at the moment; Retry-After says when to try again",
    504: "not ready in time",
    507: "the disk is full",
}
_ALWAYS = (400, 500, 503)
# Of every route that needs a token.
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
    operation["responses"] = dict(sorted(responses.items()))


def _problem(status: int) -> dict[str, Any]:
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {"description": _STATUS[status], "content": {MEDIA_TYPE: schema}}
