"""The reason for lost workers, and the remedy when it was memory."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError

from gtvray.config import Config, with_dotted
from gtvray.errors import FailureError, ResourceError, TrainingError
from gtvray.training.lost import Lost, lost, lost_error

# Raised by Ray Data when Ray Train imports it.
pytestmark = pytest.mark.filterwarnings(r"ignore:`use_\w+` is deprecated")

PEER = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:41873")
SLOW = RuntimeError(
    "[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 20000ms for recv operation to complete"
)
DEAD = WorkerHealthCheckFailedError("Worker 1 health check failed", ActorDiedError())
NODE = RuntimeError("The actor died because its node has died. Node Id: 5f")
MEMORY = OutOfMemoryError("1 worker(s) were killed due to the node running low on memory. (pid=7)")


@pytest.mark.parametrize(
    ("failures", "said", "is_memory"),
    [
        ({0: PEER, 1: DEAD}, "worker 1: its process died", False),
        ({0: PEER, 1: NODE}, "worker 1: its machine was lost", False),
        ({0: PEER, 1: MEMORY}, "worker 1: Ray ended it because its machine was running out of memory", True),
        ({0: SLOW}, "worker 0: another worker did not answer within training.collective_timeout_s", False),
        ({0: PEER}, "worker 0: the connection to another worker was lost", False),
        ({1: ValueError("a stack\nand at its end what it was")}, "worker 1: and at its end what it was", False),
    ],
)
def test_the_cause_outranks_its_consequences(failures: dict[int, Exception], said: str, is_memory: bool) -> None:
    found = lost(WorkerGroupError("Training failed", failures))
    assert found.reason.startswith(said)
    assert found.is_memory == is_memory


def test_workers_that_never_started_for_lack_of_resources_are_distinguished() -> None:
    late = WorkerGroupStartupTimeoutError(num_workers=2)
    found = lost(ControllerError(late))
    assert found.is_resources
    error = lost_error(found, with_dotted(Config(), {"training.num_workers": 2}), 0)
    assert isinstance(error, ResourceError)
    assert "training.resources_wait_s" in error.fields["found"]


def test_a_lost_controller_is_named() -> None:
    assert lost(ActorDiedError()).reason.startswith("the training's controller: its process died")
    assert lost(KeyError()).reason == "the training's controller: KeyError"


@pytest.mark.parametrize(
    ("is_memory", "kind", "do"), [(True, ResourceError, "batch_size"), (False, TrainingError, "log")]
)
def test_the_final_error_names_a_remedy(is_memory: bool, kind: type[FailureError], do: str) -> None:
    config = with_dotted(Config(), {"training.num_workers": 2, "training.max_failures": 1})
    error = lost_error(Lost("worker 1: gone", is_memory), config, 7)
    assert isinstance(error, kind)
    assert error.fields["where"] == "2 workers, after epoch 7 and 1 restarts"
    assert do in error.fields["do"]
    assert len(str(error).splitlines()) <= 5
