"""The taxonomy as files that other programs read: JSON, GraphML, CSV, JSON Schema, and its graph as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taxonomy.query import Taxonomy

__all__ = ["as_data", "export"]


def as_data(tx: Taxonomy) -> dict[str, Any]:
    """Everything that is known, as plain data."""

    def finding(edge: Any) -> list[dict[str, Any]]:
        return [
            {"workload": f.workload, "setting": f.setting, "verdict": f.verdict, "effect": f.effect,
             "crossover": f.crossover, "because": f.because} for f in edge.findings
        ]  # fmt: skip

    return {
        "techniques": [{"level": n.level, "family": n.family, **n.model_dump(mode="json")} for n in tx],
        "influences": [{**e.model_dump(mode="json"), "findings": finding(e)} for e in tx.influences()],
        "stacks": [node.model_dump(mode="json") for node in tx.stacks.values()],
        "families": {k: v.model_dump(mode="json") for k, v in tx.families.items()},
        "metrics": {k: v.model_dump(mode="json") for k, v in tx.metrics.items()},
        "references": {k: v.model_dump(mode="json") for k, v in tx.references.items()},
        "papers": [p.model_dump(mode="json") for p in tx.papers],
    }


def export(tx: Taxonomy, folder: str | Path) -> list[Path]:
    """Write `taxonomy.json`, `graph.graphml`, `measurements.csv`, `technique.schema.json` and `influences.svg`.

    Returns
    -------
    list of Path
        What was written.
    """
    import networkx

    from taxonomy.charts import influence_graph
    from taxonomy.charts.rendering import picture
    from taxonomy.schema import json_schema

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = ("taxonomy.json", "graph.graphml", "measurements.csv", "technique.schema.json", "influences.svg")
    paths = [folder / name for name in names]
    paths[0].write_text(json.dumps(as_data(tx), indent=1, ensure_ascii=False) + "\n", "utf-8")
    networkx.write_graphml(tx.graph, paths[1])
    frame = tx.measurements().drop(columns=["parameters", "conditions"])
    frame.to_csv(paths[2], index=False)
    paths[3].write_text(json.dumps(json_schema(), indent=1) + "\n", "utf-8")
    paths[4].write_text(picture(influence_graph(tx).to_dict()) + "\n", "utf-8")
    return paths
