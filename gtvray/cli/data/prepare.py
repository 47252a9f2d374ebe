"""`gtvray data prepare`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from gtvray.cli.common import WORKSPACE, ConfigOption, JsonOption, Progress, SetOption, WorkspaceOption, emit


def prepare(
    folder: Annotated[Path, typer.Argument(help="A folder of cases with masks.")],
    workspace: WorkspaceOption = WORKSPACE,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fill the workspace's cache with prepared cases, so that a sweep with these settings starts at once.

    Cases that are there are held against their checksums, and made again if damaged. The cache is bounded by
    cache.max_gb; cases least recently used make room, but never those of a run under way.

    Example: gtvray data prepare Naso_GTV preprocessing.spacing_mm=[1,1,3]
    """
    from gtvray.config import load_config
    from gtvray.data import CaseCache
    from gtvray.datasets import index_dataset
    from gtvray.io import Workspace

    settings, place = load_config(config, override or []), Workspace(workspace)
    dataset = index_dataset(folder)
    progress = Progress({"prepare": len(dataset.cases) * 0.5}, as_json)
    with progress.live(), place.lock():
        progress.begin("prepare", dataset.title)
        cache = CaseCache(place.cache, settings.preprocessing, settings.cache)
        began = time.perf_counter()
        prepared = cache.prepare_all(dataset.cases, progress.advance)
        seconds = time.perf_counter() - began
    size_bytes = sum(file.stat().st_size for entry in {case.folder for case in prepared} for file in entry.iterdir())
    notes = {case.case_id: case.meta["notes"] for case in prepared if case.meta["notes"]}
    result = {
        "cases": len(prepared),
        "made": cache.made,
        "found": cache.found,
        "evicted": cache.evicted,
        "seconds": round(seconds, 3),
        "cases_per_s": round(len(prepared) / seconds, 2),
        "bytes": size_bytes,
        "cache_bytes": cache.size_bytes,
        "cache": str(place.cache),
        "notes": notes,
    }
    text = (
        f"{result['cases']} cases, {size_bytes / 1e6:.1f} MB: {cache.made} prepared, {cache.found} were there, "
        f"{cache.evicted} evicted; {result['cases_per_s']} cases/s\n{place.cache} holds {cache.size_bytes / 1e6:.1f} MB"
    )
    told = [f"case {case_id}: {note}" for case_id, found in notes.items() for note in found]
    emit(result, as_json, "\n".join([*told, text]))
