"""Counts against closed forms worked by hand, published counts and torch's own counter where it sees the operation."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize, rnn
from torch.utils.flop_counter import FlopCounterMode

from kernels.counting import (
    effective_macs,
    macs,
    macs_by_layer,
    nonzero_parameters,
    parameters,
    peak_activation_bytes,
    training_peak_bytes,
)


class Functional(nn.Module):
    """A network that is one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *x):
        return self.function(*x)


def torch_count(network, *x):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(*x)
    return counter.get_total_flops() / 2


class Block(nn.Module):
    """The basic block of a ResNet."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.short = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.short(x))


def resnet18():
    stages = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks = [Block(*stage) for stage in [*stages, (512, 512, 1)]]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


@pytest.fixture(scope="module")
def resnet():
    return resnet18(), torch.zeros(1, 3, 224, 224)


def test_resnet18_has_its_published_count(resnet):
    assert macs(*resnet) == 1_814_073_344 == torch_count(*resnet)
    # by hand: the stem, sixteen 3 x 3 convolutions (three at half the work), three 1 x 1 ones, the classifier
    product = 64 * 64 * 9 * 56 * 56
    assert macs(*resnet) == 64 * 147 * 112**2 + 16 * product - 3 * product // 2 + 3 * product // 18 + 512_000


def test_the_parts_add_up_and_carry_the_paths_of_modules(resnet):
    parts = macs_by_layer(*resnet)
    assert sum(parts.values()) == macs(*resnet)
    assert parts["0"] == 64 * 147 * 112**2 and parts["14"] == 512_000
    assert list(parts)[:3] == ["0", "4.conv1", "4.conv2"] and len(parts) == 21


def test_only_the_innermost_module_is_charged():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return self.inner(self.inner(x)) @ x.mT

    assert macs_by_layer(Outer(), torch.zeros(3, 4)) == {"inner": 2 * 3 * 16, "": 3 * 4 * 3}


@pytest.mark.parametrize(
    "module, shape",
    [
        (nn.Conv1d(4, 6, 5, 2, 1), (2, 4, 20)),
        (nn.Conv2d(4, 8, (3, 5), (1, 2), 2, 2, groups=2), (3, 4, 17, 19)),
        (nn.Conv2d(8, 8, 3, padding="same", groups=8), (1, 8, 9, 9)),
        (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (1, 2, 9, 9)),
        (nn.Conv2d(2, 3, 3), (2, 9, 9)),
        (nn.Conv3d(2, 3, 3), (1, 2, 5, 6, 7)),
        (nn.ConvTranspose2d(4, 6, 3, 2, groups=2), (2, 4, 7, 7)),
        (nn.Linear(5, 7), (5,)),
        (nn.Linear(5, 7, bias=False), (2, 3, 5)),
        (nn.RNN(5, 7, num_layers=2), (3, 2, 5)),
        (nn.GRU(5, 7, bidirectional=True), (3, 2, 5)),
        (nn.GRUCell(5, 7), (2, 5)),
        (nn.LSTMCell(5, 7), (2, 5)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_agrees_with_torchs_counter_where_it_sees(module, shape):
    x = torch.randn(shape)
    assert macs(module, x) == torch_count(module, x) > 0


def fvcore_count(network, x):
    analysis = pytest.importorskip("fvcore.nn").FlopCountAnalysis(network.eval(), x)
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()


@pytest.mark.filterwarnings("ignore")  # those of tracing, which fvcore does
@pytest.mark.parametrize(
    "module, shape",
    [
        (nn.Conv2d(4, 8, (3, 5), (1, 2), 2, 2, groups=2), (3, 4, 17, 19)),
        (nn.ConvTranspose2d(4, 6, 3, 2), (2, 4, 7, 7)),
        (nn.Linear(5, 7), (2, 3, 5)),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)), (2, 3, 8, 8)),
        (Functional(lambda x: torch.einsum("bik,bjk->bij", x, x)), (6, 3, 4)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_agrees_with_fvcore_where_it_sees(module, shape):
    x = torch.randn(shape)
    assert macs(module, x) == fvcore_count(module, x) > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "module, shape, exact",
    [
        (nn.LSTM(8, 4), (7, 1, 8), 7 * 4 * 4 * (8 + 4)),
        (Functional(lambda x: functional.scaled_dot_product_attention(x, x, x)), (1, 2, 9, 4), 2 * 2 * 9 * 9 * 4),
    ],
    ids=["LSTM", "attention"],
)
def test_counts_what_fvcore_does_not_see(module, shape, exact):
    x = torch.randn(shape)
    assert macs(module, x) == exact and fvcore_count(module, x) < exact


FUNCTIONS = {
    "matmul": (lambda a, b: a @ b, (6, 3, 4), (4, 5), 6 * 3 * 4 * 5),
    "matrix-vector": (lambda a, b: a @ b, (3, 4), (4,), 12),
    "dot": (lambda a, b: a @ b, (4,), (4,), 4),
    "bmm": (torch.bmm, (6, 3, 4), (6, 4, 5), 6 * 60),
    "addmm": (lambda a, b: torch.addmm(torch.zeros(3, 5), a, b), (3, 4), (4, 5), 60),
    "addmm_": (lambda a, b: torch.zeros(3, 5).addmm_(a, b), (3, 4), (4, 5), 60),
    "addmv": (lambda a, b: torch.addmv(torch.zeros(3), a, b), (3, 4), (4,), 12),
    "addbmm": (lambda a, b: torch.addbmm(torch.zeros(3, 5), a, b), (6, 3, 4), (6, 4, 5), 360),
    "baddbmm": (lambda a, b: torch.baddbmm(torch.zeros(6, 3, 5), a, b), (6, 3, 4), (6, 4, 5), 360),
    "einsum": (lambda a, b: torch.einsum("bik,bjk->bij", a, b), (6, 3, 4), (6, 5, 4), 360),
    "einsum, elementwise": (lambda a, b: torch.einsum("ij,ij->ij", a, b), (3, 4), (3, 4), 0),
    "tensordot": (lambda a, b: torch.tensordot(a, b, 2), (2, 3, 4), (3, 4, 5), 2 * 12 * 5),
    "conv2d": (functional.conv2d, (2, 3, 8, 8), (4, 3, 3, 3), 2 * 4 * 36 * 27),
    "empty": (lambda a, b: a @ b, (0, 4), (4, 5), 0),
    "vdot": (torch.vdot, (4,), (4,), 4),
    "fused with its activation": (lambda a, b: torch._addmm_activation(torch.zeros(5), a, b), (3, 4), (4, 5), 60),
    "sparse": (lambda a, b: torch.sparse.mm(a.to_sparse(), b), (3, 4), (4, 5), 60),
    "conv_tbc": (lambda a, b: functional.conv_tbc(a, b, torch.zeros(6)), (9, 2, 4), (3, 4, 6), 7 * 2 * 6 * 12),
    "bilinear": (lambda a, b: functional.bilinear(a, a[:, :3], b), (2, 4), (5, 4, 3), 2 * (5 * 12 + 5 * 3)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functional_calls_are_seen(name):
    function, a, b, expected = FUNCTIONS[name]
    assert macs(Functional(function), (torch.randn(a), torch.randn(b))) == expected


@pytest.mark.parametrize(
    "module, shape",
    [
        (nn.Linear(5, 7), (2, 3, 5)),
        (nn.Conv2d(4, 8, 3, groups=2), (1, 4, 9, 9)),
        (nn.GRU(8, 4), (7, 1, 8)),
        (nn.LSTM(8, 4), (7, 1, 8)),
        (nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), (3, 7, 16)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_inference_mode_hides_nothing(module, shape):
    """There torch hands over layers as single operations, of which no table knows."""
    x = torch.randn(shape)
    expected = macs(module, x), peak_activation_bytes(module, x)
    with torch.inference_mode():
        assert (macs(module, x), peak_activation_bytes(module, x)) == expected
    assert macs(Functional(torch.inference_mode()(module.forward)), x) == expected[0]


def test_effective_products_of_recurrent_and_functional_layers():
    recurrent = nn.GRU(3, 4)
    nn.init.zeros_(recurrent.weight_ih_l0)
    assert effective_macs(recurrent, torch.zeros(5, 1, 3)) == 5 * 12 * 4
    assert effective_macs(Functional(lambda x: x @ x.mT), torch.zeros(1, 3, 4)) == 9 * 4


def test_zeros_of_a_projection_leave_the_products_of_attention_alone():
    n, d = 5, 8
    layer = nn.MultiheadAttention(d, 2, bias=False, batch_first=True)
    with torch.no_grad():
        layer.in_proj_weight[:d] = 0  # of queries, keys and values
    attention = Functional(lambda x: layer(x, x, x)[0])
    attention.layer = layer
    assert macs(attention, torch.randn(1, n, d)) == 4 * n * d * d + 2 * n * n * d
    assert effective_macs(attention, torch.randn(1, n, d)) == 3 * n * d * d + 2 * n * n * d


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"attn_mask": torch.ones(6, 9, dtype=torch.bool)}])
@pytest.mark.parametrize("value", [16, 5])
def test_attention_is_counted_on_a_cpu(options, value):
    """Q Kᵀ and the product with V, whichever of its implementations torch takes; its counter misses the fused one."""
    keys = 6 if options.get("is_causal") else 9
    q, k, v = torch.randn(2, 4, 6, 16), torch.randn(2, 4, keys, 16), torch.randn(2, 4, keys, value)
    attend = Functional(lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, **options))
    assert macs(attend, (q, k, v)) == 2 * 4 * 6 * keys * (16 + value)


def test_grouped_query_attention_counts_every_head_of_q():
    q, k = torch.randn(1, 8, 6, 16), torch.randn(1, 2, 6, 16)
    attend = Functional(lambda q, k: functional.scaled_dot_product_attention(q, k, k, enable_gqa=True))
    assert macs(attend, (q, k)) == 8 * 6 * 6 * 32


@pytest.mark.parametrize("n, d, hidden", [(7, 16, 24), (1, 8, 8)])
def test_a_transformer_layer_is_its_closed_form(n, d, hidden):
    """4 n d² for the projections, 2 n² d for attention, 2 n d h for the perceptron; the fused layer hides nothing."""
    layer = nn.TransformerEncoderLayer(d, 2, hidden, batch_first=True)
    assert macs(layer, torch.randn(3, n, d)) == 3 * (4 * n * d * d + 2 * n * n * d + 2 * n * d * hidden)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("layers_, directions, projection", [(1, 1, 0), (2, 1, 0), (2, 2, 0), (1, 1, 3), (2, 2, 3)])
def test_an_lstm_is_its_closed_form(layers_, directions, projection):
    steps, batch, inputs, hidden = 5, 2, 8, 4
    module = nn.LSTM(inputs, hidden, layers_, bidirectional=directions == 2, proj_size=projection)
    state, expected = projection or hidden, 0
    for layer in range(layers_):
        fan_in = inputs if layer == 0 else directions * state
        expected += directions * steps * batch * (4 * hidden * (fan_in + state) + hidden * projection)
    assert macs(module, torch.randn(steps, batch, inputs)) == expected


def test_a_packed_sequence_counts_the_steps_that_it_has():
    packed = rnn.pack_padded_sequence(torch.randn(5, 2, 8), [5, 3])
    assert macs(nn.GRU(8, 4), packed) == (5 + 3) * 3 * 4 * (8 + 4)


def test_the_network_is_left_as_it_was():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(72, 3))
    network[1].eval()
    before, modes = copy.deepcopy(network.state_dict()), [m.training for m in network.modules()]
    seed = torch.random.get_rng_state()
    x = torch.randn(4, 1, 8, 8)
    torch.random.set_rng_state(seed)
    for count in (macs, macs_by_layer, peak_activation_bytes):
        count(network, x)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [m.training for m in network.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert all(p.grad is None for p in network.parameters())
    assert torch.equal(torch.random.get_rng_state(), seed)
    with pytest.raises(RuntimeError):
        macs(network, torch.zeros(1, 3, 8, 8))
    assert [m.training for m in network.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_numpy_is_taken_and_other_things_are_refused():
    x = np.zeros((2, 64), np.float32)
    x.flags.writeable = False
    assert macs(nn.Linear(64, 10), x) == 1280
    with pytest.raises(TypeError, match=r"network: expected a torch\.nn\.Module, got builtin_function"):
        macs(torch.relu, x)


FLOATS = {
    "a layer: its input and its output": (nn.Linear(64, 10), (1, 64), 74),
    "a chain: the largest neighbours": (nn.Sequential(nn.Linear(4, 90), nn.Linear(90, 50)), (1, 4), 140),
    "in place: no second copy": (nn.Sequential(nn.Linear(4, 100), nn.ReLU(inplace=True)), (1, 4), 104),
    "not in place: both": (nn.Sequential(nn.Linear(4, 100), nn.ReLU()), (1, 4), 200),
    "views cost nothing": (nn.Sequential(nn.Flatten(), nn.Unflatten(1, (10, 10)), nn.Flatten()), (1, 100), 100),
    "pooling's positions are read by nobody": (nn.MaxPool2d(2), (1, 1, 8, 8), 64 + 16),
    "a skip connection keeps its input": (Functional(lambda x: (x * 2).relu() + x), (1, 100), 300),
    "a branch that ends frees it": (Functional(lambda x: (x * 2).relu()), (1, 100), 200),
    "two results live to the end": (Functional(lambda x: (x * 2, x[:, :1] * 1)), (1, 100), 201),
    "the whole batch": (nn.Linear(64, 10), (8, 64), 8 * 74),
    "nothing": (nn.Identity(), (1, 5), 5),
}


@pytest.mark.parametrize("name", FLOATS)
def test_peak_activations_by_hand(name):
    network, shape, floats = FLOATS[name]
    assert peak_activation_bytes(network, torch.randn(shape)) == 4 * floats


def test_peak_activations_count_bytes_and_leave_out_constants():
    constant = torch.randn(100, 100)
    network = Functional(lambda x: x @ constant.T)
    assert peak_activation_bytes(network, torch.randn(1, 100)) == 800
    assert peak_activation_bytes(nn.Linear(8, 8).double(), torch.randn(1, 8).double()) == 128


def test_training_keeps_what_backward_needs():
    """Each sigmoid saves its result, n floats; going back, two gradients are alive at a time."""
    n, depth = 1000, 8
    x = torch.randn(n, requires_grad=True)

    def step():
        y = x
        for _ in range(depth):
            y = y.sigmoid()
        y.sum().backward()

    chain = nn.Sequential(*[nn.Sigmoid()] * depth)
    assert training_peak_bytes(chain, step) == 4 * (n * (depth + 2) + 2)  # 2: the sum and its gradient
    with torch.no_grad():
        assert training_peak_bytes(chain, lambda: x.sigmoid().sigmoid().sigmoid()) == 4 * 2 * n


def test_training_peak_leaves_out_gradients_of_parameters_only():
    linear, x = nn.Linear(1000, 500), torch.randn(1, 1000)
    peak = training_peak_bytes(linear, lambda: linear(x).sum().backward())
    assert 4 * 500 <= peak < 4 * 1000 and linear.weight.grad is not None
    elsewhere = training_peak_bytes(nn.Linear(1, 1), lambda: torch.autograd.grad(linear(x).sum(), linear.weight))
    assert elsewhere >= 4 * 1000 * 500


def test_training_peak_forgets_what_is_freed():
    x, network = torch.randn(100), nn.Identity()
    assert training_peak_bytes(network, lambda: [x * 2 for _ in range(3)]) == 1200
    assert training_peak_bytes(network, lambda: [None for _ in range(3) if (x * 2).shape]) == 400
    assert training_peak_bytes(network, lambda: x.view(10, 10).mul_(1)) == 0
    assert training_peak_bytes(network, lambda: None) == 0


def test_parameters_and_zeros():
    network = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    network.append(network[0])
    assert parameters(network) == 16 + 8
    with torch.no_grad():
        network[0].weight[:] = torch.eye(4)
        network[0].weight[0, 1] = -0.0
        network[0].weight[1, 0] = float("nan")
    assert nonzero_parameters(network) == 4 + 1 + 4  # the shift of batch norm starts at zero

    class Mask(nn.Module):
        def forward(self, weight):
            return weight.tril()

    linear = nn.Linear(4, 4, bias=False)
    parametrize.register_parametrization(linear, "weight", Mask())
    assert (parameters(linear), nonzero_parameters(linear)) == (16, 10)
