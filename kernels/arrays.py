"""What every kernel asks of its arguments: an array, of the right kind, or an error that names it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    Array = np.ndarray | torch.Tensor

__all__ = ["as_array", "describe", "is_tensor", "like"]


def is_tensor(x: Any) -> bool:
    """Whether `x` is a torch tensor (without importing torch for those who do not use it)."""
    return type(x).__module__.split(".")[0] == "torch" and hasattr(x, "detach")


def describe(x: Any) -> str:
    """A short description of an argument for an error message."""
    shape, dtype = getattr(x, "shape", None), getattr(x, "dtype", None)
    return type(x).__name__ if shape is None else f"{type(x).__name__} of shape {tuple(shape)} and dtype {dtype}"


def as_array(x: Any, name: str, *, ndim: int | tuple[int, ...] | None = None, dtype: Any = None) -> np.ndarray:
    """A numpy view of an array, a CPU tensor or nested numbers; an error that names the argument otherwise.

    Parameters
    ----------
    x : array_like or torch.Tensor
        A tensor shares its memory with the view.
    name : str
        The argument's name in error messages.
    ndim : int or tuple of int, optional
        The number of dimensions that is expected.
    dtype : dtype, optional
        What real numbers are converted to; an array that has it already is not copied.

    Raises
    ------
    TypeError
        If `x` is not real numbers, or lives on another device.
    ValueError
        If its number of dimensions is not `ndim`.

    Examples
    --------
    >>> as_array([1, 2], "x", dtype=np.float32)
    array([1., 2.], dtype=float32)
    >>> as_array(np.zeros(3), "w", ndim=2)
    Traceback (most recent call last):
    ...
    ValueError: w: expected an array of 2 dimensions, got ndarray of shape (3,) and dtype float64
    """
    if is_tensor(x):
        if x.device.type != "cpu":
            raise TypeError(f"{name}: expected a CPU tensor, got one on {x.device}; call .cpu() first")
        x = x.detach()
        array = x.float().numpy() if str(x.dtype) == "torch.bfloat16" else x.numpy()
    else:
        try:
            array = np.asarray(x)
        except ValueError as error:
            raise TypeError(f"{name}: expected real numbers, got {describe(x)}") from error
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool) or np.iscomplexobj(array):
        raise TypeError(f"{name}: expected real numbers, got {describe(x)}")
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    if allowed is not None and array.ndim not in allowed:
        dims = " or ".join(map(str, allowed))
        raise ValueError(f"{name}: expected an array of {dims} dimensions, got {describe(x)}")
    return array if dtype is None else array.astype(dtype, copy=False)


def like(result: np.ndarray, x: Any) -> Any:
    """`result` as a tensor that shares its memory where `x` was one, else as it is."""
    if not is_tensor(x):
        return result
    import torch

    return torch.from_numpy(result)
