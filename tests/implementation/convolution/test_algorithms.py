"""Every way to convolve gives the convolution, on every shape that it permits, and says why where it does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kernels.implementation.convolution.fft_convolution import FFTConvolution
from kernels.implementation.convolution.im2col import Im2col
from kernels.implementation.convolution.implicit_gemm import ImplicitGEMM
from kernels.implementation.convolution.lowered import Geometry, fold, unfold
from kernels.implementation.convolution.winograd import Winograd

ANY = [Im2col(), ImplicitGEMM(), ImplicitGEMM(block=7)]
UNIT = [FFTConvolution(), FFTConvolution(tile=5), Winograd(2), Winograd(4), Winograd(6)]
BOUNDS = {2: 2e-5, 4: 2e-4, 6: 2e-3}

layers = st.fixed_dictionaries({
    "images": st.integers(0, 2), "each": st.integers(0, 4), "outputs": st.integers(1, 5), "groups": st.integers(1, 3),
    "kernel": st.tuples(*[st.integers(1, 4)] * 2), "stride": st.tuples(*[st.integers(1, 3)] * 2),
    "padding": st.tuples(*[st.integers(0, 3)] * 2), "dilation": st.tuples(*[st.integers(1, 3)] * 2),
    "size": st.tuples(*[st.integers(1, 17)] * 2), "seed": st.integers(0, 99), "bias": st.booleans(),
    "turned": st.booleans(),
})  # fmt: skip


def operands(layer):
    rng = np.random.default_rng(layer["seed"])
    groups = layer["groups"]
    shape = (layer["images"], layer["each"] * groups, *layer["size"])
    x = rng.standard_normal(shape).astype(np.float32)
    if layer["turned"]:
        x = np.ascontiguousarray(x.transpose(2, 3, 0, 1)).transpose(2, 3, 0, 1)  # channels last: not contiguous
    w = rng.standard_normal((layer["outputs"] * groups, layer["each"], *layer["kernel"])).astype(np.float32)
    return x, w, rng.standard_normal(len(w)).astype(np.float32) if layer["bias"] else None


def expected(x, w, bias, **options):
    if not x.size or not w.size:  # torch refuses what is empty, where the sum over nothing is the bias
        g = Geometry(w.shape[2:], options["stride"], options["padding"], options["dilation"], x.shape[2:])
        zeros = torch.zeros(len(x), len(w), *g.shape, dtype=torch.float64)
        return zeros + (0 if bias is None else torch.tensor(bias).double()[:, None, None])
    bias = None if bias is None else torch.tensor(bias).double()
    return F.conv2d(torch.tensor(x.copy()).double(), torch.tensor(w).double(), bias, **options)


def fits(layer):
    reach = [d * (k - 1) + 1 for k, d in zip(layer["kernel"], layer["dilation"], strict=True)]
    return all(s + 2 * p >= r for s, p, r in zip(layer["size"], layer["padding"], reach, strict=True))


@pytest.mark.parametrize("operator", ANY, ids=repr)
@settings(max_examples=40, deadline=None)
@given(layers)
def test_every_stride_padding_dilation_and_group(operator, layer):
    assume(fits(layer))
    x, w, bias = operands(layer)
    options = {name: layer[name] for name in ("stride", "padding", "dilation", "groups")}
    found = operator.conv2d(x, operator.prepare(w, layer["groups"]), bias, **options)
    assert found.dtype == np.float32 and np.allclose(found, expected(x, w, bias, **options), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("operator", UNIT, ids=repr)
@settings(max_examples=30, deadline=None)
@given(layers)
def test_transforms_on_every_size_padding_and_group(operator, layer):
    kernel = (3, 3) if isinstance(operator, Winograd) else layer["kernel"]
    layer = {**layer, "kernel": kernel, "stride": (1, 1), "dilation": (1, 1)}
    assume(fits(layer))
    x, w, bias = operands(layer)
    options = {name: layer[name] for name in ("stride", "padding", "dilation", "groups")}
    exact = expected(x, w, bias, **options).numpy()
    found = operator.conv2d(torch.tensor(x.copy()), w, bias, padding=layer["padding"], groups=layer["groups"]).numpy()
    bound = BOUNDS.get(getattr(operator, "tile", 0), 2e-5) if isinstance(operator, Winograd) else 2e-5
    assert np.abs(found - exact).max(initial=0) <= bound * max(1, np.abs(exact).max(initial=0))


@pytest.mark.parametrize("operator", [Im2col(), ImplicitGEMM(block=20)], ids=repr)
@pytest.mark.parametrize("options", [
    {}, {"padding": 1}, {"stride": 2, "padding": 1}, {"dilation": 2},
    {"groups": 2, "padding": (0, 2), "stride": (1, 2)},
])  # fmt: skip
def test_gradients_are_those_of_autograd_and_adjoint(operator, options):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 4, 9, 8)), rng.standard_normal((6, 4 // options.get("groups", 1), 3, 2))
    tx, tw = (torch.tensor(a, requires_grad=True) for a in (x, w))
    y = F.conv2d(tx, tw, **options)
    gradient = rng.standard_normal(y.shape)
    y.backward(torch.tensor(gradient))
    own_x = operator.input_gradient(gradient, w, x.shape[2:], **options)
    own_w = operator.weight_gradient(x, gradient, w.shape[2:], **options)
    assert np.allclose(own_x, tx.grad, atol=1e-4) and np.allclose(own_w, tw.grad, atol=1e-3)
    forward = float((operator.conv2d(x, w, **options).astype(np.float64) * gradient).sum())
    assert forward == pytest.approx(float((own_x.astype(np.float64) * x).sum()), rel=1e-4)
    assert forward == pytest.approx(float((own_w.astype(np.float64) * w).sum()), rel=1e-4)


def test_folding_is_the_adjoint_of_unfolding_and_torch_agrees():
    rng = np.random.default_rng(1)
    g = Geometry((3, 2), (2, 1), (1, 1), (1, 2), (7, 8))
    x = rng.standard_normal((3, 7, 8)).astype(np.float32)
    patches = unfold(x, g)
    options = {"kernel_size": g.kernel, "stride": g.stride, "padding": g.padding, "dilation": g.dilation}
    assert np.array_equal(patches, F.unfold(torch.tensor(x)[None], **options)[0])
    other = rng.standard_normal(patches.shape).astype(np.float32)
    assert np.allclose(fold(other, 3, g), F.fold(torch.tensor(other)[None], (7, 8), **options)[0], atol=1e-5)
    assert np.array_equal(unfold(x, g, 5, 9), patches[:, 5:14])


def test_what_is_not_permitted_says_why():
    x, w = np.ones((1, 1, 9, 9), np.float32), np.ones((1, 1, 3, 3), np.float32)
    for operator in (Winograd(), FFTConvolution()):
        with pytest.raises(ValueError, match=r"stride, dilation: expected 1, got \(2, 2\), \(1, 1\)"):
            operator.conv2d(x, w, stride=2)
        with pytest.raises(ValueError, match=r"stride, dilation: expected 1, got \(1, 1\), \(2, 2\)"):
            operator.conv2d(x, w, dilation=2)
    with pytest.raises(ValueError, match="w: expected 3 x 3 filters, for which the transforms are, got 5 x 5"):
        Winograd().conv2d(x, np.ones((1, 1, 5, 5), np.float32))
    with pytest.raises(ValueError, match="w: expected a kernel of at most the tile's 4"):
        FFTConvolution(4).prepare(np.ones((1, 1, 5, 5), np.float32))
    for bad in (0, 3, 8):
        with pytest.raises(ValueError, match="tile: expected 2, 4 or 6"):
            Winograd(bad)
    with pytest.raises(ValueError, match="tile: expected an integer of at least 2, got 1"):
        FFTConvolution(1)
    with pytest.raises(ValueError, match="block: expected a positive number of pixels, got 0"):
        ImplicitGEMM(0)


@pytest.mark.parametrize("operator", [*ANY[:2], *UNIT[:1], UNIT[3]], ids=repr)
def test_bad_operands_are_named(operator):
    x, w = np.ones((1, 2, 5, 5), np.float32), np.ones((4, 2, 3, 3), np.float32)
    with pytest.raises(ValueError, match="x: expected 2 channels"):
        operator.conv2d(x[:, :1], w)
    with pytest.raises(ValueError, match="x: expected images that the kernel"):
        operator.conv2d(x[:, :, :2], w)
    with pytest.raises(ValueError, match="groups: expected a divisor of w's 4 output channels, got 3"):
        operator.prepare(w, groups=3)
    with pytest.raises(ValueError, match="bias: expected 4 numbers"):
        operator.conv2d(x, w, np.ones(3))
    with pytest.raises(ValueError, match="w: it was prepared by"):
        operator.conv2d(x, operator.prepare(w, 2))
    with pytest.raises(ValueError, match="stride: expected one or two integers of at least 1, got 0"):
        operator.conv2d(x, w, stride=0)
    found = operator.conv2d(np.where(np.arange(25).reshape(5, 5) == 12, np.nan, x), w)
    assert np.isnan(found[0, :, 1:2, 1:2]).all()
