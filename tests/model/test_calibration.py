"""What a layer is multiplied with: torch's own unfold, the layers' own outputs, and recurrences step by step."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import datasets
from kernels.model.calibration import as_matrix, calibration_rows, items_of, output_error, places, raw_inputs


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1, bias=False),
        nn.Conv2d(4, 6, (3, 2), stride=2, dilation=(2, 1), groups=2, bias=False),
        nn.Conv2d(4, 4, 5, padding="same", groups=4, bias=False),
        nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect", bias=False),
    ],
)
def test_rows_times_the_weight_are_what_a_convolution_gives(layer):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 9, 8)
    rows = calibration_rows(nn.Sequential(layer), x)["0", "weight"].x
    product = rows @ as_matrix(layer, layer.weight).mT  # (groups, images * places, outputs)
    given = layer(x)
    ours = product.unflatten(1, (2, -1)).permute(1, 0, 3, 2).reshape(given.shape)
    assert torch.allclose(ours, given, atol=1e-5)
    if layer.padding_mode == "zeros" and layer.padding != "same" and layer.groups == 1:
        assert torch.equal(rows[0], functional.unfold(x, layer.kernel_size, padding=layer.padding).mT.flatten(0, 1))


def test_one_and_three_dimensions_and_linear_layers_over_sequences():
    torch.manual_seed(0)
    for layer, x in (
        (nn.Conv1d(2, 3, 4, stride=3), torch.randn(2, 2, 11)),
        (nn.Conv3d(2, 3, 2), torch.randn(1, 2, 4, 3, 5)),
        (nn.Linear(5, 3), torch.randn(2, 7, 5)),
    ):
        rows = calibration_rows(nn.Sequential(layer), x)["0", "weight"].x
        given = layer(x) if isinstance(layer, nn.Linear) else layer(x).movedim(1, -1)
        ours = rows[0] @ as_matrix(layer, layer.weight)[0].T + layer.bias
        assert torch.allclose(ours, given.flatten(0, -2), atol=1e-5)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [True, False])
def test_states_of_recurrent_layers_are_those_of_steps_taken_one_by_one(kind, batch_first):
    torch.manual_seed(0)
    layer = kind(3, 4, num_layers=2, batch_first=batch_first)
    x = torch.randn(5, 2, 3)  # steps, batch, inputs
    found = calibration_rows(nn.ModuleDict({"memory": layer}) and Wrapped(layer, batch_first), x)
    state, first, second = None, [], []
    for step in range(5):
        before = torch.zeros(2, 2, 4) if state is None else (state[0] if kind is nn.LSTM else state)
        one = x[step : step + 1].transpose(0, 1) if batch_first else x[step : step + 1]
        _, state = layer(one, state)
        first.append(before[0])
        second.append(before[1])
    for level, expected in (("0", first), ("1", second)):
        rows = found["memory", f"weight_hh_l{level}"].x[0]
        steps = rows.unflatten(0, (2, 5)).transpose(0, 1) if batch_first else rows.unflatten(0, (5, 2))
        assert torch.allclose(steps, torch.stack(expected), atol=1e-6)
    assert found["memory", "weight_ih_l1"].x.shape == (1, 10, 4)


class Wrapped(nn.Module):
    def __init__(self, layer, batch_first):
        super().__init__()
        self.memory, self.batch_first = layer, batch_first

    def forward(self, x):
        return self.memory(x.transpose(0, 1) if self.batch_first else x)[0]


def test_the_square_is_that_of_the_outputs():
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, groups=2, bias=False)
    changed, x = copy.deepcopy(layer), torch.randn(3, 4, 8, 8)
    with torch.no_grad():
        changed.weight += 0.1 * torch.randn_like(layer.weight)
    rows = calibration_rows(nn.Sequential(layer), x)["0", "weight"]
    squares = output_error(as_matrix(layer, (changed.weight - layer.weight).detach()), rows.moment)
    expected = ((changed(x) - layer(x)) ** 2).mean((0, 2, 3)).unflatten(0, (2, 3)).sum(1)
    assert torch.allclose(squares.float(), expected, rtol=1e-4)


def test_a_layer_that_is_called_twice_gives_the_rows_of_both():
    layer = nn.Linear(2, 2)
    rows = calibration_rows(nn.Sequential(layer, layer), torch.ones(3, 2))["0", "weight"].x
    assert rows.shape == (1, 6, 2) and torch.equal(rows[0, :3], torch.ones(3, 2)) and not (rows[0, 3:] == 1).all()


def test_of_many_rows_some_are_kept_from_everywhere():
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False))
    x = torch.arange(4 * 100 * 100, dtype=torch.float32).reshape(4, 1, 100, 100)
    rows = calibration_rows(network, x)["0", "weight"].x.flatten()
    assert len(rows) <= 16384 and rows[0] == 0 and rows[-1] > 39990 and (rows.diff() > 0).all()


def test_what_is_not_handled_is_named():
    for layer, kind in (
        (nn.ConvTranspose1d(1, 1, 2), "ConvTranspose1d"),
        (nn.LSTM(2, 2, bidirectional=True), "two directions"),
        (nn.LSTM(2, 3, proj_size=2), "projection"),
        (nn.GRUCell(2, 2), "GRUCell"),
    ):
        with pytest.raises(ValueError, match=rf"layer 'inner\.0': expected .*{kind}"):
            places(nn.ModuleDict({"inner": nn.Sequential(layer)}))
    with pytest.raises(TypeError, match=r"network: expected a torch\.nn\.Module, got list"):
        places([])
    with pytest.raises(ValueError, match=r"network: .*ReLU has none"):
        places(nn.ReLU())
    unused = nn.Sequential(nn.Linear(2, 2))
    unused.more = nn.Linear(2, 2)
    unused.forward = lambda x: unused[0](x)
    with pytest.raises(ValueError, match=r"layer 'more': .* was not called"):
        calibration_rows(unused, torch.ones(1, 2))
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 2)])
    with pytest.raises(ValueError, match="layer '': expected sequences in a tensor"):
        calibration_rows(nn.GRU(2, 2), packed)
    with pytest.raises(TypeError, match="data: expected training items to calibrate on, got NoneType"):
        items_of(None, 3)


def test_raw_inputs_are_what_layers_were_given():
    workload = datasets.workload("digits-mlp")
    items = items_of(workload.data(), 7)
    inputs = raw_inputs(workload.trained(), items)
    assert torch.equal(inputs["1"], items.flatten()) and len(inputs["3"]) == 7 * 64
