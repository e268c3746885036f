"""The form of every YAML file of the taxonomy; exported as JSON Schema for editors.

A node holds what is known. What it can *do* (import its implementation, measure, fetch its figures) is a method that
imports the heavy rooms of the house only when it is called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

if TYPE_CHECKING:
    import pandas as pd

    from taxonomy.verdict import Finding

Identifier = str
Scalar = bool | int | float | str
Level = Literal["model", "arithmetic", "implementation"]
LEVELS: tuple[Level, ...] = ("model", "arithmetic", "implementation")
Kind = Literal[
    "number-format", "codec", "transform", "block", "training", "training-system", "search", "adaptive", "operator",
    "cost-model", "fault",
]  # fmt: skip
Attribution = Literal["survey-text", "survey-secondary", "likely-high", "likely-medium", "likely-low", "field"]
ID = r"^[a-z0-9]+(-[a-z0-9]+)*$"


class Node(BaseModel):
    """Immutable data; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


class Technique(Node):
    """One technique of the survey's field: `taxonomy/<level>/<family>/<id>.yml`."""

    id: Identifier = Field(pattern=ID, description="unique, lower-case, with hyphens; the file's name")
    aliases: tuple[Identifier, ...] = Field((), description="former ids")
    name: str = Field(description="the field's own name for it")
    kind: Kind = Field(description="fixes the signature of the implementation and the protocol")
    definition: str = Field(description="one sentence")
    equation: str | None = Field(None, description="LaTeX, without dollars")
    idea: str = Field(description="Markdown: what it is, why it works, what it costs; no measured number")
    improves: tuple[str, ...] = Field(description="ids of metrics.yml that it is meant to improve")
    references: tuple[str, ...] = Field((), description="names of files in references/")
    attribution: Attribution = Field(description="what may be said of the survey")
    runs: Literal["native", "emulated", "simulated"] = Field(description="which of its figures a CPU can really show")
    implementation: str = Field(pattern=r"^kernels(\.\w+)+:\w+$", description="module:Class")
    reaches: tuple[str, ...] = Field((), description="definitions reached by duck typing, module:name")
    variants: tuple[dict[str, Scalar], ...] = Field(min_length=1, description="the grid; the first equals the defaults")
    elsewhere: tuple[dict[str, Scalar], ...] = Field(
        (), description="the grid for networks trained elsewhere, where nothing is fine-tuned; `variants` if absent"
    )
    baseline: str = Field(description="a technique's id or a baseline of kinds.yml")
    peers: tuple[str, ...] = Field((), description="contestants beside it")
    workloads: tuple[Identifier, ...] | None = Field(None, description="where it is measured; the kind's own if absent")
    settings: dict[str, Any] = Field(default_factory=dict, description="conditions of measurement, not parameters")
    unfit: dict[Identifier, str] = Field(default_factory=dict, description="workload: why it cannot be measured there")
    budget: str | None = Field(None, description="why measuring it takes more than 160 core-seconds, where it does")
    leaves: str | None = Field(None, description="what it leaves that a lower level can exploit")
    exploited_by: tuple[Identifier, ...] = Field((), description="techniques of lower levels that do so")
    use_when: str
    avoid_when: str
    example: str = Field(description="Python that shows it at work; runs on its page")

    _level: Level = PrivateAttr(default="model")
    _family: str = PrivateAttr(default="")

    @property
    def level(self) -> Level:
        return self._level

    @property
    def family(self) -> str:
        return self._family

    @property
    def address(self) -> str:
        """`level/family/id`, the same in every wing of the house."""
        return f"{self._level}/{self._family}/{self.id}"

    def reference(self, **parameters: Scalar) -> Any:
        """The reference implementation at these parameters, imported now.

        Raises
        ------
        TypeError
            If a parameter is unknown; the message names those there are.

        Examples
        --------
        >>> import taxonomy
        >>> taxonomy.load()["posit"].reference(bits=8, es=2)
        Posit(bits=8, es=2)
        """
        module, _, name = self.implementation.partition(":")
        implementation = getattr(import_module(module), name)
        known = [field for field in implementation.__dataclass_fields__ if not field.startswith("_")]
        if unknown := [parameter for parameter in parameters if parameter not in known]:
            raise TypeError(f"{self.id}: unknown parameter {unknown[0]!r}; it takes {', '.join(known) or 'none'}")
        return implementation(**parameters)

    def measure(self, workload: Any = None, **options: Any) -> pd.DataFrame:
        """Measure now on a workload's id, or on a `datasets.Workload` of one's own; the rows measured."""
        from taxonomy.measure.runner import measure_now

        return measure_now(self, workload, **options)


class Influence(Node):
    """A directed edge, `taxonomy/influences/<source>--<target>.yml`: the source changes `metric` of the target.

    `sign` is the claim: better, worse, mixed, or needed. The verdict is computed from records, never typed.
    """

    source: Identifier
    target: Identifier
    relation: Literal["influence", "within"] = "influence"
    metric: str
    sign: Literal["+", "-", "mixed", "needs"]
    estimand: Literal["effect", "interaction", "crossover", "rescue"]
    along: str | None = Field(None, description="the strength along which it is traced")
    mechanism: str
    contrast: str = Field(description="what is run")
    attribution: Attribution
    version: int = Field(1, description="raised by hand when the meaning of its experiment changes")
    by_construction: bool = Field(False, description="whether the effect follows from counting alone")
    workloads: tuple[Identifier, ...] = Field(min_length=1)
    reaches: tuple[str, ...] = Field((), description="definitions that the experiment measures, module:name")

    @property
    def id(self) -> str:
        return f"{self.source}--{self.target}"

    @property
    def address(self) -> str:
        return f"influences/{self.id}"

    @property
    def implementation(self) -> str:
        return f"taxonomy.measure.influences.{self.id.replace('-', '_')}"

    @property
    def findings(self) -> tuple[Finding, ...]:
        """One finding per workload and setting of what the stores hold; empty before it is measured."""
        from taxonomy.verdict import findings

        return findings(self)

    @property
    def finding(self) -> Finding | None:
        """The first finding, on the edge's own metric; None before it is measured."""
        return next(iter(self.findings), None)

    @property
    def verdict(self) -> str:
        """On which all findings on the edge's own metric agree; else how many say what.

        Examples
        --------
        >>> import taxonomy
        >>> [edge.verdict for edge in taxonomy.load().influences(source="magnitude-pruning", target="csr")]
        ['supported']
        """
        verdicts = Counter(finding.verdict for finding in self.findings if finding.metric == self.findings[0].metric)
        if len(verdicts) > 1:
            return ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
        return next(iter(verdicts), "not measured")


class StackNode(Node):
    """Techniques of several levels that are measured together, `taxonomy/stacks/<id>.yml`."""

    id: Identifier = Field(pattern=ID, description="unique, lower-case, with hyphens; the file's name")
    name: str
    parts: tuple[Identifier, ...] = Field(min_length=1, description="techniques, in the order of use")
    variants: tuple[dict[str, Scalar], ...] = Field(min_length=1, description="of each part, part.parameter: value")
    idea: str = Field(description="Markdown: what the parts do for one another; no measured number")
    workloads: tuple[Identifier, ...] = Field(min_length=1)

    kind: ClassVar[str] = "stack"
    baseline: ClassVar[str] = "untouched"
    peers: ClassVar[tuple[str, ...]] = ()
    improves: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[dict[str, Any]] = {}

    @property
    def address(self) -> str:
        return f"stacks/{self.id}"

    def reference(self, **parameters: Scalar) -> Any:
        """The stack at these parameters, `part.parameter` each; what executes it is imported now."""
        from taxonomy.measure.stack import Stack

        return Stack(*self.words(parameters))

    def words(self, variant: Mapping[str, Scalar]) -> tuple[str, ...]:
        """The parts at a variant's parameters, as `tx.stack` takes them.

        Examples
        --------
        >>> import taxonomy
        >>> stack = taxonomy.load().stacks["prune-and-round"]
        >>> stack.words(stack.variants[0])
        ('magnitude-pruning:density=0.1', 'int8', 'huffman-coding')
        """
        found = []
        for part in self.parts:
            own = [f"{name.removeprefix(part + '.')}={v}" for name, v in variant.items() if name.startswith(f"{part}.")]
            found.append(f"{part}:{','.join(own)}" if own else part)
        return tuple(found)


class Metric(Node):
    name: str
    unit: str
    direction: Literal["higher", "lower", "none"]
    definition: str
    source: str | None = None
    aliases: tuple[str, ...] = ()
    derived: str | None = Field(None, description="formula; never stored")
    caveat: str | None = None


class Family(Node):
    level: Level
    title: str
    definition: str
    order: int = 0


class Reference(Node):
    authors: str
    title: str
    year: int
    venue: str | None = None
    arxiv: str | None = None
    doi: str | None = None
    note: str | None = None

    @property
    def url(self) -> str | None:
        if self.doi:
            return f"https://doi.org/{self.doi}"
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else None


class Paper(Node):
    """A paper that cites the survey, and the experiment of this book that it suggests."""

    id: Identifier = Field(pattern=ID)
    title: str
    year: int
    techniques: tuple[Identifier, ...] = ()
    experiment: str
    read_from: str
    note: str | None = None


class WorkloadNode(Node):
    """What techniques are measured on: a trained network and its data, a search table, or shapes of operands.

    A network trained elsewhere has inputs and no labels: changed copies are compared with it.
    """

    kind: Literal["network", "network-elsewhere", "search", "operands"]
    title: str
    description: str
    settings: tuple[dict[str, Scalar], ...] = ()


class KindNode(Node):
    title: str
    contract: tuple[str, ...] = Field(description="signatures that an implementation offers, as text")
    also: str | None = Field(None, description="what else is expected, in words")
    exemplar: Identifier = Field(description="the technique of the kind to read first")
    base: str | None = Field(None, description="module:Class that implementations extend, where there is one")
    oracle: str = Field(description="what its tests compare with, which is not ours")
    held: str = Field(description="what else its tests hold")
    workloads: tuple[Identifier, ...]

    def __str__(self) -> str:
        return "; ".join([*self.contract, *([self.also] if self.also else [])])


class Kinds(Node):
    kinds: dict[Kind, KindNode]
    baselines: dict[str, str]


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a technique's file, for editors.

    Examples
    --------
    >>> json_schema()["title"]
    'Technique'
    """
    return Technique.model_json_schema()
