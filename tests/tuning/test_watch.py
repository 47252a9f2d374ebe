"""Reasons of failed trials."""

from __future__ import annotations

from ray.exceptions import RayTaskError

from gtvray.errors import TrainingError
from gtvray.tuning.watch import SweepStatus, error_reason, sparkline


def test_progress_is_a_line_with_states_best_trial_and_its_curve() -> None:
    states, best = {"completed": 2, "running": 1}, ("t1", (0.1, 0.3, 0.4))
    status = SweepStatus("t2", 3, 8, 0.25, 0.4, 3, 2, 100.0, states=states, best=best)
    assert status.text(6) == ("trial 3/6 (2 completed, 1 running), t2 epoch 3/8, DSC 0.250, best 0.400 of t1 ▁▅█")
    ended = SweepStatus("t2", 3, 8, 0.25, 0.4, 3, 3, 100.0, "stopped at rung 1 (epoch 3)", {"stopped": 1}, best)
    assert "t2 stopped at rung 1 (epoch 3), best" in ended.text(6)


def test_sparkline_has_the_last_values_from_lowest_to_highest() -> None:
    assert sparkline([]) == ""
    assert sparkline([0.5, 0.5]) == "▁▁"
    assert sparkline([9, *range(20)]) == "▁▁▁▂▂▂▃▃▃▄▄▅▅▅▆▆▆▇▇█"


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
