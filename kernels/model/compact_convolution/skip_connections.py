"""Skip connections: what a layer has read goes past it, to be added or to be kept beside its result."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from kernels.model.block import ConvSpec
from kernels.model.compact_convolution.geometry import Shortcut, centred, geometry, keeps_size, pointwise

__all__ = ["Dense", "SkipConnections"]

FORMS = ("bottleneck", "residual", "dense")


class Dense(nn.Module):
    """Layers each of which reads the input and the results of all before it; what comes out is all of them together.

    Parameters
    ----------
    layers : sequence of nn.Module
    connected : bool
        Else each reads the result before it alone, and what comes out is the last.
    """

    def __init__(self, layers: list[nn.Module], connected: bool) -> None:
        super().__init__()
        self.layers, self.connected = nn.ModuleList(layers), connected

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], dim=1) if self.connected else layer(x)
        return x


@dataclass(frozen=True)
class SkipConnections:
    r"""A block of several layers with a way past them, in place of one convolution.

    .. math:: \text{residual:}\quad y = x + f(x), \qquad \text{dense:}\quad x_l = h_l([x_0, x_1, \ldots, x_{l-1}])

    A way past makes deep stacks trainable, since the gradient has one too; so several cheap layers can stand where one
    costly one stood. `bottleneck` is ResNet's: 1 x 1 into N / 4 channels, k x k, 1 x 1 back, (M N + k² N² / 4 + N²) / 4
    products a pixel; where channels or sizes differ, a 1 x 1 convolution goes past. `residual` is its plain form,
    two k x k convolutions, which costs more than the one it replaces. `dense` is DenseNet's: `depth` layers of N / 4
    new channels each, then a 1 x 1 convolution of all that there is into N.

    Parameters
    ----------
    form : {"bottleneck", "residual", "dense"}
    connected : bool
        Whether there is a way past; without it the same layers in a plain stack: the papers' own comparison.
    depth : int
        Layers of a dense block.

    Source
    ------
    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 3, figures 2 and 5; Huang et al.,
    "Densely Connected Convolutional Networks", CVPR 2017, section 3.

    Examples
    --------
    >>> from kernels.counting import macs
    >>> block = SkipConnections().build(ConvSpec(32, 32, 3, padding=1, bias=False))
    >>> macs(block, torch.zeros(1, 32, 1, 1)) == 32 * 8 + 9 * 8 * 8 + 8 * 32
    True
    """

    form: str = "bottleneck"
    connected: bool = True
    depth: int = 2

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {self.form!r}")
        if self.depth < 1:
            raise ValueError(f"depth: expected a positive integer, got {self.depth}")

    @property
    def takes_over(self) -> tuple[type[nn.Module], ...]:
        """What is added is normalized before; dense layers normalize what they read."""
        return () if self.form == "dense" else (nn.BatchNorm2d,)

    def build(self, spec: ConvSpec) -> nn.Module:
        """An untrained block with the input and output shapes of a standard convolution.

        Parameters
        ----------
        spec : ConvSpec
            With an odd kernel, where a 1 x 1 convolution goes past.

        Returns
        -------
        nn.Module

        Raises
        ------
        ValueError
            If dense layers are asked for and maps would change their size.
        """
        if self.form == "dense":
            return self._dense(spec)
        n, kernel = spec.out_channels, geometry(spec).kernel
        if self.form == "bottleneck":
            inside = max(1, n // 4)
            middle = nn.Conv2d(**(asdict(spec) | {"in_channels": inside, "out_channels": inside, "bias": False}))
            layers = [
                pointwise(spec.in_channels, inside), nn.BatchNorm2d(inside), nn.ReLU(),
                middle, nn.BatchNorm2d(inside), nn.ReLU(),
                pointwise(inside, n), nn.BatchNorm2d(n),
            ]  # fmt: skip
        else:
            layers = [
                nn.Conv2d(**(asdict(spec) | {"bias": False})), nn.BatchNorm2d(n), nn.ReLU(),
                nn.Conv2d(n, n, kernel, padding="same", bias=False), nn.BatchNorm2d(n),
            ]  # fmt: skip
        branch = nn.Sequential(*layers)
        if not self.connected:
            return branch
        if spec.in_channels == n and keeps_size(spec):
            return Shortcut(branch)
        return Shortcut(branch, nn.Sequential(centred(spec, (1, 1)), nn.BatchNorm2d(n)))

    def _dense(self, spec: ConvSpec) -> nn.Sequential:
        if not keeps_size(spec):
            raise ValueError(f"spec: expected a convolution that keeps the size of maps for dense layers, got {spec}")
        new, channels, layers = max(1, spec.out_channels // 4), spec.in_channels, []
        for _ in range(self.depth):
            own = replace(spec, in_channels=channels, out_channels=new, bias=False)
            layers.append(nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(**asdict(own))))
            channels = channels + new if self.connected else new
        ends = [nn.BatchNorm2d(channels), nn.ReLU(), pointwise(channels, spec.out_channels, bias=spec.bias)]
        return nn.Sequential(Dense(list(layers), self.connected), *ends)
