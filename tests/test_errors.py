"""The error classes: messages, exit codes and HTTP problem documents."""

from __future__ import annotations

import pickle

import pytest

from gtvray import errors
from gtvray.errors import ConfigError, FailureError, GtvrayError, InputError


def _tree(kind: type[GtvrayError]) -> list[type[GtvrayError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _tree(child))]


KINDS = [kind for kind in _tree(GtvrayError) if kind.__module__ == errors.__name__]
STATUS = {
    "GtvrayError": 500, "InputError": 422, "ConfigError": 422, "DataError": 422, "VolumeError": 422,
    "GeometryError": 422, "AuthError": 401, "ForbiddenError": 403, "NotFoundError": 404, "TooLargeError": 413,
    "RequestError": 400, "SlowBodyError": 408, "ContentTypeError": 415, "NotAcceptableError": 406,
    "ConflictError": 409, "FailureError": 500, "ResourceError": 503, "StorageFullError": 507, "BusyError": 503,
    "DeviceLostError": 503, "ClientLimitError": 429, "NotReadyError": 503, "NotReproducedError": 503,
    "BundleError": 500, "DeadlineError": 504, "TrainingError": 500, "GateRefusedError": 409,
}  # fmt: skip


def test_docstring_matches_the_class_tree() -> None:
    assert {kind.__name__: kind.http_status for kind in KINDS} == STATUS
    assert errors.__doc__ is not None
    drawn = [word for line in errors.__doc__.splitlines() for word in line.split() if word.endswith("Error")]
    assert sorted(drawn) == sorted(STATUS)


@pytest.mark.parametrize("kind", KINDS)
def test_exit_code_separates_input_errors_from_failures(kind: type[GtvrayError]) -> None:
    assert kind.exit_code == (2 if issubclass(kind, InputError) else 1)
    assert kind is GtvrayError or issubclass(kind, InputError) != issubclass(kind, FailureError)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_picklable(kind: type[GtvrayError]) -> None:
    error = kind("it broke", where="here", expected=1, found=0, do="mend it")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (str(copy), copy.fields, copy.args) == (str(error), error.fields, error.args)


def test_message_has_at_most_five_lines() -> None:
    endless = "word \n\t" * 1000
    lines = str(ConfigError(f"bad\nkey {endless}", where=endless, expected=endless, found=endless, do=endless)).split(
        "\n"
    )
    assert len(lines) == 5
    assert max(map(len, lines[:-1])) <= 320
    # `do` is longer, because a command with long paths must stay complete.
    assert len(lines[-1]) <= 1520
    assert [line.split(":")[0] for line in lines[1:]] == ["  where", "  expected", "  found", "  do"]


def test_omitted_fields_are_not_printed() -> None:
    assert str(GtvrayError("alone")) == "alone"
    # 0 and False are values; None omits a field.
    assert str(GtvrayError("x", found=0, do=None)) == "x\n  found: 0"


def test_problem_document_follows_rfc_9457() -> None:
    assert ConfigError("no", where="cfg.yaml", do="fix").problem("/jobs/1") == {
        "type": "urn:gtvray:ConfigError", "title": "no", "status": 422, "where": "cfg.yaml", "do": "fix",
        "instance": "/jobs/1",
    }  # fmt: skip
    assert "instance" not in ConfigError("no").problem()
