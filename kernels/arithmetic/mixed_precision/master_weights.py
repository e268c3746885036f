r"""Master weights: the passes see weights of a narrow format, the updates add to an FP32 copy.

.. math:: \hat w = Q(w), \qquad w \leftarrow w - \eta\, u\big(\nabla_{\hat w} L\big) \quad \text{in FP32}

Kept in the format itself, w ← Q(w - η u), an update below half the spacing of numbers around w is lost whole, and again
at the next step: a weight of one does not move by steps of a thousandth in bfloat16, however many there are.

Source: P. Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kernels.arithmetic.mixed_precision.loss_scaling import DynamicScale
from kernels.arithmetic.mixed_precision.low_precision import FormatTraining, Precision, precision_of

__all__ = ["MasterWeights"]


@dataclass(frozen=True)
class MasterWeights(FormatTraining):
    """Train in a narrow format and keep the weights in FP32.

    Parameters
    ----------
    format : {"bfloat16", "fp16", "fp8", "fp32"}
        Of weights, activations and gradients in the passes. FP16 and FP8 train with dynamic loss scaling, with master
        weights and without.
    master : bool
        Without, the weights that are kept are rounded to the format after every update.

    Source
    ------
    Micikevicius et al. 2018, section 3.1.

    Examples
    --------
    >>> import datasets
    >>> from kernels.arithmetic.floating_point.bfloat16 import BFloat16
    >>> digits = datasets.workload("digits-mlp")
    >>> recipe = datasets.Recipe(epochs=1, learning_rate=1e-4, schedule="constant")
    >>> for method in (MasterWeights(), MasterWeights().without()):
    ...     start = digits.network()
    ...     network, trace = method.train(start, digits.data(), recipe)
    ...     moved = (network[1].weight != BFloat16().round(start[1].weight)).float().mean()
    ...     print(method.master, bool(moved > 0.5))
    True True
    False False
    """

    format: str = "bfloat16"
    master: bool = True

    def without(self) -> MasterWeights:
        """The same training, weights kept in the format."""
        return replace(self, master=False)

    @property
    def precision(self) -> Precision:
        """Formats of the passes, and of the weights that are kept."""
        return precision_of(self.format, self.master)

    @property
    def scaler(self) -> DynamicScale | None:
        """FP16 and FP8 need one."""
        return DynamicScale(interval=200) if self.format in ("fp16", "fp8") else None
