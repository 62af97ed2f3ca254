"""Supervised fine-tuning: maximum likelihood of given responses, in place.

The loss is the mean over the batch's response tokens, EOS counted and prompts masked, of the negative log-probability
under the policy, as the pair scorer reads it: at its temperature, over the tokens its grammar allows. The weights are
moved and merged as float32 copies, whatever the model computes in.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dualign.errors import DataError, NumericalError, UsageError
from dualign.models.language_model import LanguageModel
from dualign.records import Prompt, named

if TYPE_CHECKING:
    from torch import Tensor

    from dualign.models.log_probs import TokenBatch
    from dualign.train.optimiser import Optimiser


Example = tuple[Prompt, tuple[int, ...]]
ADAPTER = "sft"
_WINDOW = 32
"""Batches that are sorted by length together: wide enough to save padding, narrow enough to stay mixed."""


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

    steps: int
    tokens: int
    """Response tokens trained on, repetitions counted."""
    first_loss: float
    """Of the first step, in nats a token."""
    last_loss: float
    """Mean of the last quarter of the steps, in nats a token."""
    losses: tuple[float, ...]
    seconds: float
    folder: Path | None
    """Where the fitted model and tokenizer were written, as Hugging Face reads them."""
    revision: str
    """Of the weights now in memory; put it into the ``LanguageModel`` with ``dataclasses.replace``."""


def fine_tune(
    language_model: LanguageModel,
    examples: Sequence[Example],
    *,
    settings: SftSettings,
    seed: int,
    folder: Path | None,
) -> SftReport:
    """Return the report of a fit that changed ``language_model.model`` in place (loss: Dai et al. 2023, SFT).

    Args:
        language_model: what is fitted; LoRA is merged into its weights at the end.
        examples: prompts and response token ids, EOS included where the response ends.
        settings: hyper-parameters.
        seed: of the order of the examples and of the adapter's initial values.
        folder: where to write the fitted model; none: nowhere.

    Raises:
        DataError: no example, an empty response, one that the grammar forbids, or one too long.
        NumericalError: a loss or gradient is not finite; the step is not applied.
        UsageError: a setting makes no sense, or the model changes its logits after the output head.
    """
    from dualign.train.optimiser import Optimiser

    started = time.monotonic()
    _check_settings(settings)
    encoded = _encoded(language_model, examples)
    plan = _plan([len(p) + len(r) for p, r in encoded], settings, np.random.default_rng(seed))
    _check_model(language_model, encoded[0])
    with _trainable(language_model, settings, seed) as parameters:
        optimiser = Optimiser(parameters, weight_decay=settings.weight_decay, betas=(0.9, 0.999))
        losses, tokens = _train(language_model, encoded, plan, optimiser, settings)
        fitted = optimiser.masters if settings.lora_r == 0 else _merged(language_model.model, parameters, optimiser)
    _put(language_model.model, fitted)
    revision = f"{language_model.revision}+{_fingerprint(language_model.model)}"
    if folder is not None:
        save_fitted(language_model, fitted, folder)
    tail = losses[-max(1, len(losses) // 4) :]
    return SftReport(
        steps=len(losses),
        tokens=tokens,
        first_loss=losses[0],
        last_loss=float(np.mean(tail)),
        losses=tuple(losses),
        seconds=time.monotonic() - started,
        folder=folder,
        revision=revision,
    )


def token_losses(language_model: LanguageModel, batch: TokenBatch) -> Tensor:
    """Return the negative log-probabilities, ``[token]``, of all response tokens of a batch, in nats."""
    from dualign.models.log_probs import PairScorer

    return -PairScorer(language_model).by_token(batch)[0]


def make_batch(language_model: LanguageModel, encoded: Sequence[tuple[Sequence[int], Sequence[int]]]) -> TokenBatch:
    """Return the padded batch of some (prompt tokens, response tokens)."""
    from dualign.models.log_probs import rows

    sequences = [(tuple(prompt), (tuple(response),)) for prompt, response in encoded]
    return rows(sequences, language_model.pad).to(language_model.device)


def save_fitted(language_model: LanguageModel, fitted: Mapping[str, Tensor], folder: Path) -> None:
    """Write the base weights, those of ``fitted`` in their place, config and tokenizer into ``folder``.

    All in float32 (float64 where the model is): what a small step moved is less than bfloat16 can hold.
    """
    from safetensors.torch import save_file

    from dualign.models.adapters import base_parameters

    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = language_model.model, language_model.tokenizer
    weights = {name: fitted.get(name, value).detach() for name, value in base_parameters(model).items()}
    weights = {name: value.to(_wide(value)).contiguous() for name, value in weights.items()}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    config = copy.deepcopy(model.config)
    config.dtype = _wide(next(iter(model.parameters())))
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
            rows = np.minimum(np.arange(len(response)), len(grammar) - 1)
            if not grammar[rows, list(response)].all():
                raise DataError(f"{where}: the grammar forbids the response {response}")
        encoded.append((prompts[said], tuple(response)))
    return encoded


def _plan(lengths: Sequence[int], settings: SftSettings, rng: np.random.Generator) -> list[list[list[int]]]:
    """Return for each step its micro-batches of example numbers: shuffled, sorted by length in windows, shuffled."""
    size = settings.per_device_train_batch_size
    together = size * settings.gradient_accumulation_steps
    steps = math.ceil(len(lengths) * settings.num_train_epochs / together)
    plan: list[list[list[int]]] = []
    while len(plan) < steps:
        order = rng.permutation(len(lengths))
        width = together * _WINDOW
        windows = [order[i : i + width] for i in range(0, len(order), width)]
        order = np.concatenate([sorted(window, key=lambda i: lengths[i]) for window in windows])
        epoch = [order[i : i + together].tolist() for i in range(0, len(order), together)]
        for i in rng.permutation(len(epoch)):
            plan.append([epoch[i][j : j + size] for j in range(0, len(epoch[i]), size)])
    return plan[:steps]


def _train(
    language_model: LanguageModel,
    encoded: Sequence[tuple[list[int], tuple[int, ...]]],
    plan: Sequence[Sequence[Sequence[int]]],
    optimiser: Optimiser,
    settings: SftSettings,
) -> tuple[list[float], int]:
    """Return the loss of each step, in nats a token, and the number of tokens."""
    losses, total = [], 0
    for step, parts in enumerate(plan):
        rate = settings.learning_rate * _schedule(step, len(plan), settings)
        count = sum(len(encoded[i][1]) for part in parts for i in part)
        loss = 0.0
        for part in parts:
            # Divided by the tokens of the whole step: accumulation is then exact, not a mean of means.
            share = token_losses(language_model, make_batch(language_model, [encoded[i] for i in part])).sum() / count
            share.backward()  # type: ignore[no-untyped-call]
            loss += float(share.detach())
        if not math.isfinite(loss):
            raise NumericalError(
                f"sft: step {step + 1} of {len(plan)}: the loss is {loss:.4g}; lower learning_rate or train in float32"
            )
        optimiser.step(learning_rate=rate, max_grad_norm=settings.max_grad_norm)
        losses.append(loss)
        total += count
    return losses, total


def _schedule(step: int, steps: int, settings: SftSettings) -> float:
    """Return the share of the peak rate at ``step`` (from 0): linear up, then linear down to the floor."""
    if step < settings.warmup_steps:
        return (step + 1) / (settings.warmup_steps + 1)
    progress = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    return 1 - (1 - settings.min_lr_ratio) * progress


@contextmanager
def _trainable(language_model: LanguageModel, settings: SftSettings, seed: int) -> Iterator[dict[str, Tensor]]:
    """Yield the parameters to train by name: the adapter's, which is taken off afterwards, or all of the base."""
    from dualign.models.adapters import base_parameters, switch_off

    model = language_model.model
    switch_off(model)
    model.eval()
    if settings.lora_r == 0:
        parameters = base_parameters(model)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        try:
            yield parameters
        finally:
            switch_off(model)
            model.zero_grad(set_to_none=True)
        return
    with _adapter(language_model, settings, seed) as parameters:
        yield parameters


@contextmanager
def _adapter(language_model: LanguageModel, settings: SftSettings, seed: int) -> Iterator[dict[str, Tensor]]:
    import torch
    from peft import LoraConfig

    from dualign.models import adapters

    model = language_model.model
    config = LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules=adapters.linear_names(model, "all-linear"),
        task_type="CAUSAL_LM",
    )
    adapters.add_adapter(language_model, ADAPTER, config)
    try:
        named = adapters.adapter_parameters(model, ADAPTER)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in named.items():
            # LoRA's start (Hu et al. 2021): B = 0, so that the model is unchanged; A uniform with variance 1/(3 width).
            width = parameter.shape[1]
            values = torch.rand(parameter.shape, generator=generator) * 2 - 1
            parameter.data.copy_(values / math.sqrt(width) if ".lora_A" in name else torch.zeros_like(values))
        adapters.switch_on(model, ADAPTER)
        for parameter in named.values():
            parameter.requires_grad_(True)
        yield named
    finally:
        adapters.remove_adapter(language_model, ADAPTER)


def _merged(model: Any, parameters: Mapping[str, Tensor], optimiser: Optimiser) -> dict[str, Tensor]:
    """Return by clean name the weights that the adapter changes with its update added, both in the masters' dtype."""
    import torch

    from dualign.models.adapters import clean_name

    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.data = optimiser.masters[name]
        merged = {}
        for path, module in model.named_modules():
            if ADAPTER in getattr(module, "lora_A", {}):
                update = module.get_delta_weight(ADAPTER)
                merged[clean_name(f"{path}.weight")] = module.get_base_layer().weight.to(update.dtype) + update
    return merged


def _put(model: Any, fitted: Mapping[str, Tensor]) -> None:
    """Copy fitted weights into the base, rounded to what it computes in."""
    import torch

    from dualign.models.adapters import base_parameters

    parameters = base_parameters(model)
    with torch.no_grad():
        for name, value in fitted.items():
            parameters[name].copy_(value)


def _wide(value: Tensor) -> Any:
    import torch

    return torch.promote_types(value.dtype, torch.float32)


def _check_model(language_model: LanguageModel, example: tuple[list[int], tuple[int, ...]]) -> None:
    from dualign.models.adapters import switch_off
    from dualign.models.log_probs import PairScorer, check_head

    switch_off(language_model.model)
    check_head(PairScorer(language_model), make_batch(language_model, [example]))


def _fingerprint(model: Any) -> str:
    """Return 12 hexadecimal digits of the weights in memory."""
    import hashlib

    import torch

    from dualign.models.adapters import base_parameters

    digest = hashlib.sha256()
    for name, value in sorted(base_parameters(model).items()):
        data = value.detach().cpu().contiguous().view(torch.uint8).numpy()
        digest.update(name.encode() + b"\0")
        digest.update(data)
    return digest.hexdigest()[:12]
