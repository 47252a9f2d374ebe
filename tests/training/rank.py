"""One of two data-parallel ranks: `python rank.py FOLDER RANK` trains every variant that FOLDER/job.json names."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch.distributed as dist

from gtvray.config import Config, with_dotted
from gtvray.data import CachedCase
from gtvray.training import fit
from gtvray.training.checkpoints import decide_start


def main(folder: Path, rank: int) -> None:
    job = json.loads((folder / "job.json").read_text())
    config = Config.model_validate(job["config"])
    train, selection = (
        [CachedCase(case_id, Path(folder), meta) for case_id, folder, meta in job[side]]
        for side in ("train", "selection")
    )
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    curves = {}
    for name, changes in job["variants"].items():
        # Decided once for all workers, as the driver of a group does.
        start = [decide_start(folder / name)[0] if rank == 0 else None]
        dist.broadcast_object_list(start, src=0)
        reports = fit(with_dotted(config, changes), train, selection, folder / name, start=start[0])
        curves[name] = [[report.train_loss, report.selection_dsc] for report in reports]
    dist.destroy_process_group()
    (folder / f"rank-{rank}.json").write_text(json.dumps(curves))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
