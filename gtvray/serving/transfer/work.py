"""Messages between the gateway and a replica: paths and keys. Scans and masks stay in files.

Ray may place the arguments and results of a call in its object store, which spills to disk. A replica on the gateway's
node therefore reads the scan from the spool and writes the mask there, both encrypted. A replica on another node copies
the encrypted files through the gateway's stream, at an address that cannot be guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from gtvray.errors import ResourceError
from gtvray.serving.transfer.sealed import FRAME_BYTES, SealedWriter, open_sealed
from gtvray.serving.transfer.spool import Body, Spool

if TYPE_CHECKING:
    from gtvray.inference import Coverage, MaskUncertainty

_STREAM_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Prediction:
    """A mask as .nii.gz, and its metadata.

    Attributes:
        mask_gz: the mask.
        volume_ml: its volume.
        coverage: which part of the scan the network was run on.
        digest, version, model: the model's bundle, its version and its name in the registry.
        out_of_domain: how the scan differs from the model's intended input.
        seconds: time of each stage: waiting for memory, preparing, locating, running the patches, making the mask.
        uncertainty: of the mask, by the probabilities that made it.
    """

    mask_gz: bytes = field(repr=False)
    volume_ml: float
    coverage: Coverage
    digest: str
    version: str
    out_of_domain: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    model: str = ""
    uncertainty: MaskUncertainty | None = None


@dataclass(frozen=True)
class Answer:
    """A prediction without its mask, which is in the result file.

    Attributes:
        prediction: with an empty `mask_gz`.
        mask_bytes: size of the mask.
    """

    prediction: Prediction
    mask_bytes: int


@dataclass(frozen=True)
class Work:
    """A scan to segment.

    Attributes:
        body: the scan's file.
        result: path for the mask.
        result_key: key that the mask is encrypted with.
        journal: path of the journal.
        node: id of the node on which the paths are valid.
        stream: address at which another node gets the scan and puts the mask; empty on a cluster of one node.
        trace: headers that carry the parent span; empty without tracing.
    """

    body: Body
    result: Path
    result_key: bytes = field(repr=False)
    journal: Path
    node: str
    stream: str = ""
    trace: Mapping[str, str] = field(default_factory=dict)

    def write_result(self, mask_gz: bytes) -> None:
        """Write the mask.

        Raises:
            ResourceError: the disk is full.
        """
        try:
            writer = SealedWriter(self.result, self.result_key)
            writer.write(mask_gz)
            writer.close()
        except OSError as error:
            raise ResourceError(
                "the mask cannot be written to the spool", found=error.strerror, do="retry later"
            ) from error

    def read_result(self, count: int) -> bytes:
        """Read a mask of `count` bytes.

        Raises:
            ResourceError: it is missing.
            FailureError: it was changed.
        """
        with open_sealed(self.result, self.result_key, count) as file:
            return file.read()

    def remove(self) -> None:
        """Remove mask and journal."""
        for path in (self.result, self.journal):
            with suppress(OSError):
                path.unlink(missing_ok=True)


@contextmanager
def fetched(work: Work, spool: Spool) -> Iterator[Work]:
    """Copy the encrypted scan of another node's work item to this node; at the end of the block, send the mask back.

    A plain file is not copied, as every node can read it. The request is sent nevertheless, since it reports to the
    gateway that this node processes the scan.

    Args:
        work: work item of the other node.
        spool: spool of this node.

    Raises:
        ResourceError: the gateway does not respond, or a copy fails.
    """
    here = replace(work, result=spool.path(".mask"), journal=spool.path(".at"))
    if work.body.key is not None:
        here = replace(here, body=replace(work.body, path=spool.path(".body")))
    try:
        # Between the nodes of a cluster no proxy of the environment is used. Both files are encrypted.
        with httpx.Client(trust_env=False, timeout=_STREAM_TIMEOUT_S) as client:
            with client.stream("GET", work.stream) as response:
                response.raise_for_status()
                if work.body.key is not None:
                    with here.body.path.open("xb") as file:
                        for chunk in response.iter_raw(FRAME_BYTES):
                            file.write(chunk)
            yield here
            if here.result.exists():
                with here.result.open("rb") as file:
                    client.put(work.stream, content=file).raise_for_status()
    except (httpx.HTTPError, OSError) as error:
        raise ResourceError(
            "the scan could not be copied between two nodes", found=type(error).__name__, do="send the scan again"
        ) from error
    finally:
        here.remove()
        if work.body.key is not None:
            here.body.path.unlink(missing_ok=True)
