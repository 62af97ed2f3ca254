"""The LoRA and full paths: a language model with a score at its end token, trained on pairs.

The result is a folder in the later layout of Safe RLHF (Dai et al. 2023), the adapter merged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dualign.errors import NumericalError
from dualign.hashing import canonical_digest
from dualign.models.adapters import activated, base_parameters
from dualign.models.language_model import LanguageModel
from dualign.models.loading import load_language_model
from dualign.models.templates import make_transcript
from dualign.protocols import Policy
from dualign.scorers.encoding import padded_batch
from dualign.scorers.fitting.inputs import FitConfig, LabelledPair, signs
from dualign.scorers.fitting.linear import OBJECTIVES
from dualign.scorers.score_model import ScoreModel, save_score_model
from dualign.scorers.states import faster_dtype, located
from dualign.train.loop import Checkpoints, Optimiser, Row, Task, Terms, late_loss, run
from dualign.train.settings import TrainingSettings, keyed_generators, plan_steps
from dualign.train.weights import save_policy, trained_weights

HEAD_WEIGHT, HEAD_BIAS = "head_weight", "head_bias"
TELL_EVERY = 20


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Token ids of both answers, each with its prompt and one end token, and their signs."""

    higher: tuple[int, ...]
    lower: tuple[int, ...]
    higher_sign: float
    lower_sign: float


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

    def encoded(pair: LabelledPair) -> EncodedPair:
        higher, lower = (tuple(transcript(pair.prompt, side.text)) for side in (pair.higher, pair.lower))
        return EncodedPair(higher, lower, *signs([pair.higher, pair.lower]).tolist())

    return [encoded(pair) for pair in pairs]


class ScoredModel(nn.Module):
    """A language model's body with the head that gives its end token a score; both are trained."""

    def __init__(self, language_model: LanguageModel) -> None:
        super().__init__()
        self.body = language_model.model.base_model
        width, device = language_model.model.get_input_embeddings().weight.shape[1], language_model.device
        # At 0, so that training starts at the loss of equal scores.
        self.head_weight = nn.Parameter(torch.zeros(1, width, device=device))
        self.head_bias = nn.Parameter(torch.zeros(1, device=device))

    def forward(self, tokens: tuple[Tensor, Tensor]) -> Tensor:
        """Return the scores, ``[row]``, of token ids and mask, ``[row, token]`` each."""
        return ScoreModel(self.body, self.head_weight, self.head_bias, None).end_scores(*tokens, "cost")[:, 0]


@dataclass(frozen=True, slots=True)
class ScoreMicroBatch:
    """Pairs whose answers are scored; an answer of two pairs is read once."""

    tokens: tuple[Tensor, Tensor]
    """Token ids and mask, ``[row, token]``."""
    places: Tensor
    """Shape ``[2, pair]``: the rows where the higher and the lower answers stand."""
    signs: Tensor
    """Shape ``[2, pair]``."""
    total: int
    """Pairs of the whole step."""


def score_micro_batch(pairs: Sequence[EncodedPair], total: int, device: torch.device) -> ScoreMicroBatch:
    """Return the micro-batch of ``pairs``, which are of a step of ``total`` pairs."""
    distinct = list(dict.fromkeys(ids for pair in pairs for ids in (pair.higher, pair.lower)))
    row = {ids: number for number, ids in enumerate(distinct)}
    places = [[row[pair.higher] for pair in pairs], [row[pair.lower] for pair in pairs]]
    signs = [[pair.higher_sign for pair in pairs], [pair.lower_sign for pair in pairs]]
    return ScoreMicroBatch(
        padded_batch(distinct, device), torch.tensor(places, device=device), torch.tensor(signs, device=device), total
    )


def score_task(
    language_model: LanguageModel, pairs: Sequence[EncodedPair], config: FitConfig, *, objective: str
) -> Task:
    """Return the task of giving the higher answers of pairs the higher scores."""
    settings, device = training_settings(config), language_model.device
    loss = OBJECTIVES[objective](regularisation=config.regularisation)
    lengths = [len(pair.higher) + len(pair.lower) for pair in pairs]
    plan = plan_steps(lengths, settings, keyed_generators(config.seed))

    def collate(chosen: Sequence[int], step: Sequence[int]) -> ScoreMicroBatch:
        return score_micro_batch([pairs[i] for i in chosen], len(step), device)

    def losses(scores: Tensor, batch: ScoreMicroBatch) -> Terms:
        return Terms(loss(*scores[batch.places], *batch.signs), total=batch.total)

    warmup = math.ceil(config.training.warmup_ratio * len(plan))
    settings = replace(settings, warmup_steps=warmup)
    return Task("scorer fit", ScoredModel(language_model), plan, collate, losses, settings, config.seed)


def fit_score_model(
    language_model: LanguageModel,
    pairs: Sequence[EncodedPair],
    config: FitConfig,
    *,
    objective: str,
    folder: Path,
    tell: Callable[[str], None],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return how it went, and the head's weight ``[1, hidden]`` and bias ``[1]``; the policy is in ``folder``.

    ``last_loss`` is the mean of the last quarter of the steps.
    A checkpoint of the very same inputs, which a fit that was killed left there, is gone on from.

    Raises:
        NumericalError: a loss or gradient is not finite; that step is not applied.
    """
    started = time.monotonic()
    task = score_task(language_model, pairs, config, objective=objective)
    dtype = str(language_model.model.dtype).removeprefix("torch.")
    inputs = {
        "settings": task.settings.deciding,
        "model": [language_model.revision, dtype],
        "pairs": pairs,
        "objective": [objective, config.regularisation],
        "seed": config.seed,
    }
    checkpoints = Checkpoints(folder, canonical_digest(inputs))

    def after_step(history: Sequence[Row]) -> None:
        if len(history) % TELL_EVERY == 0 or len(history) == len(task.plan):
            recent = [row["loss"] for row in history[-TELL_EVERY:]]
            tell(f"step {len(history)} of {len(task.plan)}: loss {sum(recent) / len(recent):.4f}")

    with trained_weights(language_model, Policy("base"), task.settings) as parameters:
        head = dict(task.module.named_parameters(recurse=False))
        optimiser = Optimiser({**parameters, **head}, task.settings)
        history = run(task, optimiser, checkpoints, tell=tell, after_step=after_step)
        save_policy(language_model, parameters, optimiser.masters, task.settings, folder)
    checkpoints.drop()
    losses = tuple(row["loss"] for row in history)
    how = {"steps": len(losses), "first_loss": losses[0], "last_loss": late_loss(history), "losses": losses}
    report = {**how, "seconds": time.monotonic() - started, "dtype": dtype}
    return report, {name: optimiser.masters[name].detach().clone() for name in head}


def training_settings(config: FitConfig) -> TrainingSettings:
    """Return the settings of the loop but for the warm-up, which is a share of the steps."""
    return TrainingSettings(
        **config.training.model_dump(exclude={"warmup_ratio"}),
        lr_scheduler_type="cosine",
        min_lr_ratio=0.0,
        adam_beta2=0.95,
        adapter="lora" if config.path == "lora" else "full",
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
