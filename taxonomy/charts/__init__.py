"""The book's charts: each a function from tidy rows (`tx.measurements(...)`) to one declarative Altair chart.

A chart has no colour of its own for text, axes or ground: the page's light or dark theme gives them. Marks differ in
shape as well as in colour, every colour has a contrast of at least three to one on both grounds, and every chart
carries its figures as a table. A record taken on the reader's machine is drawn hollow beside the reference.
"""

from taxonomy.charts.figures import beside_peers, curve, front, ratio_strip, trade_off
from taxonomy.charts.formats import accuracy_by_bits, format_map, value_density
from taxonomy.charts.graph import influence_graph
from taxonomy.charts.matrix import taxonomy_matrix
from taxonomy.charts.traces import effects, findings_table, trace

__all__ = [
    "accuracy_by_bits", "beside_peers", "curve", "effects", "findings_table", "format_map", "front", "influence_graph",
    "ratio_strip", "taxonomy_matrix", "trace", "trade_off", "value_density",
]  # fmt: skip
