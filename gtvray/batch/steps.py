"""The prediction of one scan in three steps, with the digests that identify its input and its mask."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gtvray.errors import BundleError, FailureError, GtvrayError, ResourceError, first_line
from gtvray.failpoints import failpoint
from gtvray.inference import LocalCases
from gtvray.io import read_volume_header, sha256_of

if TYPE_CHECKING:
    from gtvray.inference import Predictor
    from gtvray.models import Bundle


@dataclass(frozen=True)
class Scan:
    """A scan to predict.

    Attributes:
        name: its name in tables and in the record.
        path: its file.
        mask: the file of its mask.
        overwrite: whether an earlier output of gtvray at `mask` may be replaced.
    """

    name: str
    path: Path
    mask: Path
    overwrite: bool = False


@dataclass(frozen=True)
class Result:
    """Outcome of a scan.

    Attributes:
        scan: name of the scan.
        row: the result as JSON types, or `error` with a problem document.
        input_sha256: SHA-256 of the scan's file; None if the scan failed.
        mask_sha256: SHA-256 of the mask's file; None if the scan failed.
        error: error of the scan; None if it succeeded.
    """

    scan: str
    row: dict[str, Any]
    input_sha256: str | None = None
    mask_sha256: str | None = None
    error: GtvrayError | None = None

    @classmethod
    def failed(cls, scan: Scan, error: GtvrayError) -> Result:
        """Return the result of a scan that failed."""
        return cls(scan.name, {"scan": scan.name, "error": error.problem()}, error=error)


class ScanSteps:
    """Load, segment and store a scan; the next scan may be loaded while this one runs.

    An unexpected exception becomes a FailureError of the scan, so that it does not stop the others.

    Args:
        predictor: the model.
        uncertainty: also estimate the uncertainty, and write the entropy of each voxel to a file next to the mask.
    """

    def __init__(self, predictor: Predictor, *, uncertainty: bool = False) -> None:
        self._predictor, self._uncertainty = predictor, uncertainty

    def load(self, scan: Scan) -> Any:
        """Read and prepare a scan.

        Raises:
            DataError: the file is not the CT of a body.
        """
        with _as_failure(scan):
            # Before it is read: if the file changes in between, the next run will notice.
            digest = input_sha256(scan.path)
            return digest, self._cases(scan).load(scan.path)

    def run(self, scan: Scan, loaded: Any) -> Any:
        """Run the network."""
        digest, prepared = loaded
        with _as_failure(scan):
            return digest, self._cases(scan).run(prepared)

    def store(self, scan: Scan, ran: Any) -> Result:
        """Write the mask.

        Raises:
            InputError: the path of the mask has a file that must not be replaced.
            ResourceError: the disk is full.
        """
        digest, segmented = ran
        with _as_failure(scan):
            failpoint("batch.before_mask")
            case = self._cases(scan).store(scan.path, segmented)
            result = Result(scan.name, {"scan": scan.name, **case.as_dict()}, digest, sha256_of(case.mask))
            failpoint("batch.after_mask")
            return result

    def _cases(self, scan: Scan) -> LocalCases:
        return LocalCases(self._predictor, lambda _: scan.mask, uncertainty=self._uncertainty, overwrite=scan.overwrite)


@dataclass(frozen=True)
class PredictorOpener:
    """Loads the model in another process.

    Attributes:
        bundle: folder of the model.
        digest: digest that the bundle must have.
        exhaustive: whether every patch is run, regardless of the model's inference mode.
        uncertainty: as for `ScanSteps`.
        threads: CPU threads of the network.
        device: "cpu" or "cuda".
        golden: folder of the model's golden cases, which must be reproduced; None if it has none.
    """

    bundle: Path
    digest: str
    exhaustive: bool
    uncertainty: bool
    threads: int
    device: str = "cpu"
    golden: Path | None = None

    def __call__(self) -> ScanSteps:
        """Load and check the model.

        Raises:
            BundleError: the bundle is damaged, or has another digest.
            NotReproducedError: the masks of this machine differ from those of the promotion.
        """
        from gtvray.evaluation import require_reproduced
        from gtvray.models import Bundle

        bundle = Bundle.load(self.bundle)
        if bundle.digest != self.digest:
            raise BundleError(
                "another bundle is at this path",
                where=self.bundle,
                expected=self.digest,
                found=bundle.digest,
                do="use storage on which every node has the same bundle at this path",
            )
        if self.golden is not None:
            require_reproduced(self.golden, self._predictor(bundle))
        if self.exhaustive:
            bundle = replace(bundle, inference=bundle.inference.model_copy(update={"mode": "exhaustive"}))
        return ScanSteps(self._predictor(bundle), uncertainty=self.uncertainty)

    def _predictor(self, bundle: Bundle) -> Predictor:
        from gtvray.inference import Predictor

        return Predictor(bundle, threads=self.threads, device=self.device)


def input_sha256(path: Path) -> str:
    """Return the sha256 of a scan's file, and of its detached data file if it has one.

    Raises:
        VolumeError: it is not a volume file.
    """
    detached = read_volume_header(path).data_file
    digests = [sha256_of(file) for file in (path, detached) if file is not None]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


@contextmanager
def _as_failure(scan: Scan) -> Iterator[None]:
    try:
        yield
    except GtvrayError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError("the disk is full", where=scan.mask.parent, do="free some disk space") from error
        if os.environ.get("GTVRAY_DEBUG"):
            raise
        raise FailureError(
            "unexpected error while predicting a scan",
            where=scan.path,
            found=f"{type(error).__name__}: {first_line(error)}",
            do="predict this scan alone with GTVRAY_DEBUG=1 and report the output",
        ) from error
