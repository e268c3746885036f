"""Networks, their recipes and their trained weights; one module a workload."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from datasets.card import nearest
from datasets.workloads.base import Workload
from datasets.workloads.elsewhere import TrainedElsewhere
from datasets.workloads.recipe import Recipe, accuracy

__all__ = [
    "NETWORKS", "TRAINED_ELSEWHERE", "WORKLOADS", "Recipe", "TrainedElsewhere", "Workload", "accuracy", "workload",
]  # fmt: skip

NETWORKS = ("digits-mlp", "mnist-cnn", "noisy-digits-cnn", "vowels-gru", "shakespeare-transformer")
TRAINED_ELSEWHERE = ("efficientnet-lite0", "silero-vad")
ADAPTED = ("milton-transformer", "new-speakers-gru")
SEARCHES = ("digits-search", "digits-bits", "noisy-digits-ratios", "mnist-scaling", "gemm-tiles")
WORKLOADS = (*NETWORKS, *ADAPTED, *TRAINED_ELSEWHERE, *SEARCHES)


@cache
def workload(id: str) -> Any:
    """One of the house's workloads.

    Parameters
    ----------
    id : one of `WORKLOADS`

    Returns
    -------
    Workload
        Or a `TrainedElsewhere`; or, for a search, its space with every answer in a table.

    Raises
    ------
    ValueError
        If there is no such workload; the message names the nearest ones.

    Examples
    --------
    >>> workload("mnist-cnn").input_shape
    (1, 28, 28)
    >>> workload("minst-cnn")
    Traceback (most recent call last):
    ...
    ValueError: unknown workload 'minst-cnn'; nearest: mnist-cnn, mnist-scaling, noisy-digits-cnn
    """
    if id not in WORKLOADS:
        raise ValueError(nearest("workload", id, WORKLOADS))
    return import_module(f"datasets.workloads.{id.replace('-', '_')}").workload()
