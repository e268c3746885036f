"""Post-training quantization: torch's fake quantization, equalization that changes nothing, all roundings tried."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

import datasets
from datasets import Data, Split
from kernels.model.batch_norm import fold
from kernels.model.calibration import calibration_rows, output_error
from kernels.model.quantization.post_training_quantization import (
    ClippedPerChannel,
    PostTrainingQuantization,
    adaptive_codes,
    equalize,
)
from kernels.model.quantization.uniform_grid import fit_grid
from kernels.model.transform import bake
from taxonomy.measure.figures import layer_errors, stored_bits

NOISY = datasets.workload("noisy-digits-cnn")


def cnn(cap=nn.ReLU):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), cap(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3, groups=6), cap(),
        nn.Conv2d(6, 8, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3),
    ).eval()  # fmt: skip


def items(n=64, seed=0):
    torch.manual_seed(seed)
    split = Split(torch.rand(n, 1, 10, 10).numpy(), torch.zeros(n, dtype=torch.int64).numpy())
    return Data("noise", split, split, split, 3)


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_weights_and_inputs_are_those_of_torchs_fake_quantization(bits, granularity):
    network, exact, data = cnn(), cnn(), items()
    ours = PostTrainingQuantization(bits, inputs=8, granularity=granularity).apply(network, data)
    x = torch.tensor(data.train.x)
    theirs = x
    largest = 2 ** (bits - 1) - 1
    for i, layer in enumerate(network):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            calibrated = exact[:i](x)
            low, high = min(calibrated.min().item(), 0.0), max(calibrated.max().item(), 0.0)
            scale = (high - low) / 255
            theirs = torch.fake_quantize_per_tensor_affine(theirs, scale, round(-low / scale), 0, 255)
            w = layer.weight.detach()
            scales = w.flatten(1).abs().amax(1) / largest
            scales = scales if granularity == "channel" else scales.max().expand_as(scales).contiguous()
            zeros = torch.zeros(len(w), dtype=torch.int32)
            rounded = torch.fake_quantize_per_channel_affine(w, scales, zeros, 0, -largest, largest)
            assert torch.allclose(ours[i].weight, rounded, atol=1e-6)
            layer.weight.data = rounded
        theirs = layer(theirs)
    assert (ours(x) - theirs).abs().max() < 0.02 * theirs.abs().max()


def test_nothing_is_left_of_fp32_weights_and_the_bits_are_counted():
    ours = PostTrainingQuantization(bits=4).apply(cnn(), items())
    weights, outputs = 54 + 54 + 216 + 40 + 15, 6 + 6 + 8 + 5 + 3
    assert stored_bits(ours) == 4 * weights + 32 * outputs + 32 * outputs, "codes, scales, biases"
    assert all(layer.input_bits == 8 for layer in ours if isinstance(layer, nn.Conv2d | nn.Linear))
    assert sum(p.numel() for p in ours.parameters()) == outputs


def test_the_input_is_untouched_and_a_second_time_gives_the_same():
    network, data = cnn()[:5].append(nn.Flatten()), items()
    before, x = copy.deepcopy(network.state_dict()), torch.tensor(data.test.x)
    method = PostTrainingQuantization(bits=3, limits="mse", equalize=True, correct_bias=True, rounding="adaptive")
    first, again = (method.apply(network, data) for _ in range(2))
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    assert torch.equal(first(x), again(x)) and torch.equal(bake(first)(x), first(x))
    assert not any(hasattr(layer, "input_bits") or hasattr(layer, "output_divisor") for layer in network)


@pytest.mark.parametrize("cap", [nn.ReLU, nn.ReLU6])
def test_equalization_changes_no_output_and_makes_ranges_equal(cap):
    network, x = cnn(cap), 9 * torch.rand(8, 1, 10, 10)
    with torch.no_grad():
        network[0].weight[0] *= 40
        network[3].weight[2] *= 0.02
    equal = equalize(network)
    assert torch.allclose(equal(x), network(x), rtol=1e-4, atol=1e-5)
    if cap is nn.ReLU6:
        assert isinstance(equal[1], ClippedPerChannel) and not torch.allclose(equal(x), equalize(cnn())(x))
    first = equal[0].weight.flatten(1).abs().amax(1)
    assert torch.allclose(first, equal[3].weight.flatten(1).abs().amax(1), rtol=1e-3)
    by_input = torch.stack([equal[5].weight[4 * (c // 3) : 4 * (c // 3) + 4, c % 3].abs().max() for c in range(6)])
    assert torch.allclose(equal[3].weight.flatten(1).abs().amax(1), by_input, rtol=1e-3)
    rescaled = layer_errors(network, equal, x)
    assert all(isinstance(e, float) is False or e > 80 for e in rescaled.values()), (
        "seen through what they were divided by"
    )


def test_one_scale_for_all_channels_needs_equalization():
    network, data = cnn(), items()
    with torch.no_grad():
        network[0].weight[0] *= 1000
        network[3].weight[0] /= 1000
    x = torch.tensor(data.test.x)
    plain, equal = (
        PostTrainingQuantization(granularity="tensor", equalize=e).apply(network, data)(x) for e in (False, True)
    )
    exact = network(x)
    assert ((equal - exact) ** 2).sum() < 0.01 * ((plain - exact) ** 2).sum()


def test_layers_that_others_read_too_and_what_cannot_be_traced_are_left_alone():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.seq = nn.Linear(4, 4), nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))

        def forward(self, x):
            y = self.a(x)
            if y.sum() > 1e9:  # no trace gets past this
                return y
            return self.seq(y + self.b(y.relu()))

    torch.manual_seed(0)
    network, x = Residual(), torch.randn(5, 4)
    equal = equalize(network)
    assert torch.equal(equal.a.weight, network.a.weight) and torch.equal(equal.b.weight, network.b.weight)
    assert torch.allclose(equal(x), network(x), atol=1e-6)
    rows, columns = equal.seq[0].weight.abs().amax(1), equal.seq[1].weight.abs().amax(0)
    assert torch.allclose(rows, columns) and not torch.equal(equal.seq[0].weight, network.seq[0].weight)


def test_bias_correction_brings_the_mean_outputs_back():
    """Of one layer, on the items calibrated on, the mean is exact: what was added is minus D E[x]."""
    torch.manual_seed(0)
    network, data = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False)), items()
    x = torch.tensor(data.train.x)
    exact = network(x).mean((0, 2, 3))
    means = [
        PostTrainingQuantization(bits=2, inputs=0, correct_bias=c).apply(network, data)(x).mean((0, 2, 3))
        for c in (False, True)
    ]
    assert torch.allclose(means[1], exact, atol=1e-5) and not torch.allclose(means[0], exact, atol=1e-3)
    memory = nn.Sequential(nn.Flatten(1, 2), nn.GRU(10, 3, bias=False))
    with pytest.raises(ValueError, match="layer '1': expected a recurrent layer with biases"):
        PostTrainingQuantization(correct_bias=True).apply(memory, data)


def test_adaptive_rounding_finds_nearly_the_best_of_all_roundings():
    torch.manual_seed(0)
    rows = torch.randn(10, 200, 8) @ torch.randn(10, 8, 8)
    moment = (rows.mT @ rows / 200).double()  # ten problems, a group each
    weight = torch.randn(10, 1, 8)
    grid = fit_grid(weight[:, 0], 3, symmetric=True)
    scale, zero = grid.steps(8)

    def error(codes):
        return output_error(grid.decode(codes)[:, None] - weight, moment)

    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8)))
    tried = [(torch.floor(weight[:, 0] / scale) + zero + one).clamp(grid.low, grid.high) for one in every]
    chosen = adaptive_codes(weight, grid, moment)
    assert torch.stack([(codes == chosen).all(1) for codes in tried]).any(0).all(), "each weight above or below"
    best = torch.stack([error(codes) for codes in tried]).amin(0)
    nearest = error(grid.encode(weight[:, 0]))
    assert (error(chosen) - best).sum() < 0.2 * (nearest - best).sum()


def test_adaptive_rounding_beats_nearest_and_chance_on_a_network():
    data = NOISY.data()
    method = PostTrainingQuantization(bits=2, inputs=0, limits="mse", rounding="adaptive")
    networks = {
        "adaptive": method.apply(NOISY.trained(), data),
        "stochastic": method.rivals(0)["stochastic"].apply(NOISY.trained(), data),
        "nearest": PostTrainingQuantization(bits=2, inputs=0, limits="mse").apply(NOISY.trained(), data),
    }
    accuracy = {name: datasets.accuracy(network, data.validation) for name, network in networks.items()}
    assert accuracy["adaptive"] > accuracy["nearest"] + 0.05 and accuracy["adaptive"] > accuracy["stochastic"] + 0.05
    rows = calibration_rows(fold(NOISY.trained()), torch.tensor(data.train.x[:256]))
    exact = fold(NOISY.trained())
    for (path, name), row in rows.items():
        squares = {
            who: output_error(
                (networks[who].get_submodule(path).weight - exact.get_submodule(path).weight).detach().flatten(1)[None],
                row.moment,
            )
            for who in ("adaptive", "nearest")
        }
        assert name == "weight" and squares["adaptive"] <= squares["nearest"]


def test_by_chance_is_unbiased_and_drawn_by_the_seed():
    method, data = PostTrainingQuantization(bits=4, inputs=0, rounding="adaptive"), items()
    network = nn.Sequential(nn.Flatten(), nn.Linear(100, 50, bias=False))
    drawn = [method.rivals(seed)["stochastic"].apply(network, data)[1].weight for seed in range(40)]
    again = method.rivals(3)["stochastic"].apply(network, data)[1].weight
    assert torch.equal(drawn[3], again) and not torch.equal(drawn[3], drawn[4])
    step = network[1].weight.abs().amax(1, keepdim=True) / 7
    assert (((torch.stack(drawn).mean(0) - network[1].weight) / step).abs().mean()) < 0.1
    assert method.rivals(0).keys() == {"stochastic"} and not PostTrainingQuantization().rivals(0)


@pytest.mark.parametrize("id", ["vowels-gru", "silero-vad"])
def test_recurrent_networks_keep_their_answers(id):
    workload = datasets.workload(id)
    if id == "silero-vad":
        split = Split(workload.calibration, torch.zeros(len(workload.calibration), dtype=torch.int64).numpy())
        data, x = Data("speech", split, split, split, 2), torch.tensor(workload.items)
        decide = workload.decide
    else:
        data, decide = workload.data(), lambda outputs: outputs.argmax(1)
        x = torch.tensor(data.validation.x)
    network = PostTrainingQuantization().apply(workload.trained(), data)
    with torch.no_grad():
        assert (decide(network(x)) == decide(workload.trained()(x))).float().mean() > 0.95


def test_wrong_parameters_and_layers_are_named():
    for name, wrong in (("bits", 1), ("bits", 9), ("inputs", 1), ("items", 0), ("granularity", "row"),
                        ("limits", "entropy"), ("rounding", "up")):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name}: expected"):
            PostTrainingQuantization(**{name: wrong})
    with pytest.raises(ValueError, match=r"layer '1': expected .* got ConvTranspose2d"):
        PostTrainingQuantization().apply(nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(1, 1, 2)), items())
    broken = cnn()
    with torch.no_grad():
        broken[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="x: expected finite numbers"):
        PostTrainingQuantization().apply(broken, items())
