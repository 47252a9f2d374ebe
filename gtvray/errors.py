"""Every error gtvray shows to people, with its exit code and HTTP status.

GtvrayError
├── InputError              exit 2, 422   what the user gave is wrong
│   ├── ConfigError                       a configuration key or value
│   ├── DataError                         a case or a dataset
│   │   ├── VolumeError                   a file that is not a sound volume
│   │   └── GeometryError                 volumes that do not share a grid, or have no usable one
│   ├── AuthError           401           no token, or not the right one
│   ├── NotFoundError       404           no such model, case, or job
│   ├── TooLargeError       413           over a stated limit
│   ├── RequestError        400           an HTTP request that cannot be taken as it is
│   └── ContentTypeError    415           a body that is no volume file, but something else that is known
└── FailureError            exit 1, 500   the input was fine, the work failed
    ├── ResourceError       503           disk, port, memory, Ray, MLflow not to be had
    ├── BusyError           503           full: come again later
    ├── NotReadyError       503           nothing is promoted yet
    ├── NotReproducedError  503           a model gives other masks here than where it was promoted
    ├── DeadlineError       504           not done in the time allowed
    ├── BundleError                       a bundle is damaged or not what its digest says
    ├── TrainingError                     training cannot go on
    └── GateRefusedError    409           the promotion gate said no
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

_LONGEST_FIELD, _LONGEST_COMMAND = 300, 1500


class GtvrayError(Exception):
    """Says what is wrong, where, what was expected and found, and what to do; five lines at most.

    Args:
        what: one sentence naming the problem.
        where: file, key or address concerned.
        expected: what would have been right.
        found: what was there.
        do: the next step for the reader.
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
            # A command that is to be pasted must be whole, however long the paths in it.
            name: _one_line(value, _LONGEST_COMMAND if name == "do" else _LONGEST_FIELD)
            for name, value in (("where", where), ("expected", expected), ("found", found), ("do", do))
            if value is not None
        }
        super().__init__(self.what)

    def __str__(self) -> str:
        return "\n".join([self.what, *(f"  {name}: {value}" for name, value in self.fields.items())])

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross Ray's process borders by pickle, which would lose keyword-only arguments.
        return _rebuild, (type(self), self.what, self.fields)

    def problem(self, instance: str | None = None) -> dict[str, object]:
        """The error as an RFC 9457 problem document."""
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
    """What the user gave is wrong."""

    exit_code = 2
    http_status = 422


class ConfigError(InputError):
    """A configuration key or value is wrong."""


class DataError(InputError):
    """A case or a dataset is wrong."""


class VolumeError(DataError):
    """A file is not a sound volume."""


class GeometryError(DataError):
    """Volumes do not share a grid, or a grid is unusable."""


class AuthError(InputError):
    """No token, or not the right one."""

    http_status = 401


class NotFoundError(InputError):
    """The named thing does not exist."""

    http_status = 404


class TooLargeError(InputError):
    """Over a stated limit."""

    http_status = 413


class RequestError(InputError):
    """An HTTP request cannot be taken as it is."""

    http_status = 400


class ContentTypeError(InputError):
    """A body is no volume file, but something else that is known."""

    http_status = 415


class FailureError(GtvrayError):
    """The input was fine; the work failed."""


class ResourceError(FailureError):
    """Disk, port, memory, Ray or MLflow is not to be had."""

    http_status = 503


class BusyError(FailureError):
    """The service is full."""

    http_status = 503


class NotReadyError(FailureError):
    """Nothing has been promoted yet."""

    http_status = 503


class NotReproducedError(FailureError):
    """A model gives other masks here than where it was promoted; to wait does not help."""

    http_status = 503


class DeadlineError(FailureError):
    """Not done in the time allowed."""

    http_status = 504


class BundleError(FailureError):
    """A bundle is damaged, or is not what its digest says."""


class TrainingError(FailureError):
    """Training cannot go on."""


class GateRefusedError(FailureError):
    """The promotion gate said no."""

    http_status = 409


def _one_line(value: object, longest: int = _LONGEST_FIELD) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _rebuild(kind: type[GtvrayError], what: str, fields: Mapping[str, str]) -> GtvrayError:
    return kind(what, **fields)
