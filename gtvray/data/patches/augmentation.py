"""Random changes to the intensities of a training patch, and mirroring.

They are applied after the windows, on 0..1, so one range serves every window, and intensities that a window cuts off
cannot come back by a change of contrast, as they cannot in a scan to be segmented. Values outside 0..1 are clamped at
the end. Windows are views of one scan, so one draw holds for all of them, except for the noise. Only torch operations
whose result does not depend on the number of threads are used. On a GPU the same code gives the same patches up to
rounding: noise is drawn on the CPU, whose generator differs from a GPU's.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gtvray.data.patches.draws import Draw, Triple
from gtvray.data.patches.warp import interpolate_axis, take

_TINY = 1e-7


def change_intensities(image: Tensor, draw: Draw) -> Tensor:
    """Apply a draw's changes of intensity, in nnU-Net's order.

    Args:
        image: channels (c, i, j, k) float32, 0..1; may be written to.
        draw: the changes.

    Returns:
        channels of the same shape, 0..1.
    """
    if draw.noise_sigma is not None:
        noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(draw.seed))
        image = image.add_(noise.to(image.device), alpha=draw.noise_sigma)
    if draw.blur_sigma_voxels is not None:
        image = _blur(image, draw.blur_sigma_voxels)
    if draw.brightness is not None:
        image = image.mul_(draw.brightness)
    if draw.contrast is not None:
        low, high = _range(image)
        rest = _mean(image).mul_(1 - draw.contrast)
        image = image.mul_(draw.contrast).add_(rest)
        # Several times as fast as clamping to tensors.
        torch.minimum(torch.maximum(image, low, out=image), high, out=image)
    if draw.kept_ijk is not None:
        image = _coarsen(image, draw.kept_ijk)
    if draw.gamma_inverted is not None:
        image = _gamma(image.neg_(), draw.gamma_inverted).neg_()
    if draw.gamma is not None:
        image = _gamma(image, draw.gamma)
    return image.clamp_(0.0, 1.0)


def mirror(image: Tensor, mask: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """Mirror channels (c, i, j, k) and mask (i, j, k) along the drawn axes."""
    axes = [axis for axis, flipped in enumerate(draw.flip_ijk) if flipped]
    if not axes:
        return image, mask
    return image.flip([axis + 1 for axis in axes]), mask.flip(axes)


def _blur(image: Tensor, sigma_voxels: Triple) -> Tensor:
    """Gaussian blur, cut at three standard deviations; the border is mirrored."""
    for axis, sigma in enumerate(sigma_voxels, start=1):
        radius, n = max(1, round(3 * sigma)), image.shape[axis]
        weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
        weights /= weights.sum()
        indices = np.abs(np.arange(-radius, n + radius))
        indices = np.where(indices < n, indices, 2 * (n - 1) - indices)
        wide = take(image, axis, torch.from_numpy(indices).to(image.device))
        image = wide.narrow(axis, radius, n) * float(weights[radius])
        for offset in [*range(radius), *range(radius + 1, 2 * radius + 1)]:
            image.add_(wide.narrow(axis, offset, n), alpha=float(weights[offset]))
    return image


def _coarsen(image: Tensor, kept_ijk: Triple) -> Tensor:
    """Keep the nearest of fewer voxels along each axis, and interpolate linearly between them."""
    sizes = image.shape[1:]
    fewer = [max(1, round(n * kept)) for n, kept in zip(sizes, kept_ijk, strict=True)]
    for axis, (n, m) in enumerate(zip(sizes, fewer, strict=True), start=1):
        if m < n:
            image = take(image, axis, (_centres(m, n / m) + 0.5).long().to(image.device))
    for axis, (n, m) in enumerate(zip(sizes, fewer, strict=True), start=1):
        if m < n:
            image = interpolate_axis(image, axis, _centres(n, m / n))
    return image


def _centres(count: int, step: float) -> Tensor:
    """Centres of voxels that are `step` long, in voxels of length 1 of the same extent."""
    return (torch.arange(count, dtype=torch.float32) + 0.5) * step - 0.5


def _gamma(image: Tensor, exponent: float) -> Tensor:
    """Power of the intensities over each channel's own range; its mean and standard deviation stay."""
    low, high = _range(image)
    mean = _mean(image)
    spread = _mean((image - mean).square_())
    image = image.sub_(low).div_((high - low).clamp_(min=_TINY)).pow_(exponent)
    image = image.sub_(_mean(image))
    gain = (spread / _mean(image.square()).clamp_(min=_TINY**2)).sqrt_()
    return image.mul_(gain).add_(mean)


def _range(image: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest intensity of each channel, (c, 1, 1, 1)."""
    return image.amin(dim=(1, 2, 3), keepdim=True), image.amax(dim=(1, 2, 3), keepdim=True)


def _mean(image: Tensor) -> Tensor:
    """Mean of each channel, (c, 1, 1, 1); plane by plane, since a sum in one go depends on the number of threads."""
    return image.mean(dim=(2, 3), keepdim=True).mean(dim=1, keepdim=True)
