"""Networks that are a chain of modules, and so can be cut between any two of them."""

from __future__ import annotations

from torch import nn

__all__ = ["links"]


def links(network: nn.Module) -> list[nn.Module]:
    """The modules of a chain in the order in which they run, nested chains opened.

    Raises
    ------
    TypeError
        If the network is no `nn.Sequential`: only of a chain is it known what runs after what.

    Examples
    --------
    >>> [type(link).__name__ for link in links(nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Tanh()))]
    ['Linear', 'ReLU', 'Tanh']
    """
    if type(network) is not nn.Sequential:
        raise TypeError(
            f"network: expected an nn.Sequential, which can be cut between its modules, got {type(network).__name__}; "
            "put its stages into an nn.Sequential first"
        )
    opened = [links(link) if type(link) is nn.Sequential else [link] for link in network]
    return [link for inner in opened for link in inner]
