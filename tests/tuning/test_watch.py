"""Reasons of failed trials."""

from __future__ import annotations

from ray.exceptions import RayTaskError

from gtvray.errors import TrainingError
from gtvray.tuning.watch import error_reason


def test_reason_of_an_error_is_one_line_without_a_stack() -> None:
    assert error_reason(ValueError("first\n  second")) == "ValueError: first"
    assert error_reason(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_reason_of_a_wrapped_error_is_the_worker_s_own() -> None:
    cause = TrainingError("the loss is not finite", found="nan", do="lower optimizer.lr")
    wrapped = RayTaskError("step", "Traceback (most recent call last): ...", cause, pid=1, ip="127.0.0.1")
    reason = error_reason(wrapped)
    assert reason.startswith("the loss is not finite; ")
    assert "lower optimizer.lr" in reason
    assert "Traceback" not in reason
    assert "\n" not in reason
    assert error_reason(RayTaskError("step", "...", OSError("disk"), pid=1, ip="127.0.0.1")) == "OSError: disk"
