"""On-policy training: a policy samples, its answers are scored, and some updates follow, step after step.

What is carried from one stretch to the next, beside the policy's weights, is its memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dualign.hashing import canonical_digest
from dualign.maths.losses import (
    clipped_policy_loss,
    clipped_value_loss,
    generalised_advantages,
    leave_one_out_loss,
    token_rewards,
)
from dualign.maths.policy_gradient import inflated_costs
from dualign.models.adapters import activated, read_weights
from dualign.models.language_model import LanguageModel
from dualign.models.log_probs import PairScorer, Reading, TokenBatch, rows
from dualign.models.pair_store import encode_prompt, encode_response
from dualign.protocols import FitReport, OnPolicyObjective, OnPolicyTraining, Policy, Sampler, Sampling, Score, Scores
from dualign.records import FloatArray, Prompt, Response
from dualign.runs.store import read_json, write_bytes, write_json
from dualign.train.loop import Moment, Optimiser, Row, Terms, accumulate, late_loss
from dualign.train.settings import TrainingSettings, rate_factor
from dualign.train.sft import Example, TokenMicroBatch, next_token, token_micro_batch
from dualign.train.weights import dropout_off, keyed_dropout, save_policy, trained_weights

TENSORS = "practice.safetensors"
RECORD = "practice.json"
VALUE_CLIP = 5.0
"""How far a critic may go from its old value in one batch (Safe RLHF's default)."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Multipliers, costs of late answers, and the state of the optimisers."""

    multipliers: FloatArray
    """Shape ``[constraint]``."""
    costs: tuple[tuple[float, ...], ...]
    """Costs of late answers to prompts that each constraint looks at."""
    step: int = 0
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """``policy.NAME`` and ``critic.NAME``: the state of the two optimisers; empty before the first step."""

    def with_scores(self, scores: Scores, *, window: int) -> Memory:
        """Return the memory with the costs of new answers; the oldest beyond the window are forgotten."""
        new = (scores.costs[scores.inside[:, k], :, k].ravel().tolist() for k in range(len(self.costs)))
        return replace(self, costs=tuple((*held, *more)[-window:] for held, more in zip(self.costs, new, strict=True)))

    def means(self) -> FloatArray:
        """Return the mean of each cost over late answers; NaN before the first."""
        return np.array([np.mean(held) if held else np.nan for held in self.costs])

    def deviations(self) -> FloatArray:
        """Return the SD of each cost over late answers; 0 for a single one."""
        return np.array([np.std(held) if held else 0.0 for held in self.costs])

    def part(self, owner: str) -> dict[str, Tensor]:
        """Return the tensors of one optimiser by their own names."""
        return {name.removeprefix(f"{owner}."): t for name, t in self.tensors.items() if name.startswith(f"{owner}.")}


def recall(policy: Policy, multipliers: FloatArray) -> Memory:
    """Return what ``policy`` was left with; one that was never trained on its answers begins with ``multipliers``."""
    folder = None if policy.state is None else Path(policy.state)
    if folder is None or not (folder / RECORD).is_file():
        return Memory(np.array(multipliers, dtype=np.float64), ((),) * len(multipliers))
    record = read_json(folder / RECORD)
    costs = tuple(map(tuple, record["costs"]))
    return Memory(np.array(record["multipliers"]), costs, int(record["step"]), read_weights(folder / TENSORS))


def keep(memory: Memory, folder: Path) -> None:
    """Write the memory beside the policy's weights."""
    from safetensors.torch import save

    write_bytes(folder / TENSORS, save({name: tensor.contiguous() for name, tensor in memory.tensors.items()}))
    record = {"step": memory.step, "multipliers": memory.multipliers.tolist(), "costs": memory.costs}
    write_json(folder / RECORD, record)


@dataclass(frozen=True, slots=True)
class Stage:
    """What on-policy training needs besides its start: the model, how it is sampled, trained and scored."""

    language_model: LanguageModel
    sampler: Sampler
    sampling: Sampling
    settings: TrainingSettings
    score: Score
    reference: Policy
    pretraining: Sequence[Example] = ()
    """What a pre-training term imitates."""


def train_on_policy(
    stage: Stage, start: Policy, prompts: Sequence[Prompt], training: OnPolicyTraining, *, seed: int, folder: Path
) -> FitReport:
    """Return the report of ``training.settings["steps"]`` steps from ``start``; weights and memory are in ``folder``.

    Raises:
        NumericalError: a loss or a gradient is not finite; the step is not applied.
    """
    began = time.monotonic()
    memory = recall(start, training.multipliers)
    policy, history = start, list[Row]()
    for _ in range(int(training.settings["steps"])):
        memory, row = _step(stage, policy, prompts, training, memory, seed, folder)
        history.append(row)
        policy = Policy(folder.name, folder)
    keep(memory, folder)
    return FitReport(len(history), late_loss(history), math.nan, time.monotonic() - began, tuple(history))


def _step(
    stage: Stage, policy: Policy, prompts: Sequence[Prompt], training: OnPolicyTraining, memory: Memory, seed: int,
    folder: Path,
) -> tuple[Memory, Row]:  # fmt: skip
    """Return the memory after one step and what the step showed, once its weights were written."""
    settings = training.settings
    chosen = [prompts[k] for k in batch_at(memory.step, len(prompts), int(settings["prompts"]), seed)]
    responses = stage.sampler.generate(
        policy, chosen, int(settings["answers"]), sampling=stage.sampling,
        seed=int(canonical_digest([seed, memory.step])[:12], 16), stage="practice",
    )  # fmt: skip
    scores = stage.score(chosen, responses)
    memory = memory.with_scores(scores, window=int(settings["window"]))
    multipliers = training.follow(memory.multipliers, memory.means(), memory.deviations())
    objective = training.aim(multipliers)
    parts = answer_parts(stage, chosen, responses, _inflated(scores, objective, memory))
    with trained_weights(stage.language_model, policy, stage.settings) as parameters:
        means = np.array([scores.reward.mean(), *scores.costs.mean(axis=(0, 1))])
        learner = Learner.of(stage, training, memory, parameters, means=means, seed=seed)
        parts = learner.looked(parts)
        shown = [learner.update(parts, objective) for _ in range(int(settings["updates"]))][-1]
        if settings.get("ptx", 0) > 0:
            learner.imitate(settings["ptx"])
        save_policy(stage.language_model, parameters, learner.optimisers["policy"].masters, stage.settings, folder)
        memory = replace(memory, multipliers=multipliers, step=memory.step + 1, tensors=learner.tensors())
    row = {"step": float(memory.step), "loss": shown["loss"], "reward": float(scores.reward.mean())}
    row["kl"] = shown["kl"] / scores.reward.size
    for k, mean in enumerate(memory.means()):
        row |= {f"multiplier_{k}": float(memory.multipliers[k]), f"cost_{k}": float(mean)}
    return memory, row


def _inflated(scores: Scores, objective: OnPolicyObjective, memory: Memory) -> Scores:
    """Return the scores with costs inflated where the objective says so, and 0 where a constraint does not look."""
    if objective.inflation == 0:
        return scores
    raised = inflated_costs(scores.costs, memory.means(), memory.deviations(), inflation=objective.inflation)
    return replace(scores, costs=np.where(scores.inside[:, None, :], raised, 0.0))


def sequences_at_once(settings: TrainingSettings) -> int:
    """Return the sequences of a micro-batch: as many as ``per_device_train_batch_size`` groups of four answers have."""
    return 4 * settings.per_device_train_batch_size


def batch_at(step: int, count: int, size: int, seed: int) -> list[int]:
    """Return ``size`` different numbers below ``count``, or all: pass after pass, each in an order of its own.

    None stands twice in a batch that two passes share: draws are keyed by the prompt, so that a second answer in the
    same step would be the first one again.
    """
    size = min(size, count)
    chosen: list[int] = []
    order: list[int] = []
    for number in range(((step + 1) * size - 1) // count + 1):
        begun = number * count % size  # places of this pass's first batch that the pass before has filled
        held = set(order[count - begun :])
        drawn = np.random.default_rng([seed, number]).permutation(count).tolist()
        front = dict.fromkeys([k for k in drawn if k not in held][: size - begun])
        order = [*front, *(k for k in drawn if k not in front)]
        places = (place * size - number * count for place in (step, step + 1))
        chosen += order[slice(*(max(0, place) for place in places))]
    return chosen


@dataclass(frozen=True, slots=True)
class AnswerPart:
    """Some answers of a step as tokens, with all that is fixed before the updates; ``[sequence, token]`` each."""

    tokens: TokenBatch
    mask: Tensor
    scores: Scores
    prompts: int
    """Of the whole step."""
    reference: Tensor
    """Log-probabilities under the reference."""
    old: Tensor | None = None
    """Log-probabilities before the updates, without dropout: those of the policy that answered. None: those of the
    first update, which is the only one."""
    anchor: Tensor | None = None
    """Log-probabilities before the updates, under their dropout: what the ratio is to, which is 1 at the first. None:
    those of the first update, which is the only one."""
    values: Tensor | None = None
    """Shape ``[stream, sequence, token]``: the critics' values before the updates, without dropout."""


def answer_parts(
    stage: Stage, prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]], scores: Scores
) -> list[AnswerPart]:
    """Return the answers in micro-batches, with the reference's log-probabilities."""
    model = stage.language_model
    size = max(1, sequences_at_once(stage.settings) // len(responses[0]))
    parts = []
    with activated(model, stage.reference), torch.no_grad():
        scorer = PairScorer(model)
        for first in range(0, len(prompts), size):
            part = slice(first, first + size)
            sequences = [
                (encode_prompt(model, prompt), tuple(encode_response(model, answer) for answer in answers))
                for prompt, answers in zip(prompts[part], responses[part], strict=True)
            ]
            batch = rows(sequences, model.pad).to(model.device)
            known = spread(scorer(batch).tokens, batch)
            mask = spread(torch.ones_like(batch.target, dtype=known.dtype), batch)
            own = Scores(scores.reward[part], scores.costs[part], scores.inside[part])
            parts.append(AnswerPart(batch, mask, own, len(prompts), known))
    return parts


def spread(flat: Tensor, batch: TokenBatch) -> Tensor:
    """Return ``[target]`` figures as ``[sequence, token]``, 0 behind each response's end."""
    sequences = batch.shape[0] * batch.shape[1]
    table = torch.zeros(sequences, int(batch.step.max()) + 1, dtype=flat.dtype, device=flat.device)
    return table.index_put((batch.slot, batch.step), flat)


class Said(NamedTuple):
    """What policy and critics say of answers."""

    reading: Reading
    log_probs: Tensor
    """Shape ``[sequence, token]``."""
    values: Tensor | None
    """Shape ``[stream, sequence, token]``; none without critics."""


class ActorCritic(nn.Module):
    """A policy and, for PPO, critics: one for the reward and one for each cost."""

    def __init__(self, language_model: LanguageModel, means: FloatArray | None) -> None:
        """Take the ``means`` of reward and costs, where critics begin; none: there are no critics."""
        super().__init__()
        self.scorer = PairScorer(language_model)
        self.heads = None
        if means is not None:
            width = language_model.model.get_input_embeddings().weight.shape[1]
            heads = torch.cat([torch.zeros(width, len(means)), torch.from_numpy(means)[None].float()])
            self.heads = nn.Parameter(heads.to(language_model.device))

    def forward(self, tokens: TokenBatch) -> Said:
        """Return log-probabilities and values, a linear read-out of states that the critics do not move."""
        reading, values = self.scorer(tokens), None
        if self.heads is not None:
            read = reading.states.detach().to(self.heads.dtype) / math.sqrt(reading.states.shape[-1])
            flat = read @ self.heads[:-1] + self.heads[-1]
            values = torch.stack([spread(column, tokens) for column in flat.unbind(1)])
        return Said(reading, spread(reading.tokens, tokens), values)


def answer_losses(said: Said, part: AnswerPart, objective: OnPolicyObjective, training: OnPolicyTraining) -> Terms:
    """Return a loss a prompt (leave-one-out), or a loss an answer with those of the critics (PPO)."""
    own, old = said.log_probs, said.log_probs.detach() if part.old is None else part.old
    figures = {"kl": (part.mask * (old - part.reference)).sum()}
    if said.values is None:
        sums = (own * part.mask).sum(dim=1).view(part.tokens.shape)
        return Terms(leave_one_out_loss(sums, _returns(part, old, objective)), total=part.prompts, figures=figures)
    anchor = own.detach() if part.anchor is None else part.anchor
    known = said.values.detach() if part.values is None else part.values
    advantages, returns = _advantages(part, old, known, objective, training.cost_units)
    losses = clipped_policy_loss(own, anchor, advantages, part.mask, clip=training.settings["clip"])
    for value, before, target in zip(said.values, known, returns, strict=True):
        losses = losses + clipped_value_loss(value, before, target, part.mask, clip=VALUE_CLIP)
    return Terms(losses, total=part.prompts * part.tokens.shape[1], figures=figures)


def _advantages(
    part: AnswerPart, old: Tensor, values: Tensor, objective: OnPolicyObjective, cost_units: FloatArray
) -> tuple[Tensor, list[Tensor]]:
    """Return the mixed advantages, and each stream's returns: the reward's first, then those of the costs."""
    log_ratio = old - part.reference
    streams = [(torch.from_numpy(part.scores.reward.ravel()), log_ratio, objective.kl)]
    for k, costs in enumerate(np.moveaxis(part.scores.costs, -1, 0)):
        streams.append((torch.from_numpy(costs.ravel()), -log_ratio, objective.kl * float(cost_units[k])))
    mixed, returns = torch.zeros_like(log_ratio), []
    weights = [1.0, *(-objective.multipliers)]
    for (score, ratio, kl), weight, known in zip(streams, weights, values, strict=True):
        rewards = token_rewards(score.to(ratio.device, ratio.dtype), ratio, part.mask, kl=kl)
        advantage, target = generalised_advantages(rewards, known, part.mask)
        mixed = mixed + float(weight) * advantage
        returns.append(target)
    return objective.scale * mixed, returns


def _returns(part: AnswerPart, old: Tensor, objective: OnPolicyObjective) -> Tensor:
    """Return ``[prompt, answer]``: scale (reward - multipliers . costs) - kl log-ratio, one number an answer."""
    relabelled = part.scores.reward - part.scores.costs @ objective.multipliers
    log_ratio = ((old - part.reference) * part.mask).sum(dim=1).view(part.tokens.shape)
    given = torch.from_numpy(relabelled).to(log_ratio.device, log_ratio.dtype)
    return objective.scale * given - objective.kl * log_ratio


@dataclass(frozen=True, slots=True)
class Learner:
    """The updates of one step: the module, the optimisers of ``policy`` and ``critic``, and the schedule's place."""

    stage: Stage
    training: OnPolicyTraining
    module: ActorCritic
    optimisers: Mapping[str, Optimiser]
    at: Moment

    @classmethod
    def of(
        cls, stage: Stage, training: OnPolicyTraining, memory: Memory, parameters: Mapping[str, Tensor], *,
        means: FloatArray, seed: int,
    ) -> Learner:  # fmt: skip
        """Return the learner that goes on from ``memory``; ``means`` of reward and costs are where critics begin."""
        settings = stage.settings
        module = ActorCritic(stage.language_model, means if training.estimator == "critic" else None)
        optimisers = {"policy": Optimiser(parameters, settings)}
        if module.heads is not None:
            optimisers["critic"] = Optimiser({"heads": module.heads}, replace(settings, weight_decay=0.0))
        for owner, optimiser in optimisers.items():
            if memory.tensors:
                optimiser.restore(memory.part(owner))
        at = Moment("training", seed, memory.step, int(training.settings["total"]), settings.lora_dropout)
        return cls(stage, training, module, optimisers, at)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state of the optimisers."""
        states = [(owner, *held) for owner, o in self.optimisers.items() for held in o.state().items()]
        return {f"{owner}.{name}": tensor.detach().clone() for owner, name, tensor in states}

    def looked(self, parts: Sequence[AnswerPart]) -> list[AnswerPart]:
        """Return the parts with log-probabilities and values before the updates.

        A single update sees its anchor itself and, without dropout, all the rest too: it is spared the passes.
        """
        single, dropout = self.training.settings["updates"] == 1, self.at.dropout
        if single and dropout == 0:
            return list(parts)
        seen = []
        for number, part in enumerate(parts):
            with torch.no_grad(), dropout_off(self.stage.language_model.model):
                said = self.module(part.tokens)
            anchor = None if single else said.log_probs
            if dropout > 0 and not single:
                key = (self.at.seed, self.at.step, number)
                with torch.no_grad(), keyed_dropout(dropout, said.log_probs.device, key):
                    anchor = self.module(part.tokens).log_probs
            seen.append(replace(part, old=said.log_probs, anchor=anchor, values=said.values))
        return seen

    def update(self, parts: Sequence[AnswerPart], objective: OnPolicyObjective) -> Row:
        """Return the loss and the figures of one optimiser step over all answers, after the step.

        All updates of a step drop the same, so that the ratio between them is of what was learnt.

        Raises:
            NumericalError: the loss or a gradient is not finite.
        """

        def losses(said: Said, part: AnswerPart) -> Terms:
            return answer_losses(said, part, objective, self.training)

        shown = accumulate(self.module, losses, parts, self.at)
        self._move()
        if "critic" in self.optimisers:
            rate = self.training.settings["critic_rate"]
            self.optimisers["critic"].step(learning_rate=rate, max_grad_norm=math.inf)
        return shown

    def imitate(self, coefficient: float) -> float:
        """Return the loss of one step of its own on answers to imitate (PTX of Safe RLHF), before the step.

        It is ``coefficient`` times the mean negative log-probability of their tokens, in nats; as many examples a
        step as prompts, pass after pass.

        Raises:
            NumericalError: the loss or a gradient is not finite.
        """
        model, examples = self.stage.language_model, self.stage.pretraining
        chosen = batch_at(self.at.step, len(examples), int(self.training.settings["prompts"]), self.at.seed)
        encoded, step = [(model.template(examples[k][0]), examples[k][1]) for k in chosen], range(len(chosen))
        size = sequences_at_once(self.stage.settings)
        parts = [token_micro_batch(model, encoded, step[i : i + size], step) for i in range(0, len(step), size)]

        def losses(said: Said, batch: TokenMicroBatch) -> Terms:
            return replace(next_token(said.reading, batch), weights=coefficient)

        shown = accumulate(self.module, losses, parts, replace(self.at, name="training (imitation)"))
        self._move()
        return shown["loss"]

    def _move(self) -> None:
        """Move the policy along its gradient, at the rate that the schedule has for this step."""
        settings = self.stage.settings
        share = rate_factor(self.at.step, settings, steps=self.at.steps)
        rate = share * self.training.settings["learning_rate"]
        self.optimisers["policy"].step(learning_rate=rate, max_grad_norm=settings.max_grad_norm)
