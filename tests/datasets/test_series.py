"""The utterances are the source's, in its own division, and bad names are refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import datasets
from datasets import make
from datasets.card import read_card
from datasets.data import SPLITS


def test_utterances_are_those_that_the_source_describes():
    """Counts by speaker and lengths as the archive's own description has them."""
    data = datasets.load("japanese-vowels")
    sizes = read_card("japanese-vowels")["splits"]
    for split in SPLITS:
        part = getattr(data, split)
        assert part.x.shape == (sizes[split], 29, 12) and part.x.dtype == np.float32 and not part.x.flags.writeable
    assert np.bincount(data.train.y).tolist() == [30] * 9
    rest = np.bincount(np.concatenate([data.validation.y, data.test.y]))
    assert rest.tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    assert np.abs(np.bincount(data.test.y) - rest * 250 / 370).max() < 2
    whole = np.concatenate([getattr(data, split).x for split in SPLITS])
    lengths = 29 - (whole != 0).any(axis=2).argmax(axis=1)
    assert lengths.min() == 7 and lengths.max() == 29
    for x, length in zip(whole, lengths, strict=True):
        assert not x[: 29 - length].any() and x[29 - length :].any(axis=1).all()
    assert len({x.tobytes() for x in whole}) == 640


def test_lines_become_items_that_end_together():
    x, y = make.series("1,2:3,4:2\n5:6:1\n", steps=3)
    assert x.tolist() == [[[0, 0], [1, 3], [2, 4]], [[0, 0], [0, 0], [5, 6]]]
    assert y.tolist() == [1, 0] and x.dtype == np.float32


@pytest.mark.skipif("AEON_WHEEL" not in os.environ, reason="AEON_WHEEL names no wheel of aeon 1.6.0")
def test_the_file_is_rebuilt_from_the_wheel(tmp_path, monkeypatch):
    from datasets import card

    (tmp_path / "japanese-vowels").mkdir()
    about = (card.ROOT / "japanese-vowels" / "card.yml").read_text()
    (tmp_path / "japanese-vowels" / "card.yml").write_text(about)
    for module in (card, make):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    make.japanese_vowels(str(Path(os.environ["AEON_WHEEL"])))
    assert (tmp_path / "japanese-vowels" / "card.yml").read_text() == about


def test_an_archive_that_is_another_is_refused(tmp_path):
    wrong = tmp_path / "aeon-1.6.0-py3-none-any.whl"
    wrong.write_bytes(b"another")
    with pytest.raises(ValueError, match="expected sha256 d05227"):
        make.japanese_vowels(str(wrong))


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="unknown data set 'japanese-vowel'; nearest: japanese-vowels"):
        datasets.load("japanese-vowel")
    with pytest.raises(ValueError, match="nearest: japanese-vowels"):
        datasets.series.load("vowels")
