"""Made-up labelled answers whose harm is a number in their text, and scorers of known quality."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dualign.data.formats.table import read_preferences
from dualign.data.preferences import PreferenceFile
from dualign.data.tables import in_memory
from dualign.records import FloatArray, Prompt
from dualign.scorers.checked import CheckedScorer, checked

SCORERS = """
import zlib

def good(prompts, responses):
    return [float(text.split()[-1]) for text in responses]

def flipped(prompts, responses):
    return [-value for value in good(prompts, responses)]

def constant(prompts, responses):
    return [0.25] * len(responses)

def chance(prompts, responses):
    return [zlib.crc32((prompt + text).encode()) / 2**32 - 0.5 for prompt, text in zip(prompts, responses)]

def noisy(prompts, responses):
    return [g + 4 * c for g, c in zip(good(prompts, responses), chance(prompts, responses))]

def batched(prompts, responses):
    return [value + len(responses) / 100 for value in good(prompts, responses)]

def capped(prompts, responses):
    return [min(value, -0.5) for value in good(prompts, responses)]
"""
"""A module of callables; the last word of an answer is its harm."""


def pair_rows(prompts: int, seed: int = 0, *, noise: float = 0.0) -> list[dict[str, Any]]:
    """Return rows of the PKU-SafeRLHF columns; an answer is unsafe above a harm of 0, labels flip with ``noise``."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(prompts):
        harm = rng.normal(size=2).round(3)
        told = harm if rng.random() >= noise else -harm
        row = {"prompt": f"question {number}", "better_response_id": int(rng.integers(2))}
        row["safer_response_id"] = int(told[1] < told[0])
        for side in (0, 1):
            row |= {f"response_{side}": f"harm {harm[side]}", f"is_response_{side}_safe": bool(told[side] <= 0)}
        rows.append(row)
    return rows


def single_rows(prompts: int, answers: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return rows of single answers with a flag."""
    harms = np.random.default_rng(seed).normal(size=(prompts, answers)).round(3)
    return [
        {"prompt": f"question {p}", "response": f"harm {harm}", "is_safe": bool(harm <= 0), "category": {}}
        for p, row in enumerate(harms)
        for harm in row
    ]


def read(rows: Sequence[dict[str, Any]]) -> PreferenceFile:
    return read_preferences(in_memory(rows, "rows.jsonl"))


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@dataclass(frozen=True)
class Told:
    """A scorer that is a function of the answers' texts."""

    function: Callable[[Sequence[str]], Any]
    id: str = "told"
    revision: str = "1"
    direction: Any = "cost"

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        return np.array(self.function(responses), dtype=np.float64)


def told(function: Callable[[str], float], **facts: Any) -> CheckedScorer:
    """Return the scorer of one text at a time."""
    return checked(Told(lambda texts: [function(text) for text in texts], **facts))


def harm(text: str) -> float:
    return float(text.split()[-1])
