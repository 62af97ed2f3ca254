"""A policy's responses to a set of prompts, scored; and the figures that follow from them, clustered by prompt."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualign.maths import estimates
from dualign.maths.functionals import Functional
from dualign.maths.preference import Scale
from dualign.records import Constraint, Evaluation, FloatArray, Group, Prompt, Response, in_slice


@dataclass(frozen=True, slots=True)
class Scored:
    """The same number of scored responses for each of some prompts, in raw units."""

    prompts: tuple[Prompt, ...]
    responses: tuple[tuple[Response, ...], ...]
    reward: FloatArray
    """Shape ``[prompt, response]``."""
    costs: FloatArray
    """Shape ``[prompt, response, constraint]``; 0 outside a constraint's slice."""
    log_ratio: FloatArray
    """Shape ``[prompt, response]``: log policy - log reference, in nats; its mean estimates the KL."""

    def groups(self) -> list[Group]:
        """Return one group a row; a prompt that stands in several rows weighs as much as any other."""
        rows_of = Counter(prompt.id for prompt in self.prompts)
        return [
            Group(prompt, responses, reward, costs, 1 / rows_of[prompt.id])
            for prompt, responses, reward, costs in zip(
                self.prompts, self.responses, self.reward, self.costs, strict=True
            )
        ]

    def take(self, keep: Sequence[int]) -> "Scored":
        """Return the prompts at ``keep``."""
        return replace(
            self,
            prompts=tuple(self.prompts[k] for k in keep),
            responses=tuple(self.responses[k] for k in keep),
            reward=self.reward[list(keep)],
            costs=self.costs[list(keep)],
            log_ratio=self.log_ratio[list(keep)],
        )


def matches(prompt: Prompt, where: Mapping[str, str]) -> bool:
    """Return whether a prompt lies in the slice that ``where`` names."""
    return in_slice(prompt.columns, where)


def slice_of(prompts: Sequence[Prompt], where: Mapping[str, str]) -> NDArray[np.int64]:
    """Return the indices of the prompts in the slice, shape ``[kept]``."""
    return np.array([k for k, prompt in enumerate(prompts) if matches(prompt, where)], dtype=np.int64)


def inside(prompts: Sequence[Prompt], constraints: Sequence[Constraint]) -> NDArray[np.bool_]:
    """Return whether each constraint looks at each prompt, shape ``[prompt, constraint]``."""
    seen = [[matches(prompt, constraint.where) for constraint in constraints] for prompt in prompts]
    return np.array(seen, dtype=np.bool_).reshape(len(prompts), len(constraints))


def constrained(prompts: Sequence[Prompt], constraints: Sequence[Constraint]) -> list[Prompt]:
    """Return the prompts in some constraint's slice, in their order."""
    return [prompt for prompt, seen in zip(prompts, inside(prompts, constraints), strict=True) if seen.any()]


def response_columns(prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]]) -> dict[str, list[Any]]:
    """Return the table of one row a response."""
    rows = [(prompt.id, one) for prompt, row in zip(prompts, responses, strict=True) for one in row]
    return {
        "prompt_id": [prompt for prompt, _ in rows],
        "response": [one.text for _, one in rows],
        "tokens": [list(one.tokens) for _, one in rows],
        "log_prob": [one.log_prob for _, one in rows],
        "finished": [one.finished for _, one in rows],
    }


def read_responses(columns: Mapping[str, list[Any]], n: int) -> list[list[Response]]:
    """Return what ``response_columns`` made a table of, ``n`` responses a prompt."""
    parts = zip(columns["response"], columns["tokens"], columns["log_prob"], columns["finished"], strict=True)
    rows = [Response(text, tuple(tokens), log_prob, finished) for text, tokens, log_prob, finished in parts]
    return [rows[k : k + n] for k in range(0, len(rows), n)]


def to_columns(scored: Scored, names: Sequence[str]) -> dict[str, list[Any]]:
    """Return the table of one row a response; ``names`` are the constraints'."""
    costs = {f"cost_{name}": scored.costs[:, :, i].ravel().tolist() for i, name in enumerate(names)}
    figures = {"log_ratio": scored.log_ratio.ravel().tolist(), "reward": scored.reward.ravel().tolist()}
    return response_columns(scored.prompts, scored.responses) | figures | costs


def from_columns(columns: Mapping[str, list[Any]], prompts: Sequence[Prompt], names: Sequence[str]) -> Scored:
    """Return what ``to_columns`` wrote, for the same prompts in the same order."""
    shape = (len(prompts), len(columns["reward"]) // max(len(prompts), 1))
    costs = [np.array(columns[f"cost_{name}"], dtype=np.float64).reshape(shape) for name in names]
    return Scored(
        prompts=tuple(prompts),
        responses=tuple(map(tuple, read_responses(columns, shape[1]))),
        reward=np.array(columns["reward"], dtype=np.float64).reshape(shape),
        costs=np.stack(costs, axis=-1),
        log_ratio=np.array(columns["log_ratio"], dtype=np.float64).reshape(shape),
    )


def transformed(costs: FloatArray, functionals: Sequence[Functional], baseline: FloatArray | None) -> FloatArray:
    """Return the costs whose means the functionals bound, shape ``[prompt, response, constraint]``.

    ``baseline`` (``[prompt, constraint]``) is each prompt's mean cost under the reference, for relative limits.
    """
    columns = []
    for i, functional in enumerate(functionals):
        reference = None if baseline is None else baseline[:, i : i + 1]
        columns.append(functional.transform(costs[:, :, i], reference))
    return np.stack(columns, axis=-1)


def clustered(prompt_means: FloatArray) -> tuple[float, float, float]:
    """Return mean, standard error and spread (SD over prompts) of prompt means; below two prompts: infinite doubt."""
    if len(prompt_means) < 2:
        return (float(prompt_means[0]) if len(prompt_means) else np.nan), np.inf, np.inf
    spread = float(prompt_means.std(ddof=1))
    return float(prompt_means.mean()), spread / np.sqrt(len(prompt_means)), spread


def unit_means(prompt_means: FloatArray, units: NDArray[np.str_]) -> FloatArray:
    """Return shape ``[unit]``: prompts of one cluster are averaged first, so that each unit weighs equally.

    Prompts that stand alone keep their order, and so does every bit of their mean.
    """
    names, place = np.unique(units, return_inverse=True)
    return prompt_means if names.size == units.size else estimates.prompt_means(prompt_means, place)


def evaluate(
    scored: Scored,
    constraints: Sequence[Constraint],
    functionals: Sequence[Functional],
    *,
    beta: float,
    baseline: FloatArray | None = None,
) -> Evaluation:
    """Return the figures of one policy in raw units; ``beta`` (raw) makes the slope of a Gibbs policy.

    Functionals with a threshold (CVaR) are refitted on these prompts.
    """
    slices = [slice_of(scored.prompts, constraint.where) for constraint in constraints]
    fitted = [f.fit(scored.costs[rows, :, i]) for i, (f, rows) in enumerate(zip(functionals, slices, strict=True))]
    values = transformed(scored.costs, fitted, baseline)
    units = np.array([prompt.cluster for prompt in scored.prompts], dtype=np.str_)
    figures = [clustered(unit_means(values[rows, :, i].mean(axis=1), units[rows])) for i, rows in enumerate(slices)]
    reward, reward_error, _ = clustered(unit_means(scored.reward.mean(axis=1), units))
    kl, kl_error, _ = clustered(unit_means(scored.log_ratio.mean(axis=1), units))
    costs, errors, spreads = (np.array(column) for column in zip(*figures, strict=True))
    lengths = [len(response.tokens) for row in scored.responses for response in row]
    finished = [response.finished for row in scored.responses for response in row]
    return Evaluation(
        reward=reward,
        reward_error=reward_error,
        costs=costs,
        cost_errors=errors,
        cost_spreads=spreads,
        kl=kl,
        kl_error=kl_error,
        n_prompts=len(scored.prompts),
        slope=gibbs_slope(values, slices, beta),
        extra={"tokens": float(np.mean(lengths)), "finished": float(np.mean(finished))},
    )


def gibbs_slope(values: FloatArray, slices: Sequence[NDArray[np.int64]], beta: float) -> FloatArray | None:
    """Return ``-E_x Cov(c_i, c_j | x) / beta`` over the slice of i, shape ``[constraint, constraint]``.

    None with one response a prompt: a covariance within the prompt needs two.
    """
    if values.shape[1] < 2:
        return None
    centred = values - values.mean(axis=1, keepdims=True)
    covariance = np.einsum("pki,pkj->pij", centred, centred) / (values.shape[1] - 1)
    return -np.array([covariance[rows, i].mean(axis=0) for i, rows in enumerate(slices)]) / beta


def normalised(evaluation: Evaluation, scale: Scale) -> Evaluation:
    """Return ``evaluation`` in units of the scale: reward / s_r, costs / s_i."""
    slope = evaluation.slope
    return replace(
        evaluation,
        reward=evaluation.reward / scale.reward_sd,
        reward_error=evaluation.reward_error / scale.reward_sd,
        costs=evaluation.costs / scale.cost_sds,
        cost_errors=evaluation.cost_errors / scale.cost_sds,
        cost_spreads=evaluation.cost_spreads / scale.cost_sds,
        # d(c_i / s_i) / d(lambda_j s_j / s_r)
        slope=None if slope is None else scale.slope(slope),
    )
