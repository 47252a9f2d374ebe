"""Errors reported to users, with exit code and HTTP status.

GtvrayError
├── InputError              exit 2, 422   invalid user input
│   ├── ConfigError                       unknown setting or invalid value
│   ├── DataError                         invalid case or dataset
│   │   ├── VolumeError                   invalid or damaged volume file
│   │   └── GeometryError                 mismatched or unusable voxel grids
│   ├── AuthError           401           missing or wrong token
│   ├── ForbiddenError      403           token without the required role
│   ├── NotFoundError       404           unknown file, model, case or job
│   ├── TooLargeError       413           size limit exceeded
│   ├── RequestError        400           malformed HTTP request
│   ├── NotAcceptableError  406           no media type of the answer that the client accepts
│   ├── ConflictError       409           not possible in the present state of a job
│   ├── SlowBodyError       408           request body that arrives too slowly
│   └── ContentTypeError    415           body of another known file format
└── FailureError            exit 1, 500   valid input, but the operation failed
    ├── ResourceError       503           disk, port, memory, Ray or MLflow unavailable
    │   ├── StorageFullError 507          disk full
    │   └── DeviceLostError               GPU unusable by its process until that is restarted
    ├── BusyError           503           service overloaded, retry later
    │   └── ClientLimitError 429          a client's own limit reached, retry later
    ├── NotReadyError       503           no model promoted yet
    ├── NotReproducedError  503           masks differ from those at promotion
    ├── DeadlineError       504           time limit exceeded
    ├── BundleError                       bundle damaged or digest mismatch
    ├── TrainingError                     training cannot continue
    └── GateRefusedError    409           rejected by the promotion gate
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

_LONGEST_FIELD, _LONGEST_COMMAND = 300, 1500


class GtvrayError(Exception):
    """Base class of all reported errors, printed in at most five lines.

    Args:
        what: short statement of the fault.
        where: affected file, key or address.
        expected: valid value or state.
        found: actual value or state.
        do: how to resolve the problem.
    """

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        found: object = None,
        do: str | None = None,
    ) -> None:
        self.what = _one_line(what)
        self.fields: dict[str, str] = {
            # `do` may contain a shell command, which must stay complete.
            name: _one_line(value, _LONGEST_COMMAND if name == "do" else _LONGEST_FIELD)
            for name, value in (("where", where), ("expected", expected), ("found", found), ("do", do))
            if value is not None
        }
        super().__init__(self.what)

    def __str__(self) -> str:
        return "\n".join([self.what, *(f"  {name}: {value}" for name, value in self.fields.items())])

    def __reduce__(self) -> tuple[object, ...]:
        # Ray pickles exceptions, and the default reduction would lose keyword-only arguments.
        return _rebuild, (type(self), self.what, self.fields)

    def problem(self, instance: str | None = None) -> dict[str, object]:
        """Convert the error to an RFC 9457 problem document.

        Args:
            instance: URI of this occurrence.
        """
        body: dict[str, object] = {
            "type": f"urn:gtvray:{type(self).__name__}",
            "title": self.what,
            "status": self.http_status,
            **self.fields,
        }
        if instance is not None:
            body["instance"] = instance
        return body


class InputError(GtvrayError):
    """Invalid user input."""

    exit_code = 2
    http_status = 422


class ConfigError(InputError):
    """Unknown setting or invalid value."""


class DataError(InputError):
    """Invalid case or dataset."""


class VolumeError(DataError):
    """Invalid or damaged volume file."""


class GeometryError(DataError):
    """Voxel grids that differ between volumes or are unusable."""


class AuthError(InputError):
    """Missing or wrong token."""

    http_status = 401


class ForbiddenError(InputError):
    """Token without the required role."""

    http_status = 403


class NotFoundError(InputError):
    """Unknown file, model, case or job."""

    http_status = 404


class TooLargeError(InputError):
    """Size limit exceeded."""

    http_status = 413


class RequestError(InputError):
    """Malformed HTTP request."""

    http_status = 400


class NotAcceptableError(InputError):
    """No media type of the answer that the client accepts."""

    http_status = 406


class ConflictError(InputError):
    """Request that the present state of a job does not permit."""

    http_status = 409


class SlowBodyError(InputError):
    """HTTP request whose body arrives too slowly."""

    http_status = 408


class ContentTypeError(InputError):
    """Request body of a known format other than a volume file."""

    http_status = 415


class FailureError(GtvrayError):
    """Failure of an operation with valid input."""


class ResourceError(FailureError):
    """Unavailable disk space, port, memory, Ray cluster or MLflow server."""

    http_status = 503


class BusyError(FailureError):
    """Service overloaded; retry later."""

    http_status = 503


class StorageFullError(ResourceError):
    """Disk full."""

    http_status = 507


class DeviceLostError(ResourceError):
    """GPU that fails every further call of its process, which must be replaced."""


class ClientLimitError(BusyError):
    """Limit of one client reached; retry later."""

    http_status = 429


class NotReadyError(FailureError):
    """No model promoted yet."""

    http_status = 503


class NotReproducedError(FailureError):
    """Masks of a model differ from those at promotion; retrying does not help."""

    http_status = 503


class DeadlineError(FailureError):
    """Time limit exceeded."""

    http_status = 504


class BundleError(FailureError):
    """Damaged bundle, or one that does not match its digest."""


class TrainingError(FailureError):
    """Training that cannot continue."""


class GateRefusedError(FailureError):
    """Model rejected by the promotion gate."""

    http_status = 409


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its class if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _one_line(value: object, longest: int = _LONGEST_FIELD) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _rebuild(kind: type[GtvrayError], what: str, fields: Mapping[str, str]) -> GtvrayError:
    return kind(what, **fields)
