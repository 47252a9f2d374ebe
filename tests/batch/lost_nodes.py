"""A pool on simulated nodes that are lost: `python lost_nodes.py FOLDER` writes the outcome of each scan.

It runs in its own process, because the test session is connected to another cluster.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from ray import cloudpickle
from ray.cluster_utils import Cluster as Simulated

sys.path.insert(0, str(Path(__file__).parents[2]))

from gtvray.batch import ActorPool, PoolPlan, Result, Scan
from gtvray.runtime import Needs, connect
from tests.ports import head_arguments

# Workers do not have this folder on their path.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Steps:
    """Steps that take half a second and note where they run."""

    def load(self, scan: Scan) -> None: ...

    def run(self, scan: Scan, loaded: None) -> None:
        time.sleep(0.5)

    def store(self, scan: Scan, ran: None) -> Result:
        import ray

        node = ray.get_runtime_context().get_node_id()
        return Result(scan.name, {"scan": scan.name, "node": node}, "input", "mask")


def main(folder: Path) -> None:
    simulated = Simulated(initialize_head=True, head_node_args=head_arguments())
    simulated.add_node(num_cpus=1)
    lost = [simulated.add_node(num_cpus=1)]
    simulated.wait_for_nodes()
    results: list[Result] = []

    def ended(result: Result) -> None:
        results.append(result)
        on_lost = [each for each in results if each.row.get("node") == lost[-1].node_id]
        if len(lost) < 3 and len(on_lost) == 2:
            # The scans that the node has completed are recorded; those in progress are lost.
            simulated.remove_node(lost[-1], allow_graceful=False)
            lost.append(simulated.add_node(num_cpus=1))

    with connect(simulated.address):
        plan: Any = PoolPlan(2, Needs(1))
        pool = ActorPool(Steps, plan, wait_s=60, started=lambda scan: None, ended=ended)
        pool.run([Scan(f"s{number}", folder / f"s{number}", folder / f"m{number}") for number in range(40)])
    simulated.shutdown()
    rows = [(result.scan, result.error is None) for result in results]
    (folder / "found.json").write_text(json.dumps({"rows": rows, "lost": len(lost) - 1}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
