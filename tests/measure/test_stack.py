"""Stacks: techniques of several levels on one network, and what each of them really does there."""

import pytest
import torch
from torch import nn

import datasets
import taxonomy
from kernels.model.compressed_file import decode
from taxonomy.measure.stack import Stack, bind, fold, round_layers

tx = taxonomy.load()
workload = datasets.workload("digits-mlp")
ITEMS = torch.tensor(workload.data().train.x[:256])


def test_an_operator_computes_what_torch_computes_and_says_its_share():
    network = workload.trained()
    bound, covered = bind(network, [tx["csr"].reference()], None, ITEMS)
    assert covered == 1.0
    with torch.no_grad():
        torch.testing.assert_close(bound(ITEMS), network(ITEMS), rtol=1e-4, atol=1e-4)


def test_a_convolution_is_bound_to_the_direct_kernel_and_the_rest_stays_with_torch():
    network = datasets.workload("mnist-cnn").trained()
    x = torch.tensor(datasets.load("mnist").test.x[:8])
    bound, covered = bind(fold(network), [tx["direct-convolution"].reference()], None, x)
    assert 0.9 < covered < 1.0
    with torch.no_grad():
        torch.testing.assert_close(bound(x), network(x), rtol=1e-3, atol=1e-3)


def test_folding_removes_batch_norm_and_changes_nothing():
    network = datasets.workload("mnist-cnn").trained()
    x = torch.tensor(datasets.load("mnist").test.x[:8])
    folded = fold(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(x), network(x), rtol=1e-3, atol=1e-3)


def test_a_rounded_layer_lies_on_the_grid_and_refuses_a_second_format():
    posit = tx["posit"].reference(bits=8, es=0)
    rounded = round_layers(workload.trained(), posit, ITEMS)
    layers = [module for module in rounded.modules() if isinstance(module, nn.Linear)]
    assert len(layers) == 3
    for layer in layers:
        weight = layer.weight.detach()
        assert torch.equal(posit.round(weight), weight)
    with pytest.raises(ValueError, match="takes one number format"):
        round_layers(rounded, posit, ITEMS)


def test_a_stack_across_three_levels():
    before = {name: value.clone() for name, value in workload.trained().state_dict().items()}
    frame = tx.stack("magnitude-pruning:density=0.2", "posit:bits=8,es=0").evaluate(workload)
    own = frame[frame.who == "self"].set_index("metric")
    base = frame[frame.who == "baseline"].set_index("metric")
    assert own.value["accuracy"] > 0.8 and own.value["nonzero_parameters"] < base.value["nonzero_parameters"] / 3
    assert own.value["stored_bits"] < base.value["parameters"] * 32 / 3
    assert own.value.isna()["latency"] and "emulated" in own.reason["latency"]
    for name, value in workload.trained().state_dict().items():
        assert torch.equal(value, before[name])


def test_a_stack_that_ends_in_csr_stores_indices_and_is_timed():
    frame = tx.stack("magnitude-pruning:density=0.1", "csr").evaluate("digits-mlp")
    own = frame[frame.who == "self"].set_index("metric").value
    weights = 64 * 64 + 64 * 32 + 32 * 10
    assert own["covered_macs"] == 1.0 and own["latency"] > 0
    assert own["stored_bits"] >= 0.1 * weights * (32 + 16)


def test_prune_share_and_code_end_in_a_small_file_from_which_the_network_comes_back():
    parts = ("magnitude-pruning:density=0.1", "weight-clustering:clusters=4", "huffman-coding:symbol=nonzero")
    stack = tx.stack(*parts)
    built = stack.build(workload)
    data = stack.file(built)
    back = decode(data, workload.trained())
    with torch.no_grad():
        assert torch.equal(back(ITEMS), built.network(ITEMS))
    frame = stack.evaluate(workload).set_index(["who", "metric"]).value
    assert frame["self", "bytes_on_disk"] == len(data) == frame["self", "stored_bits"] / 8
    weights = 64 * 64 + 64 * 32 + 32 * 10
    least = 0.1 * weights * (5 + 1) / 8 + 4 * (64 + 32 + 10)  # places and codes of what is left; biases
    assert 0.8 * least < len(data) < 1.5 * least
    assert frame["baseline", "bytes_on_disk"] > 4 * (weights + 64 + 32 + 10)


def test_cost_models_and_faults_look_at_the_stack():
    frame = tx.stack("weight-stationary", "zero-space-ecc").evaluate("digits-mlp")
    assert {"WeightStationary", "ZeroSpaceEcc"} <= set(frame.who)
    modelled = frame[frame.who == "WeightStationary"].set_index("metric").value
    assert modelled["macs"] == 64 * 64 + 64 * 32 + 32 * 10 and modelled["cycles"] > modelled["macs"] / 32**2
    assert modelled["energy"] > 0


def test_a_cost_model_of_numbers_is_given_those_of_the_stack():
    serial = "essential-bits:operand=weights"
    plain, pruned = (tx.stack(*parts).evaluate("digits-mlp") for parts in ([serial], ["magnitude-pruning", serial]))
    bits, fewer = (f[f.who == "EssentialBits"].set_index("metric").value["essential_bits"] for f in (plain, pruned))
    density = tx["magnitude-pruning"].reference().density
    assert fewer < 1.5 * density * bits  # a zero has no bits; what is left is fine-tuned, and larger
    reasons = plain[plain.who == "EssentialBits"].set_index("metric").reason
    assert "no cited energy" in reasons["energy"] and reasons["cycles"] == "modelled"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("posit", "bfloat16"), "takes one number format"),
        (("evolutionary-search",), "joins no stack"),
        (("posit:bits",), "expected parameter=value"),
    ],
)
def test_what_does_not_stack_is_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        Stack(*parts)


def test_unknown_parts_and_parameters_are_named():
    with pytest.raises(KeyError, match="did you mean posit"):
        Stack("posits")
    with pytest.raises(TypeError, match="unknown parameter 'width'"):
        Stack("posit:width=8")
