"""The work of a process in each of its log lines: key=value pairs before the message, as in the endpoint's lines."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_PACKAGE = __name__.partition(".")[0]
# By block, so that blocks may end in any order: a training is a generator that can be left open.
_active: dict[object, str] = {}


@contextmanager
def log_fields(**fields: object) -> Iterator[None]:
    """Put key=value pairs before every message that gtvray logs in this process, for the duration of a `with` block.

    It applies to all threads, whatever handlers and formats are configured; the latest block counts.
    """
    _install()
    block = object()
    _active[block] = " ".join(f"{name}={value}" for name, value in fields.items())
    try:
        yield
    finally:
        del _active[block]


def _install() -> None:
    create = logging.getLogRecordFactory()
    if getattr(create, "of_gtvray", False):
        return

    def create_with_fields(*arguments: Any, **named: Any) -> logging.LogRecord:
        record = create(*arguments, **named)
        if _active and record.name.partition(".")[0] == _PACKAGE:
            pairs = list(_active.values())[-1]
            # A message without arguments is not formatted.
            record.msg = f"{pairs.replace('%', '%%') if record.args else pairs} {record.msg}"
        return record

    create_with_fields.of_gtvray = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(create_with_fields)
