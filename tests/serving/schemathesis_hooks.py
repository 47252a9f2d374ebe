"""Hooks of Schemathesis: real scans as bodies, and a check that every error is a problem document.

Loaded by the process that `test_openapi_requests.py` starts, from the path SCHEMATHESIS_HOOKS names.
"""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import strategies as st

# Files with valid scans, which the test has written.
SCANS = [path.read_bytes() for path in sorted(Path(os.environ["GTVRAY_TEST_SCANS"]).iterdir())]
GZIPPED = [scan for scan in SCANS if scan.startswith(b"\x1f\x8b")]
_PROBLEM_FIELDS = {"type", "title", "status", "instance"}
_NUMBERS = count()

schemathesis.openapi.format("binary", st.sampled_from(SCANS))
schemathesis.openapi.media_type("application/octet-stream", st.sampled_from(SCANS))
schemathesis.openapi.media_type("application/gzip", st.sampled_from(GZIPPED))


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Use a valid idempotency key once: another body under the same key is refused, by intention."""
    name = next((name for name in case.headers or () if name.lower() == "idempotency-key"), None)
    if name is not None and 0 < len(str(case.headers[name])) <= 255:
        case.headers[name] = str(next(_NUMBERS))


@schemathesis.check
def every_error_is_a_problem_document(context: Any, response: Any, case: Any) -> None:
    """RFC 9457, also for statuses that the document does not list, such as 405."""
    if response.status_code < 400:
        return
    assert response.headers["content-type"] == ["application/problem+json"], response.headers["content-type"]
    if case.method == "HEAD":
        return
    problem = response.json()
    assert problem.keys() >= _PROBLEM_FIELDS, problem
    assert problem["status"] == response.status_code
    assert [problem["instance"]] == response.headers["x-request-id"]
