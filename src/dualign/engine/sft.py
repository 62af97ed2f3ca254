"""Supervised fine-tuning: maximum likelihood of given responses, in place.

The loss is the mean over the batch's response tokens, EOS counted and prompts masked, of the negative log-probability
under the policy: at its temperature, over the tokens its grammar allows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dualign.engine.language_model import LanguageModel
from dualign.errors import DataError, NumericalError, UsageError
from dualign.records import Prompt, named

if TYPE_CHECKING:
    from torch import Tensor

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


@dataclass(frozen=True, slots=True)
class _Batch:
    """Prompts padded on the left and responses on the right: the boundary is one column for all rows."""

    ids: Tensor
    mask: Tensor
    targets: Tensor
    """Shape ``[row, position]``: response tokens, -1 where a row has ended."""


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
        UsageError: a setting makes no sense.
    """
    started = time.monotonic()
    _check_settings(settings)
    encoded = _encoded(language_model, examples)
    plan = _plan([len(p) + len(r) for p, r in encoded], settings, np.random.default_rng(seed))
    with _trainable(language_model, settings, seed) as parameters:
        losses, tokens = _train(language_model, encoded, plan, parameters, settings)
    revision = f"{language_model.revision}+{_fingerprint(language_model.model)}"
    if folder is not None:
        save_fitted(language_model, folder)
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


def token_losses(language_model: LanguageModel, batch: _Batch) -> Tensor:
    """Return the negative log-probabilities, ``[token]``, of all response tokens of a batch, in nats.

    The head works on the response's columns alone.
    """
    import torch

    from dualign.engine.attention import attention_kernel

    length = batch.targets.shape[1]
    positions = (batch.mask.cumsum(dim=1) - 1).clamp(min=0)
    with attention_kernel(language_model.model, batch.ids.shape[1]):
        out = language_model.model(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            position_ids=positions,
            logits_to_keep=length + 1,
            use_cache=False,
        )
    real = batch.targets >= 0
    logits = out.logits[:, -length - 1 : -1][real]
    scaled = (logits if logits.dtype == torch.float64 else logits.float()) / language_model.temperature
    grammar = language_model.grammar
    if grammar is not None:
        column = torch.arange(length, device=real.device).expand_as(batch.targets)[real]
        allowed = grammar.to(real.device)[column.clamp(max=len(grammar) - 1)]
        scaled = scaled.masked_fill(~allowed, -torch.inf)
    return torch.nn.functional.cross_entropy(scaled, batch.targets[real], reduction="none")


def make_batch(language_model: LanguageModel, encoded: Sequence[tuple[list[int], tuple[int, ...]]]) -> _Batch:
    """Return the padded batch of some (prompt tokens, response tokens)."""
    import torch

    left = max(len(prompt) for prompt, _ in encoded)
    right = max(len(response) for _, response in encoded)
    ids = np.full((len(encoded), left + right), language_model.pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    targets = np.full((len(encoded), right), -1, dtype=np.int64)
    for row, (prompt, response) in enumerate(encoded):
        ids[row, left - len(prompt) : left + len(response)] = [*prompt, *response]
        mask[row, left - len(prompt) : left + len(response)] = 1
        targets[row, : len(response)] = response
    device = language_model.device
    return _Batch(*(torch.from_numpy(array).to(device) for array in (ids, mask, targets)))


def save_fitted(language_model: LanguageModel, folder: Path) -> None:
    """Write the base weights, config and tokenizer into ``folder``, without any adapter that is in memory."""
    from safetensors.torch import save_file

    from dualign.engine.adapters import base_parameters

    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = language_model.model, language_model.tokenizer
    weights = {name: value.detach().contiguous() for name, value in base_parameters(model).items()}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    model.config.save_pretrained(str(folder))
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
    parameters: list[Tensor],
    settings: SftSettings,
) -> tuple[list[float], int]:
    """Return the loss of each step, in nats a token, and the number of tokens."""
    import torch

    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    losses, total = [], 0
    for step, parts in enumerate(plan):
        rate = settings.learning_rate * _schedule(step, len(plan), settings)
        for group in optimiser.param_groups:
            group["lr"] = rate
        count = sum(len(encoded[i][1]) for part in parts for i in part)
        loss = 0.0
        for part in parts:
            # Divided by the tokens of the whole step: accumulation is then exact, not a mean of means.
            share = token_losses(language_model, make_batch(language_model, [encoded[i] for i in part])).sum() / count
            share.backward()  # type: ignore[no-untyped-call]
            loss += float(share.detach())
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NumericalError(
                f"sft: step {step + 1} of {len(plan)}: loss {loss:.4g}, gradient norm {norm:.4g}; "
                "lower learning_rate or train in float32"
            )
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
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
def _trainable(language_model: LanguageModel, settings: SftSettings, seed: int) -> Iterator[list[Tensor]]:
    """Yield the parameters to train; LoRA is merged afterwards, and dropped where training failed."""
    from dualign.engine.adapters import base_parameters, switch_off

    model = language_model.model
    switch_off(model)
    model.eval()
    if settings.lora_r == 0:
        parameters = list(base_parameters(model).values())
        for parameter in parameters:
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
def _adapter(language_model: LanguageModel, settings: SftSettings, seed: int) -> Iterator[list[Tensor]]:
    import torch
    from peft import LoraConfig

    from dualign.engine import adapters

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
        yield list(named.values())
        with torch.no_grad():
            for module in model.modules():
                if ADAPTER in getattr(module, "lora_A", {}):
                    weight = module.get_base_layer().weight
                    weight.add_(module.get_delta_weight(ADAPTER).to(weight.dtype))
    finally:
        adapters.remove_adapter(language_model, ADAPTER)


def _fingerprint(model: Any) -> str:
    """Return 12 hexadecimal digits of the weights in memory."""
    import hashlib

    import torch

    from dualign.engine.adapters import base_parameters

    digest = hashlib.sha256()
    for name, value in sorted(base_parameters(model).items()):
        data = value.detach().cpu().contiguous().view(torch.uint8).numpy()
        digest.update(name.encode() + b"\0")
        digest.update(data)
    return digest.hexdigest()[:12]
