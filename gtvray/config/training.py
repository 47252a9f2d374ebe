"""Settings of training: loop, loss and optimizer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from gtvray.config.section import Section


class LossConfig(Section):
    """Loss function."""

    kind: Literal[
        "dice_ce",
        "dice_focal",
        "dice_topk",
        "dice_boundary",
        "batch_dice_ce",
        "batch_dice_focal",
        "batch_dice_topk",
    ] = Field(
        "dice_ce",
        description="Dice plus a voxel loss: cross-entropy, focal, or cross-entropy of the worst tenth of voxels; "
        "dice_boundary adds the distance to the contour; batch_dice_* compute Dice over all patches of a step",
    )
    dice_weight: float = Field(1.0, ge=0, description="weight of the Dice term; the voxel loss has weight 1")
    boundary_weight: float = Field(
        0.01,
        ge=0,
        le=100,
        description="weight of the boundary term of dice_boundary per mm from the contour",
    )
    boundary_warmup_share: float = Field(
        0.5, ge=0, le=1, description="share of the training over which the boundary term is ramped up from zero"
    )


class OptimizerConfig(Section):
    """Optimizer and learning-rate schedule."""

    kind: Literal["adamw", "sgd"] = Field("adamw", description="AdamW, or SGD with Nesterov momentum")
    momentum: float = Field(0.99, ge=0, lt=1, description="momentum of sgd")
    lr: float = Field(2e-3, gt=0, le=1, description="peak learning rate")
    weight_decay: float = Field(1e-4, ge=0, le=1, description="weight decay; decoupled for adamw")
    schedule: Literal["poly", "cosine", "constant"] = Field(
        "poly", description="learning rate after warm-up: (1 - t)^0.9 as in nnU-Net, cosine decay, or constant"
    )
    warmup_share: float = Field(0.05, ge=0, lt=1, description="share of steps with linear warm-up from zero")
    clip_norm: float = Field(12.0, gt=0, description="largest norm of the gradient over all parameters")


class TrainingConfig(Section):
    """Training loop; an epoch is `steps_per_epoch` optimizer steps."""

    epochs: int = Field(20, ge=1, le=10_000, description="number of epochs")
    time_budget_s: float = Field(
        0.0,
        ge=0,
        description="time limit in seconds: the first epoch is timed and the number of epochs is set to what fits, "
        "instead of training.epochs; 0: no limit. Not for sweeps, which have their own time_budget_s",
    )
    steps_per_epoch: int = Field(50, ge=1, le=100_000, description="optimizer steps per epoch")
    batch_size: int = Field(2, ge=1, le=1024, description="patches per step, over all workers")
    micro_batch: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        "auto",
        description="patches per forward pass, with gradient accumulation; lower it to save memory. auto is 1 on a "
        "CPU, which makes results independent of the number of workers, and the full share of a worker on a GPU",
    )
    patch_ijk: tuple[int, int, int] = Field((48, 48, 48), description="patch size in voxels of the prepared grid")
    foreground_share: float = Field(0.5, ge=0, le=1, description="share of patches centred on tumour voxels")
    selection_cases: int = Field(16, ge=1, description="number of selection cases scored after each epoch")
    ema_decay: float = Field(
        0.99,
        ge=0,
        lt=1,
        description="decay of the exponential moving average of weights, which is exported; 0: off",
    )
    calibrate: bool = Field(
        True, description="choose inference.threshold and inference.keep_largest on the selection cases after training"
    )
    num_workers: int = Field(1, ge=1, le=4096, description="data-parallel workers; two or more use Ray Train")
    cpus_per_worker: int = Field(1, ge=1, le=1024, description="CPU threads per worker")
    use_gpu: bool = Field(False, description="train on GPUs")
    gpus_per_worker: float = Field(
        1.0,
        gt=0,
        le=1,
        description="GPUs per worker with training.use_gpu; 0.5 runs two trials on one GPU, each with half of its "
        "memory. Several workers of one training need one GPU each",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto selects bf16 where the hardware supports it; fp16, with loss scaling, requires a GPU"
    )
    compile: Literal["auto", "off", "on", "graphs"] = Field(
        "auto",
        description="torch.compile of the network; graphs uses CUDA graphs, for passes shorter than their kernel "
        "launches. auto compiles trainings of at least 2,000 steps or 10 minutes on a GPU with Triton. If compilation "
        "fails, the network runs eagerly and the reason is logged",
    )
    deterministic: bool = Field(
        False,
        description="on a GPU, use deterministic kernels instead of the fastest; a CPU is always deterministic",
    )
    nan_retries: int = Field(
        3, ge=0, le=100, description="restarts of an epoch with a non-finite loss, at a lower learning rate"
    )
    nan_lr_factor: float = Field(0.3, gt=0, lt=1, description="factor on the learning rate at each such restart")
    max_failures: int = Field(3, ge=0, le=1000, description="restarts of a worker group after losing a worker")
    collective_timeout_s: int = Field(
        600, ge=5, le=86_400, description="seconds after which a worker that others wait for counts as hung"
    )
    resources_wait_s: int = Field(
        1800,
        ge=1,
        le=604_800,
        description="longest wait for the resources of the workers, such as for nodes that an autoscaler starts",
    )
    seed: int = Field(0, ge=0, description="seed of initial weights, sampling and augmentation")

    @field_validator("compile", mode="before")
    @classmethod
    def _compile_in_yaml(cls, value: object) -> object:
        # YAML 1.1 reads a bare `on` and `off` as booleans.
        return ("on" if value else "off") if isinstance(value, bool) else value

    @field_validator("patch_ijk")
    @classmethod
    def _patch_plausible(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if not all(8 <= v <= 512 for v in value):
            raise ValueError("patch must be 8 to 512 voxels on each axis")
        return value
