"""The loop that fits one policy: labels, two-sided losses, accumulation, checks, steps, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dualign.errors import DataError, MissingError, NumericalError
from dualign.hashing import canonical_digest, file_digest
from dualign.models import adapters
from dualign.models.language_model import LanguageModel
from dualign.models.log_probs import LAYOUTS, PairScorer
from dualign.models.pair_store import group_digest
from dualign.protocols import FitReport, Need, PairBatch, Policy
from dualign.runs.store import read_json, write_json
from dualign.train.batches import (
    LabelledGroup,
    MicroBatch,
    collate,
    count_steps,
    label,
    pair_batch,
    plan_steps,
)
from dualign.train.optimiser import (
    Checkpoint,
    Optimiser,
    drop_checkpoint,
    load_checkpoint,
    rate_factor,
    save_checkpoint,
)
from dualign.train.settings import FitInputs, TrainingSettings
from dualign.train.weights import keyed_dropout, save_policy, trained_weights, weights_digest

RECORD = "fit.json"


def fit(
    language_model: LanguageModel,
    inputs: FitInputs,
    *,
    settings: TrainingSettings,
    folder: Path,
    notes: list[str],
) -> FitReport:
    """Return the report of a fit whose weights are in ``folder`` afterwards; the base model is as it was.

    A folder with the result of the very same inputs is left as it is; a checkpoint of them is gone on from.
    Sentences for the user are appended to ``notes``.

    Raises:
        NumericalError: a loss or a gradient is not finite; nothing of that step is applied.
        DataError: no group has two different responses.
        UsageError: settings that do not fit the model or the start.
    """
    if not inputs.groups:
        raise DataError("groups: none has two different responses; there is nothing to learn from")
    key = fit_key(language_model, inputs, settings)
    done = _finished(folder, key)
    if done is not None:
        return done
    started = time.monotonic()
    checkpoint, note = load_checkpoint(folder, key)
    notes.extend([note] if note else [])
    with trained_weights(language_model, inputs.start, settings) as parameters:
        run = Fit(language_model, inputs, settings, parameters)
        history = run.loop(checkpoint, lambda state: save_checkpoint(folder, key, state))
        save_policy(language_model, parameters, run.optimiser.masters, settings, folder)
    report = _report(history, time.monotonic() - started)
    write_json(
        folder / RECORD,
        {"key": key, "sha256": weights_digest(folder, settings), "report": asdict(report)},
    )
    drop_checkpoint(folder)
    return report


def fit_key(language_model: LanguageModel, inputs: FitInputs, settings: TrainingSettings) -> str:
    """Return the hash of all that decides the result of a fit."""
    objective = inputs.objective
    free = {"checkpoint_seconds", "checkpoint_steps"}
    return canonical_digest(
        {
            "settings": {k: repr(v) for k, v in asdict(settings).items() if k not in free},
            "model": [language_model.revision, str(language_model.model.dtype), language_model.temperature],
            "objective": [
                repr(value)
                for value in (
                    objective.name,
                    np.atleast_1d(objective.multipliers).tolist(),
                    objective.beta,
                    objective.temperature,
                    objective.columns,
                    sorted(objective.needs),
                    getattr(objective.labels, "__name__", ""),
                )
            ],
            "groups": [group_digest(group) for group in inputs.groups],
            "reference": [[repr(float(x)) for x in values] for values in inputs.reference_log_probs],
            "start": adapters.fingerprint(inputs.start),
            "seed": inputs.seed,
            "layout": inputs.layout,
        }
    )


class Fit:
    """One fit in progress."""

    def __init__(
        self,
        language_model: LanguageModel,
        inputs: FitInputs,
        settings: TrainingSettings,
        parameters: Mapping[str, Tensor],
    ) -> None:
        self.language_model = language_model
        self.settings = settings
        self.objective = inputs.objective
        self.seed = inputs.seed
        self.layout = LAYOUTS[inputs.layout]
        self.scorer = PairScorer(language_model)
        self.device = language_model.device
        self.labelled = label(inputs.groups, inputs.reference_log_probs, inputs.objective, inputs.seed)
        steps = count_steps(
            len(inputs.groups),
            settings.groups_a_step,
            epochs=settings.num_train_epochs,
            max_steps=settings.max_steps,
        )
        self.steps = plan_steps(
            [group.length for group in inputs.groups],
            groups_a_step=settings.groups_a_step,
            steps=steps,
            seed=inputs.seed,
        )
        self.optimiser = Optimiser(
            parameters,
            weight_decay=settings.weight_decay,
            betas=(settings.adam_beta1, settings.adam_beta2),
        )

    def loop(self, checkpoint: Checkpoint | None, save: Callable[[Checkpoint], None]) -> list[dict[str, float]]:
        """Return one row a step, after all steps."""
        history: list[dict[str, float]] = []
        if checkpoint is not None:
            self.optimiser.restore(checkpoint.tensors)
            history = [dict(row) for row in checkpoint.history]
        saved = time.monotonic()
        every = self.settings.checkpoint_steps
        for step in range(len(history), len(self.steps)):
            history.append(self.step(step))
            due = time.monotonic() - saved >= self.settings.checkpoint_seconds
            if due or (every and (step + 1) % every == 0):
                save(Checkpoint(step + 1, self.optimiser.state(), history))
                saved = time.monotonic()
        return history

    def step(self, step: int) -> dict[str, float]:
        """Return what one optimiser step showed, after it was applied."""
        micros = self.micro_batches(step)
        weights = [micro.weight for micro in micros]
        if self.objective.weigh is not None:
            weights = self._whole_batch_weights(step, micros)
        total = products = squares = 0.0
        for number, (micro, weight) in enumerate(zip(micros, weights, strict=True)):
            with self._randomness(step, number):
                batch, losses = self._losses(micro)
                if self.objective.penalty is not None:
                    losses = losses + self.objective.penalty(batch, losses)
            loss = (losses * weight.to(losses.device, losses.dtype)).sum()
            value = loss.item()
            if not math.isfinite(value):
                raise NumericalError(f"training: the loss is {value} at step {step + 1}; the step was not applied")
            loss.backward()  # type: ignore[no-untyped-call]
            total += value
            implied = self.objective.beta * (batch.first.log_ratio - batch.second.log_ratio).detach()
            products += float((batch.weight * implied * batch.label_logit).sum())
            squares += float((batch.weight * batch.label_logit**2).sum())
        rate = self.settings.learning_rate * self._rate_factor(step)
        norm = self.optimiser.step(learning_rate=rate, max_grad_norm=self.settings.max_grad_norm)
        return {
            "step": step + 1,
            "loss": total,
            "gradient_norm": norm,
            "learning_rate": rate,
            "products": products,
            "squares": squares,
        }

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """Return the micro-batches of one step; their pair weights sum to 1."""
        chosen: list[LabelledGroup] = [self.labelled[i] for i in self.steps[step]]
        total = sum(item.group.weight for item in chosen)
        size = self.settings.per_device_train_batch_size
        return [
            collate(
                chosen[i : i + size],
                total,
                layout=self.layout,
                pad=self.language_model.pad,
                needs=self.objective.needs,
            )
            for i in range(0, len(chosen), size)
        ]

    def _losses(self, micro: MicroBatch) -> tuple[PairBatch, Tensor]:
        tokens = micro.tokens.to(self.device)
        embeddings = None
        if Need.INPUT_EMBEDDINGS in self.objective.needs:
            embeddings = self.scorer.embed(tokens)
        batch = pair_batch(micro, self.scorer(tokens, embeddings=embeddings), embeddings)
        first = micro.probability.to(batch.weight.device, batch.weight.dtype)
        wins = self.objective.loss(batch.first, batch.second)
        losses = first * wins + (1 - first) * self.objective.loss(batch.second, batch.first)
        return batch, losses

    def _whole_batch_weights(self, step: int, micros: Sequence[MicroBatch]) -> list[Tensor]:
        """Weights that depend on every loss of the step need a first pass that only looks."""
        assert self.objective.weigh is not None
        losses = []
        with torch.no_grad():
            for number, micro in enumerate(micros):
                with self._randomness(step, number):
                    losses.append(self._losses(micro)[1])
        together = torch.cat(losses)
        plain = torch.cat([micro.weight for micro in micros]).to(together.device, together.dtype)
        weights = self.objective.weigh(together, plain)
        return list(torch.split(weights, [len(micro.weight) for micro in micros]))

    def _randomness(self, step: int, number: int) -> AbstractContextManager[None]:
        """Dropout is keyed by (seed, step, micro-step): a resumed fit and a second pass draw the same."""
        return keyed_dropout(self.settings, self.device, (self.seed, step, number))

    def _rate_factor(self, step: int) -> float:
        return rate_factor(
            step,
            steps=len(self.steps),
            warmup_steps=self.settings.warmup_steps,
            schedule=self.settings.lr_scheduler_type,
            floor=self.settings.min_lr_ratio,
        )


def _finished(folder: Path, key: str) -> FitReport | None:
    """Return the report of a fit of the same inputs whose weights are whole."""
    if not (folder / RECORD).is_file():
        return None
    try:
        record = read_json(folder / RECORD)
        path = adapters.weights_file(Policy(folder.name, folder))
        if record["key"] != key or path is None or file_digest(path) != record["sha256"]:
            return None
        report = record["report"]
        values = {name: math.nan if report[name] is None else report[name] for name in ("loss", "slope")}
        return FitReport(report["steps"], values["loss"], values["slope"], report["seconds"], tuple(report["history"]))
    except (DataError, MissingError, KeyError, TypeError):
        return None


def _report(history: Sequence[Mapping[str, float]], seconds: float) -> FitReport:
    last = history[-max(1, len(history) // 4) :]
    squares = sum(row["squares"] for row in last)
    slope = sum(row["products"] for row in last) / squares if squares > 0 else math.nan
    loss = sum(row["loss"] for row in last) / len(last)
    return FitReport(len(history), loss, slope, seconds, tuple(history))
