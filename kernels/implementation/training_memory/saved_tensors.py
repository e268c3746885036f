"""What a network saves for its backward pass, kept in another form until it is read."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["Keeping"]


class _Kept:
    """A saved tensor in its other form, one object for all operations that saved the same tensor."""

    def __init__(self, form: Any) -> None:
        self.form = form


class Keeping(nn.Module):
    """A network whose saved activations are kept as `keep` says, and come back by `give`.

    The forward pass is the network's own, to the last bit; only what autograd saves in it is changed. An activation
    that two operations save (a ReLU its result, the next convolution its input) is kept once. What is resident anyway,
    parameters, buffers and the network's input, stays as it is, and so do tensors of fewer than `smallest` bytes.

    Parameters
    ----------
    network : nn.Module
        Its parameters are the wrapper's own.
    keep : callable
        Takes a detached tensor and gives any object.
    give : callable
        Takes that object and gives a contiguous tensor of as many elements and the same dtype.
    smallest : int
        Bytes.

    Examples
    --------
    >>> layer, x = nn.Linear(2, 2), torch.ones(1, 2, requires_grad=True)
    >>> halved = Keeping(nn.Sequential(nn.Identity(), layer, nn.Sigmoid()), Tensor.half, Tensor.float, smallest=0)
    >>> halved(x).sum().backward()
    >>> bool((layer.weight.grad != 0).all())
    True
    """

    def __init__(
        self, network: nn.Module, keep: Callable[[Tensor], Any], give: Callable[[Any], Tensor], smallest: int = 1024
    ) -> None:
        super().__init__()
        self.network, self.keep, self.give, self.smallest = network, keep, give, smallest
        self.seen: weakref.WeakValueDictionary[Any, _Kept] = weakref.WeakValueDictionary()

    def forward(self, x: Tensor) -> Tensor:
        resident = {_address(tensor) for tensor in (x, *self.network.parameters(), *self.network.buffers())}

        def pack(tensor: Tensor) -> Tensor | tuple[_Kept, torch.Size]:
            if _address(tensor) in resident or tensor.nbytes < self.smallest:
                return tensor
            return self._kept(tensor.detach()), tensor.shape

        with saved_tensors_hooks(pack, self._given):
            return self.network(x)

    def _kept(self, tensor: Tensor) -> _Kept:
        storage = tensor.untyped_storage()
        # what a flattening layer's neighbours save differs in its shape alone
        laid = tensor.numel() if tensor.is_contiguous() else (tensor.shape, tensor.stride())
        place = (storage._cdata, tensor.storage_offset(), laid, tensor.dtype, tensor._version)
        kept = self.seen.get(place)
        if kept is None:
            kept = self.seen[place] = _Kept(self.keep(tensor))
            # an address is used again once its storage is free: what was known of it must be forgotten then
            weakref.finalize(storage, self.seen.pop, place, None).atexit = False
        return kept

    def _given(self, saved: Tensor | tuple[_Kept, torch.Size]) -> Tensor:
        return saved if isinstance(saved, Tensor) else self.give(saved[0].form).view(saved[1])


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
