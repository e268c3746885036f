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

from datasets.data import DATASETS, Data, Split, load

if TYPE_CHECKING:
    from datasets.workloads import WORKLOADS, Recipe, Workload, accuracy, workload

__all__ = ["DATASETS", "WORKLOADS", "Data", "Recipe", "Split", "Workload", "accuracy", "load", "workload"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("datasets.workloads"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
