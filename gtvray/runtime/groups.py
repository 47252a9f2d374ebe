"""Placement groups of the connected job, by the actor that created them.

Ray keeps a placement group until the job ends, even if the actor that created it has died (ray-project/ray#58515). The
public API does not name the creator, so these functions read Ray's table of placement groups.
"""

from __future__ import annotations

from typing import Any

import ray


def remove_groups_of(actor_id: str) -> None:
    """Remove the placement groups that an actor has created.

    Args:
        actor_id: hexadecimal id of the actor.
    """
    for group in placement_groups():
        if group.creator_actor_id.hex() == actor_id:
            _remove(group)


def remove_orphaned_groups() -> int:
    """Remove the placement groups of this job whose creating actor has died; returns how many."""
    from ray._private.state import state

    job = ray.get_runtime_context().get_job_id()
    # Groups that the driver itself or a task created have an id of zeros or ones.
    created = [group for group in placement_groups() if group.creator_job_id.hex() == job and not group.is_detached]
    orphaned = [
        group
        for group in created
        if (actor := state.actor_table(group.creator_actor_id.hex())) and actor.get("State") == "DEAD"
    ]
    for group in orphaned:
        _remove(group)
    return len(orphaned)


def placement_groups() -> list[Any]:
    """Rows of Ray's table of placement groups that have not been removed, of all jobs."""
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData as Row

    rows = [Row.FromString(row) for row in state._connect_and_get_accessor().get_placement_group_table()]
    return [row for row in rows if row.state != Row.REMOVED]


def _remove(row: Any) -> None:
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    remove_placement_group(PlacementGroup(ray.PlacementGroupID(row.placement_group_id)))
