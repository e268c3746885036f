"""Techniques of several levels on one network, in the order in which an engineer would apply them.

Transforms as written, fine-tuned; batch norm folded; one number format on the weights and inputs of convolutions and
linear layers, scales from 256 training items, biases and accumulators FP32; operators bound layer by layer where they
support the layer. What the format and the operators really execute is said, not assumed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kernels.model.batch_norm import fold

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Built", "OperatorLayer", "Stack", "bind", "fold", "operate", "round_layers"]

JOINS = ("transform", "number-format", "operator", "cost-model", "fault", "codec")
CALIBRATION = 256
FITTING_ROWS = 4096
"""Rows of a layer's inputs that an operator is fitted on at most, spread evenly over those there are."""


class OperatorLayer(nn.Module):
    """A linear or convolution layer computed by an operator of the house, its weight prepared once.

    A convolution goes to the operator's own `conv2d`, or, where it has none, to its `matmul` as a product of patches.

    Parameters
    ----------
    op : operator
    layer : nn.Linear or nn.Conv2d
    inputs : Tensor, optional
        What the layer is given for some items: an operator with a `fit` is fitted to the weight and to these, as a
        matrix (k, n) and rows (items, k) of float32; of a convolution in groups, group by group.
    """

    def __init__(self, op: Any, layer: nn.Linear | nn.Conv2d, inputs: Tensor | None = None):
        super().__init__()
        self.op, self.bias = op, layer.bias
        weight = layer.weight.detach()
        if isinstance(layer, nn.Conv2d) and not hasattr(op, "conv2d"):
            self.call = self._patches_times(op, layer, inputs)
        elif isinstance(layer, nn.Conv2d):
            options = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
            prepared = op.prepare(weight, groups=layer.groups)
            bias = None if layer.bias is None else layer.bias.detach()
            self.call = lambda x: op.conv2d(x, prepared, bias=bias, **options)
        else:
            op = _fitted(op, weight.T, None if inputs is None else inputs.reshape(-1, inputs.shape[-1]))
            prepared = op.prepare(weight) if hasattr(op, "linear") else op.prepare(weight.T)
            product = op.linear if hasattr(op, "linear") else op.matmul
            self.call = lambda x: self._linear(product, x, prepared)

    def _linear(self, product: Any, x: Tensor, prepared: Any) -> Tensor:
        y = torch.as_tensor(product(x.detach().reshape(-1, x.shape[-1]), prepared))
        y = y.to(x.dtype).reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias

    def _patches_times(self, op: Any, layer: nn.Conv2d, inputs: Tensor | None) -> Any:
        """im2col: the rows are patches, in the order of images, rows and columns."""
        options = {name: getattr(layer, name) for name in ("kernel_size", "stride", "dilation")}
        groups, margin = layer.groups, _margin(layer)

        def patches(x: Tensor) -> Tensor:  # (groups, images * places, k)
            unfolded = nn.functional.unfold(nn.functional.pad(x.detach(), margin), **options)
            images, entries, places = unfolded.shape
            return unfolded.reshape(images, groups, entries // groups, places).permute(1, 0, 3, 2).flatten(1, 2)

        weights = [w.flatten(1).T.contiguous() for w in layer.weight.detach().chunk(groups)]
        rows: Any = [None] * groups if inputs is None else patches(inputs)
        fitted = [_fitted(op, w, r) for w, r in zip(weights, rows, strict=True)]
        prepared = [own.prepare(w) for own, w in zip(fitted, weights, strict=True)]

        def call(x: Tensor) -> Tensor:
            high, wide = (
                (x.shape[2 + a] + margin[2 - 2 * a] + margin[3 - 2 * a] - d * (k - 1) - 1) // s + 1
                for a, (d, k, s) in enumerate(zip(layer.dilation, layer.kernel_size, layer.stride, strict=True))
            )
            parts = [
                torch.as_tensor(own.matmul(own_rows.contiguous(), w))
                for own, own_rows, w in zip(fitted, patches(x), prepared, strict=True)
            ]
            y = torch.cat(parts, 1).to(x.dtype).reshape(len(x), high, wide, -1).permute(0, 3, 1, 2).contiguous()
            return y if self.bias is None else y + self.bias[:, None, None]

        return call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def _margin(layer: nn.Conv2d) -> tuple[int, int, int, int]:
    """Left, right, above, below."""
    if layer.padding == "same":
        return tuple(layer._reversed_padding_repeated_twice)  # type: ignore[return-value]
    rows, columns = (0, 0) if isinstance(layer.padding, str) else layer.padding
    return (columns, columns, rows, rows)


def _fitted(op: Any, weight: Tensor, rows: Tensor | None) -> Any:
    if rows is None or not hasattr(op, "fit"):
        return op
    return op.fit(weight.contiguous().numpy(), rows[:: -(-len(rows) // FITTING_ROWS)].contiguous().numpy())


def operate(network: nn.Module, op: Any, items: Tensor) -> nn.Module:
    """A copy whose every linear and convolution layer is computed by one operator, whatever it supports elsewhere.

    Parameters
    ----------
    network : nn.Module
        Batch norm folded, where it has any.
    op : operator
        With `prepare` and `matmul` (or `linear`, or `conv2d`).
    items : Tensor
        What an operator that has a `fit` is fitted on, as the layers of the FP32 network see them.
    """
    from taxonomy.measure.figures import layer_inputs

    network = copy.deepcopy(network).eval()
    inputs = layer_inputs(network, items) if hasattr(op, "fit") else {}
    layers = [(name, layer) for name, layer in _layers(network) if isinstance(layer, nn.Linear | nn.Conv2d)]
    return _replaced(network, {name: OperatorLayer(op, layer, inputs.get(name)) for name, layer in layers})


def _layers(network: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    return ((name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.RNNBase))


def _replaced(network: nn.Module, new: dict[str, nn.Module]) -> nn.Module:
    for name, module in new.items():
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, module)
    return network


def round_layers(network: nn.Module, number_format: Any, items: Tensor) -> nn.Module:
    """A copy whose layers compute on rounded weights and inputs; scales fitted on `items`.

    Raises
    ------
    ValueError
        If a layer is in a format already.
    """
    from taxonomy.measure.protocols.number_format import round_network

    for name, layer in _layers(network):
        if hasattr(layer, "number_format"):
            raise ValueError(
                f"{name}: the layer is already in {layer.number_format!r}; a stack takes one number format"
            )
    rounded, _ = round_network(network, number_format, items)
    for _, layer in _layers(rounded):
        layer.number_format = number_format
    return rounded


def bind(
    network: nn.Module, operators: Iterable[Any], number_format: str | None, items: Tensor
) -> tuple[nn.Module, float]:
    """Bind each layer to the first operator that supports it in this format; the others stay with torch.

    Returns
    -------
    network, covered
        A copy, and the share of the multiply-accumulates that the operators compute.
    """
    from kernels.counting import macs_by_layer

    network = copy.deepcopy(network)
    counts = macs_by_layer(network, items[:1])
    new: dict[str, nn.Module] = {}
    for name, layer in _layers(network):
        op = next((op for op in operators if op.supports(layer, number_format)), None)
        if op is not None:
            new[name] = OperatorLayer(op, layer)  # type: ignore[arg-type]
            new[name]._forward_pre_hooks = layer._forward_pre_hooks  # the rounding of its input
    covered = sum(counts.get(name, 0) for name in new) / max(sum(counts.values()), 1)
    return _replaced(network, new), covered


@dataclass(frozen=True)
class Built:
    """A stack applied to one workload."""

    network: nn.Module
    plain: nn.Module
    """The same before operators took their layers over: its weights are what is stored."""
    covered: float
    executes: bool
    """Whether every layer really runs in the stack's format, so that its time means something."""
    unfolded: nn.Module
    """`plain` before batch norm was folded and numbers were rounded: weights that share values still do."""


class Stack:
    """Techniques of several levels together; parts are `id` or `id:parameter=value,parameter=value`.

    Raises
    ------
    ValueError
        If a part is of a kind that joins no stack, or a second number format.

    Examples
    --------
    >>> import taxonomy
    >>> taxonomy.load().stack("magnitude-pruning:density=0.1", "bfloat16", "csr")
    Stack('magnitude-pruning:density=0.1', 'bfloat16', 'csr')
    """

    def __init__(self, *parts: str, taxonomy: Any = None):
        if taxonomy is None:
            from taxonomy import load

            taxonomy = load()
        self.taxonomy, self.parts = taxonomy, parts
        self.nodes, self.subjects = [], []
        for part in parts:
            name, _, text = part.partition(":")
            node = taxonomy[name]
            if node.kind not in JOINS:
                raise ValueError(f"{name}: a {node.kind} joins no stack; these do: {', '.join(JOINS)}")
            self.nodes.append(node)
            self.subjects.append(node.reference(**_parameters(text, part)))
        formats = [node.id for node in self.nodes if node.kind == "number-format"]
        if len(formats) > 1:
            raise ValueError(f"a stack takes one number format, got {' and '.join(formats)}")

    def __repr__(self) -> str:
        return f"Stack({', '.join(map(repr, self.parts))})"

    def _of(self, kind: str) -> list[Any]:
        return [s for node, s in zip(self.nodes, self.subjects, strict=True) if node.kind == kind]

    def build(self, workload: Any, seed: int = 0) -> Built:
        """The network with everything applied; the workload's own is untouched."""
        from kernels.model.transform import bake

        data, network = workload.data(), workload.trained()
        items = torch.tensor(data.train.x[:CALIBRATION])
        for node, transform in zip(self.nodes, self.subjects, strict=True):
            if node.kind != "transform":
                continue
            network = transform.apply(network, data)
            if node.settings.get("fine_tuned", True):
                workload.recipe.finetune(network, data, seed=seed)
            network = bake(network)
        unfolded, network = network, fold(network)
        formats, operators = self._of("number-format"), self._of("operator")
        if formats:
            network = round_layers(network, formats[0], items)
        name = next((node.id for node in self.nodes if node.kind == "number-format"), None)
        plain, covered = network, 0.0
        if operators:
            network, covered = bind(network, operators, name, items)
        return Built(network, plain, covered, not formats or covered == 1.0, unfolded)

    def evaluate(self, workload: Any, seed: int = 0) -> pd.DataFrame:
        """Figures of the stack beside the baseline: who, metric, value, reason.

        Parameters
        ----------
        workload : str or datasets.Workload
        seed : int
            Of fine-tuning and of faults.
        """
        import pandas as pd

        import datasets
        from kernels.model.compressed_file import encode

        if isinstance(workload, str):
            workload = self.taxonomy.workload(workload)
        data = workload.data()
        item = torch.tensor(data.test.x[:1])
        baseline, built = workload.trained(), self.build(workload, seed)
        rows = [
            *_figures("baseline", baseline, item, datasets.accuracy(baseline, data.test)),
            *_figures("self", built.plain, item, datasets.accuracy(built.network, data.test)),
            {"who": "self", "metric": "stored_bits", "value": self.stored_bits(built), "reason": ""},
            {"who": "self", "metric": "bytes_on_disk", "value": len(self.file(built)), "reason": ""},
            {"who": "baseline", "metric": "bytes_on_disk", "value": len(encode(baseline)), "reason": ""},
            {"who": "self", "metric": "covered_macs", "value": built.covered, "reason": ""},
            *self._latency(baseline, built, item),
            *self._modelled(built.plain, item),
            *self._faulty(built.plain, data, seed),
        ]
        return pd.DataFrame(rows, columns=["who", "metric", "value", "reason"])

    def file(self, built: Built) -> bytes:
        """The file that a built stack's network is restored from, in Huffman's code where the stack has it."""
        from kernels.model.compressed_file import encode

        return encode(built.plain, next(iter(self._huffman()), None), built.unfolded)

    def _huffman(self) -> list[Any]:
        from kernels.model.weight_sharing.huffman_coding import HuffmanCoding

        return [codec for codec in self._of("codec") if isinstance(codec, HuffmanCoding)]

    def stored_bits(self, built: Built) -> float:
        """Bits of the parameters: as a number format, an operator or another codec stores them, else its file's."""
        formats, codecs, operators = self._of("number-format"), self._of("codec"), self._of("operator")
        if not formats and not operators and codecs == self._huffman():
            return 8.0 * len(self.file(built))
        network, bits = built.plain, 0.0
        weights = {id(layer.weight) for _, layer in _weighted(network)}
        for _, layer in _weighted(network):
            weight = layer.weight.detach()  # type: ignore[operator,union-attr]
            if codecs:
                stored = formats[0].fit(weight).encode(weight).codes if formats else weight.numpy()
                bits += 8 * len(codecs[0].encode(stored))
            elif formats:
                bits += formats[0].stored_bits(tuple(weight.shape))
            elif operators and hasattr(operators[0].prepare(weight.reshape(len(weight), -1)), "stored_bits"):
                bits += operators[0].prepare(weight.reshape(len(weight), -1)).stored_bits()
            else:
                bits += 32 * weight.numel()
        return bits + sum(32 * p.numel() for p in network.parameters() if id(p) not in weights)

    def _latency(self, baseline: nn.Module, built: Built, item: Tensor) -> list[dict[str, Any]]:
        if not built.executes:
            reason = "emulated: no layer executes this format here"
            return [{"who": "self", "metric": "latency", "value": float("nan"), "reason": reason}]
        from taxonomy.measure.timing import interleave
        from taxonomy.statistics import median

        with torch.no_grad():
            times = interleave({"self": lambda: built.network(item), "baseline": lambda: baseline(item)})
        return [{"who": who, "metric": "latency", "value": median(ts), "reason": ""} for who, ts in times.items()]

    def _modelled(self, network: nn.Module, item: Tensor) -> Iterable[dict[str, Any]]:
        from kernels.implementation.dataflow.layer import layers_of, valued_layers

        for model in self._of("cost-model"):
            figures = model.cost((valued_layers if model.needs_values else layers_of)(network, item)).figures()
            for metric, value in figures.items():
                value, reason = (float("nan"), model.missing[metric]) if value is None else (float(value), "modelled")
                yield {"who": type(model).__name__, "metric": metric, "value": value, "reason": reason}

    def _faulty(self, network: nn.Module, data: Any, seed: int) -> Iterable[dict[str, Any]]:
        import datasets

        for fault in self._of("fault"):
            for rate in (1e-5, 1e-4, 1e-3):
                damaged = copy.deepcopy(network)
                for i, (_, layer) in enumerate(_weighted(damaged)):
                    stored = fault.corrupt(fault.protect(layer.weight.detach().numpy()), rate, (seed, i))  # type: ignore
                    with torch.no_grad():
                        layer.weight.copy_(torch.from_numpy(fault.recover(stored)))  # type: ignore[operator,union-attr]
                value = datasets.accuracy(damaged, data.test)
                reason = f"bit-error rate {rate:g}"
                yield {"who": type(fault).__name__, "metric": "accuracy", "value": value, "reason": reason}


def _weighted(network: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, m) for name, m in _layers(network) if isinstance(getattr(m, "weight", None), Tensor)]


def _figures(who: str, network: nn.Module, item: Tensor, accuracy: float) -> list[dict[str, Any]]:
    from kernels.counting import macs, nonzero_parameters, parameters, peak_activation_bytes

    values = {
        "accuracy": accuracy, "parameters": parameters(network), "nonzero_parameters": nonzero_parameters(network),
        "macs": macs(network, item), "peak_activation_bytes": peak_activation_bytes(network, item),
    }  # fmt: skip
    return [{"who": who, "metric": name, "value": float(value), "reason": ""} for name, value in values.items()]


def _parameters(text: str, part: str) -> dict[str, Any]:
    import yaml

    found = {}
    for assignment in filter(None, text.split(",")):
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"{part!r}: expected parameter=value after the colon, got {assignment!r}")
        found[name.strip()] = yaml.safe_load(value)
    return found
