"""Real inputs without labels, for networks that were trained elsewhere: photographs and speech.

Some of them are there to choose scales on, the others to see what becomes of the answers.
"""

from __future__ import annotations

import io
from functools import cache

import numpy as np

from datasets.card import ROOT, nearest, read_card, verified_bytes

__all__ = ["SAMPLES", "load"]

SAMPLES = ("photographs", "speech")


@cache
def load(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Samples by their id, as they are stored; read-only.

    Parameters
    ----------
    name : {"photographs", "speech"}

    Returns
    -------
    calibration, items : ndarray
        Photographs: (n, 3, 224, 224), uint8. Speech: (n, samples), int16, at 16 kHz.

    Raises
    ------
    ValueError
        If the id is unknown, or the file is not the one that its card describes.

    Examples
    --------
    >>> calibration, items = load("photographs")
    >>> items.shape[1:], items.dtype
    ((3, 224, 224), dtype('uint8'))
    """
    if name not in SAMPLES:
        raise ValueError(nearest("samples", name, SAMPLES))
    card = read_card(name)
    content = verified_bytes(ROOT / name / card["file"], card["sha256"], rebuild=name)
    with np.load(io.BytesIO(content)) as arrays:
        # stored are differences along rows, which pack better
        parts = tuple(np.cumsum(arrays[part], axis=-1, dtype=arrays[part].dtype) for part in ("calibration", "items"))
    for part in parts:
        part.flags.writeable = False
    return parts  # type: ignore[return-value]
