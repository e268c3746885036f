"""The chooser takes the fastest of the nearest, and never what cannot do the layer."""

import pytest

from kernels.implementation.convolution.choose import choose

SMALL = {"in_channels": 64, "out_channels": 64, "size": 56, "kernel": 3, "stride": 1, "groups": 1}
LARGE = {**SMALL, "in_channels": 512, "out_channels": 512, "size": 7}
DEEP = {**SMALL, "groups": 64}
TIMES = [
    (SMALL, "winograd", 1.0), (SMALL, "direct-convolution", 2.0), (LARGE, "winograd", 3.0), (LARGE, "im2col", 2.0),
    (DEEP, "direct-convolution", 0.1), (DEEP, "winograd", 5.0),
]  # fmt: skip


def test_the_nearest_layer_of_its_kind_decides():
    assert choose({**SMALL, "in_channels": 96}, TIMES) == "winograd"
    assert choose({**LARGE, "size": 14}, TIMES) == "im2col"
    assert choose({**DEEP, "in_channels": 512, "size": 7}, TIMES) == "direct-convolution"


def test_what_cannot_do_the_layer_is_passed_over():
    assert choose({**SMALL, "stride": 2}, TIMES) == "direct-convolution"
    assert choose({**SMALL, "dilation": 2}, TIMES) == "direct-convolution"
    with pytest.raises(ValueError, match="times: expected an algorithm measured on a layer of the kind"):
        choose({**SMALL, "stride": 2}, TIMES[:1])
