"""Parts of `gpu.py` that run gtvray and MONAI; each prints intermediate results as lines of JSON."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import NNUNET_TRAINER
from _inference_study import bundle_of

from gtvray.config import Config, InferenceConfig, load_config
from gtvray.data import CachedCase, CaseCache
from gtvray.datasets import index_dataset, write_phantoms
from gtvray.models import build_network, weights_of, write_bundle

CASES = 6
FEATURES = {"small": None, "large": (32, 64, 128, 256, 320, 320)}
PATCHES = {"cube": ((128, 128, 128), (1.5, 1.5, 1.5)), "flat": ((192, 192, 32), (1.14, 1.14, 3.0))}
TINY_FEATURES = (4, 8, 8)
TINY_PATCHES = {"cube": ((16, 16, 16), (8.0, 8.0, 8.0)), "flat": ((24, 24, 8), (6.0, 6.0, 9.0))}
STEPS, TINY_STEPS, BATCH = 40, 2, 2
MODES = ("off", "on", "graphs")
_SMI_START_S = 5.0
SETTINGS = (*NNUNET_TRAINER, "training.selection_cases=1", "inference.overlap=0")


def run_part(given: argparse.Namespace) -> None:
    """Run the part that `--part` names."""
    torch.set_num_threads(given.threads)
    if given.part == "prepare":
        prepare(given)
    elif given.part == "demo":
        demo(given)
    elif given.part == "inference":
        inference(given)
    elif given.part == "inference-monai":
        from peers import gpu_monai

        tell(gpu_monai.inference(given.work / "model", given.work / "case" / "data.nii.gz", device(), precision()))
    else:
        _, size, patch, *peer = given.part.split("-")
        config = training_config(size, patch, given)
        if peer:
            from peers import gpu_monai

            train, _ = cases_of(config, given)
            tell(gpu_monai.training(config, train, device(), precision(), workers=given.threads, busy_of=Busy))
        else:
            training(config, given)


def tell(found: dict[str, Any]) -> None:
    """Print results so far."""
    print(json.dumps(found), flush=True)


def device() -> torch.device:
    """The GPU, or the CPU where a test runs without one."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def precision() -> torch.dtype:
    """16-bit on a GPU: bf16 where the hardware has it."""
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def prepare(given: argparse.Namespace) -> None:
    """Report the GPU; create and prepare the phantoms, the scan and the model that all parts share."""
    cuda = torch.cuda.is_available()
    tell(
        {
            "card": torch.cuda.get_device_name(0) if cuda else None,
            "card_gb": round(torch.cuda.mem_get_info(0)[1] / 1e9, 1) if cuda else None,
            "driver": nvidia_smi("driver_version"),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "precision": str(precision()).removeprefix("torch."),
        }
    )
    if not cuda and not given.tiny:
        return
    write_phantoms(given.work / "phantoms", 3 if given.tiny else CASES, 0)
    for patch in PATCHES:
        cases_of(training_config("small", patch, given), given)
    if given.tiny:
        scan = index_dataset(given.work / "phantoms").cases[0].image
        (given.work / "case").mkdir()
        (given.work / "case" / "data.nii.gz").symlink_to(scan)
    else:
        script = str(Path(__file__).with_name("preparing.py"))
        subprocess.run([sys.executable, script, "--run", "case", "--case", str(given.work / "case")], check=True)
    plan = training_config("large", "flat", given)
    write_model(plan, given.work / "model")
    write_nnunet(given)


def write_nnunet(given: argparse.Namespace) -> None:
    """Write the input of nnU-Net's parts: raw cases, the strides of gtvray's plans, and the model as TorchScript."""
    from gtvray.models import plan_network

    plans = {}
    for size in FEATURES:
        for patch in PATCHES:
            config = training_config(size, patch, given)
            patch_ijk, spacing_mm = config.training.patch_ijk, config.preprocessing.spacing_mm
            stages = plan_network(config.network, spacing_mm, patch_ijk).stages
            plans[f"{size}-{patch}"] = {
                "patch_ijk": patch_ijk,
                "spacing_mm": spacing_mm,
                "batch": BATCH,
                "steps": config.training.steps_per_epoch,
                "features": [stage.features for stage in stages],
                "kernels_ijk": [list(stage.kernel) for stage in stages],
                "strides_ijk": [list(stage.stride) for stage in stages],
            }
    (given.work / "nnunet.json").write_text(json.dumps(plans))
    for case in index_dataset(given.work / "phantoms").cases:
        folder = given.work / "cases" / case.case_id
        folder.mkdir(parents=True)
        (folder / "data.nii.gz").symlink_to(case.image)
        if case.label is not None:
            (folder / "label.nii.gz").symlink_to(case.label)
    if given.nnunet_python:
        from peers.nnunet_job import write_job

        job = argparse.Namespace(model=given.work / "model", scan=given.work / "case" / "data.nii.gz", once=False)
        write_job(job, given.work / "job")


def write_model(config: Config, folder: Path) -> None:
    """A bundle of the large network with random weights."""
    torch.manual_seed(0)
    preprocessing, patch_ijk = config.preprocessing, config.training.patch_ijk
    built = build_network(config.network, preprocessing.channels, preprocessing.spacing_mm, patch_ijk)
    write_bundle(
        folder,
        weights=weights_of(built),
        preprocessing=preprocessing,
        network=config.network,
        inference=InferenceConfig(batch_size=BATCH),
        patch_ijk=patch_ijk,
        info={},
    )


def training_config(size: str, patch: str, given: argparse.Namespace) -> Config:
    """Settings of a training part."""
    patch_ijk, spacing_mm = (TINY_PATCHES if given.tiny else PATCHES)[patch]
    features = TINY_FEATURES if given.tiny else FEATURES[size]
    return load_config(
        overrides=[
            *SETTINGS,
            *([f"network.features={list(features)}"] if features else ["network.size=small"]),
            f"preprocessing.spacing_mm={list(spacing_mm)}",
            f"training.patch_ijk={list(patch_ijk)}",
            f"training.batch_size={BATCH}",
            f"training.steps_per_epoch={TINY_STEPS if given.tiny else STEPS}",
            f"training.cpus_per_worker={given.threads}",
            f"training.use_gpu={torch.cuda.is_available()}",
        ]
    )


def cases_of(config: Config, given: argparse.Namespace) -> tuple[list[CachedCase], list[CachedCase]]:
    """Prepared cases: those to train on, and one to select by."""
    cases = index_dataset(given.work / "phantoms").cases
    cached = CaseCache(given.work / "cache", config.preprocessing, config.cache).prepare_all(cases, None, given.threads)
    return cached[:-1], cached[-1:]


def training(config: Config, given: argparse.Namespace) -> None:
    """Time gtvray's training loop: eager, compiled, and with CUDA graphs; the fastest is reported."""
    from gtvray.config import with_dotted
    from gtvray.training import fit

    train, selection = cases_of(config, given)
    modes: dict[str, dict[str, Any]] = {}
    for mode in MODES if config.training.use_gpu else MODES[:1]:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        asked = with_dotted(config, {"training.compile": mode})
        began = time.perf_counter()
        reports = fit(asked, train, selection, given.work / f"{given.part}-{mode}")
        next(reports)
        warm_up_s = time.perf_counter() - began
        with Busy() as busy:
            (report,) = reports
        steps_s = config.training.steps_per_epoch * BATCH / report.patches_per_s
        modes[mode] = {
            "steps_s": round(config.training.steps_per_epoch / steps_s, 3),
            "gpu_busy_share": busy.share(steps_s),
            "data_wait_share": round(report.data_wait_share, 4),
            "peak_gb": peak_gb(),
            "train_loss": report.train_loss,
            "warm_up_s": round(warm_up_s, 1),
        }
        best = max(modes, key=lambda name: modes[name]["steps_s"])
        tell({**modes[best], "mode": best, "modes": modes})


def inference(given: argparse.Namespace) -> None:
    """Time gtvray from file to file with the large network in each mode; then compare the logits of a patch."""
    from gtvray.inference import LocalCases, Predictor

    name = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[precision()]
    scan, out = given.work / "case" / "data.nii.gz", given.work / "ours.nii.gz"
    for mode in ("body", "localised"):
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        began, seconds = time.perf_counter(), []
        bundle = bundle_of(given.work / "model", mode=mode, backend="torch", precision=name, keep_largest=False)
        cases = LocalCases(
            Predictor(bundle, threads=given.threads, device=str(device())), lambda _: out, overwrite=True
        )
        for _ in range(3):
            found = cases.store(scan, cases.run(cases.load(scan)))
            seconds.append(time.perf_counter() - began)
            began = time.perf_counter()
        measured = {
            "cold_s": round(seconds[0], 3),
            "warm_s": round(min(seconds[1:]), 3),
            "stages_s": {stage: round(value, 3) for stage, value in found.seconds.items()},
            "patches": found.coverage.patches,
            "peak_gb": peak_gb(),
        }
        tell({mode: measured, **({"peak_gb": measured["peak_gb"]} if mode == "body" else {})})
    patch = np.random.default_rng(0).random((bundle.preprocessing.channels, *bundle.patch_ijk), dtype=np.float32)
    plain = bundle_of(given.work / "model", mode="body", backend="torch", precision="fp32")
    reference = Predictor(plain, threads=given.threads).forward([patch])
    logits = Predictor(bundle, device=str(device())).forward([patch])
    tell({"logits_rmse_to_cpu": float(np.sqrt(np.mean((logits - reference) ** 2)) / reference.std())})


def demo(given: argparse.Namespace) -> None:
    """The demo with training and endpoint on the GPU."""
    command = [sys.executable, "-m", "gtvray", "demo", "--json", "--workspace", str(given.work / "runs")]
    if torch.cuda.is_available():
        command += ["training.use_gpu=true", "serving.gpus_per_replica=1"]
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    tell(
        {
            "ok": done.returncode == 0,
            "seconds": round(time.perf_counter() - began, 1),
            "result": json.loads(lines[-1]) if lines else None,
        }
    )


def peak_gb() -> float | None:
    """Peak GPU memory reserved by torch's allocator since the last reset; None without a GPU."""
    return round(torch.cuda.max_memory_reserved() / 1e9, 3) if torch.cuda.is_available() else None


def nvidia_smi(field_name: str) -> str | None:
    """Query a property of the first visible GPU with nvidia-smi; None if it is not available."""
    try:
        done = subprocess.run(
            [*_smi(field_name)], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return done.splitlines()[0] if done else None


def _smi(field_name: str) -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    return ["nvidia-smi", f"--query-gpu={field_name}", "--format=csv,noheader,nounits", "-i", visible]


@dataclass
class Busy:
    """Samples GPU utilisation every 100 ms during a `with` block; no samples without nvidia-smi."""

    samples: list[tuple[float, float]] = field(default_factory=list)

    def __enter__(self) -> Busy:
        self._process: subprocess.Popen[str] | None = None
        self._began = time.perf_counter()
        first = threading.Event()
        if torch.cuda.is_available():
            try:
                command = [*_smi("utilization.gpu"), "-lms", "100"]
                self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
                threading.Thread(target=self._read, args=(self._process, first), daemon=True).start()
                # nvidia-smi may take longer to start than an epoch; samples from before the block are dropped.
                first.wait(_SMI_START_S)
            except OSError:
                pass
        self.samples.clear()
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def share(self, first_s: float) -> float | None:
        """Mean utilisation during the first seconds of the block; None without samples."""
        busy = [value for at_s, value in self.samples if at_s <= first_s]
        return round(statistics.mean(busy) / 100, 3) if busy else None

    def _read(self, process: subprocess.Popen[str], first: threading.Event) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip().isdecimal():
                self.samples.append((time.perf_counter() - self._began, float(line)))
                first.set()
