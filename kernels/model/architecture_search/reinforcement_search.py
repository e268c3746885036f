"""Architecture search by reinforcement: a controller draws architectures, and learns from how well they did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kernels.model.architecture_search.random_search import History, best, evaluated

__all__ = ["CONTROLLERS", "Factorised", "Recurrent", "ReinforcementSearch", "policy_gradient"]


class Factorised(nn.Module):
    """A softmax for each choice, drawn independently of the others; at first every value is as likely as another.

    Parameters
    ----------
    space : mapping of str to tuple
        The values of each choice.
    """

    def __init__(self, space: Mapping[str, tuple[Any, ...]]) -> None:
        super().__init__()
        self.logits = nn.ParameterList([nn.Parameter(torch.zeros(len(values))) for values in space.values()])

    def forward(self, drawn: list[int] | None = None) -> tuple[list[int], Tensor]:
        """Positions of one value for each choice, drawn now or given, and the logarithm of their probability."""
        found, total = [], torch.zeros(())
        for at, logits in enumerate(self.logits):
            logp = logits.log_softmax(0)
            found.append(int(torch.multinomial(logp.exp(), 1)) if drawn is None else drawn[at])
            total = total + logp[found[-1]]
        return found, total


class Recurrent(nn.Module):
    """An LSTM that draws choice after choice and is told, before each, what it drew for the one before.

    So it can learn that two values go together, which a `Factorised` controller cannot.

    Parameters
    ----------
    space : mapping of str to tuple
    hidden : int
        Units of the one layer.
    """

    def __init__(self, space: Mapping[str, tuple[Any, ...]], hidden: int = 16) -> None:
        super().__init__()
        sizes = [len(values) for values in space.values()]
        self.cell = nn.LSTMCell(hidden, hidden)
        self.start = nn.Parameter(torch.zeros(1, hidden))
        self.told = nn.ModuleList([nn.Embedding(size, hidden) for size in sizes[:-1]])
        self.heads = nn.ModuleList([nn.Linear(hidden, size) for size in sizes])
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)

    def forward(self, drawn: list[int] | None = None) -> tuple[list[int], Tensor]:
        """As `Factorised.forward`."""
        found: list[int] = []
        total, x, state = torch.zeros(()), self.start, None
        for at, head in enumerate(self.heads):
            state = self.cell(x, state)
            logp = head(state[0])[0].log_softmax(0)
            found.append(int(torch.multinomial(logp.exp(), 1)) if drawn is None else drawn[at])
            total = total + logp[found[-1]]
            if at < len(self.told):
                x = self.told[at](torch.tensor(found[-1:]))
        return found, total


CONTROLLERS = {"factorised": Factorised, "recurrent": Recurrent}


def policy_gradient(logps: list[Tensor], rewards: list[float], baseline: float) -> Tensor:
    r"""The loss whose gradient is the policy gradient's estimate, with its sign turned for a minimiser.

    .. math:: L = -\frac{1}{m} \sum_{k=1}^{m} (R_k - b) \log p(a_k; \theta)

    Parameters
    ----------
    logps : list of Tensor
        log p of each architecture drawn.
    rewards : list of float
    baseline : float
        b. What does not depend on the architectures drawn changes the estimate's variance and not its mean.

    Examples
    --------
    Two values, drawn evenly; the second earns one more than the baseline, so its logit rises by as much as the other
    falls:

    >>> logits = torch.zeros(2, requires_grad=True)
    >>> policy_gradient([logits.log_softmax(0)[1]], [1.5], baseline=0.5).backward()
    >>> (-logits.grad).tolist()
    [-0.5, 0.5]
    """
    advantages = torch.tensor(rewards) - baseline
    return -(advantages * torch.stack(logps)).mean()


@dataclass(frozen=True)
class ReinforcementSearch:
    r"""A controller draws architectures; REINFORCE makes those likelier that did better than was usual.

    .. math:: \nabla_\theta J \approx \frac{1}{m} \sum_{k=1}^{m} (R_k - b)\, \nabla_\theta \log p(a_k; \theta),
        \qquad b \leftarrow \delta b + (1 - \delta) \bar R

    R the validation accuracy of the architecture drawn, b a moving average of those before. Each update takes m newly
    drawn architectures, and Adam takes the step.

    Parameters
    ----------
    controller : {"factorised", "recurrent"}
        A softmax a choice, or an LSTM that draws one choice after another.
    learning_rate : float
        Adam's.
    batch : int
        m.
    decay : float
        δ, from 0 (the batch before) to below 1.

    Source: Zoph and Le, "Neural Architecture Search with Reinforcement Learning", arXiv 1611.01578, section 3.2; the
    estimator is that of Williams (1992). There the controller is an LSTM of two layers whose learning rate suits
    thousands of architectures; here one of a single small layer, or none, and a rate that suits tens.

    Examples
    --------
    >>> class OneMax:
    ...     cost = staticmethod(lambda candidate: 1)
    ...     evaluate = staticmethod(lambda candidate: sum(candidate.values()) / 20)
    >>> space = {f"bit {i}": (0, 1) for i in range(20)}
    >>> found, history = ReinforcementSearch().search(space, OneMax(), budget=200, seed=0)
    >>> sum(found.values()) >= 18, history[-1][2]
    (True, 200)
    """

    controller: str = "factorised"
    learning_rate: float = 0.1
    batch: int = 3
    decay: float = 0.9

    def __post_init__(self) -> None:
        if self.controller not in CONTROLLERS:
            raise ValueError(f"controller: expected one of {', '.join(CONTROLLERS)}, got {self.controller!r}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate: expected a positive number, got {self.learning_rate!r}")
        if not (isinstance(self.batch, int) and self.batch >= 1):
            raise ValueError(f"batch: expected a positive integer, got {self.batch!r}")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay: expected a number from 0 to below 1, got {self.decay!r}")

    def search(
        self, space: Mapping[str, tuple[Any, ...]], task: Any, budget: float, seed: int
    ) -> tuple[dict[str, Any], History]:
        """Search until the next evaluation would exceed the budget.

        Parameters
        ----------
        space : mapping of str to tuple
            The values of each choice.
        task : object
            ``task.evaluate(candidate)`` gives the reward; ``task.cost(candidate)`` what it costs.
        budget : float
            In the unit of cost: epochs of training.
        seed : int

        Returns
        -------
        best : dict
            The evaluated candidate of the highest reward.
        history : list of (dict, float, float)

        Raises
        ------
        ValueError
            If the budget does not pay for one evaluation, or the space has no choice.
        """
        if not space:
            raise ValueError(f"space: expected at least one choice, got {dict(space)}")
        history: History = []
        baseline: float | None = None
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            controller = CONTROLLERS[self.controller](space)
            optimizer = torch.optim.Adam(controller.parameters(), lr=self.learning_rate)
            while True:
                logps: list[Tensor] = []
                for _ in range(self.batch):
                    drawn, logp = controller()
                    candidate = {c: values[at] for (c, values), at in zip(space.items(), drawn, strict=True)}
                    if not evaluated(task, candidate, budget, history):
                        return best(history, budget), history
                    logps.append(logp)
                rewards = [score for _, score, _ in history[-self.batch :]]
                usual = sum(rewards) / self.batch
                optimizer.zero_grad()
                policy_gradient(logps, rewards, usual if baseline is None else baseline).backward()
                optimizer.step()
                baseline = usual if baseline is None else self.decay * baseline + (1 - self.decay) * usual
