"""Where measurements are kept: one JSONL file a technique, one line a record, replaced atomically under a lock.

Two stores have this form: the reference (`datasets/measurements/`, committed) and this machine's (git-ignored). A
record is a plain dictionary; `key` says which conditions it stands for. A line that cannot be read is reported with
its number, set aside when the file is next written, and measured again.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taxonomy.fingerprint import canonical

__all__ = ["HERE", "REFERENCE", "SCHEMA", "BrokenRecord", "Record", "Store", "here", "key", "reference"]

SCHEMA = 1
REFERENCE = Path(__file__).parent.parent / "datasets" / "measurements"
HERE = Path(__file__).parent.parent / ".cache" / "measurements"
Record = dict[str, Any]
REQUIRED = ("schema", "subject", "variant", "workload", "setting", "type", "seed", "fingerprint")


class BrokenRecord(UserWarning):
    """A line of a store that is no record; it counts as not measured."""


def key(record: Mapping[str, Any]) -> str:
    """What makes two records the same: everything but their values, fingerprint and provenance."""
    return canonical([record[name] for name in ("subject", "variant", "workload", "setting", "type", "seed")])


@dataclass(frozen=True)
class Store:
    """A folder of records by address (`arithmetic/alternative_numbers/posit`)."""

    name: str
    root: Path
    _read: dict[str, tuple[Any, list[Record]]] = field(default_factory=dict, repr=False, compare=False)

    def path(self, address: str) -> Path:
        return self.root / f"{address}.jsonl"

    def addresses(self) -> Iterator[str]:
        for path in sorted(self.root.rglob("*.jsonl")):
            yield path.relative_to(self.root).with_suffix("").as_posix()

    def records(self, address: str) -> list[Record]:
        """The records at an address; a line that is none gives a `BrokenRecord` warning that names file and line."""
        path = self.path(address)
        try:
            stat = path.stat()
        except FileNotFoundError:
            return []
        state = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if self._read.get(address, (None,))[0] != state:
            good, broken = _parse(path)
            for number, why in broken:
                warnings.warn(
                    f"{path}:{number}: not a record ({why}); it counts as not measured", BrokenRecord, stacklevel=2
                )
            self._read[address] = (state, good)
        return self._read[address][1]

    def write(self, address: str, records: Iterable[Record]) -> None:
        """Add records, each in place of the one with its key; all or nothing, whoever else is writing."""
        added = {key(record): record for record in records}
        self._replace(address, lambda there: there | added)

    def drop(self, address: str, keys: Iterable[str]) -> None:
        """Remove the records with these keys."""
        gone = set(keys)
        self._replace(address, lambda there: {name: record for name, record in there.items() if name not in gone})

    def _replace(self, address: str, change: Callable[[dict[str, Record]], dict[str, Record]]) -> None:
        from filelock import FileLock

        path = self.path(address)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = HERE.parent / "locks" / f"{self.name}--{address.replace('/', '--')}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            good, broken = _parse(path) if path.exists() else ([], [])
            if broken:
                lines = path.read_text("utf-8", errors="replace").splitlines()
                with path.with_suffix(".jsonl.broken").open("a", encoding="utf-8") as aside:
                    aside.writelines(lines[number - 1] + "\n" for number, _ in broken)
            kept = change({key(record): record for record in good})
            text = "".join(canonical(kept[name]) + "\n" for name in sorted(kept))
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)


def _parse(path: Path) -> tuple[list[Record], list[tuple[int, str]]]:
    good, broken = [], []
    for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            missing = [name for name in REQUIRED if name not in record]
            if missing:
                raise ValueError(f"no {', '.join(missing)}")
            good.append(record)
        except (ValueError, TypeError) as error:
            broken.append((number, str(error)))
    return good, broken


reference = Store("reference", REFERENCE)
here = Store("here", HERE)
