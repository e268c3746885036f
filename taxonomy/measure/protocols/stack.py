"""How stacks are measured: techniques of several levels on one network, and what is left of accuracy and of cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import accuracy
from kernels.model.compressed_file import encode
from taxonomy.measure.figures import costs
from taxonomy.measure.protocol import REPETITIONS, Case, Protocol, Trial, Values

__all__ = ["StackProtocol", "protocol"]


class StackProtocol(Protocol):
    """Build the stack, fine-tuning included, with five seeds; beside it the untouched network.

    Accuracy is that of the network as it computes, in its number format and with its operators; sizes are those of what
    is stored. The validation split is measured too, because `tx.best` chooses by it.
    """

    kind = "stack"
    version = 1
    metrics = (
        "accuracy", "validation_accuracy", "stored_bits", "parameters", "nonzero_parameters", "macs", "effective_macs",
        "peak_activation_bytes",
    )  # fmt: skip

    def trials(self, technique: Any, variant: Mapping[str, Any], workload: Any) -> list[Trial]:
        return [Trial(seed=seed) for seed in range(REPETITIONS)]

    def quality(self, case: Case) -> Values:
        workload, data = case.workload, case.workload.data()
        built, untouched = case.subject.build(workload, case.seed), workload.trained()
        values: Values = {
            who: {
                "accuracy": accuracy(network, data.test),
                "validation_accuracy": accuracy(network, data.validation),
                **{metric: figure for metric, figure in costs(stored, workload).items() if metric in self.metrics},
            }
            for who, network, stored in (("self", built.network, built.plain), ("baseline", untouched, untouched))
        }
        values["self"]["stored_bits"] = case.subject.stored_bits(built)
        values["self"]["bytes_on_disk"] = len(case.subject.file(built))
        values["baseline"]["bytes_on_disk"] = len(encode(untouched))
        return values


protocol = StackProtocol()
