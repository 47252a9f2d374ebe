"""A training whose workers cannot connect, then a group whose creator dies: `python broken_group.py FOLDER`.

It runs in its own process, because the variables that Gloo reads must be set before the cluster is started.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from gtvray.config import Config
from gtvray.data import CachedCase
from gtvray.errors import GtvrayError
from gtvray.runtime import connect, remove_orphaned_groups
from gtvray.training import fit_distributed


def main(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    sides = [
        [CachedCase(name, Path(place), meta) for name, place, meta in job[side]] for side in ("train", "selection")
    ]
    error = ""
    with connect(cpus=2):
        try:
            list(fit_distributed(Config.model_validate(job["config"]), *sides, folder / "run"))
        except GtvrayError as caught:
            error = str(caught)
        standing = _standing()
        orphans = _orphaned_group()
    (folder / "found.json").write_text(json.dumps({"error": error, "standing": standing, "orphans": orphans}))


def _standing() -> list[str]:
    from ray.util.placement_group import placement_group_table

    return [group["state"] for group in placement_group_table().values() if group["state"] != "REMOVED"]


def _orphaned_group() -> int:
    """Number of groups removed after the death of the actor that created one."""
    import ray
    from ray.util.placement_group import placement_group

    @ray.remote(num_cpus=0)
    class Creator:
        def create(self) -> None:
            self.group = placement_group([{"CPU": 2}])
            ray.get(self.group.ready())

    creator = Creator.remote()
    ray.get(creator.create.remote())
    assert remove_orphaned_groups() == 0
    ray.kill(creator)
    deadline = time.monotonic() + 30
    while not (removed := remove_orphaned_groups()) and time.monotonic() < deadline:
        time.sleep(0.2)
    while _standing() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert _standing() == []
    return removed


if __name__ == "__main__":
    main(Path(sys.argv[1]))
