"""Settings of the training loop."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from gtvray.config.base import Section


class TrainingConfig(Section):
    """The loop; an epoch is `steps_per_epoch` optimizer steps."""

    epochs: int = Field(20, ge=1, le=10_000, description="epochs of a full training")
    time_budget_s: float = Field(
        0.0,
        ge=0,
        description="seconds that a training may take: its first epoch is timed, and as many follow as fit, whatever "
        "training.epochs says; 0 is none. Not for sweeps, which have a time_budget_s of their own",
    )
    steps_per_epoch: int = Field(50, ge=1, le=100_000, description="optimizer steps an epoch")
    batch_size: int = Field(2, ge=1, le=1024, description="patches a step, over all workers")
    micro_batch: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        "auto",
        description="patches in one forward pass, whose gradients are added up over a worker's share: the dial for "
        "memory. auto is 1 on a CPU, which makes a training the same on any number of workers, and all on a GPU",
    )
    patch_ijk: tuple[int, int, int] = Field((48, 48, 48), description="patch size in voxels of the prepared spacing")
    foreground_share: float = Field(0.5, ge=0, le=1, description="share of patches centred on the tumour")
    selection_cases: int = Field(16, ge=1, description="selection cases scored after an epoch, the first ones")
    ema_decay: float = Field(
        0.99, ge=0, lt=1, description="moving average of the weights, which is what is kept; 0 is off"
    )
    calibrate: bool = Field(
        True, description="let the selection cases decide inference.threshold and inference.keep_largest in the end"
    )
    num_workers: int = Field(1, ge=1, le=4096, description="data-parallel workers; 2 and more go through Ray Train")
    cpus_per_worker: int = Field(1, ge=1, le=1024, description="CPU threads of a worker")
    use_gpu: bool = Field(False, description="train on GPUs")
    gpus_per_worker: float = Field(
        1.0,
        gt=0,
        le=1,
        description="GPU a worker reserves with training.use_gpu; 0.5 puts two trials on a GPU, each with half of its "
        "memory. Several workers of one training need a GPU each",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto takes bf16 where the hardware has it; fp16, with a scaled loss, is for GPUs only"
    )
    compile: Literal["auto", "off", "on", "graphs"] = Field(
        "auto",
        description="torch.compile for the network in training; graphs replays CUDA graphs, for passes shorter than "
        "the launch of their kernels. auto compiles trainings of 2,000 steps or 10 minutes and more on a GPU with "
        "Triton, with graphs if a pass is short. What cannot be compiled runs eagerly, with the reason in the log",
    )
    deterministic: bool = Field(
        False,
        description="on a GPU, repeatable kernels instead of the fastest that cuDNN finds by timing them; a CPU is "
        "always deterministic",
    )
    nan_retries: int = Field(
        3, ge=0, le=100, description="how often an epoch whose loss is no number is begun again at a lower rate"
    )
    nan_lr_factor: float = Field(0.3, gt=0, lt=1, description="what every such retry multiplies the learning rate by")
    max_failures: int = Field(
        3, ge=0, le=1000, description="how often several workers, of which one was lost or hung, are begun again"
    )
    collective_timeout_s: int = Field(
        600, ge=5, le=86_400, description="how long workers wait for one of them before it counts as hung"
    )
    seed: int = Field(0, ge=0, description="decides weights, order and augmentation")

    @field_validator("compile", mode="before")
    @classmethod
    def _compile_in_yaml(cls, value: object) -> object:
        # YAML 1.1 reads a bare `on` and `off` as truth values.
        return ("on" if value else "off") if isinstance(value, bool) else value

    @field_validator("patch_ijk")
    @classmethod
    def _patch_plausible(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if not all(8 <= v <= 512 for v in value):
            raise ValueError("patch must be 8 to 512 voxels on each axis")
        return value
