r"""Lottery tickets: find by training which weights matter, then train those alone from where they began.

A ticket is a mask m and the initial weights :math:`w_0`; it wins if training :math:`m \odot w_0` gets as far as
training all of :math:`w_0`. It is found by *iterative magnitude pruning with rewinding*, n rounds of

.. math::
   w \leftarrow \mathrm{train}(m \odot w_0), \qquad
   m \leftarrow m \odot [\,|w_i| \text{ among the largest } d^{k/n} \text{ of all}\,], \qquad
   w \leftarrow m \odot w_0,

k = 1 to n, and then one last training of the ticket. What it is held against is the same mask with other random
weights: if that does as well, the initial weights had nothing to do with it.

Source: J. Frankle and M. Carbin, "The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks", ICLR 2019,
section 1 (strategy: iterative pruning with resetting, appendix B).

Examples
--------
>>> import datasets
>>> digits = datasets.workload("digits-mlp")
>>> start = digits.network()
>>> ticket, _ = LotteryTicket(0.25, rounds=2).find(start, digits.data(), datasets.Recipe(epochs=1), seed=0)
>>> kept = ticket[1].weight != 0
>>> torch.equal(ticket[1].weight[kept], start[1].weight[kept])  # back where they began
True
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from kernels.model.pruning.mask import prune
from kernels.model.pruning.masked_training import Contested, Trace, check_density, joined, mask_by
from kernels.model.transform import layer_weights

__all__ = ["LotteryTicket", "Reinitialised"]


@dataclass(frozen=True)
class LotteryTicket(Contested):
    r"""Train, prune, rewind, several times over, and train what is left; all in the updates of one recipe.

    .. math:: m^{(k)} = m^{(k-1)} \odot [\,|w_i^{(k)}| \text{ among the largest } d^{k/n}\,], \qquad
       w^{(k+1)} = \mathrm{train}(m^{(k)} \odot w_0)

    Parameters
    ----------
    density : float
        d, the share of the weights in the ticket, 0 < d <= 1.
    rounds : int
        n, how often is pruned; 1 is the one-shot strategy.
    scope : {"global", "layer"}
        Whether the weights of all layers compete, or those of each layer among themselves.

    Notes
    -----
    The n + 1 trainings share the recipe's epochs evenly, and each goes through the whole schedule, so that the search
    for the ticket is paid from the same budget as everything else. In the paper each training is a full one. All
    weights go by one rule, where the paper prunes a last layer at half the rate. Biases and norms are rewound too.

    Source
    ------
    Frankle and Carbin, "The Lottery Ticket Hypothesis", ICLR 2019, section 1.

    Examples
    --------
    >>> import datasets
    >>> digits = datasets.workload("digits-mlp")
    >>> recipe = datasets.Recipe(epochs=4)
    >>> network, trace = LotteryTicket(0.25, rounds=1).train(digits.network(), digits.data(), recipe)
    >>> len(trace) == recipe.steps(digits.data())
    True
    """

    density: float = 0.1
    rounds: int = 3
    scope: str = "global"

    def __post_init__(self) -> None:
        check_density(self.density, self.scope)
        if self.rounds < 1:
            raise ValueError(f"rounds: expected at least 1, got {self.rounds}")

    def find(
        self, network: nn.Module, data: Any, recipe: Any, seed: int | None = None
    ) -> tuple[nn.Module, list[Trace]]:
        """The ticket, untrained: a copy of `network` with its weights, all but the chosen ones masked.

        Parameters
        ----------
        network : nn.Module
            Untrained.
        data : datasets.Data
        recipe : datasets.Recipe
            Of each of the trainings.
        seed : int, optional

        Returns
        -------
        network, traces
        """
        network = copy.deepcopy(network)
        prune(network, torch.abs, 1.0, self.scope)  # masks that keep everything, so that states have one form
        start, traces = copy.deepcopy(network.state_dict()), []
        for done in range(1, self.rounds + 1):
            traces.append(recipe.train(network, data, seed=seed))
            prune(network, torch.abs, self.density ** (done / self.rounds), self.scope)
            masks = {name: value for name, value in network.state_dict().items() if name.endswith(".mask")}
            network.load_state_dict({**start, **masks})
        return network.train(), traces

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """Find a ticket in `network`, and train it.

        Parameters
        ----------
        network : nn.Module
            Untrained; left as it is.
        data : datasets.Data
        recipe : datasets.Recipe
            Its epochs are those of all trainings together.
        teacher : ignored
        seed : int, optional
            Instead of the recipe's own.

        Returns
        -------
        network, trace
            Under its masks; the trace is that of all trainings.

        Raises
        ------
        ValueError
            If there are fewer epochs than trainings.
        """
        each, last = self.shares(recipe)
        ticket, traces = self.find(network, data, each, seed)
        traces.append(last.train(ticket, data, seed=seed))
        return ticket, joined(*traces)

    def shares(self, recipe: Any) -> tuple[Any, Any]:
        """The recipe of each search training, and that of the last one, which takes what does not divide evenly."""
        epochs = recipe.epochs // (self.rounds + 1)
        if epochs < 1:
            raise ValueError(
                f"recipe: expected at least {self.rounds + 1} epochs for as many trainings, got {recipe.epochs}"
            )
        return replace(recipe, epochs=epochs), replace(recipe, epochs=recipe.epochs - self.rounds * epochs)

    def reinitialised(self) -> Reinitialised:
        """The same mask, other random weights."""
        return Reinitialised(self)


@dataclass(frozen=True)
class Reinitialised:
    """Find a ticket, draw its weights anew, and train that: what the mask alone is worth.

    Parameters
    ----------
    ticket : LotteryTicket

    Source: Frankle and Carbin 2019, section 2, random reinitialisation.

    Examples
    --------
    >>> LotteryTicket(0.2).reinitialised().ticket.density
    0.2
    """

    ticket: LotteryTicket

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: Any = None, *, seed: int | None = None
    ) -> tuple[nn.Module, Trace]:
        """As `LotteryTicket.train`, but for the weights that the last training begins with."""
        each, last = self.ticket.shares(recipe)
        found, traces = self.ticket.find(network, data, each, seed)
        masks = [layer.parametrizations[name][-1].mask.float() for layer, name in layer_weights(found)]  # type: ignore
        network = redrawn(network, (recipe.seed if seed is None else seed) + 1000)
        mask_by(network, masks, self.ticket.density, self.ticket.scope)
        traces.append(last.train(network, data, seed=seed))
        return network, joined(*traces)


def redrawn(network: nn.Module, seed: int) -> nn.Module:
    """A copy of `network`, the weights of every layer drawn anew as its class does when it is built.

    Parameters
    ----------
    network : nn.Module
    seed : int

    Raises
    ------
    ValueError
        If a layer has parameters and cannot draw them: its name is in the message.

    Examples
    --------
    >>> layer = nn.Linear(3, 3)
    >>> torch.equal(redrawn(layer, 1).weight, redrawn(layer, 1).weight), torch.equal(redrawn(layer, 1).bias, layer.bias)
    (True, False)
    """
    network = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, layer in network.named_modules():
            reset: Any = getattr(layer, "reset_parameters", None)
            if reset is not None:
                reset()
            elif next(layer.parameters(recurse=False), None) is not None:
                raise ValueError(f"network: expected layers that draw their own weights, layer {name} is {layer}")
    return network
