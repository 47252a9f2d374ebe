"""The card of a promoted model: intended use, data, accuracy and limits (Mitchell et al., Model Cards, 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gtvray import __version__
from gtvray.evaluation import METRICS, summarise
from gtvray.io import Table
from gtvray.models import Bundle
from gtvray.promotion.document import Document, Section
from gtvray.promotion.gate import Evidence, Judgement, Request

_WORST = 5
_INTENDED = (
    "Research on automatic contouring of tumours in CT scans that resemble the training data. The mask is a proposal: "
    "a clinician must review and correct it before any use."
)
_LIMITS = (
    "It was measured on the held-out cases of one dataset only. Other scanners, protocols, anatomies and contouring "
    "conventions were not tested.",
    "Held-out cases come from the same source as the training cases, so scores elsewhere are likely to be lower.",
    "An empty mask does not mean that there is no tumour.",
    "The domain check compares a scan with the training data's ranges; a scan that passes may still be unsuitable.",
)


def override_notice(judgement: Judgement, request: Request) -> list[str]:
    """Return the notice of an override of the gate; empty if the gate accepted the model."""
    if not judgement.overridden:
        return []
    return [f"The promotion gate refused this model. {request.by} promoted it anyway; reason: {request.override}"]


def model_card(bundle: Bundle, evidence: Evidence, judgement: Judgement, request: Request) -> Document:
    """Make the card of a model from its bundle and the evidence of its promotion."""
    summary = summarise(evidence.candidate)
    worst = sorted(evidence.candidate, key=lambda score: score.dsc)[:_WORST]
    return Document(
        title=f"Model {bundle.digest[:12]}",
        lead=override_notice(judgement, request),
        sections=[
            Section("Intended use", [_INTENDED]),
            Section("Model", table=Table(("", ""), list(_model(bundle)))),
            Section("Training data", table=Table(("", ""), list(_data(bundle)))),
            Section(
                f"Accuracy on {len(evidence.candidate)} held-out cases",
                [f"HD95: {summary['hd95_definition']}.", *([summary["nsd_note"]] if summary["nsd_note"] else [])],
                table=Table(("score", "mean", "low (95 %)", "high (95 %)", "median"), list(_scores(summary))),
            ),
            Section(
                "Worst cases",
                [f"{summary['missed']} of {summary['cases']} masks are empty where there is a tumour."],
                table=Table(
                    ("case", "DSC", "HD95 (mm)", "volume error (ml)"),
                    [(w.case_id, f"{w.dsc:.3f}", f"{w.hd95_mm:.1f}", f"{w.volume_error_ml:+.1f}") for w in worst],
                ),
            ),
            Section("Limits", points=[*_LIMITS, *judgement.warnings]),
        ],
    )


def _model(bundle: Bundle) -> Iterator[tuple[str, object]]:
    yield "digest", bundle.digest
    yield "network", f"{bundle.network.kind}, {bundle.network.features or bundle.network.size}"
    yield "networks averaged", bundle.members
    yield "spacing (mm)", bundle.preprocessing.spacing_mm
    yield "patch (voxels)", bundle.patch_ijk
    yield "inference", f"{bundle.inference.backend}, {bundle.inference.precision}, {bundle.inference.mode}"
    yield "localised by", bundle.locator.digest if bundle.locator is not None else None
    yield "derived from", bundle.info.get("derived_from")
    yield "MLflow run", bundle.info.get("mlflow_run")
    yield "MLflow run of the sweep", bundle.info.get("sweep_run")
    yield "gtvray", __version__


def _data(bundle: Bundle) -> Iterator[tuple[str, object]]:
    data: dict[str, Any] = bundle.info.get("training_data", {})
    yield "fingerprint", data.get("digest")
    yield "licence", data.get("licence", "not stated")
    yield "cases", data.get("cases")
    yield "corrected masks", _corrections(data)
    yield "median spacing (mm)", data.get("spacing_mm")
    yield "median tumour volume (ml)", data.get("tumour_ml")


def _corrections(data: dict[str, Any]) -> str:
    found = data.get("corrections", [])
    reviewers = ", ".join(sorted({each["reviewer"] for each in found}))
    derived = sum(each["derived_from"] is not None for each in found)
    return f"{len(found)}, of which {derived} derived from a model's mask; reviewed by {reviewers}" if found else "none"


def _scores(summary: dict[str, Any]) -> Iterator[tuple[str, object, object, object, object]]:
    for name, label in METRICS.items():
        values = summary[name]
        interval = values.get("interval") or (None, None)
        yield label, values["mean"], interval[0], interval[1], values["median"]
