"""The LoRA and full paths: a language model with a score at its end token, trained on pairs.

The result is a folder in the later layout of Safe RLHF (Dai et al. 2023), the adapter merged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dualign.errors import NumericalError
from dualign.models.adapters import activated, base_parameters
from dualign.models.language_model import LanguageModel
from dualign.models.loading import load_language_model
from dualign.models.templates import make_transcript
from dualign.protocols import Policy
from dualign.scorers.encoding import padded_batch
from dualign.scorers.fitting.config import FitConfig
from dualign.scorers.fitting.linear import OBJECTIVES
from dualign.scorers.fitting.pairs import LabelledPair, signs
from dualign.scorers.score_model import ScoreModel, save_score_model
from dualign.scorers.states import faster_dtype, located
from dualign.train.batches import count_steps, plan_steps
from dualign.train.optimiser import Optimiser, rate_factor
from dualign.train.settings import TrainingSettings
from dualign.train.weights import save_policy, trained_weights

HEAD_WEIGHT, HEAD_BIAS = "head.weight", "head.bias"
TELL_EVERY = 20


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Token ids of both answers, each with its prompt and one end token, and their signs."""

    higher: tuple[int, ...]
    lower: tuple[int, ...]
    higher_sign: float
    lower_sign: float


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """How a fit went."""

    steps: int
    first_loss: float
    """Of the first step."""
    last_loss: float
    """Mean of the last quarter of the steps."""
    losses: tuple[float, ...]
    seconds: float
    dtype: str


def load_backbone(config: FitConfig, folder: Path, *, dtype: str | None = None) -> LanguageModel:
    """Return the language model of the config, in ``dtype`` or the config's own; ``auto``: in the faster one."""
    model, chosen = located(str(config.model), folder), dtype or config.dtype
    language_model = load_language_model(model, dtype=chosen.replace("auto", "float32"))
    if chosen != "auto" or faster_dtype(language_model.model) == "float32":
        return language_model
    return load_language_model(model, dtype="bfloat16")


def encode(pairs: Sequence[LabelledPair], config: FitConfig, tokenizer: Any) -> list[EncodedPair]:
    """Return the pairs as tokens, as ``kind: score-checkpoint`` reads them; those too long are still among them."""
    transcript = make_transcript(config.template, tokenizer, append_eos=True)
    marks = signs([pair.higher for pair in pairs]), signs([pair.lower for pair in pairs])
    return [
        EncodedPair(
            tuple(transcript(pair.prompt, pair.higher.text)),
            tuple(transcript(pair.prompt, pair.lower.text)),
            float(marks[0][number]),
            float(marks[1][number]),
        )
        for number, pair in enumerate(pairs)
    ]


def fit_score_model(
    language_model: LanguageModel,
    pairs: Sequence[EncodedPair],
    config: FitConfig,
    *,
    objective: str,
    folder: Path,
    tell: Callable[[str], None],
) -> tuple[TrainingReport, dict[str, Tensor]]:
    """Return the report and the head's weight ``[1, hidden]`` and bias ``[1]``; the policy is in ``folder``.

    The head starts at 0, so that training starts at the loss of equal scores.

    Raises:
        NumericalError: a loss or gradient is not finite; that step is not applied.
    """
    started = time.monotonic()
    settings = training_settings(config)
    width = language_model.model.get_input_embeddings().weight.shape[1]
    head = {HEAD_WEIGHT: torch.zeros(1, width), HEAD_BIAS: torch.zeros(1)}
    head = {name: value.to(language_model.device).requires_grad_() for name, value in head.items()}
    plan = plan_steps(
        [len(pair.higher) + len(pair.lower) for pair in pairs],
        groups_a_step=settings.groups_a_step,
        steps=count_steps(len(pairs), settings.groups_a_step, epochs=settings.num_train_epochs, max_steps=-1),
        seed=config.seed,
    )
    loss = OBJECTIVES[objective](regularisation=config.regularisation)
    losses: list[float] = []
    with trained_weights(language_model, Policy("base"), settings) as parameters:
        optimiser = Optimiser(
            {**parameters, **head},
            weight_decay=settings.weight_decay,
            betas=(settings.adam_beta1, settings.adam_beta2),
        )
        model = ScoreModel(language_model.model.base_model, head[HEAD_WEIGHT], head[HEAD_BIAS], None)
        for step, chosen in enumerate(plan):
            value = _backward(model, [pairs[i] for i in chosen], loss, settings.per_device_train_batch_size)
            rate = rate_factor(
                step,
                steps=len(plan),
                warmup_steps=math.ceil(config.training.warmup_ratio * len(plan)),
                schedule="cosine",
                floor=0.0,
            )
            optimiser.step(learning_rate=rate * settings.learning_rate, max_grad_norm=settings.max_grad_norm)
            losses.append(value)
            if (step + 1) % TELL_EVERY == 0 or step + 1 == len(plan):
                recent = losses[-TELL_EVERY:]
                tell(f"step {step + 1} of {len(plan)}: loss {sum(recent) / len(recent):.4f}")
        save_policy(language_model, parameters, optimiser.masters, settings, folder)
        trained = {name: optimiser.masters[name].detach().clone() for name in head}
    tail = losses[-max(1, len(losses) // 4) :]
    seconds = time.monotonic() - started
    report = TrainingReport(
        steps=len(losses),
        first_loss=losses[0],
        last_loss=sum(tail) / len(tail),
        losses=tuple(losses),
        seconds=seconds,
        dtype=str(language_model.model.dtype).removeprefix("torch."),
    )
    return report, trained


def training_settings(config: FitConfig) -> TrainingSettings:
    """Return the engine's settings for the config."""
    chosen = config.training
    return TrainingSettings(
        learning_rate=chosen.learning_rate,
        num_train_epochs=chosen.num_train_epochs,
        per_device_train_batch_size=chosen.per_device_train_batch_size,
        gradient_accumulation_steps=chosen.gradient_accumulation_steps,
        max_grad_norm=chosen.max_grad_norm,
        weight_decay=chosen.weight_decay,
        adam_beta2=0.95,
        adapter="lora" if config.path == "lora" else "full",
        lora_r=chosen.lora_r,
        lora_alpha=chosen.lora_alpha,
        adapter_seed=config.seed,
    )


def export(config: FitConfig, base: Path, fitted: Path, head: Mapping[str, Tensor], out: Path) -> None:
    """Write the score model into ``out``: the weights of ``fitted`` merged into the config's model, and its head.

    Merged in float32, whatever was trained in: bfloat16 would round most of an adapter away.
    """
    from transformers import AutoModel

    language_model = load_backbone(config, base, dtype="float32")
    with activated(language_model, Policy("fitted", str(fitted)), merged=True) as model:
        inner = model.base_model
        prefix = f"{model.base_model_prefix}."
        with torch.device("meta"):
            backbone = AutoModel.from_config(inner.config, trust_remote_code=False)
        weights = {name: value.detach() for name, value in base_parameters(inner).items()}
        missing = backbone.load_state_dict(weights, strict=False, assign=True).missing_keys
        if missing:
            raise NumericalError(f"score model: {prefix}{missing[0]} has no weights")
        save_score_model(out, backbone, head[HEAD_WEIGHT], head[HEAD_BIAS], language_model.tokenizer)


def _backward(model: ScoreModel, pairs: Sequence[EncodedPair], loss: Any, size: int) -> float:
    """Return the mean loss of a step's pairs, whose gradients are added up micro-batch by micro-batch."""
    total = 0.0
    for start in range(0, len(pairs), size):
        part = pairs[start : start + size]
        higher, lower = _scores(model, part)
        marks = [[pair.higher_sign for pair in part], [pair.lower_sign for pair in part]]
        value = loss(higher, lower, *(torch.tensor(mark, device=higher.device) for mark in marks)).sum() / len(pairs)
        number = float(value.detach())
        if not math.isfinite(number):
            raise NumericalError(f"scorer fit: the loss is {number}; lower learning_rate or train in float32")
        value.backward()
        total += number
    return total


def _scores(model: ScoreModel, pairs: Sequence[EncodedPair]) -> tuple[Tensor, Tensor]:
    """Return the scores of the higher and of the lower answers, each ``[pair]``; an answer of two pairs is run once."""
    distinct = list(dict.fromkeys(ids for pair in pairs for ids in (pair.higher, pair.lower)))
    device = model.head_weight.device
    end = model.end_scores(*padded_batch(distinct, device), "cost")[:, 0]
    row = {ids: row for row, ids in enumerate(distinct)}
    sides = [[row[pair.higher] for pair in pairs], [row[pair.lower] for pair in pairs]]
    return end[torch.tensor(sides[0], device=device)], end[torch.tensor(sides[1], device=device)]
