"""The vendored data is what its cards say, and is refused when it is not."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import datasets
from datasets import card, data, make
from datasets.card import ROOT, read_card, verified_bytes
from datasets.data import SPLITS


@pytest.mark.parametrize("name", data.DATASETS)
def test_splits_have_the_sizes_shapes_and_types_of_the_card(name):
    loaded = datasets.load(name)
    side = 28 if name == "mnist" else 8
    for split in SPLITS:
        part = getattr(loaded, split)
        assert part.x.shape == (read_card(name)["splits"][split], 1, side, side)
        assert part.x.dtype == np.float32 and part.y.dtype == np.int64 and len(part) == len(part.x)
        assert set(part.y) == set(range(loaded.classes))
        assert not part.x.flags.writeable
    if name != "noisy-digits":
        assert loaded.train.x.min() == 0 and loaded.train.x.max() == 1


@pytest.mark.parametrize("name", ["mnist", "digits"])
def test_no_image_is_in_two_splits_and_classes_have_equal_shares(name):
    loaded = datasets.load(name)
    seen = [{image.tobytes() for image in getattr(loaded, split).x} for split in SPLITS]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    everything = np.bincount(np.concatenate([getattr(loaded, split).y for split in SPLITS]))
    for split in SPLITS:
        part = getattr(loaded, split)
        expected = everything * len(part) / everything.sum()
        assert np.abs(np.bincount(part.y) - expected).max() < 2


def test_digits_are_those_of_scikit_learn():
    theirs = pytest.importorskip("sklearn.datasets").load_digits()
    ours = datasets.load("digits")
    rows = np.concatenate(
        [np.c_[part.x.reshape(len(part), -1) * 16, part.y] for part in (ours.train, ours.validation, ours.test)]
    )
    expected = np.c_[theirs.data, theirs.target]
    assert np.array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])


def test_the_noise_of_noisy_digits_has_the_deviation_of_its_card():
    clean, noisy, about = datasets.load("digits"), datasets.load("noisy-digits"), read_card("noisy-digits")
    noise = noisy.test.x - np.repeat(clean.test.x, about["draws"], axis=0)
    assert abs(noise.std() - about["noise"]) < 0.01 and abs(noise.mean()) < 0.01
    assert np.array_equal(noisy.test.y, np.repeat(clean.test.y, about["draws"]))


def test_a_corrupted_file_is_refused(tmp_path, monkeypatch):
    """One flipped bit in the middle of the archive."""
    for file in ("card.yml", "data.npz"):
        (tmp_path / "digits").mkdir(exist_ok=True)
        (tmp_path / "digits" / file).write_bytes((ROOT / "digits" / file).read_bytes())
    broken = tmp_path / "digits" / "data.npz"
    content = bytearray(broken.read_bytes())
    content[len(content) // 2] ^= 1
    broken.write_bytes(content)
    for module in (card, data):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    with pytest.raises(ValueError) as error:
        data.load.__wrapped__("digits")
    message = str(error.value)
    assert str(broken) in message and "datasets.make digits" in message
    assert read_card("digits")["sha256"] in message and hashlib.sha256(content).hexdigest() in message
    broken.unlink()
    with pytest.raises(FileNotFoundError, match=r"datasets\.make digits"):
        data.load.__wrapped__("digits")


def test_unknown_data_set_names_the_nearest():
    with pytest.raises(ValueError, match="unknown data set 'minst'; nearest: mnist"):
        datasets.load("minst")


def test_digits_are_rebuilt_byte_for_byte(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "card.yml").write_text((ROOT / "digits" / "card.yml").read_text())
    for module in (card, make):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    make.digits()
    ours, theirs = tmp_path / "digits" / "data.npz", ROOT / "digits" / "data.npz"
    with zipfile.ZipFile(ours) as a, zipfile.ZipFile(theirs) as b:  # deflate may differ between versions of zlib
        assert a.namelist() == b.namelist()
        assert all(a.read(name) == b.read(name) for name in a.namelist())
    rebuilt = verified_bytes(ours, read_card("digits")["sha256"], rebuild="digits")
    assert rebuilt == ours.read_bytes()


def test_a_split_demands_one_label_for_each_item():
    with pytest.raises(ValueError, match=r"y: expected integers.*\(2,\).*\(3, 4\)"):
        datasets.Split(np.zeros((3, 4)), np.zeros(2, int))
    with pytest.raises(ValueError, match="float64"):
        datasets.Split(np.zeros((3, 4)), np.zeros(3))
    part = datasets.Split(np.zeros((3, 4)), np.array([0, 1, 2], np.uint8))
    assert part.x.dtype == np.float32 and part.y.dtype == np.int64 and len(part[:2]) == 2


def test_importing_datasets_imports_no_torch():
    code = "import sys, datasets; datasets.load('digits'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
