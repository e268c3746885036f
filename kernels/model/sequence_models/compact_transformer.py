"""Compact transformers: a shallower, a thinner or a bottlenecked one learns what a trained one computes inside."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels import counting
from kernels.model.distillation.soft_label_distillation import soft_label_loss
from kernels.model.distillation.teaching import Guided, answering, watched
from kernels.model.pruning.head_pruning import every_other
from kernels.model.sequence_models.attention import continues_text, standard

__all__ = [
    "Bottleneck", "CompactTransformer", "Inside", "attention_divergence", "direction", "inside", "narrowed",
    "score_distance", "scores_and_states", "weights_and_states",
]  # fmt: skip

SHAPES = ("shallow", "thin", "bottleneck")
STARTS = ("teacher", "random")
LESSONS = ("teacher", "labels", "smoothed")
SMOOTHING = 0.1
"""Of the control that has no teacher but softer labels."""
BACKWARD = 3
"""A training pass is a forward one and two products of the same size: gradients of inputs and of weights."""
PARTS = ("attention_norm", "attention", "feedforward_norm", "feedforward")


# --- what is looked at, in either network ----------------------------------------------------------------------------


class Inside(NamedTuple):
    """What a transformer of L layers computes of a batch of windows.

    `logits` (batch, steps, classes); `hidden`, the embedding and what each layer gives, L + 1 times (batch, steps,
    width); `scores`, q kᵀ / √d of each layer before softmax, L times (batch, heads, steps, steps).
    """

    logits: Tensor
    hidden: list[Tensor]
    scores: list[Tensor]


def inside(network: Any, x: Tensor) -> Inside:
    """One pass through a network that continues text, and what was seen on the way.

    Examples
    --------
    >>> from datasets.workloads.transformer import Transformer
    >>> seen = inside(Transformer(classes=7, width=8, layers=2, heads=2, hidden=16), torch.zeros(3, 5))
    >>> len(seen.hidden), seen.scores[0].shape
    (3, torch.Size([3, 2, 5, 5]))
    """
    names = ["embedding", *(f"layers.{place}" for place in range(len(network.layers)))]
    with watched(network, names) as seen, _scored(network) as scores:
        logits = network.every(x)
    return Inside(logits, [seen[name] for name in names], scores)


@contextmanager
def _scored(network: nn.Module) -> Iterator[list[Tensor]]:
    """The scores of each attention, in order; attention is computed as it is written, so that they are there."""
    seen: list[Tensor] = []

    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append(q @ k.mT / math.sqrt(q.shape[-1]))
        return _weights(seen[-1]).softmax(-1) @ v

    modules = [attention for _, attention in standard(network)]
    for attention in modules:
        attention.mix = mix
    try:
        yield seen
    finally:
        for attention in modules:
            del attention.mix


def _past(scores: Tensor) -> Tensor:
    """Which keys each query sees: those up to its own step."""
    return torch.ones(scores.shape[-2:], dtype=torch.bool).tril()


def _weights(scores: Tensor) -> Tensor:
    return scores.masked_fill(~_past(scores), -math.inf)


# --- what a student is told ------------------------------------------------------------------------------------------


def direction(student: Inside, teacher: Inside, maps: nn.ModuleList | None = None) -> Tensor:
    r"""How far the last hidden states point apart, the mean over steps: :math:`\tfrac17 (1 - \cos(h_S, h_T))`.

    Beside it stand soft labels at T = 2 and labels, weighted five and two sevenths.

    Source
    ------
    Sanh, Debut, Chaumond and Wolf, "DistilBERT, a distilled version of BERT", 2019, section 2, the triple loss; weights
    5, 2 and 1 are those of its published training command.
    """
    return (1 - functional.cosine_similarity(student.hidden[-1], teacher.hidden[-1], dim=-1)).mean() / 7


def scores_and_states(student: Inside, teacher: Inside, maps: Any) -> Tensor:
    r"""Scores of every head, and hidden states through learned linear maps into the teacher's width.

    .. math:: \mathrm{MSE}(E_S W_e, E_T) +
        \sum_l \left( \frac1h \sum_i \mathrm{MSE}(A_S^{l,i}, A_T^{l,i}) + \mathrm{MSE}(H_S^l W_h, H_T^l) \right)

    with A the scores before softmax of the h heads, E the embedding, H what a layer gives. Beside it stand soft labels
    at T = 1, and no labels.

    Parameters
    ----------
    student, teacher : Inside
        Of as many layers and heads.
    maps : nn.ModuleList
        W_e and W_h.

    Source
    ------
    Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", 2020, equations 7 to 11. Adapted: pairs
    that a causal network never sees are left out.
    """
    embedding, hidden = maps
    mapped = [embedding(student.hidden[0]), *(hidden(state) for state in student.hidden[1:])]
    terms = [functional.mse_loss(own, other) for own, other in zip(mapped, teacher.hidden, strict=True)]
    terms += [score_distance(own, other) for own, other in zip(student.scores, teacher.scores, strict=True)]
    return torch.stack(terms).sum()


def weights_and_states(student: Inside, teacher: Inside, maps: nn.ModuleList | None = None) -> Tensor:
    r"""Layer by layer the hidden state as it is, and where each head looks.

    .. math:: \sum_l \left( \mathrm{MSE}(H_S^l, H_T^l) +
        \frac1{hn} \sum_{i, t} \mathrm{KL}(a_T^{l,i,t} \,\|\, a_S^{l,i,t}) \right)

    with a the weights after softmax of head i at step t of n. Beside it stand soft labels at T = 1 and labels, in
    halves.

    Parameters
    ----------
    student, teacher : Inside
        Of as many layers, heads, and hidden states of one width.

    Source
    ------
    Sun et al., "MobileBERT: a Compact Task-Agnostic BERT for Resource-Limited Devices", 2020, section 3: feature map
    transfer and attention transfer.
    """
    states = zip(student.hidden[1:], teacher.hidden[1:], strict=True)
    terms = [functional.mse_loss(own, other) for own, other in states]
    terms += [attention_divergence(own, other) for own, other in zip(student.scores, teacher.scores, strict=True)]
    return torch.stack(terms).sum()


INSIDES: dict[str, Callable[..., Tensor]] = {
    "shallow": direction,
    "thin": scores_and_states,
    "bottleneck": weights_and_states,
}
ANSWERS = {"shallow": (2.0, 5 / 7), "thin": (1.0, 1.0), "bottleneck": (1.0, 0.5)}
"""Temperature of the soft labels, and their share; the rest is the labels'."""


def score_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean square of the difference of scores, over the pairs that attention sees.

    Parameters
    ----------
    student, teacher : Tensor of shape (batch, heads, steps, steps)

    Examples
    --------
    >>> a, b = torch.tensor([[[[1.0, 9.0], [2.0, 3.0]]]]), torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]])
    >>> round(float(score_distance(a, b)), 4)  # 0, 4 and 1; the 9 lies ahead
    1.6667
    """
    past = _past(student)
    return functional.mse_loss(student[..., past], teacher[..., past])


def attention_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL divergence of where the student looks from where the teacher looks, the mean over queries.

    Parameters
    ----------
    student, teacher : Tensor of shape (batch, heads, steps, steps)
        Scores before softmax.

    Examples
    --------
    >>> scores = torch.randn(2, 4, 5, 5)
    >>> float(attention_divergence(scores, scores))
    0.0
    """
    past = _past(student)
    own, other = (_weights(scores).log_softmax(-1)[..., past] for scores in (student, teacher))
    return (other.exp() * (other - own)).sum(-1).mean() / student.shape[-1]


def _following(x: Tensor, y: Tensor) -> Tensor:
    """What follows each step of a window: the next one, and the label after the last."""
    return torch.cat([x[:, 1:].long(), y[:, None]], 1)


@dataclass(frozen=True, eq=False)
class _Lesson:
    """Soft labels at every step, and `weight` times what is inside."""

    teacher: nn.Module
    shape: str
    weight: float

    def __call__(self, network: Any, x: Tensor, y: Tensor) -> Tensor:
        look = inside if self.weight else _answers
        own = look(network.student, x)
        with torch.no_grad():
            other = look(self.teacher, x)
        logits, targets = own.logits.flatten(0, 1), other.logits.flatten(0, 1)
        loss = soft_label_loss(logits, targets, _following(x, y).flatten(), *ANSWERS[self.shape])
        return loss + self.weight * INSIDES[self.shape](own, other, network.helpers) if self.weight else loss


def _answers(network: Any, x: Tensor) -> Inside:
    return Inside(network.every(x), [], [])


@dataclass(frozen=True)
class _Smoothed:
    def __call__(self, network: Any, x: Tensor, y: Tensor) -> Tensor:
        logits, labels = network.every(x).flatten(0, 1), _following(x, y).flatten()
        return functional.cross_entropy(logits, labels, label_smoothing=SMOOTHING)


# --- students --------------------------------------------------------------------------------------------------------


def narrowed(part: Any, factor: int) -> Any:
    """A part of a transformer with a `factor`-th of every width but as many heads, drawn anew; `part` may change.

    Examples
    --------
    >>> from datasets.workloads.transformer import Layer
    >>> thin = narrowed(Layer(width=8, heads=2, hidden=32), 2)
    >>> thin.attention.heads, thin.attention.head_width, thin(torch.zeros(1, 5, 4)).shape
    (2, 2, torch.Size([1, 5, 4]))
    """
    if isinstance(part, nn.Linear):
        return nn.Linear(part.in_features // factor, part.out_features // factor, part.bias is not None)
    if isinstance(part, nn.Embedding):
        return nn.Embedding(part.num_embeddings, part.embedding_dim // factor)
    if isinstance(part, nn.LayerNorm):
        return nn.LayerNorm(part.normalized_shape[0] // factor, part.eps)
    for name, child in part.named_children():
        setattr(part, name, narrowed(child, factor))
    if hasattr(part, "head_width"):
        part.head_width //= factor
    return part


class Bottleneck(nn.Module):
    """A layer that is thin inside and wide outside: linear in, attention, two feedforward parts, linear out.

    .. math:: y = x + W_o \\, f(a(W_i \\, \\mathrm{norm}(x)))

    Two feedforward parts, because the linear layers at both ends go with attention: its parameters and those of the
    feedforward parts are again one to two.

    Parameters
    ----------
    layer : nn.Module
        Whose kind of attention and feedforward part it has, and whose place it takes.
    factor : int
        Inside are a `factor`-th of its widths.

    Source
    ------
    Sun et al., "MobileBERT", 2020, section 3. Adapted: norms come first, as in the network; all of attention
    is thin.
    """

    def __init__(self, layer: Any, factor: int) -> None:
        super().__init__()
        width = layer.attention.o.out_features
        self.into = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width // factor))
        self.layer = narrowed(copy.deepcopy(layer), factor)
        self.more = narrowed(copy.deepcopy(nn.Sequential(layer.feedforward_norm, *layer.feedforward)), factor)
        self.out = nn.Linear(width // factor, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(self.into(x))
        return x + self.out(h + self.more(h))


@dataclass(frozen=True)
class CompactTransformer:
    r"""Train a smaller transformer in place of the one given, with the trained one as its teacher.

    .. math:: L = (1 - \alpha) H(y, p_S) + \alpha T^2 \mathrm{KL}(p_T(T) \,\|\, p_S(T)) +
        w \, D(\text{inside}_S, \text{inside}_T)

    *shallow* has every second of the teacher's layers, begins with their weights, and learns the direction of the last
    hidden state (`direction`); *thin* has all layers at half the width, and learns scores and, through maps that are
    thrown away, hidden states (`scores_and_states`); *bottleneck* has all layers, wide only between them
    (`Bottleneck`), begins with the teacher's embedding and classifier, and learns hidden states and where to look
    (`weights_and_states`). All learn soft labels, each by its paper's α and T.

    Parameters
    ----------
    shape : {"shallow", "thin", "bottleneck"}
    start : {"teacher", "random"}
        Whether parts that have the teacher's shapes begin with its weights; thin has none.
    weight : float
        w; 1 is the papers' own, 0 leaves the soft labels alone.
    lessons : {"teacher", "labels", "smoothed"}
        What it learns by: the two others are controls, the plain recipe and labels of which a tenth is spread evenly.
    factor : int
        By how much it is smaller, in depth or in width.

    Notes
    -----
    As many updates as the plain recipe's; each costs the teacher's forward pass besides. The trace says the
    multiply-accumulates of each update, the teacher's and the maps' among them. Scaled down: the papers teach in stages
    over weeks, MobileBERT from a teacher that has bottlenecks turned inside out; here all terms are taught at once.

    Source
    ------
    Sanh, Debut, Chaumond and Wolf, "DistilBERT, a distilled version of BERT", 2019, sections 2 and 3; Jiao et al.,
    "TinyBERT", 2020, equations 7 to 11; Sun et al., "MobileBERT", 2020, section 3.

    Examples
    --------
    >>> import datasets
    >>> network = datasets.workload("shakespeare-transformer").network()
    >>> for shape in SHAPES:
    ...     student = CompactTransformer(shape, start="random").student(network)
    ...     print(shape, counting.parameters(student), "of", counting.parameters(network))
    shallow 58563 of 108355
    thin 29635 of 108355
    bottleneck 59459 of 108355
    """

    shape: str = "shallow"
    start: str = "teacher"
    weight: float = 1.0
    lessons: str = "teacher"
    factor: int = 2

    def __post_init__(self) -> None:
        for name, known in (("shape", SHAPES), ("start", STARTS), ("lessons", LESSONS)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
        if not (isinstance(self.factor, int) and self.factor >= 1):
            raise ValueError(f"factor: expected a positive integer, got {self.factor!r}")
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight: expected a finite number of at least 0, got {self.weight}")
        if self.shape == "thin" and self.start == "teacher":
            raise ValueError("start: expected random, for a thin student has no part of the teacher's shape")

    def without(self) -> CompactTransformer:
        """The same student without any teacher."""
        return replace(self, start="random", weight=0.0, lessons="labels")

    def smoothed(self) -> CompactTransformer:
        """The same student without any teacher, by smoothed labels."""
        return replace(self, start="random", weight=0.0, lessons="smoothed")

    def labels_alone(self) -> CompactTransformer:
        """The same start, and then the plain recipe: what the teacher's weights give without its lessons."""
        return replace(self, weight=0.0, lessons="labels")

    def answers_alone(self) -> CompactTransformer:
        """The same start and soft labels, nothing from inside."""
        return replace(self, weight=0.0)

    def student(self, network: nn.Module, teacher: nn.Module | None = None, seed: int = 0) -> Any:
        """The student, untrained.

        Parameters
        ----------
        network : nn.Module
            A transformer that continues text, whose shape says the student's; left as it is. A shallow student that
            starts at random has its weights.
        teacher : nn.Module, optional
            A trained one of the same shape, whose weights the student starts with.
        seed : int
            Of what is drawn anew.

        Raises
        ------
        TypeError, ValueError
            If a layer is none of a transformer, or cannot be divided, by its name; or without a teacher of this shape.
        """
        student: Any = copy.deepcopy(self._checked(network))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            kept = every_other(len(student.layers), math.ceil(len(student.layers) / self.factor))
            if self.shape == "shallow":
                for place in reversed(range(len(student.layers))):
                    if place not in kept:
                        del student.layers[place]
            elif self.shape == "thin":
                for part in ("embedding", "layers", "norm"):
                    setattr(student, part, narrowed(getattr(student, part), self.factor))
                head = student.head
                student.head = nn.Linear(head.in_features // self.factor, head.out_features, head.bias is not None)
            else:
                for place, layer in enumerate(student.layers):
                    student.layers[place] = Bottleneck(layer, self.factor)
        if self.start == "teacher":
            guide: Any = _of_shape(teacher, network)
            pairs = [(getattr(student, part), getattr(guide, part)) for part in ("embedding", "norm", "head")]
            if self.shape == "shallow":
                pairs += zip(student.layers, (guide.layers[place] for place in kept), strict=True)
            for own, other in pairs:
                own.load_state_dict(other.state_dict())
        return student

    def train(
        self, network: nn.Module, data: Any, recipe: Any, teacher: nn.Module | None = None, *, seed: int | None = None
    ) -> tuple[nn.Module, list[dict[str, Any]]]:
        """Train a student of `network`'s shape by `recipe` with the teacher's help.

        Parameters
        ----------
        network : nn.Module
            Says the student's shape (`student`); left as it is.
        data : datasets.Data
        recipe : datasets.Recipe
        teacher : nn.Module
            Trained, of the shape of `network`; runs in evaluation mode and learns nothing. Not needed by a student that
            starts at random and learns by labels.
        seed : int, optional
            Of the student, and instead of the recipe's own.

        Returns
        -------
        network, trace
            The student; and of each update also the multiply-accumulates, ``macs``.

        Raises
        ------
        TypeError, ValueError
            As for `student`, and without a teacher where it has lessons to give.
        """
        drawn = recipe.seed if seed is None else seed
        student = self.student(network, teacher, drawn)
        item = torch.tensor(data.train.x[:1])
        macs = BACKWARD * counting.macs(student, item)
        if self.lessons == "teacher":
            guide: Any = _of_shape(teacher, network)
            maps = self._maps(student, guide, drawn)
            macs += counting.macs(guide, item) + BACKWARD * self._mapping(maps, len(student.layers), item.shape[1])
            lesson = _Lesson(guide, self.shape, self.weight)
            trace = replace(recipe, loss=lesson).train(Guided(student, maps), data, seed=seed)
        elif self.lessons == "smoothed":
            trace = replace(recipe, loss=_Smoothed()).train(student, data, seed=seed)
        else:
            trace = recipe.train(student, data, seed=seed)
        count, epoch = len(data.train), math.ceil(len(data.train) / recipe.batch)
        items = (min(recipe.batch, count - recipe.batch * (step % epoch)) for step in range(len(trace)))
        return student, [update | {"macs": macs * some} for update, some in zip(trace, items, strict=True)]

    def _maps(self, student: Any, teacher: Any, seed: int) -> nn.ModuleList:
        """From the thin student's width to the teacher's: of the embedding, and of what layers give."""
        if self.shape != "thin" or not self.weight:
            return nn.ModuleList()
        own, other = student.embedding.embedding_dim, teacher.embedding.embedding_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.ModuleList([nn.Linear(own, other, bias=False) for _ in range(2)])

    def _mapping(self, maps: Any, layers: int, steps: int) -> int:
        """Multiply-accumulates of the maps for one window: the first once, the second for each layer."""
        return sum(uses * steps * m.weight.numel() for uses, m in zip((1, layers), maps, strict=False))

    def _checked(self, network: nn.Module) -> Any:
        found: Any = continues_text(network)
        for name, layer in found.layers.named_children():
            if missing := [part for part in PARTS if not hasattr(layer, part)]:
                raise ValueError(
                    f"layers.{name}: expected a transformer layer with {', '.join(PARTS)}; {type(layer).__name__} has"
                    f" no {missing[0]}"
                )
        for name, attention in standard(found):
            # rotary positions turn pairs
            if self.shape != "shallow" and attention.head_width % (2 * self.factor):
                raise ValueError(
                    f"{name}: expected heads whose width {2 * self.factor} divides, got {attention.head_width}"
                )
            hidden = found.get_submodule(name.rpartition(".")[0]).feedforward[0].out_features
            if self.shape != "shallow" and hidden % self.factor:
                raise ValueError(
                    f"{name.replace('attention', 'feedforward')}: expected a width that {self.factor} divides, got"
                    f" {hidden}"
                )
        return found


def _of_shape(teacher: Any, network: nn.Module) -> nn.Module:
    """A copy of the teacher that only answers, if it has as many parameters at every place as the network given."""
    guide = answering(teacher)
    own, other = ({name: tuple(p.shape) for name, p in n.state_dict().items()} for n in (network, guide))
    if own != other:
        name = next(name for name in [*own, *other] if own.get(name) != other.get(name))
        raise ValueError(
            f"teacher: expected a network of the shape of the one given, whose {name} is {own.get(name)},"
            f" got {other.get(name)}"
        )
    return guide
