"""Supervised fine-tuning: maximum likelihood of given responses, in place.

The loss is the mean over the step's response tokens, EOS counted and prompts masked, of the negative log-probability
under the policy, as the pair scorer reads it: at its temperature, over the tokens its grammar allows. The weights are
moved and merged as float32 copies, whatever the model computes in.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from dualign.errors import DataError, UsageError
from dualign.hashing import canonical_digest
from dualign.models.adapters import base_parameters, switch_off
from dualign.models.language_model import LanguageModel
from dualign.models.log_probs import PairScorer, Reading, TokenBatch, check_head, rows
from dualign.protocols import Policy
from dualign.records import Prompt, named
from dualign.train.loop import Checkpoints, Optimiser, Task, Terms, late_loss, run, wide
from dualign.train.settings import TrainingSettings, plan_steps
from dualign.train.weights import fingerprint, merged_weights, put_weights, trained_weights

Example = tuple[Prompt, tuple[int, ...]]
Encoded = tuple[Sequence[int], Sequence[int]]
"""Tokens of a prompt and of its response."""
WINDOW = 32
"""Steps that are sorted by length together: wide enough to save padding, narrow enough to stay mixed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SftSettings:
    """How to fit; the defaults are those of a LoRA warm start of a small instruction model."""

    learning_rate: float = 2e-4
    """Peak; about ten times lower for full fine-tuning of a pretrained model."""
    num_train_epochs: float = 1.0
    """Passes over the examples; a part of a pass is allowed."""
    per_device_train_batch_size: int = 8
    """Examples a micro-step."""
    gradient_accumulation_steps: int = 1
    """Micro-steps a step; weighted by tokens, so that only memory and rounding change."""
    warmup_steps: int = 4
    """Steps of linear warm-up."""
    min_lr_ratio: float = 0.1
    """Where the linear decay ends, as a share of the peak."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    weight_decay: float = 0.0
    """AdamW's decay."""
    lora_r: int = 16
    """Rank of the adapter that is trained and then merged; 0 trains all weights."""
    lora_alpha: float = 32.0
    """Scale of the adapter."""


@dataclass(frozen=True, slots=True)
class SftReport:
    """How a fine-tuning went."""

    tokens: int
    """Response tokens trained on, repetitions counted."""
    first_loss: float
    """Of the first step, in nats a token."""
    last_loss: float
    """Mean of the last quarter of the steps, in nats a token."""
    losses: tuple[float, ...]
    """One a step."""
    revision: str
    """Of the weights now in memory; put it into the ``LanguageModel`` with ``dataclasses.replace``."""
    notes: tuple[str, ...] = ()
    """Sentences for the user: a checkpoint that was ignored."""


@dataclass(frozen=True, slots=True)
class TokenMicroBatch:
    """Responses whose tokens are imitated."""

    tokens: TokenBatch
    total: int
    """Response tokens of the whole step: accumulation is then exact, not a mean of means."""


def next_token(reading: Reading, batch: TokenMicroBatch) -> Terms:
    """Return the negative log-probabilities of all response tokens, in nats: their mean over the step is the loss."""
    return Terms(-reading.tokens, total=batch.total, figures={"tokens": len(reading.tokens)})


def token_micro_batch(
    language_model: LanguageModel, encoded: Sequence[Encoded], chosen: Sequence[int], step: Sequence[int]
) -> TokenMicroBatch:
    """Return the micro-batch of the ``chosen`` examples, which are part of those of a ``step``."""
    sequences = [(tuple(encoded[i][0]), (tuple(encoded[i][1]),)) for i in chosen]
    tokens = rows(sequences, language_model.pad).to(language_model.device)
    return TokenMicroBatch(tokens, sum(len(encoded[i][1]) for i in step))


def fine_tune(
    language_model: LanguageModel, examples: Sequence[Example], *, settings: SftSettings, seed: int, folder: Path | None
) -> SftReport:
    """Return the report of a fit that changed ``language_model.model`` in place (loss: Dai et al. 2023, SFT).

    Weights change at the end alone: what was not finite, or killed, leaves them as they were.

    Args:
        language_model: what is fitted; LoRA is merged into its weights at the end.
        examples: prompts and response token ids, EOS included where the response ends.
        settings: hyper-parameters.
        seed: of the order of the examples and of the adapter's initial values.
        folder: where to write the fitted model, and meanwhile checkpoints, which are gone on from; none: nowhere.

    Raises:
        DataError: no example, an empty response, one that the grammar forbids, or one too long.
        NumericalError: a loss or gradient is not finite; the step is not applied.
        UsageError: a setting makes no sense, or the model changes its logits after the output head.
    """
    _check_settings(settings)
    encoded = _encoded(language_model, examples)
    model, chosen, notes = language_model.model, training_settings(settings, seed), list[str]()
    switch_off(model)
    check_head(PairScorer(language_model), token_micro_batch(language_model, encoded, [0], [0]).tokens)
    checkpoints = Checkpoints(folder, "" if folder is None else _key(language_model, encoded, chosen, seed))
    with trained_weights(language_model, Policy("base"), chosen) as parameters:
        optimiser = Optimiser(parameters, chosen)
        history = run(sft_task(language_model, encoded, chosen, seed), optimiser, checkpoints, tell=notes.append)
        fitted = merged_weights(model, optimiser.masters, chosen)
    put_weights(model, fitted)
    revision = f"{language_model.revision}+{fingerprint(model)}"
    if folder is not None:
        save_fitted(language_model, fitted, folder)
    checkpoints.drop()
    losses = tuple(row["loss"] for row in history)
    return SftReport(
        tokens=int(sum(row["tokens"] for row in history)),
        first_loss=losses[0],
        last_loss=late_loss(history),
        losses=losses,
        revision=revision,
        notes=tuple(notes),
    )


def training_settings(settings: SftSettings, seed: int) -> TrainingSettings:
    """Return the settings of the loop."""
    shared = asdict(settings) | ({} if settings.lora_r else {"adapter": "full", "lora_r": 1})
    return TrainingSettings(**shared, adapter_seed=seed)


def sft_task(language_model: LanguageModel, encoded: Sequence[Encoded], settings: TrainingSettings, seed: int) -> Task:
    """Return the task of imitating the examples."""
    lengths = [len(prompt) + len(response) for prompt, response in encoded]
    generators = itertools.repeat(np.random.default_rng(seed))
    steps = math.ceil(len(encoded) * settings.num_train_epochs / settings.examples_a_step)
    plan = plan_steps(lengths, settings, generators, steps=steps, window=WINDOW)

    def collate(chosen: Sequence[int], step: Sequence[int]) -> TokenMicroBatch:
        return token_micro_batch(language_model, encoded, chosen, step)

    return Task("sft", PairScorer(language_model), plan, collate, next_token, settings, seed)


def _key(language_model: LanguageModel, encoded: Sequence[Encoded], settings: TrainingSettings, seed: int) -> str:
    """Return the hash of all that decides the fitted weights."""
    grammar = None if language_model.grammar is None else language_model.grammar.cpu().numpy()
    model = [language_model.revision, str(language_model.model.dtype), language_model.temperature, grammar]
    return canonical_digest({"settings": settings.deciding, "model": model, "examples": encoded, "seed": seed})


def save_fitted(language_model: LanguageModel, fitted: Mapping[str, Tensor], folder: Path) -> None:
    """Write the base weights, those of ``fitted`` in their place, config and tokenizer into ``folder``.

    All in float32 (float64 where the model is): what a small step moved is less than bfloat16 can hold.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = language_model.model, language_model.tokenizer
    weights = {name: fitted.get(name, value).detach() for name, value in base_parameters(model).items()}
    weights = {name: value.to(wide(value.dtype)).contiguous() for name, value in weights.items()}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    config = copy.deepcopy(model.config)
    config.dtype = wide(next(iter(model.parameters())).dtype)
    config.save_pretrained(str(folder))
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def _check_settings(settings: SftSettings) -> None:
    positive = ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps")
    for name in positive:
        if not getattr(settings, name) > 0:
            raise UsageError(f"sft.{name}: given {getattr(settings, name)}, expected a number above 0")
    for name in ("warmup_steps", "lora_r", "min_lr_ratio", "weight_decay"):
        if getattr(settings, name) < 0:
            raise UsageError(f"sft.{name}: given {getattr(settings, name)}, expected at least 0")


def _encoded(language_model: LanguageModel, examples: Sequence[Example]) -> list[tuple[list[int], tuple[int, ...]]]:
    if not examples:
        raise DataError("sft: no example given; expected at least one prompt with its response")
    grammar = None if language_model.grammar is None else language_model.grammar.cpu().numpy()
    prompts: dict[object, list[int]] = {}
    encoded = []
    for number, (prompt, response) in enumerate(examples, start=1):
        said = (prompt.history, prompt.text)
        if said not in prompts:
            prompts[said] = language_model.template(prompt)
        where = f"sft: example {number} ({named(prompt)})"
        if not response:
            raise DataError(f"{where}: the response has no token; expected at least the EOS")
        for name, given, limit in (
            ("prompt", len(prompts[said]), language_model.max_prompt_tokens),
            ("response", len(response), language_model.max_response_tokens),
        ):
            if given > limit:
                raise DataError(f"{where}: the {name} has {given} tokens, at most {limit} are allowed")
        if grammar is not None:
            positions = np.minimum(np.arange(len(response)), len(grammar) - 1)
            if not grammar[positions, list(response)].all():
                raise DataError(f"{where}: the grammar forbids the response {response}")
        encoded.append((prompts[said], tuple(response)))
    return encoded
