"""Silero's detector of voice activity: speech or not, for every 32 ms of sound at 16 kHz.

A short-time Fourier transform of windows of 16 ms, four convolutions over the magnitudes, a recurrent network over the
chunks, and one number a chunk. Trained by its authors; the weights are those of their package, unchanged.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from datasets.card import ROOT, read_card, verified_bytes
from datasets.samples import load
from datasets.workloads.elsewhere import TrainedElsewhere

CHUNK, CONTEXT, WINDOW, HOP = 512, 64, 256, 128


class VoiceDetector(nn.Module):
    """From sounds of shape (n, samples), samples a multiple of 512, to the probability that each chunk is speech."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("basis", torch.zeros(WINDOW + 2, 1, WINDOW))  # fixed: cosines, then sines
        self.encoder = nn.Sequential(
            nn.Conv1d(WINDOW // 2 + 1, 128, 3, padding=1), nn.ReLU(),
            nn.Conv1d(128, 64, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv1d(64, 64, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv1d(64, 128, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.memory = nn.LSTM(128, 128, batch_first=True)
        self.decoder = nn.Sequential(nn.ReLU(), nn.Conv1d(128, 1, 1), nn.Sigmoid())

    def forward(self, sound: Tensor) -> Tensor:
        chunks = functional.pad(sound, (CONTEXT, 0)).unfold(1, CONTEXT + CHUNK, CHUNK)
        n, count, size = chunks.shape
        padded = functional.pad(chunks.reshape(n * count, 1, size), (0, CONTEXT), "reflect")
        spectrum = functional.conv1d(padded, self.basis, stride=HOP)  # type: ignore[arg-type]
        magnitude = (spectrum[:, : WINDOW // 2 + 1] ** 2 + spectrum[:, WINDOW // 2 + 1 :] ** 2).sqrt()
        features = self.encoder(magnitude).reshape(n, count, 128)
        return self.decoder(self.memory(features)[0].mT)[:, 0]


def network() -> nn.Module:
    from safetensors.torch import load as read

    card = read_card("workloads")["silero-vad"]
    content = verified_bytes(ROOT / "workloads" / card["file"], card["sha256"], rebuild="silero-vad")
    built = VoiceDetector()
    built.load_state_dict(renamed(read(content)))
    return built


def renamed(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The package's parameters under the names that they have here."""
    names = {"stft_conv.weight": "basis", "final_conv": "decoder.1", "lstm_cell": "memory"}
    names |= {f"conv{i}": f"encoder.{2 * i - 2}" for i in (1, 2, 3, 4)}
    own = {}
    for name, values in theirs.items():
        layer, _, parameter = name.partition(".")
        recurrent = "_l0" if layer == "lstm_cell" else ""
        own[names.get(name) or f"{names[layer]}.{parameter}{recurrent}"] = values
    return own


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Spoken words and a noise, from -1 to 1."""
    calibration, items = (part.astype(np.float32) / np.float32(2**15) for part in load("speech"))
    return calibration, items


def speaks(probability: Tensor) -> Tensor:
    return probability > 0.5


def workload() -> TrainedElsewhere:
    return TrainedElsewhere("silero-vad", network, inputs, few=2, decide=speaks)
