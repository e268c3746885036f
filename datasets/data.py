"""Data sets: images and labels in three splits, read from a file that its card vouches for."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from datasets.card import ROOT, nearest, read_card, verified_bytes

__all__ = ["DATASETS", "Data", "Split", "load"]

DATASETS = ("digits", "mnist", "noisy-digits")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Split:
    """Items and their labels.

    Parameters
    ----------
    x : ndarray of shape (n, ...), float32
        Items; images are (channels, height, width) with values from 0 to 1 before any noise.
    y : ndarray of shape (n,), int64
        Class numbers.
    """

    x: np.ndarray
    y: np.ndarray

    def __post_init__(self) -> None:
        x, y = (np.asarray(a) for a in (self.x, self.y))
        if x.ndim == 0 or y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer):
            raise ValueError(
                f"y: expected integers, one for each item of x, got shape {y.shape} and dtype {y.dtype}"
                f" for x of shape {x.shape}"
            )
        object.__setattr__(self, "x", x.astype(np.float32, copy=False))
        object.__setattr__(self, "y", y.astype(np.int64, copy=False))

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, items: slice | np.ndarray) -> Split:
        """The chosen items: ``data.train[:256]``."""
        return Split(self.x[items], self.y[items])


@dataclass(frozen=True, eq=False)
class Data:
    """A data set. Whatever selects sees validation only; test is looked at once.

    Parameters
    ----------
    name : str
    train, validation, test : Split
    classes : int
        Labels are 0 to classes - 1.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int

    @cached_property
    def sha256(self) -> str:
        """Checksum of all items and labels: two data sets with the same one are the same."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            digest.update(split.x.tobytes())
            digest.update(split.y.tobytes())
        return digest.hexdigest()


@cache
def load(name: str) -> Data:
    """A data set by its id; its arrays are read-only.

    Parameters
    ----------
    name : {"digits", "mnist", "noisy-digits"}

    Returns
    -------
    Data

    Raises
    ------
    ValueError
        If the id is unknown, or the file is not the one that its card describes.

    Examples
    --------
    >>> data = load("mnist")
    >>> len(data.train), len(data.validation), len(data.test), data.train.x.shape[1:]
    (7000, 1500, 1500, (1, 28, 28))
    """
    if name not in DATASETS:
        raise ValueError(nearest("data set", name, DATASETS))
    return _noisy_digits() if name == "noisy-digits" else _read(name)


def _read(name: str) -> Data:
    card = read_card(name)
    content = verified_bytes(ROOT / name / card["file"], card["sha256"], rebuild=name)
    with np.load(io.BytesIO(content)) as arrays:
        # bytes to [0, 1]: the largest value is white
        white = np.float32(card["white"])
        train, validation, test = (_frozen(arrays[f"x_{split}"] / white, arrays[f"y_{split}"]) for split in SPLITS)
    return Data(name, train, validation, test, card["classes"])


def _noisy_digits(check: bool = True) -> Data:
    """Few digits under much noise; derived, so only a checksum is stored."""
    card = read_card("noisy-digits")
    digits, random = load("digits"), np.random.RandomState(card["seed"])

    def noisy(split: Split, draws: int) -> Split:
        x, y = np.repeat(split.x, draws, axis=0), np.repeat(split.y, draws)
        # Twelve uniform integers of standard deviation 256 / sqrt(12) add up to a near normal one of standard deviation
        # 256, the same to the last bit on every machine: a logarithm's last bit is not.
        normal = random.randint(-128, 128, size=(12, *x.shape)).sum(axis=0) / 256
        return _frozen(x + (card["noise"] * normal).astype(np.float32), y)

    train = noisy(digits.train[: card["train"]], draws=1)
    validation, test = (noisy(split, card["draws"]) for split in (digits.validation, digits.test))
    data = Data("noisy-digits", train, validation, test, card["classes"])
    if check and data.sha256 != card["sha256"]:
        raise ValueError(f"noisy-digits: expected sha256 {card['sha256']}, derived {data.sha256}; see its card")
    return data


def _frozen(x: np.ndarray, y: np.ndarray) -> Split:
    split = Split(x, y)
    split.x.flags.writeable = split.y.flags.writeable = False
    return split
