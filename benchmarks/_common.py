"""Helpers shared by several benchmarks."""

from __future__ import annotations

from importlib import metadata

# Two epochs with the loss, optimizer and augmentation of nnU-Net's trainer.
NNUNET_TRAINER = (
    "network.kind=unet",
    "training.epochs=2",
    "training.foreground_share=0.33",
    "loss.kind=dice_ce",
    "optimizer.kind=sgd",
    "optimizer.lr=0.01",
    "optimizer.momentum=0.99",
    "optimizer.weight_decay=3e-5",
    "optimizer.warmup_share=0",
    "optimizer.clip_norm=12",
    "augmentation.strength=1",
    "augmentation.flip_front_back=0.5",
    "augmentation.flip_up_down=0.5",
)


def version(name: str) -> str | None:
    """Version of an installed package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
