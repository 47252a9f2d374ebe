"""The id of a run, by which a restarted command continues the run instead of starting a new one."""

from __future__ import annotations

import os
import re
import secrets
import time

from gtvray.errors import InputError

RUN_ID_VARIABLE = "GTVRAY_RUN_ID"
_VALID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def new_run_id() -> str:
    """Return a new id from the current time and a random suffix."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def given_run_id() -> str | None:
    """Return the id in GTVRAY_RUN_ID, with which a sweep or training run is continued; None if it is not set.

    Raises:
        InputError: it cannot be part of a file name.
    """
    given = os.environ.get(RUN_ID_VARIABLE)
    if given and not _VALID.fullmatch(given):
        raise InputError(
            "invalid run id",
            where=RUN_ID_VARIABLE,
            expected="up to 64 letters, digits, dots, dashes and underscores, the first a letter or digit",
            found=given,
        )
    return given or None
