"""AWQ and SmoothQuant: factors by hand, every power tried on the data, torch's fake quantization behind the factors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import datasets
from datasets import Data, Split
from kernels.model.calibration import Rows, as_matrix, channel_inputs
from kernels.model.compressed_file import decode, encode
from kernels.model.quantization.activation_aware_quantization import (
    ActivationAwareQuantization,
    searched_factors,
    smoothing_factors,
)
from kernels.model.quantization.uniform_grid import fit_grid
from kernels.model.transform import bake
from taxonomy.measure.figures import stored_bits

NOISY = datasets.workload("noisy-digits-cnn")


def data_of(x):
    split = Split(x.numpy(), torch.zeros(len(x), dtype=torch.int64).numpy())
    return Data("noise", split, split, split, 2)


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(),
        nn.Conv2d(6, 4, 3, groups=2), nn.Flatten(), nn.Linear(4 * 16, 3),
    ).eval()  # fmt: skip


def test_the_power_is_the_best_of_all_by_the_outputs_themselves():
    torch.manual_seed(0)
    x = torch.randn(300, 8) * torch.logspace(-1, 1, 8)
    weight = torch.randn(5, 8)
    rows = Rows(x[None])

    def grid_of(matrix):
        return fit_grid(matrix, 3, symmetric=False)

    errors, tried = [], []
    for alpha in torch.linspace(0, 1, 21):
        s = x.abs().mean(0) ** alpha
        s = s / (s.max() * s.min()).sqrt()
        rounded = grid_of(weight * s).round(weight * s)
        errors.append(((functional.linear(x / s, rounded) - functional.linear(x, weight)) ** 2).sum())
        tried.append(s)
    best = int(torch.stack(errors).argmin())
    found = searched_factors(weight[None], rows.magnitude, rows.moment, 1, grid_of)
    assert best > 0 and torch.allclose(found[0], tried[best], rtol=1e-5)
    assert errors[best] < 0.8 * errors[0], "alpha 0 is rounding without factors"


def test_channels_of_a_convolution_share_a_factor_and_dead_ones_have_one():
    torch.manual_seed(0)
    weight, magnitude = torch.randn(2, 3, 8), torch.rand(2, 8).double()
    magnitude[0, :4] = 0  # the first channel of the first group
    found = searched_factors(weight, magnitude, torch.eye(8).expand(2, 8, 8).double(), 4,
                             lambda m: fit_grid(m, 3, symmetric=False))  # fmt: skip
    assert found.shape == (2, 2) and found.isfinite().all() and (found > 0).all()
    factors = smoothing_factors(weight, torch.tensor([0.0, 2.0, 3.0, 4.0]), 4, alpha=0.25)
    by_hand = [[1.0, 2**0.25 / weight[0, :, 4:].abs().max().item() ** 0.75],
               [3**0.25 / weight[1, :, :4].abs().max().item() ** 0.75,
                4**0.25 / weight[1, :, 4:].abs().max().item() ** 0.75]]  # fmt: skip
    assert torch.allclose(factors, torch.tensor(by_hand))


def test_one_smoothed_layer_is_torchs_fake_quantization_of_the_scaled_product():
    torch.manual_seed(0)
    x = torch.randn(100, 6) * torch.tensor([1.0, 1, 1, 1, 1, 50])
    layer = nn.Linear(6, 4)
    ours = ActivationAwareQuantization("smoothquant", bits=8, inputs=8).apply(nn.Sequential(layer), data_of(x))
    s = (x.abs().amax(0) / layer.weight.detach().abs().amax(0)).sqrt()
    weight, inputs = (layer.weight * s).detach(), x / s
    scale = (inputs.max() - inputs.min()).item() / 255
    inputs = torch.fake_quantize_per_tensor_affine(inputs, scale, round(-inputs.min().item() / scale), 0, 255)
    weight = torch.fake_quantize_per_channel_affine(
        weight, weight.abs().amax(1) / 127, torch.zeros(4, dtype=torch.int32), 0, -127, 127
    )
    assert (ours(x) - functional.linear(inputs, weight, layer.bias)).abs().max() < 0.02
    exact = layer(x)
    plain = ActivationAwareQuantization("smoothquant", bits=8, inputs=8).rivals(0)["unscaled"].apply(
        nn.Sequential(layer), data_of(x)
    )  # fmt: skip
    assert ((ours(x) - exact) ** 2).sum() < 0.2 * ((plain(x) - exact) ** 2).sum(), "an outlier spoils the one scale"


@pytest.mark.parametrize("method", ["awq", "smoothquant"])
def test_at_eight_bits_factors_change_almost_nothing_and_are_counted(method):
    torch.manual_seed(1)
    x, network = torch.rand(40, 2, 8, 8), cnn()
    x[:, 1] *= 20
    inputs = 8 if method == "smoothquant" else 0
    technique = ActivationAwareQuantization(method, bits=8, inputs=inputs)
    before = copy.deepcopy(network.state_dict())
    ours, again = technique.apply(network, data_of(x)), technique.apply(network, data_of(x))
    plain = technique.rivals(0)["unscaled"].apply(network, data_of(x))
    exact = network(x)
    assert ((ours(x) - exact) ** 2).sum() < 1e-3 * (exact**2).sum()
    assert torch.equal(ours(x), again(x)) and torch.equal(bake(ours)(x), ours(x))
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    assert stored_bits(ours) - stored_bits(plain) == 32 * (2 + 6 + 6 + 64)
    held = sum(t.numel() for name, t in ours.state_dict().items() if name.endswith("factors"))
    assert held == 78 and not any(name.endswith("factors") for name in plain.state_dict())
    for kept in (ours, plain):
        restored = decode(encode(kept), network)
        assert all(torch.equal(restored[i].weight, kept[i].weight) for i in (0, 2, 4, 6))
    factors = len(encode(ours)) - len(encode(plain))
    assert 4 * 78 <= factors < 4 * 78 + 20 if method == "awq" else factors == 0, "it divides the inputs"
    if method == "awq":  # what is decoded is the weight itself, nearly
        for i in (0, 2, 4, 6):
            assert torch.allclose(ours[i].weight, network[i].weight, atol=0.02)


def test_awq_is_never_further_from_the_outputs_than_without_factors():
    data, technique = NOISY.data(), ActivationAwareQuantization(bits=3, items=128)
    ours = technique.apply(NOISY.trained(), data)
    plain = technique.rivals(0)["unscaled"].apply(NOISY.trained(), data)
    from kernels.model.batch_norm import fold
    from kernels.model.calibration import calibration_rows, output_error

    exact = fold(NOISY.trained())
    closer = 0
    for (path, _), rows in calibration_rows(exact, torch.tensor(data.train.x[:128])).items():
        layer = exact.get_submodule(path)
        squares = [
            output_error(as_matrix(layer, (n.get_submodule(path).weight - layer.weight).detach()), rows.moment).sum()
            for n in (ours, plain)
        ]
        assert squares[0] <= squares[1] * 1.0001
        closer += squares[0] < 0.9 * squares[1]
    assert closer >= 2


def test_inputs_by_channel():
    x, network = torch.rand(5, 2, 8, 8), cnn()
    found = channel_inputs(network, x)
    assert torch.equal(found["0"], x.transpose(0, 1).flatten(1))
    assert torch.equal(found["6"], network[:6](x).T)


def test_recurrent_layers():
    workload = datasets.workload("vowels-gru")
    data = workload.data()
    x = torch.tensor(data.validation.x)
    exact = workload.trained()(x).argmax(1)
    for technique in (ActivationAwareQuantization(bits=4), ActivationAwareQuantization("smoothquant", 8, 8)):
        assert (technique.apply(workload.trained(), data)(x).argmax(1) == exact).float().mean() > 0.9


def test_wrong_parameters_and_layers_are_named():
    for parameters, name in (
        ({"method": "gptq"}, "method"), ({"bits": 1}, "bits"), ({"inputs": 8}, "inputs"), ({"items": 0}, "items"),
        ({"method": "smoothquant"}, "inputs"), ({"alpha": 1.5}, "alpha"), ({"alpha": float("nan")}, "alpha"),
        ({"limits": "none"}, "limits"), ({"granularity": "row"}, "granularity"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name}: expected"):
            ActivationAwareQuantization(**parameters)
    with pytest.raises(ValueError, match=r"layer '0': expected .* got LSTMCell"):
        ActivationAwareQuantization().apply(nn.Sequential(nn.LSTMCell(2, 2)), data_of(torch.ones(2, 2)))
