"""What does operator fusion gain from branches that have been folded into one kernel?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from kernels.implementation.loops.operator_fusion import OperatorFusion
from kernels.model.block import fused, substitute
from kernels.model.compact_convolution.re_parameterisation import ReParameterisation
from taxonomy.measure.protocol import REPETITIONS, Case, Contest, Protocol, Trial

BATCHES = (1, 64)


class Experiment(Protocol):
    kind = "re-parameterisation--operator-fusion"

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [Trial({"batch": batch}, seed, timing=True) for seed in range(REPETITIONS) for batch in BATCHES]

    def contest(self, case: Case) -> Contest:
        workload, batch = case.workload, case.setting["batch"]
        torch.manual_seed(case.seed)
        branches = substitute(workload.network(case.seed), ReParameterisation(), workload.input_shape).eval()
        x = torch.tensor(workload.data().test.x[:batch])
        networks = {
            who: OperatorFusion().fuse(_without_identities(network), workload.input_shape)
            for who, network in (("self", fused(branches)), ("baseline", branches))
        }
        with torch.inference_mode():
            assert torch.allclose(networks["self"](x), networks["baseline"](x), atol=1e-4)

        def inference(network: nn.Module) -> Any:
            def call() -> torch.Tensor:
                with torch.inference_mode():
                    return network(x)

            return call

        return Contest({who: inference(network) for who, network in networks.items()}, work=batch, unit="items")


def _without_identities(network: nn.Module) -> nn.Sequential:
    """The chain without the places of norms that the block does itself, which would part what can be fused."""
    return nn.Sequential(*(layer for layer in network.children() if not isinstance(layer, nn.Identity)))


protocol = Experiment()
