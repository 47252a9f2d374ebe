"""Request ids, and the log lines that carry them. Neither ids nor lines can hold patient data."""

from __future__ import annotations

import logging
import re
import socket
import uuid
from logging.handlers import RotatingFileHandler
from pathlib import Path

# A child of Serve's own logger, so that lines are written to the replica's log file.
LOGGER = logging.getLogger("ray.serve.gtvray")
REQUEST_ID_HEADER = "X-Request-ID"
REQUEST_ID_FORM = "a UUID, or 32 hexadecimal digits"
_LOG_BYTES = 50 << 20
_FORM = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def new_request_id() -> str:
    """A random id."""
    return uuid.uuid4().hex


def is_request_id(text: str) -> bool:
    """Whether a client's id may appear in logs and responses.

    Names, case names and patient numbers do not have the required form; ids of decimal digits only are rejected, as
    they could be a patient number.
    """
    return _FORM.fullmatch(text) is not None and not text.replace("-", "").isdecimal()


def request_id_of(values: list[str]) -> str:
    """The id of a request with these values of the X-Request-ID header: the client's if valid, otherwise a new one."""
    return values[0] if len(values) == 1 and is_request_id(values[0]) else new_request_id()


def log_event(
    event: str, request_id: str, level: int = logging.INFO, *, trace: BaseException | None = None, **values: object
) -> None:
    """Log one line of key=value pairs about a request; values are numbers, fixed words or class names.

    The stack trace of an unexpected error is appended if it is passed as `trace`.
    """
    pairs = {"event": event, "request": request_id, **values}
    LOGGER.log(level, " ".join(f"{key}={value}" for key, value in pairs.items()), exc_info=trace)


def gateway_log(folder: Path, port: int) -> Path:
    """The log file of the gateway on this host."""
    return folder / f"gateway-{port}-{socket.gethostname()}.log"


def log_to_file(file: Path) -> None:
    """Write the lines of this process to a file too; its predecessor of 50 MiB has the suffix `.1`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = RotatingFileHandler(file, maxBytes=_LOG_BYTES, backupCount=1, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    LOGGER.addHandler(handler)
    # Also where Serve has not configured the level of its own loggers.
    LOGGER.setLevel(logging.INFO)
