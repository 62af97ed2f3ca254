"""Policies as tables of log-probabilities over a finite world, fitted with the real losses to machine precision."""

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dualign.errors import NumericalError, UsageError
from dualign.maths.adversarial import table_reward
from dualign.maths.one_shot import finite_problem
from dualign.maths.policy_gradient import (
    SETTLED,
    cost_moments,
    largest_move,
    log_best_of,
    mirror_step,
    on_policy_scores,
)
from dualign.maths.preference import relabel
from dualign.protocols import Adversary, FitReport, Need, Objective, OnPolicyObjective, Policy
from dualign.records import FloatArray, Group, Prompt, Response
from dualign.worlds.file import World
from dualign.worlds.pair_newton import Fitted, PairTable, minimise

BUDGET = 300
"""Newton steps of one fit. Soft labels need about the largest gap between neighbouring label logits."""


class TabularBackend:
    """Fits and reads policies ``[prompt, response]`` of one world; padding has log-probability ``-inf``."""

    def __init__(self, world: World, *, budget: int = BUDGET) -> None:
        self._world = world
        self._budget = budget
        self._log_reference = world.problem().log_reference
        self._rows = {group.prompt.id: row for row, group in enumerate(world.groups())}

    @property
    def reference(self) -> Policy:
        """Return the world's reference."""
        return Policy("reference", self._log_reference)

    def fit(
        self,
        groups: Sequence[Group],
        *,
        objective: Objective,
        reference: Policy,
        start: Policy | None,
        seed: int,
        name: str,
    ) -> Policy:
        """Return the policy that minimises ``objective`` over all unordered pairs of each group.

        Prompts without a group keep the reference's probabilities. Drawn labels are drawn once a pair, from ``seed``,
        in the order of the world: the same seed draws the same uniform number for a pair at every multiplier. In the
        place of a gradient by embeddings stands that by the margin, as if their product had norm 1 in every pair.
        The report's history holds one row: the largest entry of the gradient, and ``converged`` 1 or 0.

        Raises:
            NumericalError: a score or a loss is not finite.
            UsageError: the objective needs what a table does not have.
        """
        if Need.TOKENS in objective.needs:
            raise UsageError(f"objective {objective.name!r} needs tokens: a finite world has none; train a model")
        began = time.perf_counter()
        log_reference = self.table(reference)
        rows = [self._row(group) for group in groups]
        if len(set(rows)) < len(rows):
            raise ValueError("a prompt may have one group only")
        table, order = _pair_table(groups, objective, log_reference[rows], seed)
        origin = np.zeros_like(log_reference)
        if start is not None:
            np.subtract(self.table(start), log_reference, out=origin, where=np.isfinite(log_reference))
        # Steps between neighbours in order; padding, which comes last, has none.
        gaps = torch.from_numpy(origin[rows]).gather(1, order).diff(dim=1)
        fitted = minimise(table, objective, start=gaps, budget=self._budget)
        logits_of_policy = log_reference.copy()
        logits_of_policy[rows] += fitted.log_ratios.numpy()
        log_probs = logits_of_policy - np.logaddexp.reduce(logits_of_policy, axis=1, keepdims=True)
        report = _report(table, fitted, objective.beta, time.perf_counter() - began)
        return Policy(name, log_probs, report)

    def sample(self, policy: Policy, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Response]]:
        """Return ``n`` draws for each prompt; their randomness is keyed by the seed and the prompt."""
        table = self.table(policy)
        drawn = []
        for prompt in prompts:
            row = self._rows[prompt.id]
            responses = self._world.prompts[row].responses
            probabilities = np.exp(table[row, : len(responses)])
            generator = np.random.default_rng([seed, row])
            picks = generator.choice(len(responses), size=n, p=probabilities / probabilities.sum())
            drawn.append([Response(responses[k].text, log_prob=float(table[row, k])) for k in picks])
        return drawn

    def log_probs(self, policy: Policy, groups: Sequence[Group]) -> list[FloatArray]:
        """Return for each group the ``[response]`` log-probabilities, in nats."""
        table = self.table(policy)
        return [table[self._row(group), : len(group.responses)].copy() for group in groups]

    def mutual_information(self, policy: Policy, groups: Sequence[Group]) -> list[FloatArray]:
        """Return for each group ``[response]``: log pi(y|x) - log pi(y), in nats; a response is one token.

        pi(y) is the mean of pi(y|x) over the prompts that can get a response of the text y, by their weights.
        """
        table = self.table(policy)
        mass: dict[str, float] = {}
        weight: dict[str, float] = {}
        for row, prompt in enumerate(self._world.prompts):
            # Prompts of weight 0 count where a text has no others.
            share = prompt.weight or 1e-300
            for response, log_prob in zip(prompt.responses, table[row], strict=False):
                mass[response.text] = mass.get(response.text, 0.0) + share * float(np.exp(log_prob))
                weight[response.text] = weight.get(response.text, 0.0) + share
        means = [
            np.array([mass[response.text] / weight[response.text] for response in group.responses]) for group in groups
        ]
        return [values - np.log(mean) for values, mean in zip(self.log_probs(policy, groups), means, strict=True)]

    def improve(
        self, policy: Policy, groups: Sequence[Group], *, objective: OnPolicyObjective, reference: Policy, name: str
    ) -> Policy:
        """Return ``policy`` after one natural-gradient step, exact: no answer is drawn."""
        rows = [self._row(group) for group in groups]
        no_limits, beta = np.zeros(len(objective.multipliers)), objective.kl / objective.scale
        problem = finite_problem(groups, self.table(reference)[rows], limits=no_limits, beta=beta)
        before = self.table(policy)[rows]
        mean, deviation = cost_moments(problem, before)
        scores = on_policy_scores(problem, before, objective.multipliers, inflation=objective.inflation)
        after = mirror_step(before, problem.log_reference, scores / problem.beta, step=objective.step)
        table = self.table(policy).copy()
        table[rows] = after
        moved = largest_move(before, after)
        row = {"moved": moved, "converged": float(moved <= SETTLED)}
        row |= {f"cost_{k}": float(value) for k, value in enumerate(mean)}
        row |= {f"cost_sd_{k}": float(value) for k, value in enumerate(deviation)}
        return Policy(name, table, FitReport(1, float("nan"), float("nan"), 0.0, (row,)))

    def best_of(
        self, groups: Sequence[Group], *, multipliers: FloatArray, n: int, reference: Policy, name: str
    ) -> Policy:
        """Return the policy that draws ``n`` answers of ``reference`` and keeps a best one, in closed form."""
        rows = [self._row(group) for group in groups]
        table = self.table(reference).copy()
        problem = finite_problem(groups, table[rows], limits=np.zeros(len(multipliers)), beta=1.0)
        table[rows] = log_best_of(problem.log_reference, relabel(problem.reward, problem.costs, multipliers), n)
        return _made(name, table)

    def merge(self, first: Policy, second: Policy, *, share: float, name: str) -> Policy:
        """Return ``(1 - share) first + share second`` in log-probabilities, normalised."""
        one, other = self.table(first), self.table(second)
        live = np.isfinite(one)
        mixed = np.full_like(one, -np.inf)
        mixed[live] = (1 - share) * one[live] + share * other[live]
        return _made(name, mixed - np.logaddexp.reduce(mixed, axis=1, keepdims=True))

    def rejudge(
        self,
        policy: Policy,
        groups: Sequence[Group],
        *,
        multipliers: FloatArray,
        adversary: Adversary,
        name: str,  # noqa: ARG002
    ) -> list[Group]:
        """Return the groups with retrained rewards, exact: every answer counts by its probability."""
        retrained = []
        for group, log_probs in zip(groups, self.log_probs(policy, groups), strict=True):
            scores = relabel(group.reward, group.costs, multipliers)
            reward = table_reward(scores, np.exp(log_probs), coefficient=adversary.coefficient)
            retrained.append(replace(group, reward=reward, costs=0 * group.costs))
        return retrained

    def table(self, policy: Policy) -> FloatArray:
        """Return the policy's ``[prompt, response]`` log-probabilities."""
        return self._log_reference if policy.state is None else np.asarray(policy.state)

    def _row(self, group: Group) -> int:
        row = self._rows[group.prompt.id]
        known = [response.text for response in self._world.prompts[row].responses]
        if known != [response.text for response in group.responses]:
            raise ValueError(f"group {group.prompt.id}: a table is fitted on all responses of a prompt, in their order")
        return row


def _pair_table(
    groups: Sequence[Group], objective: Objective, log_reference: FloatArray, seed: int
) -> tuple[PairTable, Tensor]:
    """Return the pairs of ``groups``, and their ``[group, rank]`` columns, worst score first."""
    counts = torch.tensor([len(group.responses) for group in groups])
    width = log_reference.shape[1]
    scores = _padded([relabel(group.reward, group.costs, objective.multipliers) for group in groups], width)
    if not bool(torch.isfinite(scores).all()):
        raise NumericalError(f"objective {objective.name!r}: a score is not finite")
    present = torch.arange(width) < counts[:, None]
    order = torch.where(present, scores, torch.inf).argsort(dim=1, stable=True)
    below = (torch.arange(width - 1) < order.argsort(dim=1)[..., None]).to(torch.float64)
    one, other = torch.triu_indices(width, width, offset=1).unbind()
    real = other < counts[:, None]
    weights = torch.tensor([group.weight for group in groups], dtype=torch.float64)
    share = weights / weights.sum() / real.sum(dim=1)
    logits = (scores[:, one] - scores[:, other]) / objective.temperature
    wins, loses = _labels(objective, logits[real], seed)
    columns = {key: _padded([group.columns[key] for group in groups], width) for key in objective.columns}
    table = PairTable(
        log_reference=torch.from_numpy(log_reference),
        spans=below * present[..., None],
        first=one.expand(len(groups), -1),
        second=other.expand(len(groups), -1),
        real=real,
        weight=share[:, None] * real,
        wins=torch.zeros_like(logits).masked_scatter(real, wins),
        loses=torch.zeros_like(logits).masked_scatter(real, loses),
        label_logit=logits,
        columns=columns,
    )
    return table, order


def _labels(objective: Objective, logits: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return the probabilities that the first side wins, and that it loses.

    1 - p has no digits left where p is near 1. A mode that is a function of the logit gives the complement exactly,
    as its value at the negative logit; where the two do not add up, the labels were drawn, and 1 - p is exact.
    """
    wins, mirrored = (
        objective.labels(value, torch.Generator().manual_seed(seed)).to(torch.float64) for value in (logits, -logits)
    )
    determined = torch.allclose(wins + mirrored, torch.ones_like(wins), rtol=0, atol=1e-12)
    return wins, mirrored if determined else 1 - wins


def _padded(rows: Sequence[FloatArray], width: int) -> Tensor:
    padded = torch.zeros(len(rows), width, dtype=torch.float64)
    for row, values in enumerate(rows):
        padded[row, : len(values)] = torch.from_numpy(np.asarray(values, dtype=np.float64))
    return padded


def _report(table: PairTable, fitted: Fitted, beta: float, seconds: float) -> FitReport:
    """Return the report, with the slope through the origin of beta * h on the labels' logits (1 = fitted)."""
    h = fitted.log_ratios.gather(1, table.first) - fitted.log_ratios.gather(1, table.second)
    spread = float((table.weight * table.label_logit**2).sum())
    slope = beta * float((table.weight * h * table.label_logit).sum()) / spread if spread > 0 else 1.0
    verdict = {"gradient": fitted.gradient, "converged": float(fitted.converged)}
    return FitReport(steps=fitted.steps, loss=fitted.loss, slope=slope, seconds=seconds, history=(verdict,))


def _made(name: str, table: FloatArray) -> Policy:
    """Return a policy that no fit was needed for."""
    return Policy(name, table, FitReport(0, float("nan"), float("nan"), 0.0, ({"converged": 1.0},)))
