"""The command line; it says the words of the query face. Exit codes: 0 done, 1 a check failed, 2 wrong use."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taxonomy import store as stores
from taxonomy.load import TaxonomyError, load

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        tx = load()
    except TaxonomyError as error:
        print(json.dumps({"problems": error.problems}) if options.json else error, file=sys.stderr)
        return 1
    try:
        return options.run(tx, options)
    except (KeyError, TypeError, ValueError, LookupError) as error:
        print(f"error: {error.args[0] if error.args else error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m taxonomy", description="Query and measure the taxonomy.")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Any, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print JSON")
        return sub

    command("list", _list, "every technique")
    show = command("show", _show, "one technique, whole")
    show.add_argument("id")
    find = command("find", _list, "techniques by wildcard and criteria")
    find.add_argument("pattern", nargs="?", default="*")
    for name in ("level", "family", "kind", "runs", "attribution", "improves"):
        find.add_argument(f"--{name}")
    related = command("related", _related, "techniques linked to one")
    related.add_argument("id")
    related.add_argument("--relation")
    related.add_argument("--depth", type=int, default=1)
    measurements = command("measurements", _measurements, "what the stores hold")
    measurements.add_argument("id", nargs="?")
    for name in ("metric", "workload", "who"):
        measurements.add_argument(f"--{name}")
    influences = command("influences", _influences, "edges and findings")
    influences.add_argument("--source")
    influences.add_argument("--target")
    best = command("best", _best, "the stacks that no other beats in a metric, under bounds on others")
    best.add_argument("metric")
    best.add_argument("--workload", required=True)
    best.add_argument("--subject-to", nargs="*", default=[], metavar="METRIC=BOUND", help="e.g. accuracy=0.96")
    measure = command("measure", _measure, "measure what no record covers")
    measure.add_argument("ids", nargs="*", help="techniques, or edges as source--target; all if absent")
    measure.add_argument("--plan", action="store_true", help="say what it would take, and do nothing")
    measure.add_argument("--reference", action="store_true", help="write the committed store")
    measure.add_argument("--reverify", action="store_true", help="repeat one stale quality record of each, and stamp")
    measure.add_argument("--prune", action="store_true", help="drop records that no variant or condition owes any more")
    measure.add_argument("--only", choices=("quality", "timing"), help="timing wants a machine with nothing else to do")
    measure.add_argument("--workers", type=int, default=2)
    bench = command("bench", _bench, "time techniques beside a copy, their baselines and peers, where no record does")
    bench.add_argument("names", nargs="+", metavar="FAMILY|ID", help="families or techniques")
    progress = command("status", _status, "how far the book is")
    progress.add_argument("--check", action="store_true", help="exit with 1 unless all is measured and fresh")
    command("validate", _validate, "check every file")
    new = command("new", _new, "write the first lines of a technique's files")
    new.add_argument("address", metavar="LEVEL/FAMILY/ID")
    new.add_argument("--kind", required=True, help="one of kinds.yml")
    check = command("check", _check, "what a technique or an influence still lacks before it is done")
    check.add_argument("ids", nargs="*", help="techniques, or edges as source--target; all if absent")
    export = command("export", _export, "write JSON, GraphML, CSV and JSON Schema")
    export.add_argument("folder")
    return parser


def _print(options: argparse.Namespace, data: Any, text: str) -> None:
    print(json.dumps(_plain(data), ensure_ascii=False, indent=1) if options.json else text)


def _plain(data: Any) -> Any:
    """What JSON can hold: a figure that is not there is null."""
    if isinstance(data, float):
        return None if math.isnan(data) else data
    if isinstance(data, dict):
        return {key: _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    return data


def _table(rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return "(none)"
    texts = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in texts)
    return "\n".join(lines)


def _list(tx: Any, options: argparse.Namespace) -> int:
    names = ("level", "family", "kind", "runs", "attribution", "improves")
    found = tx.find(getattr(options, "pattern", "*"), **{name: getattr(options, name, None) for name in names})
    columns = ("id", "name", "level", "family", "kind", "definition")
    data = [{name: getattr(node, name) for name in columns} for node in found]
    _print(options, data, _table([(n.id, n.kind, f"{n.level}/{n.family}", n.name) for n in found]))
    return 0


def _show(tx: Any, options: argparse.Namespace) -> int:
    node = tx[options.id]
    data = {"level": node.level, "family": node.family, **node.model_dump(mode="json")}
    text = "\n".join(f"{name}: {value}" for name, value in data.items() if value not in (None, [], {}))
    _print(options, data, text)
    return 0


def _related(tx: Any, options: argparse.Namespace) -> int:
    found = tx.related(options.id, options.relation, options.depth)
    _print(options, found.ids(), "\n".join(found.ids()) or "(none)")
    return 0


def _measurements(tx: Any, options: argparse.Namespace) -> int:
    frame = tx.measurements(options.id, metric=options.metric, workload=options.workload, who=options.who)
    columns = ["technique", "variant", "workload", "setting", "who", "metric", "value", "unit", "low", "high", "n"]
    data = frame.drop(columns=["parameters", "conditions"]).to_dict("records")
    _print(options, data, _table([columns, *frame[columns].values.tolist()]))
    return 0


def _influences(tx: Any, options: argparse.Namespace) -> int:
    data, rows = [], []
    for edge in tx.influences(options.source, options.target):
        findings = [{**f.__dict__, "points": [p.__dict__ for p in f.points]} for f in edge.findings]
        data.append({**edge.model_dump(mode="json"), "findings": findings})
        rows += [(edge.id, edge.metric, f.workload, f.setting, f.verdict, f.because) for f in edge.findings]
        if not edge.findings:
            rows.append((edge.id, edge.metric, "", "", "not measured", ""))
    _print(options, data, _table(rows))
    return 0


def _best(tx: Any, options: argparse.Namespace) -> int:
    bounds = {}
    for text in options.subject_to:
        name, equals, bound = text.partition("=")
        if not equals:
            raise ValueError(f"--subject-to: expected METRIC=BOUND, e.g. accuracy=0.96, got {text!r}")
        bounds[name] = float(bound)
    frame = tx.best(options.metric, options.workload, bounds)
    _print(options, frame.to_dict("records"), _table([list(frame.columns), *frame.values.tolist()]))
    return 0


def _measure(tx: Any, options: argparse.Namespace) -> int:
    from taxonomy.measure import runner

    store = stores.reference if options.reference else stores.here
    if options.reverify:
        from taxonomy.measure.reverify import reverify

        report = reverify(tx, options.ids or None, store)
        _print(options, report, "\n".join(report) or "nothing is stale")
        return 0
    if options.prune:
        return _prune(tx, options, store)
    if options.plan:
        return _plan(tx, options, store)
    owed = (job for job in runner.jobs(tx, options.ids or None) if options.only in (None, job.kind))
    left = runner.pending(tx, owed, *runner.covering(store))

    def report_line(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    taken = runner.run(tx, left, store, options.workers, report_line)
    plural = "s" * (taken != 1)
    text = f"{taken} record{plural} measured" if taken else "nothing to measure: every record is there and fresh"
    _print(options, {"measured": taken, "store": store.name}, text)
    return 0


def _prune(tx: Any, options: argparse.Namespace, store: stores.Store) -> int:
    from taxonomy.measure.runner import superfluous

    gone = superfluous(tx, options.ids or None, store)
    for address, records in gone.items():
        store.drop(address, map(stores.key, records))
    lines = [f"dropped: {stores.key(record)}" for records in gone.values() for record in records]
    _print(options, gone, "\n".join(lines) or "nothing to drop: every record is owed")
    return 0


def _plan(tx: Any, options: argparse.Namespace, store: stores.Store) -> int:
    from taxonomy.measure import runner

    rows = runner.plan(tx, options.ids or None, store)
    lines = [("id", "quality", "timing", "seconds"), *(tuple(row.values()) for row in rows)]
    total = sum(row["seconds"] for row in rows)
    text = f"{_table(lines)}\nabout {total:.0f} core-seconds in all" if rows else "nothing to measure"
    if not options.ids:
        sweep = runner.sweep(tx)
        text += (
            f"\na sweep of everything: about {sweep['quality']:.0f} core-seconds of quality, which may run in parallel,"
            f"\nand {sweep['timing']:.0f} s of timing, one at a time on a quiet machine"
        )
    _print(options, rows, text)
    return 0


def _bench(tx: Any, options: argparse.Namespace) -> int:
    from taxonomy.measure import runner

    ids = [
        id for name in options.names for id in (tx.find(family=name).ids() if name in tx.families else [tx[name].id])
    ]
    owed = (job for job in runner.jobs(tx, ids) if job.kind == "timing")
    left = runner.pending(tx, owed, *runner.covering(stores.here))
    runner.run(tx, left, stores.here, 1, lambda line: print(line, file=sys.stderr, flush=True))
    frames = [tx.measurements(id, metric="speedup") for id in ids]
    columns = ["technique", "variant", "workload", "setting", "who", "value", "low", "high", "n", "reason", "store"]
    data = [row for frame in frames for row in frame[columns].to_dict("records")]
    lines = [("technique", "variant", "setting", "times as fast as", "ratio", "interval", "store")]
    for row in data:
        if math.isnan(row["value"]):
            continue
        spread = f"{row['low']:.3g} to {row['high']:.3g}" if row["n"] > 1 else "one repetition"
        setting = ", ".join(part for part in (row["workload"], row["setting"]) if part)
        lines.append((row["technique"], row["variant"], setting, row["who"], row["value"], spread, row["store"]))
    _print(options, data, _table(lines) if len(lines) > 1 else "(none of these is timed)")
    return 0


def _status(tx: Any, options: argparse.Namespace) -> int:
    from taxonomy.status import status

    data = status(tx)
    rows: list[tuple[Any, ...]] = [("level", "techniques", "implemented", "measured", "stale")]
    rows += [(level, *row.values()) for level, row in data["levels"].items()]
    lines = [_table(rows), f"{data['influences_with_findings']} of {data['influences']} influences with findings"]
    lines += [f"{data['stacks']} stacks, {data['papers']} citing papers, {data['kinds']} kinds"]
    lines += [f"{name}: {problem}" for name, problems in data["missing"].items() for problem in problems]
    _print(options, data, "\n".join(lines))
    behind = data["missing"] or data["influences_stale"] or data["influences_with_findings"] < data["influences"]
    return 1 if options.check and behind else 0


def _validate(tx: Any, options: argparse.Namespace) -> int:
    counts = (
        f"{len(tx)} techniques, {len(tx.influences())} influences, {len(tx.stacks)} stacks, {len(tx.papers)} papers"
    )
    text = f"{counts}: all files are right"
    _print(options, {"problems": []}, text)
    return 0


def _new(tx: Any, options: argparse.Namespace) -> int:
    from taxonomy.check import five_files
    from taxonomy.new import new

    written = [_from_here(path) for path in new(tx, options.address, options.kind)]
    chapter = five_files(options.address)["chapter"]
    if _from_here(chapter) not in written:
        written.append(f"{_from_here(chapter)} is there: give the technique its place in it")
    exemplar = five_files(tx[tx.kinds[options.kind].exemplar].address)
    then = [
        "read first, of the same kind:",
        *(f"  {_from_here(exemplar[wing])}" for wing in ("knowledge", "code", "test")),
        f"what is still missing: python -m taxonomy check {options.address.rpartition('/')[2]}",
    ]
    _print(options, written, "\n".join([*written, *then]))
    return 0


def _from_here(path: Path) -> str:
    return os.path.relpath(path)


def _check(tx: Any, options: argparse.Namespace) -> int:
    from taxonomy.check import check_influence, check_technique

    edges = {edge.id: edge for edge in tx.influences()}
    ids = options.ids or [*tx.techniques, *edges]
    found = {id: list(check_influence(tx, edges[id]) if id in edges else check_technique(tx, tx[id])) for id in ids}
    lines = [f"{id}: {problem}" for id, problems in found.items() for problem in problems]
    _print(options, found, "\n".join(lines) or "done: nothing is missing")
    return 1 if lines else 0


def _export(tx: Any, options: argparse.Namespace) -> int:
    from taxonomy.export import export

    paths = [str(path) for path in export(tx, options.folder)]
    _print(options, paths, "\n".join(paths))
    return 0
