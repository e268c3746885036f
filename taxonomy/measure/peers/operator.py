"""Operators of other libraries, by task: product, sparse product, convolution.

Each peer takes the task's constant operand, which it may bring into a form of its own outside the time, the operand
that changes from call to call, and the shape; it gives a call. It raises ImportError where the library is not there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

__all__ = ["INSTALL", "PEERS"]

Peer = Callable[[np.ndarray, np.ndarray, Mapping[str, Any]], Callable[[], Any]]
INSTALL = {"mkl": "sparse_dot_mkl"}
"""Packages whose name is not the peer's."""


def product_openblas(w: np.ndarray, x: np.ndarray, shape: Mapping[str, Any]) -> Callable[[], Any]:
    """numpy's BLAS."""
    return lambda: x @ w


def product_torch(w: np.ndarray, x: np.ndarray, shape: Mapping[str, Any]) -> Callable[[], Any]:
    import torch

    left, right = torch.from_numpy(x), torch.from_numpy(w)
    return lambda: left @ right


def dense_openblas(w: np.ndarray, x: np.ndarray, shape: Mapping[str, Any]) -> Callable[[], Any]:
    """numpy's BLAS, zeros multiplied like other numbers."""
    return lambda: w @ x


def dense_torch(w: np.ndarray, x: np.ndarray, shape: Mapping[str, Any]) -> Callable[[], Any]:
    import torch

    left, right = torch.from_numpy(w), torch.from_numpy(x)
    return lambda: left @ right


def sparse_scipy(w: np.ndarray, x: np.ndarray, shape: Mapping[str, Any]) -> Callable[[], Any]:
    import scipy.sparse

    left = scipy.sparse.csr_matrix(w)
    return lambda: left @ x


def sparse_torch(w: np.ndarray, x: np.ndarray, shape: Mapping[str, Any]) -> Callable[[], Any]:
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
        left, right = torch.from_numpy(w).to_sparse_csr(), torch.from_numpy(x)
    return lambda: left @ right


def sparse_mkl(w: np.ndarray, x: np.ndarray, shape: Mapping[str, Any]) -> Callable[[], Any]:
    """MKL, through a wrapper that makes MKL's handle of the matrix in every call."""
    import os
    import sys
    from pathlib import Path

    import scipy.sparse

    # the wheel installs a versioned library where the wrapper does not look
    for library in sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*")):
        os.environ.setdefault("MKL_RT", str(library))
    from sparse_dot_mkl import dot_product_mkl

    left = scipy.sparse.csr_matrix(w)
    return lambda: dot_product_mkl(left, x)


def convolution_torch(w: np.ndarray, x: np.ndarray, shape: Mapping[str, Any]) -> Callable[[], Any]:
    """PyTorch on images as they come: channels, rows, columns."""
    import torch
    from torch.nn.functional import conv2d

    images, filters = torch.from_numpy(x), torch.from_numpy(w)
    options = {name: shape[name] for name in ("stride", "padding", "groups")}
    return lambda: conv2d(images, filters, **options)


def convolution_channels_last(w: np.ndarray, x: np.ndarray, shape: Mapping[str, Any]) -> Callable[[], Any]:
    """PyTorch on images and weights with the channels last; they are brought into that order outside the time."""
    import torch
    from torch.nn.functional import conv2d

    images, filters = (torch.from_numpy(t).to(memory_format=torch.channels_last) for t in (x, w))
    options = {name: shape[name] for name in ("stride", "padding", "groups")}
    return lambda: conv2d(images, filters, **options)


PEERS: dict[str, dict[str, Peer]] = {
    "product": {"openblas": product_openblas, "torch": product_torch},
    "sparse product": {
        "openblas": dense_openblas,
        "torch": dense_torch,
        "scipy": sparse_scipy,
        "torch-sparse": sparse_torch,
        "mkl": sparse_mkl,
    },
    "convolution": {"torch": convolution_torch, "torch-channels-last": convolution_channels_last},
}
