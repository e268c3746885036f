"""Texts: windows of characters, and the character that follows each."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import numpy as np

from datasets.card import ROOT, nearest, read_card, verified_bytes
from datasets.data import SPLITS, Data, Split, _frozen

__all__ = ["ALPHABET", "CONTEXT", "DATASETS", "decode", "encode", "load"]

DATASETS = ("shakespeare", "milton")
ALPHABET = "\n !\"'(),-.:;?[]ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
CONTEXT = 64


def encode(text: str) -> np.ndarray:
    """Codes of a text's characters, the places in `ALPHABET`; characters that it lacks are left out.

    Examples
    --------
    >>> decode(encode("To be, or not 2 be"))
    'To be, or not  be'
    """
    places = {character: place for place, character in enumerate(ALPHABET)}
    return np.array([places[character] for character in text if character in places], np.uint8)


def decode(codes: Any) -> str:
    """The text of codes."""
    return "".join(ALPHABET[int(code)] for code in codes)


def windows(codes: np.ndarray, count: int | None = None, context: int = CONTEXT) -> Split:
    """Windows of a text as items, the next character's code as label.

    Parameters
    ----------
    codes : ndarray of shape (n,), uint8
    count : int, optional
        As many windows, evenly spaced, which may overlap; without it as many as fit side by side.
    context : int
        Characters of a window.

    Returns
    -------
    Split
        Items of shape (context,): codes, as float32 like the items of every split.
    """
    last = len(codes) - context - 1
    starts = np.arange(0, last + 1, context) if count is None else np.arange(count) * last // count
    return _frozen(codes[starts[:, None] + np.arange(context)], codes[starts + context])


@cache
def load(name: str) -> Data:
    """A text as a data set; its arrays are read-only, items of shape (CONTEXT,).

    Parameters
    ----------
    name : {"shakespeare", "milton"}

    Returns
    -------
    Data
        Windows for training lie side by side; the others are evenly spaced, as many as the card says.

    Raises
    ------
    ValueError
        If the id is unknown, or the file is not the one that its card describes.

    Examples
    --------
    >>> data = load("shakespeare")
    >>> data.train.x.shape[1:], data.classes, len(data.test)
    ((64,), 67, 2048)
    >>> decode(data.test.x[-1]), decode([data.test.y[-1]])
    ("the wind and the rain,\\n   But that's all one, our play is done,\\n", ' ')
    """
    if name not in DATASETS:
        raise ValueError(nearest("text", name, DATASETS))
    card = read_card(name)
    content = verified_bytes(ROOT / name / card["file"], card["sha256"], rebuild=name)
    with np.load(io.BytesIO(content)) as texts:
        splits = (windows(texts[split], card["windows"].get(split)) for split in SPLITS)
        return Data(name, *splits, classes=len(ALPHABET))  # type: ignore[arg-type, misc]
