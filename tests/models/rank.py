"""One of two data-parallel ranks: `python rank.py FOLDER RANK` writes every loss and its gradients.

Once over the full batch in this process alone, once over this rank's half of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from gtvray.config import LossConfig
from gtvray.models import build_loss
from gtvray.models.losses import LOSSES

SPACING_MM = (1.0, 1.0, 3.0)
HEADS = 3


class Heads(torch.nn.Module):
    """A network of two layers with one head or several."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.features = torch.nn.Conv3d(1, 4, 3, padding=1)
        self.heads = torch.nn.ModuleList([torch.nn.Conv3d(4, 1, 1) for _ in range(heads)])

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        features = torch.tanh(self.features(patches))
        logits = [head(features) for head in self.heads]
        return logits[0] if len(logits) == 1 else torch.stack(logits, dim=1)


def batch(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Four dissimilar patches: one without tumour, and three with tumours of very different size."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(4, 1, 12, 12, 8, generator=generator, dtype=torch.float64)
    share = torch.tensor([-9.0, 0.5, 1.5, 2.5], dtype=torch.float64).view(4, 1, 1, 1, 1)
    return patches.to(dtype), (patches < share - 1).to(dtype)


def variants() -> Iterator[tuple[str, str, torch.dtype, int]]:
    for kind in LOSSES:
        for dtype in (torch.float32, torch.float64):
            for heads in (1, HEADS):
                yield f"{kind} {dtype} {heads}", kind, dtype, heads


def loss_and_gradients(
    kind: str, dtype: torch.dtype, heads: int, share: slice, *, parallel: bool
) -> dict[str, torch.Tensor]:
    """The loss over a share of the batch, and the gradients that an optimizer step would use."""
    torch.manual_seed(1)
    network = Heads(heads).to(dtype)
    patches, masks = batch(dtype)
    model = torch.nn.parallel.DistributedDataParallel(network) if parallel else network
    loss = build_loss(LossConfig(kind=kind), SPACING_MM)(model(patches[share]), masks[share], 0.25)
    loss.backward()
    value = loss.detach().clone()
    if parallel:
        dist.all_reduce(value)
        value /= dist.get_world_size()
    gradients = {name: each.grad for name, each in network.named_parameters() if each.grad is not None}
    return {"loss": value, **gradients}


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    tensors: dict[str, torch.Tensor] = {}
    # Alone first, while no process group exists.
    for run, share in (("alone", slice(0, 4)), ("shared", slice(2 * rank, 2 * rank + 2))):
        parallel = run == "shared"
        if parallel:
            dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
        for name, kind, dtype, heads in variants():
            for part, tensor in loss_and_gradients(kind, dtype, heads, share, parallel=parallel).items():
                tensors[f"{name}:{run}:{part}"] = tensor.contiguous()
    dist.destroy_process_group()
    save_file(tensors, folder / f"rank-{rank}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
