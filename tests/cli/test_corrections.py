"""`gtvray corrections`: add, list and propose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gtvray.datasets import index_dataset
from gtvray.errors import InputError
from gtvray.reports import review_order

from .command import call


def test_a_correction_is_added_and_listed(phantoms: Path, tmp_path: Path) -> None:
    case = index_dataset(phantoms).cases[0]
    workspace = ("--workspace", str(tmp_path / "runs"))
    added = call("corrections", "add", case.image, case.label, "--reviewer", "A", *workspace)
    assert added.code == 0, added.stderr
    assert "split.corrections=true" in added.stdout
    listed = call("corrections", "list", "--json", *workspace)
    (found,) = listed.json()["corrections"]
    assert (found["name"], found["reviewer"], found["derived_from"]) == ("correction-0001", "A", None)
    refused = call("corrections", "add", case.image, case.image, "--reviewer", "A", *workspace)
    assert "mask" in refused.error(2)


def test_failures_and_flags_are_proposed_before_uncertainty(tmp_path: Path) -> None:
    sound = {"volume_ml": 9.0, "out_of_domain": [], "fallback": None}
    rows = [
        {"scan": "sure", **sound, "uncertainty": {"expected_dice_loss": 0.1}},
        {"scan": "unsure", **sound, "uncertainty": {"expected_dice_loss": 0.6}},
        {"scan": "empty", **sound, "volume_ml": 0.0, "uncertainty": {"expected_dice_loss": 0.2}},
        {"scan": "foreign", **sound, "out_of_domain": ["spacing"], "uncertainty": {"expected_dice_loss": 0.1}},
        {"scan": "broken", "error": {"title": "damaged"}},
        {"scan": "unknown", **sound},
    ]
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"cases": rows}))
    order = review_order(path)
    assert [case.scan for case in order] == ["broken", "foreign", "empty", "unsure", "sure", "unknown"]
    assert [case.reason for case in order[:3]] == ["failed: damaged", "out of domain: spacing", "the mask is empty"]
    proposed = call("corrections", "propose", path, "--count", "2")
    assert "foreign" in proposed.stdout
    assert "unsure" not in proposed.stdout
    assert "did not follow Dice" in proposed.stdout, "the value of the order is stated"
    path.write_text("[]")
    with pytest.raises(InputError, match="not a report"):
        review_order(path)
