"""One torch thread, and bundles whose backends are compared.

The networks here are too small for more threads, and other tests may run at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from gtvray.config import InferenceConfig, NetworkConfig, PreprocessingConfig
from gtvray.inference import ConversionStore
from gtvray.models import Bundle, build_network, weights_of, write_bundle


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """Write a bundle whose logits vary enough to be compared."""
    folder = tmp_path_factory.mktemp("bundles")

    def bundle(patch_ijk: tuple[int, int, int] = (16, 16, 16), members: int = 1, **inference: Any) -> Bundle:
        network_config, weights = NetworkConfig(features=(8, 8, 16)), []
        for seed in range(members):
            torch.manual_seed(seed)
            network = build_network(network_config, 1, (4.0, 4.0, 4.0), patch_ijk)
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.mul_(1.5)
            weights.append(weights_of(network))
        return write_bundle(
            folder / f"{patch_ijk}-{members}-{inference}".replace(" ", ""),
            weights=weights,
            preprocessing=PreprocessingConfig(spacing_mm=(4.0, 4.0, 4.0)),
            network=network_config,
            inference=InferenceConfig(**{"batch_size": 3, **inference}),
            patch_ijk=patch_ijk,
            info={},
        )

    return bundle


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ConversionStore:
    """Shared by the module, so that each network is converted once."""
    return ConversionStore(tmp_path_factory.mktemp("conversions"))
