"""What on-policy training carries from one stretch to the next, beside the policy's weights."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dualign.errors import NumericalError
from dualign.hashing import canonical_digest
from dualign.maths.losses import (
    clipped_policy_loss,
    clipped_value_loss,
    generalised_advantages,
    leave_one_out_loss,
    token_rewards,
)
from dualign.maths.policy_gradient import inflated_costs
from dualign.models.adapters import activated
from dualign.models.language_model import LanguageModel
from dualign.models.log_probs import PairScorer, TokenBatch, rows
from dualign.models.pair_store import encode_prompt, encode_response
from dualign.protocols import FitReport, OnPolicyObjective, Policy, Practice, Sampler, Sampling, Score, Scores
from dualign.records import FloatArray, Prompt, Response
from dualign.runs.store import read_json, write_bytes, write_json
from dualign.train.optimiser import Optimiser, rate_factor
from dualign.train.settings import TrainingSettings
from dualign.train.sft import Example, make_batch, token_losses
from dualign.train.weights import dropout_off, keyed_dropout, save_policy, trained_weights

if TYPE_CHECKING:
    from torch import Tensor


TENSORS = "practice.safetensors"
RECORD = "practice.json"


@dataclass
class Memory:
    """Multipliers, costs of late answers, and the state of the optimisers."""

    multipliers: FloatArray
    """Shape ``[constraint]``."""
    costs: list[deque[float]]
    """Costs of late answers to prompts that each constraint looks at."""
    step: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """``policy.NAME`` and ``critic.NAME``: the state of the two optimisers; empty before the first step."""

    def remember(self, scores: Scores) -> None:
        """Take in the costs of new answers; the oldest beyond the window are forgotten."""
        for k, held in enumerate(self.costs):
            held.extend(scores.costs[scores.inside[:, k], :, k].ravel().tolist())

    def means(self) -> FloatArray:
        """Return the mean of each cost over late answers; NaN before the first."""
        return np.array([np.mean(held) if held else np.nan for held in self.costs])

    def deviations(self) -> FloatArray:
        """Return the SD of each cost over late answers; 0 for a single one."""
        return np.array([np.std(held) if held else 0.0 for held in self.costs])

    def part(self, owner: str) -> dict[str, Tensor]:
        """Return the tensors of one optimiser by their own names."""
        return {name.removeprefix(f"{owner}."): t for name, t in self.tensors.items() if name.startswith(f"{owner}.")}


def recall(policy: Policy, multipliers: FloatArray, *, window: int) -> Memory:
    """Return what ``policy`` was left with; one that was never practised begins with ``multipliers``."""
    folder = None if policy.state is None else Path(policy.state)
    if folder is None or not (folder / RECORD).is_file():
        return Memory(np.array(multipliers, dtype=np.float64), [deque(maxlen=window) for _ in multipliers])
    from safetensors.torch import load_file

    record = read_json(folder / RECORD)
    held = [deque(row, maxlen=window) for row in record["costs"]]
    return Memory(np.array(record["multipliers"]), held, int(record["step"]), load_file(folder / TENSORS))


def keep(memory: Memory, folder: Path) -> None:
    """Write the memory beside the policy's weights."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().contiguous() for name, tensor in memory.tensors.items()}
    write_bytes(folder / TENSORS, save(tensors))
    costs = [list(held) for held in memory.costs]
    write_json(folder / RECORD, {"step": memory.step, "multipliers": memory.multipliers.tolist(), "costs": costs})


VALUE_CLIP = 5.0
"""How far a critic may go from its old value in one batch (Safe RLHF's default)."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What on-policy training needs besides its start: the model, how it is sampled, trained and scored."""

    language_model: LanguageModel
    sampler: Sampler
    sampling: Sampling
    training: TrainingSettings
    score: Score
    reference: Policy
    pretraining: Sequence[Example] = ()
    """What a pre-training term imitates."""


@dataclass(slots=True)
class Part:
    """Some answers of a step as tokens, with all that is fixed before the updates; ``[sequence, token]`` each."""

    batch: TokenBatch
    mask: Tensor
    scores: Scores
    reference: Tensor
    """Log-probabilities under the reference."""
    old: Tensor | None = None
    """Log-probabilities before the updates, without dropout: those of the policy that answered."""
    anchor: Tensor | None = None
    """Log-probabilities at the first update, under its dropout: what the ratio is to, which is 1 there."""
    values: Tensor | None = None
    """Shape ``[stream, sequence, token]``: the critics' values before the updates, without dropout."""


def practise(
    stage: Stage, start: Policy, prompts: Sequence[Prompt], practice: Practice, *, seed: int, folder: Path
) -> FitReport:
    """Return the report of ``practice.settings["steps"]`` steps from ``start``; weights and memory are in ``folder``.

    Raises:
        NumericalError: a loss or a gradient is not finite; the step is not applied.
    """
    began = time.monotonic()
    memory = recall(start, practice.multipliers, window=int(practice.settings["window"]))
    policy, history = start, []
    for _ in range(int(practice.settings["steps"])):
        history.append(_step(stage, policy, prompts, practice, memory, seed, folder))
        policy = Policy(folder.name, folder)
    keep(memory, folder)
    late = history[-max(1, len(history) // 4) :]
    loss = sum(row["loss"] for row in late) / len(late)
    return FitReport(len(history), loss, math.nan, time.monotonic() - began, tuple(history))


def _step(
    stage: Stage, policy: Policy, prompts: Sequence[Prompt], practice: Practice, memory: Memory, seed: int, folder: Path
) -> dict[str, float]:
    """Return what one step showed, after its weights were written."""
    settings = practice.settings
    chosen = [prompts[k] for k in batch_at(memory.step, len(prompts), int(settings["prompts"]), seed)]
    responses = stage.sampler.generate(
        policy, chosen, int(settings["answers"]), sampling=stage.sampling,
        seed=int(canonical_digest([seed, memory.step])[:12], 16), stage="practice",
    )  # fmt: skip
    scores = stage.score(chosen, responses)
    memory.remember(scores)
    memory.multipliers = practice.follow(memory.multipliers, memory.means(), memory.deviations())
    objective = practice.aim(memory.multipliers)
    parts = _parts(stage, chosen, responses, scores)
    with trained_weights(stage.language_model, policy, stage.training) as parameters:
        means = np.array([scores.reward.mean(), *scores.costs.mean(axis=(0, 1))])
        run = _Updates(stage, practice, memory, parameters, seed=seed, means=means)
        loss, updates = 0.0, int(settings["updates"])
        if updates > 1 or stage.training.lora_dropout > 0:
            run.look(parts)
        for _ in range(updates):
            loss = run.update(parts, objective, len(chosen))
        if settings.get("ptx", 0) > 0:
            run.imitate(settings["ptx"])
        save_policy(stage.language_model, parameters, run.policy.masters, stage.training, folder)
        memory.tensors = run.tensors()
    memory.step += 1
    moved = [float((part.mask * (_known(part.old) - part.reference)).sum()) for part in parts]
    row = {"step": float(memory.step), "loss": loss, "reward": float(scores.reward.mean())}
    row["kl"] = sum(moved) / scores.reward.size
    for k, mean in enumerate(memory.means()):
        row |= {f"multiplier_{k}": float(memory.multipliers[k]), f"cost_{k}": float(mean)}
    return row


def sequences_at_once(training: TrainingSettings) -> int:
    """Return the sequences of a micro-batch: as many as ``per_device_train_batch_size`` groups of four answers have."""
    return 4 * training.per_device_train_batch_size


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


def _parts(
    stage: Stage, prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]], scores: Scores
) -> list[Part]:
    """Return the answers in micro-batches, with the reference's log-probabilities."""
    model = stage.language_model
    answers = len(responses[0])
    size = max(1, sequences_at_once(stage.training) // answers)
    parts = []
    with activated(model, stage.reference), torch.no_grad():
        scorer = PairScorer(model)
        for first in range(0, len(prompts), size):
            part = slice(first, first + size)
            sequences = [
                (encode_prompt(model, prompt), tuple(encode_response(model, answer)[0] for answer in row))
                for prompt, row in zip(prompts[part], responses[part], strict=True)
            ]
            batch = rows(sequences, model.pad).to(model.device)
            known = spread(scorer.by_token(batch)[0], batch)
            mask = spread(torch.ones_like(batch.target, dtype=known.dtype), batch)
            own = Scores(scores.reward[part], scores.costs[part], scores.inside[part])
            parts.append(Part(batch, mask, own, known))
    return parts


def spread(flat: Tensor, batch: TokenBatch) -> Tensor:
    """Return ``[target]`` figures as ``[sequence, token]``, 0 behind each response's end."""
    sequences = batch.shape[0] * batch.shape[1]
    table = torch.zeros(sequences, int(batch.step.max()) + 1, dtype=flat.dtype, device=flat.device)
    return table.index_put((batch.slot, batch.step), flat)


class _Updates:
    """The updates of one step: the policy and, for PPO, a critic for the reward and one for each cost."""

    def __init__(
        self, stage: Stage, practice: Practice, memory: Memory, parameters: Mapping[str, Tensor], *, seed: int,
        means: FloatArray,
    ) -> None:  # fmt: skip
        """Take the parts; ``means``: of reward and costs, where critics begin that have no memory."""
        self.stage, self.practice, self.memory, self.seed = stage, practice, memory, seed
        self.scorer = PairScorer(stage.language_model)
        training = stage.training
        betas = (training.adam_beta1, training.adam_beta2)
        self.policy = Optimiser(parameters, weight_decay=training.weight_decay, betas=betas)
        self.critic: Optimiser | None = None
        if practice.estimator == "critic":
            width = stage.language_model.model.get_input_embeddings().weight.shape[1]
            streams = 1 + len(memory.multipliers)
            heads = torch.zeros(width + 1, streams, device=stage.language_model.device)
            heads[-1] = torch.from_numpy(means)
            heads.requires_grad_(True)
            self.critic = Optimiser({"heads": heads}, weight_decay=0.0, betas=betas)
        if memory.tensors:
            self.policy.restore(memory.part("policy"))
            if self.critic is not None:
                self.critic.restore(memory.part("critic"))

    def tensors(self) -> dict[str, Tensor]:
        """Return the state of both optimisers."""
        kept = {f"policy.{name}": tensor for name, tensor in self.policy.state().items()}
        if self.critic is not None:
            kept |= {f"critic.{name}": tensor for name, tensor in self.critic.state().items()}
        return {name: tensor.detach().clone() for name, tensor in kept.items()}

    def look(self, parts: Sequence[Part]) -> None:
        """Take down log-probabilities and values before the updates; a single one without dropout sees them itself."""
        with torch.no_grad(), dropout_off(self.stage.language_model.model):
            for part in parts:
                flat, states = self.scorer.by_token(part.batch)
                part.old = spread(flat, part.batch)
                part.values = self._values(states, part.batch)

    def update(self, parts: Sequence[Part], objective: OnPolicyObjective, prompts: int) -> float:
        """Return the loss of one optimiser step over all answers, after the step.

        Dropout is keyed by (seed, step, part): all updates of a step drop the same, so that the ratio between them is
        of what was learnt, and a step that is taken again is the same step.

        Raises:
            NumericalError: it is not finite.
        """
        total, device = 0.0, self.stage.language_model.device
        for number, part in enumerate(parts):
            with keyed_dropout(self.stage.training, device, (self.seed, self.memory.step, number)):
                loss = self._loss(part, objective) * (part.batch.shape[0] / prompts)
            if not bool(torch.isfinite(loss)):
                raise NumericalError(f"training: the loss is {loss.item()} at step {self.memory.step + 1}")
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        self._move()
        if self.critic is not None:
            self.critic.step(learning_rate=self.practice.settings["critic_rate"], max_grad_norm=math.inf)
        return total

    def imitate(self, coefficient: float) -> float:
        """Return the loss of one step of its own on answers to imitate (PTX of Safe RLHF), before the step.

        It is ``coefficient`` times the mean negative log-probability of their tokens, in nats; as many examples a
        step as prompts, pass after pass.

        Raises:
            NumericalError: it is not finite.
        """
        model, examples = self.stage.language_model, self.stage.pretraining
        chosen = batch_at(self.memory.step, len(examples), int(self.practice.settings["prompts"]), self.seed)
        count, total = sum(len(examples[k][1]) for k in chosen), 0.0
        size = sequences_at_once(self.stage.training)
        for number, first in enumerate(range(0, len(chosen), size)):
            encoded = [(model.template(examples[k][0]), examples[k][1]) for k in chosen[first : first + size]]
            with keyed_dropout(self.stage.training, model.device, (self.seed, self.memory.step, number)):
                loss = coefficient * token_losses(model, make_batch(model, encoded)).sum() / count
            if not bool(torch.isfinite(loss)):
                raise NumericalError(f"training: the loss of imitation is {loss.item()} at step {self.memory.step + 1}")
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        self._move()
        return total

    def _move(self) -> None:
        """Move the policy along its gradient, at the rate that the schedule has for this step."""
        training = self.stage.training
        share = rate_factor(
            self.memory.step, steps=int(self.practice.settings["total"]), warmup_steps=training.warmup_steps,
            schedule=training.lr_scheduler_type, floor=training.min_lr_ratio,
        )  # fmt: skip
        rate = share * self.practice.settings["learning_rate"]
        self.policy.step(learning_rate=rate, max_grad_norm=training.max_grad_norm)

    def _loss(self, part: Part, objective: OnPolicyObjective) -> Tensor:
        """Return the mean loss over the part's answers."""
        flat, states = self.scorer.by_token(part.batch)
        own, values = spread(flat, part.batch), self._values(states, part.batch)
        if part.old is None:
            part.old, part.values = own.detach(), None if values is None else values.detach()
        if part.anchor is None:
            part.anchor = own.detach()
        if self.critic is None:
            groups, answers = part.batch.shape
            sums = (own * part.mask).sum(dim=1).view(groups, answers)
            return leave_one_out_loss(sums, self._returns(part, objective)).mean()
        advantages, returns = self._advantages(part, objective)
        loss = clipped_policy_loss(own, part.anchor, advantages, part.mask, clip=self.practice.settings["clip"])
        for value, old, target in zip(_known(values), _known(part.values), returns, strict=True):
            loss = loss + clipped_value_loss(value, old, target, part.mask, clip=VALUE_CLIP)
        return loss.mean()

    def _values(self, states: Tensor, batch: TokenBatch) -> Tensor | None:
        """Return ``[stream, sequence, token]``: a linear read-out of states that the critics do not move."""
        if self.critic is None:
            return None
        heads = self.critic.parameters["heads"]
        read = states.detach().to(heads.dtype) / math.sqrt(states.shape[-1])
        flat = read @ heads[:-1] + heads[-1]
        return torch.stack([spread(column, batch) for column in flat.unbind(1)])

    def _advantages(self, part: Part, objective: OnPolicyObjective) -> tuple[Tensor, list[Tensor]]:
        """Return the mixed advantages, and each stream's returns: the reward's first, then those of the costs."""
        log_ratio = _known(part.old) - part.reference
        units = self.practice.cost_units
        streams = [(torch.from_numpy(part.scores.reward.ravel()), log_ratio, objective.kl)]
        for k, costs in enumerate(np.moveaxis(self._costs(part, objective), -1, 0)):
            streams.append((torch.from_numpy(costs.ravel()), -log_ratio, objective.kl * float(units[k])))
        mixed, returns = torch.zeros_like(log_ratio), []
        weights = [1.0, *(-objective.multipliers)]
        for (score, ratio, kl), weight, values in zip(streams, weights, _known(part.values), strict=True):
            given = score.to(ratio.device, ratio.dtype)
            rewards = token_rewards(given, ratio, part.mask, kl=kl)
            advantage, target = generalised_advantages(rewards, values, part.mask)
            mixed = mixed + float(weight) * advantage
            returns.append(target)
        return objective.scale * mixed, returns

    def _returns(self, part: Part, objective: OnPolicyObjective) -> Tensor:
        """Return ``[prompt, answer]``: scale (reward - multipliers . costs) - kl log-ratio, one number an answer."""
        relabelled = part.scores.reward - self._costs(part, objective) @ objective.multipliers
        log_ratio = ((_known(part.old) - part.reference) * part.mask).sum(dim=1).view(part.batch.shape)
        given = torch.from_numpy(relabelled).to(log_ratio.device, log_ratio.dtype)
        return objective.scale * given - objective.kl * log_ratio

    def _costs(self, part: Part, objective: OnPolicyObjective) -> FloatArray:
        """Return the costs, inflated where the objective says so, and 0 where a constraint does not look."""
        if objective.inflation == 0:
            return part.scores.costs
        means, deviations = self.memory.means(), self.memory.deviations()
        raised = inflated_costs(part.scores.costs, means, deviations, inflation=objective.inflation)
        return np.where(part.scores.inside[:, None, :], raised, 0.0)


def _known(value: Tensor | None) -> Tensor:
    assert value is not None, "known from the first look or the first update on"
    return value
