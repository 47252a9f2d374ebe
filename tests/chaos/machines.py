"""A training on a cluster of three machines, of which the one with the workers is lost: `python machines.py FOLDER`.

It runs in its own process, because the test session is connected to another cluster. The machines are raylets of one
real machine.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ray.cluster_utils import Cluster

sys.path.insert(0, str(Path(__file__).parents[2]))

from gtvray.config import Config
from gtvray.data import CachedCase
from gtvray.runtime import connect
from gtvray.training import fit_distributed
from tests.ports import head_arguments


def main(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    train, selection = (
        [CachedCase(case_id, Path(place), meta) for case_id, place, meta in job[side]]
        for side in ("train", "selection")
    )
    cluster = Cluster(initialize_head=True, head_node_args=head_arguments())
    machines = {node.node_id: node for node in (cluster.add_node(num_cpus=2) for _ in range(2))}
    cluster.wait_for_nodes()
    reports = []
    with connect(cluster.address):
        for report in fit_distributed(Config.model_validate(job["config"]), train, selection, folder / "run"):
            reports.append([report.epoch, report.train_loss, report.notes])
            if report.epoch == 2:
                cluster.remove_node(machines[_machine_of_workers()], allow_graceful=False)
        left = _groups()
    cluster.shutdown()
    (folder / "reports.json").write_text(json.dumps({"reports": reports, "left": left}))


def _machine_of_workers() -> str:
    from ray.util.placement_group import placement_group_table

    created = [group for group in placement_group_table().values() if group["state"] == "CREATED"]
    (machine,) = {machine for group in created for machine in group["bundles_to_node_id"].values()}
    return str(machine)


def _groups() -> list[str]:
    from ray.util.placement_group import placement_group_table

    return [group["state"] for group in placement_group_table().values() if group["state"] != "REMOVED"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
