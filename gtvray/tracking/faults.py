"""Faults of MLflow: which ones are permanent, and errors that explain the others."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from gtvray.errors import GtvrayError, InputError, ResourceError
from gtvray.runtime import without_credentials
from gtvray.tracking.database import database_path, explain_database_error

# Error codes with which MLflow refuses a request that it would refuse again: a deleted run or experiment, a changed
# param, an invalid name. All other codes are retried, such as TEMPORARILY_UNAVAILABLE of a locked database, and
# BAD_REQUEST, which MLflow also gives for faults of its database.
PERMANENT_CODES = frozenset({"INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST"})
# An artifact that is larger than a server or proxy accepts.
_PERMANENT_HTTP = frozenset({413})


def is_permanent(error: Exception) -> bool:
    """Return whether MLflow would refuse the same request again on every retry."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in PERMANENT_CODES
    if isinstance(error, OSError):
        response = getattr(error, "response", None)
        return getattr(response, "status_code", None) in _PERMANENT_HTTP
    # The client itself refuses values of a wrong type.
    return isinstance(error, InputError | TypeError | ValueError | KeyError)


def reason_of(error: Exception) -> str:
    """Describe an error in one line."""
    if isinstance(error, GtvrayError):
        return "; ".join([error.what, *(error.fields[name] for name in ("found", "do") if name in error.fields)])
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def mlflow_faults() -> tuple[type[Exception], ...]:
    """Return the classes of the errors that MLflow's client raises when MLflow or its artifact store fails."""
    from mlflow.exceptions import MlflowException

    faults: tuple[type[Exception], ...] = (MlflowException, OSError)
    # Errors of the S3 client derive from neither, and exist only once it has been loaded.
    if "boto3" in sys.modules:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        faults += (Boto3Error, BotoCoreError, ClientError)
    return faults


@contextmanager
def mlflow_errors(uri: str, do: str = "check the server and tracking.uri, and run this again") -> Iterator[None]:
    """Convert faults of MLflow raised in the `with` block to a `ResourceError` or `InputError` with an instruction.

    Args:
        uri: the tracking URI.
        do: the instruction, unless the fault is a known one of an SQLite database.
    """
    try:
        yield
    except GtvrayError:
        raise
    except mlflow_faults() as error:
        explained = explain_database_error(database_path(uri), str(error)) if uri.startswith("sqlite") else None
        what = "MLflow refused the request" if is_permanent(error) else "MLflow does not answer"
        where = uri if uri.startswith("sqlite") else without_credentials(uri)
        raise explained or ResourceError(what, where=where, found=reason_of(error), do=do) from error
