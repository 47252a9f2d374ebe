"""MLflow's artifact store: the client that an object store needs, and errors that explain its faults."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from urllib.parse import urlparse

from gtvray.errors import GtvrayError, ResourceError
from gtvray.runtime import without_credentials
from gtvray.tracking.faults import mlflow_faults, reason_of

_FULL = (errno.ENOSPC, errno.EDQUOT)
_CLIENT = "boto3"


def require_artifact_client(location: str) -> None:
    """Check that this process can read and write an artifact location; one that a server proxies needs no package.

    Args:
        location: URI of the artifacts of an experiment, run or model.

    Raises:
        ResourceError: a package is missing.
    """
    if urlparse(location).scheme == "s3" and find_spec(_CLIENT) is None:
        raise _no_client(location)


@contextmanager
def artifact_errors(what: str, location: str, do: str) -> Iterator[None]:
    """Convert faults of the artifact store raised in the `with` block to a `ResourceError`.

    An `OSError` of a full disk is raised unchanged.

    Args:
        what: the fault, such as "the files of this model cannot be read".
        location: URI of the artifacts.
        do: the instruction.
    """
    try:
        yield
    except GtvrayError:
        raise
    except ModuleNotFoundError as error:
        if error.name != _CLIENT:
            raise
        raise _no_client(location) from error
    except mlflow_faults() as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise
        raise ResourceError(what, where=_shown(location), found=reason_of(error), do=do) from error


def _no_client(location: str) -> ResourceError:
    return ResourceError(
        "the artifacts of this MLflow store are in S3, and the S3 client is not installed",
        where=_shown(location),
        expected=f"the package {_CLIENT}",
        do="pip install 'gtvray[s3]', or start the MLflow server with --artifacts-destination, so that it reads and "
        "writes the objects itself",
    )


def _shown(location: str) -> str:
    # A path may have an "@" of its own.
    return location if urlparse(location).username is None else without_credentials(location)
