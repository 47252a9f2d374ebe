"""OpenVINO conversions, their cache and telemetry; settings; flips; compiled networks."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gtvray.config import Config, with_dotted
from gtvray.errors import ConfigError, FailureError, ResourceError
from gtvray.inference import ConversionStore, Predictor
from gtvray.inference.backends import openvino as backend
from gtvray.inference.backends.store import Converted, default_store
from gtvray.models import Bundle

PATCH = (16, 16, 16)
needs_openvino = pytest.mark.skipif(
    not any((Path(entry) / "openvino").is_dir() for entry in sys.path), reason="openvino is not installed"
)


def _patches(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(1).random((count, 1, *PATCH), dtype=np.float32))


def _entries(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


@needs_openvino
def test_conversion_is_cached_verified_and_repeated_when_damaged(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    convert = backend._converted

    def counted(ov: Any, bundle: Bundle, member: int, shape: tuple[int, ...]) -> Converted:
        made.append(member)
        return convert(ov, bundle, member, shape)

    monkeypatch.setattr(backend, "_converted", counted)
    bundle, folder = make(backend="openvino"), ConversionStore(tmp_path)
    first = Predictor(bundle, threads=1, store=folder).forward(_patches(1))
    again = Predictor(bundle, threads=1, store=folder).forward(_patches(1))
    assert made == [0]
    assert first.tobytes() == again.tobytes()
    (entry,) = _entries(tmp_path)
    assert json.loads((entry / "entry.json").read_text())["key"]["bundle"] == bundle.digest
    content = bytearray((entry / "model.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (entry / "model.bin").write_bytes(content)
    mended = Predictor(bundle, threads=1, store=folder).forward(_patches(1))
    assert made == [0, 0]
    assert mended.tobytes() == first.tobytes()
    assert _entries(tmp_path) == [entry]
    Predictor(make(backend="openvino", batch_size=1), threads=1, store=folder)
    assert len(_entries(tmp_path)) == 2, "another batch shape is another conversion"
    assert [file.name for file in bundle.folder.iterdir() if file.suffix not in (".json", ".safetensors")] == []


def test_concurrent_writers_leave_one_complete_conversion(tmp_path: Path) -> None:
    folder, key = ConversionStore(tmp_path), {"bundle": "a"}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: folder.add(key, Converted(b"<net/>" * 999, b"\0" * 99_999)), range(40)))
    found = folder.find(key)
    assert found == Converted(b"<net/>" * 999, b"\0" * 99_999)
    assert len(_entries(tmp_path)) == 1
    assert folder.find({"bundle": "b"}) is None


@needs_openvino
def test_wrongly_converted_network_is_rejected(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make(backend="openvino")
    ov = backend.import_openvino()
    other = make(backend="openvino", threshold=0.4, members=2)
    monkeypatch.setattr(backend, "_serialised", lambda *_: _plain(ov, other.build_network(1)))
    with pytest.raises(FailureError, match="does not reproduce"):
        backend._converted(ov, bundle, 0, (3, 1, *PATCH))


def _plain(ov: Any, network: torch.nn.Module) -> Converted:
    import tempfile
    import warnings

    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ov.convert_model(network, example_input=torch.zeros(3, 1, *PATCH), input=[[3, 1, *PATCH]])
        ov.save_model(model, Path(scratch) / "model.xml", compress_to_fp16=False)
        return Converted((Path(scratch) / "model.xml").read_bytes(), (Path(scratch) / "model.bin").read_bytes())


@pytest.mark.slow
@needs_openvino
def test_openvino_sends_no_telemetry(tmp_path: Path) -> None:
    """The telemetry package is never imported, and no connection is opened."""
    (tmp_path / "openvino_telemetry").mkdir()
    (tmp_path / "openvino_telemetry" / "__init__.py").write_text("raise SystemExit('imported')")
    program = (
        f"import sys, socket; sys.path.insert(0, {str(tmp_path)!r})\n"
        "def refuse(*a, **k): raise SystemExit('socket')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from gtvray.inference.backends.openvino import import_openvino\n"
        "import_openvino().Core()\n"
        "assert not sys.modules.get('openvino_telemetry')\nprint('quiet')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout.strip() == "quiet", done.stderr


@pytest.mark.slow
@needs_openvino
def test_cached_conversion_runs_without_importing_monai(make: Any, tmp_path: Path) -> None:
    """Importing MONAI takes seconds and 250 MB, which only building a network in torch requires."""
    bundle = make(backend="openvino")
    program = (
        "import sys; from pathlib import Path\n"
        "from gtvray.inference import ConversionStore, Predictor\n"
        "from gtvray.models import Bundle\n"
        f"bundle, store = Bundle.load(Path({str(bundle.folder)!r})), ConversionStore(Path({str(tmp_path)!r}))\n"
        "Predictor(bundle, store=store).warm()\n"
        "print('monai' in sys.modules)"
    )
    command = [sys.executable, "-c", program]
    outputs = [
        subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout for _ in range(2)
    ]
    assert [text.split()[-1] for text in outputs] == ["True", "False"]


def test_missing_openvino_is_reported_with_the_install_command(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in sys.modules if each.partition(".")[0] == "openvino"]:
        monkeypatch.delitem(sys.modules, name)
    finders = [_Without("openvino"), *sys.meta_path]
    monkeypatch.setattr(sys, "meta_path", finders)
    with pytest.raises(ResourceError) as caught:
        Predictor(make(backend="openvino"))
    assert "gtvray[openvino]" in caught.value.fields["do"]


class _Without:
    """An import finder for which a package is not installed."""

    def __init__(self, name: str) -> None:
        self._name = name

    def find_spec(self, name: str, *_: Any) -> None:
        if name == self._name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_incompatible_settings_are_rejected(make: Any) -> None:
    for values in ({"precision": "fp16"}, {"compiled": True}):
        dotted = {f"inference.{key}": value for key, value in values.items()}
        with pytest.raises(ConfigError, match="inference"):
            with_dotted(Config(), {"inference.backend": "openvino", **dotted})
    with pytest.raises(ConfigError):
        with_dotted(Config(), {"inference.flips": [0, 0]})
    with pytest.raises(ConfigError, match="CUDA"):
        Predictor(make(precision="fp16"))
    with pytest.raises(ConfigError, match="CPUs"):
        Predictor(make(backend="openvino"), device="cuda")


def test_store_follows_the_environment_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GTVRAY_CACHE", str(tmp_path))
    default_store().add({"bundle": "a"}, Converted(b"x", b"w"))
    assert [entry.parent for entry in tmp_path.rglob("entry.json")] == _entries(tmp_path / "openvino")


def test_flips_make_the_logits_symmetric(make: Any) -> None:
    """With flips the logits of a mirrored patch are the mirrored logits, unlike those of a single view."""
    plain, flipped = Predictor(make(), threads=1), Predictor(make(flips=(0, 2)), threads=1)
    assert (plain.view_count, flipped.view_count) == (1, 4)
    (patch,) = _patches(1)
    mirrored = np.ascontiguousarray(patch[:, ::-1, :, ::-1])
    np.testing.assert_allclose(flipped.forward([mirrored])[0][::-1, :, ::-1], flipped.forward([patch])[0], atol=1e-5)
    assert np.abs(plain.forward([mirrored])[0][::-1, :, ::-1] - plain.forward([patch])[0]).max() > 0.01
    views = list(flipped.views([patch]))
    np.testing.assert_array_equal(views[0], plain.forward([patch]))
    np.testing.assert_allclose(flipped.forward([patch]), np.mean(views, axis=0), atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_network_equals_the_eager_one(make: Any) -> None:
    try:
        predictor = Predictor(make(compiled=True), threads=1)
    except ResourceError as error:
        pytest.skip(error.what)
    patches = _patches(3)
    np.testing.assert_allclose(predictor.forward(patches), Predictor(make(), threads=1).forward(patches), atol=1e-4)
    assert predictor.forward(patches[:1]).tobytes() == predictor.forward(patches)[:1].tobytes()
