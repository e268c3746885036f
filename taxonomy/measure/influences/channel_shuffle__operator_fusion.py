"""How many of the bytes that a fused ShuffleNet unit moves are moved by the shuffle alone?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from kernels.implementation.loops.operator_fusion import Fused, OperatorFusion
from kernels.model.block import ConvSpec
from kernels.model.compact_convolution.channel_shuffle import ChannelShuffle
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Protocol, Trial, Values

LAYERS = ({"channels": 64, "size": 56}, {"channels": 128, "size": 28}, {"channels": 256, "size": 14})
GROUPS = 4
ARMS = {"self": True, "baseline": False}


class Experiment(Protocol):
    kind = "channel-shuffle--operator-fusion"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        # bytes are the same each time: there is nothing random
        bytes_moved = [
            Trial({"fused": fused, **layer}, seed)
            for seed in range(REPETITIONS)
            for fused in (False, True)
            for layer in LAYERS
        ]
        times = [
            Trial({"fused": True, **layer, "metric": "latency"}, seed, timing=True)
            for seed in range(REPETITIONS)
            for layer in LAYERS
        ]
        return bytes_moved + times

    def quality(self, case: Case) -> Values:
        branches = {who: _branch(case, shuffled) for who, shuffled in ARMS.items()}
        return {
            who: {"memory_access": branch.figures()["memory_access"] if case.setting["fused"] else branch.apart}
            for who, branch in branches.items()
        }

    def contest(self, case: Case) -> Contest:
        channels, size = case.setting["channels"], case.setting["size"]
        torch.manual_seed(case.seed)
        x = torch.randn(1, channels, size, size)

        def call(branch: nn.Module) -> Any:
            def forward() -> torch.Tensor:
                with torch.inference_mode():
                    return branch(x)

            return forward

        return Contest({who: call(_branch(case, shuffled)) for who, shuffled in ARMS.items()}, work=1, unit="items")


def _branch(case: Case, shuffled: bool) -> Fused:
    """What goes past it is the same with and without the shuffle, and is left out."""
    channels, size = case.setting["channels"], case.setting["size"]
    torch.manual_seed(case.seed)
    unit: Any = ChannelShuffle(GROUPS, shuffled=shuffled).build(ConvSpec(channels, channels, 3, padding=1)).eval()
    return OperatorFusion().fuse(unit.branch, (channels, size, size))


protocol = Experiment()
