"""Cards: what a file is, where it came from, under which licence, and the checksum that proves it is that file."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

__all__ = ["ROOT", "NotInstalled", "nearest", "read_card", "verified_bytes"]

ROOT = Path(__file__).parent


class NotInstalled(ImportError):
    """What is asked for comes with a package that is not here; the message says how to install it."""


def read_card(folder: str) -> dict[str, Any]:
    """The card of a folder below ``datasets``, e.g. ``"mnist"`` or ``"workloads"``."""
    with open(ROOT / folder / "card.yml", encoding="utf-8") as file:
        return yaml.safe_load(file)


def verified_bytes(path: Path, sha256: str, rebuild: str) -> bytes:
    """The content of `path`, or an error if it is not the file that its card describes.

    Parameters
    ----------
    path : Path
        The file to read.
    sha256 : str
        The checksum on the card, in hexadecimal.
    rebuild : str
        The argument of ``python -m datasets.make`` that makes the file anew.

    Raises
    ------
    FileNotFoundError, ValueError
        If the file is missing or its checksum is another; the message says what to do.
    """
    what_to_do = f"restore it with `git checkout -- {path}` or rebuild it with `python -m datasets.make {rebuild}`"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: {what_to_do}")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(
            f"{path} is not the file its card describes: expected sha256 {sha256}, found {found}; {what_to_do}"
        )
    return content


def nearest(what: str, name: str, known: Iterable[str]) -> str:
    """An error message for an unknown name: the nearest known ones, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
    return f"unknown {what} {name!r}; nearest: {', '.join(close)}"
