"""Ids of requests: made by the server, or a client's if it can hold nothing about a patient."""

from __future__ import annotations

import re
import uuid

REQUEST_ID_HEADER = "X-Request-ID"
REQUEST_ID_FORM = "a UUID, or 32 hexadecimal digits"
_FORM = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def new_request_id() -> str:
    """A random id."""
    return uuid.uuid4().hex


def is_request_id(text: str) -> bool:
    """Whether a client's id may stand in logs and answers.

    Names, case names and the numbers of patients do not have this form; digits alone are refused, whatever their count.
    """
    return _FORM.fullmatch(text) is not None and not text.replace("-", "").isdecimal()


def request_id_of(given: list[str]) -> str:
    """The id of a request that came with these values of X-Request-ID: its own, or a new one."""
    return given[0] if len(given) == 1 and is_request_id(given[0]) else new_request_id()
