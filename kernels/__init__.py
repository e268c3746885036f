"""The reference implementations: numpy, numba and torch; a library for arrays and networks of one's own.

Importing the package is light: it only tells numba where to keep compiled code. Numba's own cache does not notice an
edit in a helper that a compiled function imports, so the folder is keyed by the content of all of ``kernels``.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path


def _source_key(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _use_cache_of_this_source() -> None:
    root = Path(__file__).parent
    folder = str(root.parent / ".cache" / "numba" / _source_key(root))
    os.environ["NUMBA_CACHE_DIR"] = folder
    if "numba" in sys.modules:
        sys.modules["numba"].config.CACHE_DIR = folder


_use_cache_of_this_source()
