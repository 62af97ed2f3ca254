"""Exact figures in the assistant world: every reply's probability, the true problem, and where a gap comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dualign.errors import DataError
from dualign.maths.finite import Expectations, FiniteProblem, expectations
from dualign.records import FloatArray, Prompt
from dualign.worlds.assistant_text import SHAPE, context_numbers

if TYPE_CHECKING:
    from torch import Tensor

    from dualign.backends.protocol import Policy
    from dualign.engine.language_model import LanguageModel

PROMPTS_A_CHUNK = 24
"""Prompts whose prefix trees are in memory together: 24 x 576 prefixes of 13 tokens take about 0.2 GB."""


def enumerate_log_probs(language_model: LanguageModel, policy: Policy, prompts: Sequence[Prompt]) -> FloatArray:
    """Return shape ``[prompt, reply]``: log-probability of every reply, in nats, at the model's temperature.

    Walks the tree of prefixes level by level with a shared key-value cache, so that 1,728 replies cost 789 tokens.
    """
    import torch

    from dualign.engine.adapters import activated

    ids = torch.tensor([language_model.template(prompt) for prompt in prompts])
    with activated(language_model, policy) as model, torch.no_grad():
        parts = [_tree(language_model, model, chunk) for chunk in torch.split(ids, PROMPTS_A_CHUNK)]
    return np.concatenate(parts)


def _tree(language_model: LanguageModel, model: Any, ids: Tensor) -> FloatArray:
    import torch

    options = _slot_tokens(language_model)
    output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    total = torch.zeros(len(ids), 1, dtype=torch.float64)
    for slot, tokens in enumerate(options):
        logits = output.logits[:, -1, tokens].double() / language_model.temperature
        total = (total.reshape(-1, 1) + logits.log_softmax(-1)).reshape(len(ids), -1)
        if slot + 1 < len(options):
            cache = output.past_key_values
            rows = len(output.logits)
            cache.batch_repeat_interleave(len(tokens))
            following = tokens.repeat(rows)[:, None]
            output = model(input_ids=following, past_key_values=cache, use_cache=True)
    array: FloatArray = total.numpy()
    return array


def _slot_tokens(language_model: LanguageModel) -> list[Tensor]:
    """Return the tokens of each slot by option; ids rise with the option, and EOS, which is forced, adds nothing."""
    if language_model.grammar is None:
        raise DataError("assistant world: the language model has no grammar, so its replies cannot be listed")
    slots = [row.nonzero()[:, 0] for row in language_model.grammar[: len(SHAPE)]]
    if tuple(len(tokens) for tokens in slots) != SHAPE:
        raise DataError("assistant world: the grammar is that of another world")
    return slots


def problem(
    prompts: Sequence[Prompt],
    log_reference: FloatArray,
    *,
    reward: FloatArray,
    cost: FloatArray,
    beta: float,
    limit: float,
    where: Mapping[str, str],
) -> FiniteProblem:
    """Return the finite problem of these prompts under tables of scores.

    Args:
        prompts: weighed equally.
        log_reference: shape ``[prompt, reply]``.
        reward: shape ``[context, reply]``, raw units.
        cost: shape ``[context, reply]``, raw units.
        beta: for raw rewards.
        limit: on the mean cost, raw units.
        where: columns that name the slice that the limit is about; empty means all prompts. The cost of the
            others is 0 and that of the slice is divided by its share, so that the mean is that of the slice.
    """
    contexts = context_numbers(prompts)
    inside = np.asarray([all(p.columns[key] == value for key, value in where.items()) for p in prompts])
    if not inside.any():
        raise DataError(f"assistant world: no prompt has {dict(where)}; give prompts of that slice")
    scale = inside / inside.mean()
    return FiniteProblem(
        log_reference - np.logaddexp.reduce(log_reference, axis=1, keepdims=True),
        reward[contexts],
        (cost[contexts] * scale[:, None])[:, :, None],
        np.full(len(prompts), 1 / len(prompts)),
        np.asarray([limit], dtype=float),
        beta,
    )


@dataclass(frozen=True, slots=True)
class Gap:
    """How far a policy is from the optimum: Lagrangian values at the true multiplier, in raw reward units."""

    total: float
    """L(optimum, multiplier) - L(policy, multiplier) = beta E KL(policy || optimum) >= 0."""
    scores: float
    """Part due to the scores: the same for the optimum under the scores that the run used."""
    training: float
    """The rest: margin, finite sampling, the network and its optimiser. May be negative by a little."""


def lagrangian(truth: FiniteProblem, multipliers: FloatArray, log_probs: FloatArray) -> float:
    """Return ``E[reward] - beta KL - multipliers . (E[costs] - limits)`` of a policy."""
    figures: Expectations = expectations(truth, log_probs)
    return float(figures.objective - multipliers @ (figures.costs - truth.limits))


def gap(
    truth: FiniteProblem, *, multipliers: FloatArray, best: FloatArray, believed: FloatArray, policy: FloatArray
) -> Gap:
    """Return the gap of ``policy`` and its two parts.

    Args:
        truth: the problem under the hidden scores.
        multipliers: optimal ones of ``truth``, shape ``[constraint]``.
        best: log-probabilities of the optimum of ``truth``, shape ``[prompt, reply]``.
        believed: those of the optimum under the scores that the run used.
        policy: those of the policy that is judged.
    """
    top = lagrangian(truth, multipliers, best)
    total = top - lagrangian(truth, multipliers, policy)
    scores = top - lagrangian(truth, multipliers, believed)
    return Gap(total, scores, total - scores)
