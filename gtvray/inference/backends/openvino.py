"""The OpenVINO backend for CPUs: fp32 or bf16.

A network is converted once for each bundle, member and batch shape, compared with torch, and kept in a cache.
"""

from __future__ import annotations

import logging
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from gtvray import __version__
from gtvray.errors import ConfigError, FailureError, ResourceError
from gtvray.inference.backends.store import ConversionStore, Converted

if TYPE_CHECKING:
    import openvino

    from gtvray.models import Bundle

_HINTS = {"fp32": "f32", "bf16": "bf16"}
# Two implementations of fp32 differ by rounding only; a wrongly converted layer differs by far more.
_MOST_DIFFERENCE = 1e-3
_TELEMETRY = "openvino_telemetry"
_log = logging.getLogger(__name__)


class OpenVinoBackend:
    """A member of a bundle run by OpenVINO.

    Args:
        bundle: its inference settings name batch size and precision.
        member: which network.
        threads: CPU threads.
        store: where conversions are kept.

    Raises:
        ConfigError: the precision is neither fp32 nor bf16.
        ResourceError: OpenVINO is not installed, or the CPU has no bf16.
        FailureError: the converted network does not reproduce the trained one.
    """

    def __init__(self, bundle: Bundle, member: int, threads: int, store: ConversionStore) -> None:
        ov = import_openvino()
        core = ov.Core()
        precision = bundle.inference.precision
        _require_precision(core, precision)
        shape = (bundle.inference.batch_size, bundle.preprocessing.channels, *bundle.patch_ijk)
        key = _key(ov, core, bundle, member, shape)
        kept = store.find(key) or store.add(key, _converted(ov, bundle, member, shape))
        self._request = _compiled(core, kept, precision, threads)

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """As `Backend.run`."""
        logits = self._request.infer({0: batch}, share_inputs=True)[0]
        tumour: NDArray[np.float32] = logits[:, 0]
        return tumour


def open_openvino(bundle: Bundle, member: int, device: torch.device, store: ConversionStore) -> OpenVinoBackend:
    """A member of a bundle, with as many CPU threads as torch has in this process.

    Raises:
        ConfigError: the device is not a CPU, or as `OpenVinoBackend`.
        ResourceError, FailureError: as `OpenVinoBackend`.
    """
    if device.type != "cpu":
        raise ConfigError(
            "the OpenVINO backend runs on CPUs",
            expected="serving.gpus_per_replica=0",
            found=str(device),
            do="promote this model with inference.backend=torch for GPUs",
        )
    return OpenVinoBackend(bundle, member, torch.get_num_threads(), store)


def import_openvino() -> Any:
    """Import OpenVINO with its telemetry disabled.

    Raises:
        ResourceError: it is not installed.
    """
    # OpenVINO sends usage data through this package, and does without it where it is not installed. None makes every
    # import of it fail that way.
    sys.modules.setdefault(_TELEMETRY, None)  # type: ignore[arg-type]
    try:
        import openvino
    except ModuleNotFoundError as error:
        if error.name != "openvino":
            raise
        raise ResourceError(
            "the OpenVINO backend is not installed",
            expected="the package openvino",
            do="pip install 'gtvray[openvino]', or use a model with inference.backend=torch",
        ) from error
    return openvino


def _require_precision(core: openvino.Core, precision: str) -> None:
    if precision not in _HINTS:
        raise ConfigError("OpenVINO runs fp32 or bf16", found=f"inference.precision={precision}")
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in able:
        # OpenVINO would silently run fp32 instead, and its masks would differ from those that were promoted.
        raise ResourceError(
            "this CPU has no bf16 arithmetic",
            expected="avx512_bf16 or amx_bf16",
            found=", ".join(able),
            do="serve this model on a CPU that has it, or promote it with inference.precision=fp32",
        )


def _key(ov: Any, core: openvino.Core, bundle: Bundle, member: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """The key of a conversion in the store: everything it depends on."""
    return {
        "bundle": bundle.digest,
        "member": member,
        "batch_shape": list(shape),
        "backend": f"openvino {ov.get_version()}",
        "made_with": f"torch {torch.__version__}, gtvray {__version__}",
        "cpu": [platform.machine(), core.get_property("CPU", "FULL_DEVICE_NAME")],
        "cpu_flags": sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
    }


def _converted(ov: Any, bundle: Bundle, member: int, shape: tuple[int, ...]) -> Converted:
    """Convert a network, and compare it with torch in fp32."""
    network = bundle.build_network(member)
    patch = torch.from_numpy(np.random.default_rng(0).random((1, *shape[1:]), dtype=np.float32))
    _log.info("converting member %d of bundle %s to OpenVINO", member, bundle.digest[:12])
    with warnings.catch_warnings(), torch.inference_mode():
        # OpenVINO maps a traced instance normalisation to its own, a third faster here than the decomposed one of
        # torch.export. torch warns that tracing is deprecated, and MONAI's shape checks warn when traced.
        warnings.simplefilter("ignore")
        trace: Callable[..., Any] = torch.jit.trace
        traced = trace(network, patch, check_trace=False)
        model = ov.convert_model(traced, example_input=patch, input=[list(shape)])
        expected = torch.sigmoid(network(patch)[0, 0]).numpy()
    converted = _serialised(ov, model)
    batch = np.zeros(shape, np.float32)
    batch[0] = patch[0].numpy()
    request = _compiled(ov.Core(), converted, "fp32", torch.get_num_threads())
    found = expit(request.infer({0: batch})[0][0, 0])
    difference = float(np.abs(found - expected).max())
    if not difference <= _MOST_DIFFERENCE:
        raise FailureError(
            "the converted network does not reproduce the trained one",
            where=f"member {member} of bundle {bundle.digest[:12]}",
            expected=f"probabilities within {_MOST_DIFFERENCE:g}",
            found=f"a difference of {difference:.3g}",
            do="use inference.backend=torch for this network, and report it",
        )
    return converted


def _serialised(ov: Any, model: Any) -> Converted:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.xml"
        ov.save_model(model, path, compress_to_fp16=False)
        return Converted(path.read_bytes(), path.with_suffix(".bin").read_bytes())


def _compiled(core: openvino.Core, kept: Converted, precision: str, threads: int) -> openvino.InferRequest:
    settings = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # Pinned threads of two processes would share one core while another is idle.
        "ENABLE_CPU_PINNING": False,
    }
    compile_model: Callable[..., Any] = core.compile_model
    return compile_model(core.read_model(kept.xml, kept.weights), "CPU", settings).create_infer_request()
