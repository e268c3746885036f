"""What techniques run on: real data, and networks trained on it; torch is imported when a workload is asked for.

Examples
--------
>>> import datasets
>>> digits = datasets.load("digits")
>>> digits.train.x.shape, digits.train.x.dtype, digits.train.y.dtype
((1197, 1, 8, 8), dtype('float32'), dtype('int64'))
>>> network = datasets.workload("digits-mlp").trained()
>>> bool(datasets.accuracy(network, digits.test) > 0.95)
True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from datasets import data, series, text
from datasets.card import nearest
from datasets.data import Data, Split

if TYPE_CHECKING:
    from datasets.workloads import WORKLOADS, Recipe, TrainedElsewhere, Workload, accuracy, workload

__all__ = [
    "DATASETS", "WORKLOADS", "Data", "Recipe", "Split", "TrainedElsewhere", "Workload", "accuracy", "load", "workload",
]  # fmt: skip

DATASETS = (*data.DATASETS, *series.DATASETS, *text.DATASETS)


def load(name: str) -> Data:
    """A data set by its id, one of `DATASETS`; its arrays are read-only.

    Raises
    ------
    ValueError
        If the id is unknown, or the file is not the one that its card describes.
    """
    if name not in DATASETS:
        raise ValueError(nearest("data set", name, DATASETS))
    return next(kind for kind in (series, text, data) if name in kind.DATASETS).load(name)


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("datasets.workloads"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
