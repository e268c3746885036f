"""Series: data sets whose items are steps of several values, as long as the longest; shorter ones begin with zeros."""

from __future__ import annotations

from functools import cache

from datasets.card import nearest
from datasets.data import Data, _read

__all__ = ["DATASETS", "load"]

DATASETS = ("japanese-vowels",)


@cache
def load(name: str) -> Data:
    """A data set of series by its id; its arrays are read-only, items of shape (steps, values).

    Parameters
    ----------
    name : {"japanese-vowels"}

    Returns
    -------
    Data

    Raises
    ------
    ValueError
        If the id is unknown, or the file is not the one that its card describes.

    Examples
    --------
    >>> data = load("japanese-vowels")
    >>> len(data.train), len(data.validation), len(data.test), data.train.x.shape[1:], data.classes
    (270, 120, 250, (29, 12), 9)
    """
    if name not in DATASETS:
        raise ValueError(nearest("data set", name, DATASETS))
    return _read(name)
