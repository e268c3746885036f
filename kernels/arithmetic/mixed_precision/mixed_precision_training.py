r"""Mixed-precision training: low-precision passes, FP32 where it is needed.

.. math:: \hat w = Q(w), \qquad g = \tfrac{1}{S} Q\big(\nabla_{\hat w} S\, L(\hat w)\big), \qquad
   w \leftarrow w - \eta\, u(g) \quad \text{in FP32}

Three means together: the products' operands and results are stored in the format, but summed in FP32; weights are kept
as an FP32 master copy; and the loss is scaled by S where the format is too narrow for gradients (FP16 and FP8; bfloat16
has the range of FP32 and needs no S).

Source: P. Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3; for bfloat16 D. Kalamkar et al. 2019;
for FP8 P. Micikevicius et al., "FP8 Formats for Deep Learning", 2022.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kernels.arithmetic.mixed_precision.loss_scaling import DynamicScale
from kernels.arithmetic.mixed_precision.low_precision import FormatTraining, Precision, precision_of

__all__ = ["MixedPrecisionTraining"]


@dataclass(frozen=True)
class MixedPrecisionTraining(FormatTraining):
    """Train in a narrow format with FP32 sums, FP32 master weights and, where the format needs it, a scaled loss.

    Parameters
    ----------
    format : {"fp16", "bfloat16", "fp8", "fp32"}
        Of weights, activations and gradients in the passes.
    mixed : bool
        Without, everything but sums and the optimizer's state is in the format, and the loss as it is.

    Source
    ------
    Micikevicius et al. 2018, section 3.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> network, trace = MixedPrecisionTraining().train(digits.network(), digits.data(), datasets.Recipe(epochs=1))
    >>> bool((network[1].weight.half().float() == network[1].weight).all())
    True
    """

    format: str = "fp16"
    mixed: bool = True

    def without(self) -> MixedPrecisionTraining:
        """The same formats alone: no master copy, no scale."""
        return replace(self, mixed=False)

    @property
    def precision(self) -> Precision:
        """Formats of the passes, and of the weights that are kept."""
        return precision_of(self.format, self.mixed)

    @property
    def scaler(self) -> DynamicScale | None:
        """FP16 and FP8 need one."""
        return DynamicScale(interval=200) if self.mixed and self.format in ("fp16", "fp8") else None
