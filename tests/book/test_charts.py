"""Charts: what they draw is what the rows hold; colours are seen by all, on both grounds."""

import itertools
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from taxonomy import charts
from taxonomy.charts import look, rendering
from taxonomy.verdict import Finding, Point

LIGHT, DARK = "#ffffff", "#14181e"


def row(**changes):
    held = {
        "technique": "pruner", "variant": "", "workload": "mnist-cnn", "setting": "", "who": "self",
        "metric": "accuracy", "value": 0.9, "unit": "fraction", "low": 0.89, "high": 0.91, "n": 5,
        "stale": False, "store": "reference", "parameters": {}, "conditions": {}, "reason": "",
    }  # fmt: skip
    held.update(changes)
    held["variant"] = ", ".join(f"{k}={v}" for k, v in held["parameters"].items())
    held["setting"] = ", ".join(f"{k}={v}" for k, v in held["conditions"].items())
    return held


@pytest.fixture
def frame():
    rows = []
    for density in (0.02, 0.1, 0.5):
        for workload in ("mnist-cnn", "digits-mlp"):
            here = {"parameters": {"density": density}, "workload": workload}
            rows.append(row(value=0.9 + density / 10, low=0.89, high=0.96, **here))
            rows.append(row(who="baseline", value=0.97, low=float("nan"), high=float("nan"), **here))
            rows.append(row(metric="parameters", unit="count", value=1e5 * density, low=np.nan, high=np.nan, **here))
            rows.append(
                row(
                    metric="speedup",
                    unit="ratio",
                    who="torch",
                    value=density * 10,
                    low=density * 9,
                    high=density * 11,
                    **here,
                )
            )
    rows.append(row(metric="energy", unit="J", value=float("nan"), reason="no coefficient"))
    return pd.DataFrame(rows)


def values(spec):
    """All inline data of a chart."""
    if isinstance(spec, dict):
        for key, value in spec.items():
            if key in ("values",) and isinstance(value, list) and value and isinstance(value[0], dict):
                yield from value
            else:
                yield from values(value)
    elif isinstance(spec, list):
        for value in spec:
            yield from values(value)


DRAWN = {
    "beside_peers": lambda frame: charts.beside_peers(frame, "accuracy"),
    "curve": lambda frame: charts.curve(frame, "density", "accuracy"),
    "trade_off": lambda frame: charts.trade_off(frame, "parameters", "accuracy"),
    "ratio_strip": lambda frame: charts.ratio_strip(frame),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_chart_draws_the_rows_and_tells_them(frame, name):
    spec = DRAWN[name](frame).to_dict()
    metric = "speedup" if name == "ratio_strip" else "accuracy"
    held = set(frame[(frame.metric == metric)].value)
    if name == "trade_off":  # the baseline has no cost here
        held = set(frame[(frame.metric == metric) & (frame.who == "self")].value)
    assert {entry["value"] for entry in values(spec) if "value" in entry} == held
    table = spec["usermeta"]["table"]
    assert len(table["rows"]) == len(frame[frame.metric == metric]) or name == "trade_off"
    assert all(len(entry) == len(table["columns"]) for entry in table["rows"])
    assert len(spec["description"]) > 15
    page = rendering.figure(spec)
    assert "<svg" in page and "<table" in page
    assert "http" not in re.sub(r"http://www\.w3\.org/[\w/]*|https://vega\.github\.io/schema[^\"]*", "", page)


@pytest.mark.parametrize("name", ["beside_peers", "curve", "trade_off"])
def test_a_metric_without_figures_is_refused_by_name(frame, name):
    calls = {"beside_peers": ("energy",), "curve": ("density", "energy"), "trade_off": ("parameters", "energy")}
    with pytest.raises(ValueError, match=r"no figure of 'energy'.*they hold .*accuracy"):
        getattr(charts, name)(frame, *calls[name])


def test_a_front_joins_what_no_other_beats_and_shows_one_baseline():
    points = {"a": [(10, 0.9), (20, 0.8)], "b": [(10, 0.95), (30, 0.97), (5, 0.5)]}
    rows = [
        row(technique=name, who=who, variant=f"{name}{i}", parameters={"i": i}, metric=metric, value=value)
        for name, own in points.items()
        for i, pair in enumerate(own)
        for who, (x, y) in (("self", pair), ("baseline", (100, 0.96)))
        for metric, value in (("macs", x), ("accuracy", y))
    ]
    spec = charts.front(pd.DataFrame(rows), "macs", "accuracy", names={"baseline": "whole"}).to_dict()
    drawn = {(entry["x"], entry["value"]): entry for entry in values(spec) if "best" in entry}
    assert {place for place, entry in drawn.items() if entry["best"]} == {(10, 0.95), (30, 0.97), (5, 0.5)}
    assert [entry["contestant"] for entry in drawn.values() if entry["who"] == "baseline"] == ["whole"]
    assert {entry["contestant"] for entry in drawn.values()} == {"a", "b", "whole"}
    with pytest.raises(ValueError, match="no figure of 'energy'"):
        charts.front(pd.DataFrame(rows), "macs", "energy")


def test_a_strength_without_numbers_is_refused_by_name(frame):
    with pytest.raises(ValueError, match="'bits'; they have density"):
        charts.curve(frame, "bits", "accuracy")


def test_nought_has_no_place_on_a_logarithmic_axis_but_in_the_table(frame):
    spec = charts.curve(pd.concat([frame, pd.DataFrame([row(parameters={"density": 0.0})])]), "density", "accuracy")
    assert {entry["x"] for entry in values(spec.to_dict()) if "x" in entry} == {0.02, 0.1, 0.5}
    assert len(spec.to_dict()["usermeta"]["table"]["rows"]) == len(frame[frame.metric == "accuracy"]) + 1


def test_no_rows_at_all_are_refused():
    with pytest.raises(ValueError, match="nothing"):
        charts.beside_peers(pd.DataFrame(columns=["metric"]), "accuracy")


def test_what_was_taken_here_is_hollow(frame):
    both = pd.concat([frame, frame.assign(store="here")])
    hollow = [entry["hollow"] for entry in values(charts.beside_peers(both, "accuracy").to_dict()) if "hollow" in entry]
    assert set(hollow) == {True, False}


def test_a_trace_shows_votes_and_crossover():
    points = tuple(
        Point(s, c, c - 0.05, c + 0.05, 5, v) for s, c, v in ((0.01, 2.0, "+"), (0.1, 0.0, "?"), (0.5, -1.0, "-"))
    )
    finding = Finding(
        "a--b", "sparse-gemm", "columns=64", "latency", points, "supported", "because", 0.001, (0.1, 0.08, 0.13)
    )
    spec = charts.trace(finding, "density").to_dict()
    drawn = [entry for entry in values(spec) if "vote" in entry]
    assert {entry["x"]: round(float(np.log(entry["value"])), 6) for entry in drawn} == {0.01: 2.0, 0.1: 0.0, 0.5: -1.0}
    assert {(e["x"], e["left"], e["right"]) for e in values(spec) if "left" in e} == {(0.1, 0.08, 0.13)}
    assert "<svg" in rendering.figure(spec)
    assert "<svg" in rendering.figure(charts.effects([finding]).to_dict())
    with pytest.raises(ValueError, match="effects"):
        charts.trace(Finding("a--b", "w", "", "latency", (Point(None, 1, 0, 2, 5, "+"),), "supported", "", 0.1))
    with pytest.raises(ValueError, match="no finding"):
        charts.effects([])


def test_the_graph_holds_every_edge_and_links_its_pages():
    import taxonomy

    tx = taxonomy.load()
    spec = charts.influence_graph(tx).to_dict()
    edges = {edge.id for edge in tx.influences()}
    assert {entry["edge"] for entry in values(spec) if "edge" in entry} == edges
    page = rendering.figure(spec)
    for edge in tx.influences():
        assert f'href="{tx[edge.source].address}.html"' in page
    measured = {entry["edge"] for entry in values(spec) if entry.get("measured")}
    assert measured == {edge.id for edge in tx.influences(measured=True)}


def test_the_matrix_counts_every_technique():
    import taxonomy

    tx = taxonomy.load()
    spec = charts.taxonomy_matrix(tx).to_dict()
    rows = {(entry["family"], entry["metric"]): entry["count"] for entry in values(spec) if "count" in entry}
    assert sum(rows.values()) == sum(len({tx.metric(m) for m in node.improves}) for node in tx)


def test_ids_come_from_the_figures(frame):
    first, second = (rendering.figure(charts.beside_peers(frame, "accuracy").to_dict()) for _ in range(2))
    assert first == second
    other = rendering.figure(charts.beside_peers(frame[frame.workload == "mnist-cnn"], "accuracy").to_dict())
    assert re.search(r'id="(chart-\w+)"', first)[1] != re.search(r'id="(chart-\w+)"', other)[1]


# --- colour ---------------------------------------------------------------------------------------------------------


def linear(colour):
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(a, b):
    """WCAG 2.1, relative luminance."""
    lights = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (a, b))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


@pytest.mark.parametrize("name", look.PALETTE)
def test_marks_stand_out_on_both_grounds(name):
    assert contrast(look.PALETTE[name], LIGHT) >= 3
    assert contrast(look.PALETTE[name], DARK) >= 3


# Machado, Oliveira, Fernandes 2009, severity 1.0: linear RGB as seen without L cones, without M cones
BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


@pytest.mark.parametrize("kind", BLIND)
def test_the_first_colours_differ_for_the_colour_blind(kind):
    """CIE 1976 difference of the colours as they are seen; signs and the first contestants use these."""

    def lab(colour):
        rgb = np.clip(np.array(BLIND[kind]) @ linear(colour), 0, 1)
        xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
        f = np.cbrt(xyz / [0.9505, 1.0, 1.089])
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    for one, other in itertools.combinations(("blue", "vermilion", "grey"), 2):
        assert np.linalg.norm(lab(look.PALETTE[one]) - lab(look.PALETTE[other])) > 20, (one, other)


def test_the_table_of_findings_adjusts_for_their_number():
    import taxonomy
    from taxonomy.charts import findings_table

    edges = taxonomy.load().influences()
    html = findings_table(edges)
    findings = [finding for edge in edges for finding in edge.findings]
    assert len(re.findall("<tr>", html)) == len(findings) + 1
    shown = re.findall(r"<td>(&lt; 0\.001|[\d.e-]+|—)</td></tr>", html)
    assert len(shown) == len(findings)
    assert all((q == "—") == f.by_construction for q, f in zip(shown, findings, strict=True))
    chance = [finding.p for finding in findings if not finding.by_construction]
    theirs = iter(scipy.stats.false_discovery_control(chance))
    for q in (q for q in shown if q != "—"):
        right = next(theirs)
        assert right < 0.001 if "&lt;" in q else float(q) == pytest.approx(right, rel=0.06)


def test_an_interval_that_reaches_zero_begins_at_the_edge_of_a_logarithmic_axis():
    rows = [
        row(metric="max_error", unit="relative", value=v, low=low, high=2 * v, parameters={"bits": b})
        for b, v, low in ((4, 1.0, -0.5), (8, 0.01, 0.005), (16, 1e-4, -1e-5))
    ]
    for chart in (
        charts.beside_peers(pd.DataFrame(rows), "max_error"),
        charts.curve(pd.DataFrame(rows), "bits", "max_error"),
    ):
        assert {point["low"] for point in values(chart.to_dict())} == {1e-4, 0.005}


class Formats:
    """As much of a taxonomy as the charts of formats ask for."""

    def __init__(self, rows):
        names = ("fp8", "nf4")
        self.nodes = [
            SimpleNamespace(id=name, name=name.upper(), family=family, address=f"arithmetic/{family}/{name}")
            for name, family in zip(names, ("floating_point", "block_formats"), strict=True)
        ]
        self.families = {node.family: SimpleNamespace(title=node.family.title()) for node in self.nodes}
        self.rows = pd.DataFrame(rows)

    def find(self, **criteria):
        return self.nodes

    def measurements(self, technique):
        return self.rows[self.rows.technique == technique]


@pytest.fixture
def formats():
    rows = []
    for name, bits, sqnr, lost in (("fp8", 8, 31.0, 0.01), ("nf4", 4.5, 20.0, 0.05)):
        for on in ("weights", "both"):
            here = {
                "technique": name,
                "parameters": {"bits": int(bits)},
                "conditions": {"on": on},
                "low": np.nan,
                "high": np.nan,
            }
            rows.append(row(metric="sqnr", unit="dB", value=sqnr, **here))
            rows.append(row(metric="bits_per_number", unit="bit", value=bits, **here))
            rows.append(row(metric="accuracy", value=0.97 - lost, **here))
            rows.append(row(who="baseline", value=0.97, **here))
    return Formats(rows)


def test_the_map_of_formats_shows_bits_and_noise_of_weights(formats):
    drawn = list(values(charts.format_map(formats, "floating_point", ["mnist-cnn"]).to_dict()))
    assert {(point["bits"], point["value"]) for point in drawn} == {(8.0, 31.0), (4.5, 20.0)}
    assert {point["group"] for point in drawn} == {"FP8", "other families"}
    assert {point["href"] for point in drawn} == {f"../{node.address}.html" for node in formats.nodes}
    with pytest.raises(ValueError, match="no format has sqnr"):
        charts.format_map(formats, None, ["digits-mlp"])


def test_a_stale_figure_is_drawn_and_says_so(formats):
    formats.rows.loc[formats.rows.technique == "nf4", "stale"] = True
    drawn = list(values(charts.format_map(formats, "floating_point", ["mnist-cnn"]).to_dict()))
    assert {(point["bits"], point["text"].endswith(", stale")) for point in drawn} == {(8.0, False), (4.5, True)}


def test_accuracy_by_bits_counts_points_lost(formats):
    drawn = [
        v for v in values(charts.accuracy_by_bits(formats, "block_formats", ["mnist-cnn"]).to_dict()) if "bits" in v
    ]
    assert {(point["bits"], point["label"], round(point["value"], 6)) for point in drawn} == {
        (4.5, "weights", 5.0), (4.5, "both", 5.0)
    }  # fmt: skip


def test_the_density_of_values_counts_each_octave():
    drawn = list(values(charts.value_density({"bytes": np.arange(-255.0, 256)}).to_dict()))
    assert [point["count"] for point in drawn] == [1, 2, 4, 8, 16, 32, 64, 128]
    for grids in ({}, {"none": np.array([-1.0, 0.0])}):
        with pytest.raises(ValueError, match="grids: expected"):
            charts.value_density(grids)


def test_the_finding_is_a_sentence_of_the_page_not_of_the_picture(frame):
    page = rendering.figure(charts.curve(frame, "density", "accuracy", title="Less is <nearly> enough").to_dict())
    assert "<figcaption>Less is &lt;nearly&gt; enough</figcaption>" in page
    assert "Less is" not in re.search(r"<svg.*?</svg>", page, re.S)[0]
    assert "<figcaption>" not in rendering.figure(charts.curve(frame, "density", "accuracy").to_dict())


def test_contestants_are_called_what_the_text_calls_them(frame):
    spec = charts.curve(frame, "density", "accuracy", names={"self": "pruned", "baseline": "whole"}).to_dict()
    assert {entry["contestant"] for entry in values(spec) if "contestant" in entry} == {"pruned", "whole"}
    assert "speed, dense = 1" in str(charts.ratio_strip(frame, names={"torch": "dense"}).to_dict())


def test_only_extents_of_one_size_are_said_together():
    rows = [
        row(parameters={"multiplier": m, "size_limit": 3 + m}, conditions={"batch": b, "m": b, "n": b})
        for m in (1, 2)
        for b in (1, 64)
    ]
    labels = {entry["label"] for entry in values(charts.beside_peers(pd.DataFrame(rows), "accuracy").to_dict())}
    assert "multiplier 1, size limit 4, batch 1, m=n 1" in labels


def test_a_logarithmic_axis_ends_where_the_figures_do():
    rows = [row(metric="macs", unit="MAC", value=v, parameters={"bits": b}) for b, v in ((2, 3e4), (8, 2e6), (9, 1e5))]
    frame = pd.DataFrame([{**r, "low": np.nan, "high": np.nan} for r in rows])
    encoding = charts.curve(frame, "bits", "macs").to_dict()["layer"][1]["encoding"]
    low, high = encoding["y"]["scale"]["domain"]
    assert 2e4 < low < 3e4 and 2e6 < high < 3e6
    assert encoding["x"]["axis"]["values"] == [2, 8, 9], "ticks where something was measured"


def test_several_findings_share_one_trace():
    found = [
        Finding("a--b", "gemm", f"columns={n}", "latency", (Point(0.1, n / 9, 0, 2, 5, "+"),), "supported", "", 0.1)
        for n in (64, 1024, 1)
    ]
    spec = charts.trace(found, "density").to_dict()
    assert {e["of"] for e in values(spec) if "of" in e} == {"columns 1", "columns 64", "columns 1024"}
    assert ["columns 1", "columns 64", "columns 1024"] in [
        layer["encoding"].get("color", {}).get("sort") for layer in spec["layer"] if "encoding" in layer
    ]


def test_a_rescue_is_no_scale_from_zero_to_one():
    points = (Point(0.0, -0.3, -0.4, -0.2, 5, "-"), Point(1.0, 0.0, -0.001, 0.001, 5, "0"))
    finding = Finding("fp16--loss-scaling", "digits", "", "accuracy", points, "supported", "", 0.1)
    expression = charts.trace(finding, "rescued").to_dict()["layer"][2]["encoding"]["x"]["axis"]["labelExpr"]
    assert "'alone'" in expression and "'together'" in expression
