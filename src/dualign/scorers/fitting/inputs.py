"""What a scorer is fitted from: the config of ``dualign scorer fit``, and preference rows as labelled pairs.

A pair names its answers by their place in the score's order: ``higher`` is the more helpful answer of a reward, and
the less safe answer of a cost (cost up is bad).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from dualign.config import config_mapping
from dualign.data.preferences import Answer, PreferenceRow, grouped
from dualign.errors import DataError
from dualign.protocols import Direction
from dualign.records import FloatArray, Prompt, normalise_prompt
from dualign.scorers.spec import ScorerSpec, read_spec


class FitData(ScorerSpec):
    """The rows to learn from."""

    files: list[str] = Field(min_length=1)
    """Preference files in any known format; relative paths start at the config's folder."""
    format: str | None = None
    """Name of the format; none: recognised by the columns."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Column of the file by the name that the format knows it by."""
    held_out: float = Field(default=0.2, gt=0, lt=1)
    """Share of the prompts, by hash, that the model is measured on and never fitted to."""


class LightSettings(ScorerSpec):
    """``path: light``: a linear head on frozen features; seconds to minutes on a CPU."""

    features: list[Literal["tfidf", "states"]] | None = Field(default=None, min_length=1)
    """``tfidf``: words and characters of the response; ``states``: hidden states of ``model``. None: states where
    there is a model, else words; on safety pairs both together were no better than states alone."""
    layer: int | None = Field(default=None, ge=1)
    """States after so many layers from the bottom; none: half of them and one. More costs more time."""
    pooling: Literal["mean", "last", "both"] = "mean"
    """Over the response's tokens."""
    decays: list[float] = Field(default=[0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001], min_length=1)
    """Strengths of decay to choose from by cross-validation; larger keeps the weights smaller."""
    folds: int = Field(default=5, ge=2)
    """Parts of the training prompts, left out in turn."""


class TrainSettings(ScorerSpec):
    """``path: lora`` and ``path: full``: the language model is trained; names follow Hugging Face."""

    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak rate; about ten times lower for ``full``."""
    num_train_epochs: float = Field(default=2.0, gt=0)
    """Passes over the pairs."""
    per_device_train_batch_size: int = Field(default=8, ge=1)
    """Pairs a micro-step: memory grows with it."""
    gradient_accumulation_steps: int = Field(default=2, ge=1)
    """Micro-steps a step."""
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps in which the rate rises; then it falls as a cosine."""
    weight_decay: float = Field(default=0.1, ge=0)
    """AdamW's decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    lora_r: int = Field(default=16, ge=1)
    """Rank."""
    lora_alpha: float = Field(default=32.0, gt=0)
    """Scale."""


class FitConfig(ScorerSpec):
    """One reward or cost model to fit."""

    kind: Direction
    """``reward``: the more helpful answer scores higher; ``cost``: the less safe one."""
    data: FitData
    path: Literal["light", "lora", "full"] = "light"
    """``light``: a linear head on frozen features; ``lora``, ``full``: the whole language model."""
    model: str | None = None
    """A folder, a hub id, a GGUF file or ``package:NAME``; none: features of TF-IDF alone."""
    template: Literal["chat", "plain", "beaver"] = "plain"
    """How prompt and response become tokens; kept beside the head. On safety pairs ``chat`` was longer, not better."""
    max_length: int = Field(default=512, ge=1)
    """Pairs with a longer answer, in tokens with its prompt, are left out and counted."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What frozen states are computed in, and weights trained in; ``auto``: the faster one, by a second of timing."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of the held-out prompts, the folds, the order of the pairs and the adapter."""
    regularisation: float = Field(default=0.001, ge=0)
    """Weight of the squared scores in the loss; it is what keeps a reward near 0."""
    light: LightSettings = LightSettings()
    training: TrainSettings = TrainSettings()

    @model_validator(mode="after")
    def _model_given(self) -> Self:
        if self.model is None and self.path != "light":
            raise ValueError(f"path {self.path!r} needs a 'model'")
        if self.model is None and "states" in (self.light.features or []):
            raise ValueError("light.features: 'states' needs a 'model'")
        return self

    @property
    def features(self) -> list[str]:
        """Return the feature blocks in use, each once."""
        chosen = self.light.features or (["tfidf"] if self.model is None else ["states"])
        return list(dict.fromkeys(chosen))


def load_fit_config(path: Path) -> FitConfig:
    """Return the config of a YAML file.

    Raises:
        MissingError: the file cannot be read.
        ConfigError: a key is unknown (the nearest is named) or missing, or has a wrong value.
    """
    value = config_mapping(path, f"keys ({', '.join(FitConfig.model_fields)})")
    return read_spec(FitConfig, value, str(path))


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two answers to one prompt, in the order that their scores should have."""

    prompt: Prompt
    higher: Answer
    lower: Answer


@dataclass(frozen=True, slots=True)
class PairSet:
    """Pairs to train on or to test with."""

    pairs: tuple[LabelledPair, ...]
    signed: bool
    """Whether every answer says if it is safe; only a cost fitted to such pairs has a zero that means something."""
    left_out: Mapping[str, int]
    """Number of pairs, or of rows that gave none, by reason."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The distinct answers of pairs, and where each pair's stand among them."""

    prompts: tuple[Prompt, ...]
    texts: tuple[str, ...]
    higher: NDArray[np.int64]
    """Shape ``[pair]``."""
    lower: NDArray[np.int64]

    def columns(self) -> tuple[tuple[Prompt, ...], tuple[str, ...]]:
        """Return what a scorer takes."""
        return self.prompts, self.texts


def answers(pairs: Sequence[LabelledPair]) -> Answers:
    """Return the distinct (prompt, response) of ``pairs``, in order of appearance."""
    keys = [[(pair.prompt.id, side.text) for side in (pair.higher, pair.lower)] for pair in pairs]
    place = {key: row for row, key in enumerate(dict.fromkeys(key for pair in keys for key in pair))}
    prompts = {pair.prompt.id: pair.prompt for pair in reversed(pairs)}
    rows = np.array([[place[key] for key in pair] for pair in keys], dtype=np.int64).reshape(-1, 2)
    return Answers(
        tuple(prompts[prompt] for prompt, _ in place), tuple(text for _, text in place), rows[:, 0], rows[:, 1]
    )


def pairs_of(rows: Iterable[PreferenceRow], direction: Direction) -> PairSet:
    """Return the pairs that ``rows`` label for a reward or a cost, and those left out.

    Raises:
        DataError: nothing is left, or a cost's rows have safety flags in part.
    """
    kept, left_out = labelled_pairs(rows, direction)
    if not kept:
        wanted = "more helpful" if direction == "reward" else "safer"
        told = "; ".join(f"{reason}: {count}" for reason, count in left_out.items()) or "no rows"
        raise DataError(f"data: no pair says which answer is {wanted} ({told})")
    flagged = sum(answer.safe is not None for pair in kept for answer in (pair.higher, pair.lower))
    if direction == "cost" and flagged not in (0, 2 * len(kept)):
        raise DataError(
            f"data: {flagged} of {2 * len(kept)} answers have a safety flag; all or none are needed, because a part "
            "would put the cost's zero where the flags happen to be"
        )
    return PairSet(kept, direction == "cost" and flagged > 0, left_out)


def labelled_pairs(
    rows: Iterable[PreferenceRow], direction: Direction
) -> tuple[tuple[LabelledPair, ...], dict[str, int]]:
    """Return the pairs that ``rows`` label, and how many were left out by reason.

    Single answers with safety flags are grouped by prompt first. A row of K answers gives the pairs of its winner
    with each other answer; one that names no safer answer gives the pairs of an unsafe with a safe answer.
    Left out and counted: rows without a label, blank and identical answers, a safer answer that is flagged unsafe
    while the other is safe, repetitions, and both rows of a pair that is labelled both ways.
    """
    left_out: Counter[str] = Counter()
    found = []
    for row in grouped(rows):
        pairs = list(_pairs(row, direction))
        left_out["no label"] += not pairs
        for pair in pairs:
            fault = _fault(pair, direction)
            left_out[fault or "kept"] += 1
            if fault is None:
                found.append(pair)
    del left_out["kept"]
    kept = _undisputed(found, left_out)
    return kept, {reason: count for reason, count in left_out.items() if count}


def signs(answers: Sequence[Answer]) -> FloatArray:
    """Return shape ``[answer]``: +1 unsafe, -1 safe, 0 where nothing was said."""
    return np.array([0.0 if answer.safe is None else -1.0 if answer.safe else 1.0 for answer in answers])


def _pairs(row: PreferenceRow, direction: Direction) -> Iterator[LabelledPair]:
    """Yield what a row says of its answers."""
    winner = row.better if direction == "reward" else row.safer
    if winner is not None:
        for number, other in enumerate(row.answers):
            if number != winner:
                pair = (row.answers[winner], other) if direction == "reward" else (other, row.answers[winner])
                yield LabelledPair(row.prompt, *pair)
    elif direction == "cost":
        safe = [answer for answer in row.answers if answer.safe is True]
        unsafe = [answer for answer in row.answers if answer.safe is False]
        yield from (LabelledPair(row.prompt, worse, better) for worse in unsafe for better in safe)


def _fault(pair: LabelledPair, direction: Direction) -> str | None:
    if not (pair.higher.text.strip() and pair.lower.text.strip()):
        return "blank answer"
    if pair.higher.text == pair.lower.text:
        return "identical answers"
    if direction == "cost" and pair.higher.safe is True and pair.lower.safe is False:
        return "safer answer flagged unsafe"
    return None


def _undisputed(pairs: Sequence[LabelledPair], left_out: Counter[str]) -> tuple[LabelledPair, ...]:
    """Return the first of equal pairs, without those that also occur the other way round."""
    first: dict[tuple[object, ...], LabelledPair] = {}
    for pair in pairs:
        key = (*_said(pair), pair.higher.text, pair.lower.text)
        left_out["repeated"] += key in first
        first.setdefault(key, pair)
    kept = [pair for pair in first.values() if (*_said(pair), pair.lower.text, pair.higher.text) not in first]
    left_out["labelled both ways"] += len(first) - len(kept)
    return tuple(kept)


def _said(pair: LabelledPair) -> tuple[object, str]:
    return pair.prompt.history, normalise_prompt(pair.prompt.text)
