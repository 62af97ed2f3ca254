"""``plan`` and ``solve``: what to expect before any training, and any method on a finite world. No torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dualign.data.score_file import Scores, read_scores
from dualign.data.splits import near_clusters
from dualign.errors import ArgumentError, NumericalError, nearest
from dualign.face.inputs import Named, Rows, by_name, number, table_in
from dualign.hashing import plain
from dualign.maths.exact import Expectations, FiniteProblem
from dualign.maths.one_shot import OneShot, from_problem, frontier
from dualign.maths.preference import pooled_deviation
from dualign.records import FloatArray

if TYPE_CHECKING:
    from dualign.worlds.file import World

LOWEST = "the smallest cost that these responses can reach"


@dataclass(frozen=True)
class Plan:
    """What to expect before any training; ``figures`` is the object that ``dualign plan --json`` prints."""

    figures: Mapping[str, Any]
    reward_sd: float
    """Pooled SD of the reward within a prompt: the unit of normalised scores."""
    notes: tuple[str, ...] = ()
    """What a reader should know of the rows."""

    @property
    def feasible(self) -> bool:
        """Return whether these responses can be reweighted to meet the limits."""
        return bool(self.figures["feasible"])

    @property
    def multipliers(self) -> Mapping[str, float | None]:
        """Return the multiplier of each limit, raw; none where they cannot be met."""
        return dict(self.figures["multipliers"])

    @property
    def beta_raw(self) -> float:
        """Return beta in reward units: what ``plan`` was given."""
        return float(self.figures["beta"])

    @property
    def beta_normalised(self) -> float:
        """Return beta for normalised scores: what ``align`` and ``CDPOConfig`` take."""
        return self.beta_raw / self.reward_sd

    def frontier(self) -> list[dict[str, Any]]:
        """Return reward, costs and KL along growing multipliers, a row a point."""
        return [dict(row) for row in self.figures["frontier"]]


def plan(
    scores: Scores | Rows | str | Path, limits: Named, *, beta: float, columns: Mapping[str, str] | None = None
) -> Plan:
    """Return what to expect before any training: are the limits in reach, at which multipliers, for what reward.

    Args:
        scores: rows (frame, data set, list of mappings) of ``prompt``, ``reward``, ``cost`` or ``cost_NAME``, two or
            more a prompt, sampled from the reference; optional ``weight`` and ``prompt_weight``; or a file of them, or
            a run directory.
        limits: largest mean cost allowed; with named costs ``{name: limit}``.
        beta: strength of the KL term in raw reward units; ``Plan.beta_normalised`` is what ``align`` takes.
        columns: column of the table by the name it is read as, ``{"cost": "harm_score"}``.

    Raises:
        ArgumentError: an argument that is impossible.
        DataError: a row that is wrong; it is named.
    """
    beta = number("beta", beta, above=0)
    if isinstance(scores, Scores):
        content = scores
    else:
        given = scores if isinstance(scores, str | Path) else table_in("scores", scores)
        content = read_scores(given, columns=columns)
    names = list(content.costs)
    chosen = by_name("limit", limits, names, bare="cost" if names == ["cost"] else None)
    figures = _plan_figures(content, {name: number(f"limit {name}", value) for name, value in chosen.items()}, beta)
    real = np.isfinite(content.log_weights)
    rewards = [row[there] for row, there in zip(content.reward, real, strict=True)]
    shares = [np.exp(row[there]) for row, there in zip(content.log_weights, real, strict=True)]
    deviation = pooled_deviation(rewards, list(content.prompt_weights), None if content.draws else shares)
    return Plan(figures, deviation, content.notes)


def _plan_figures(scores: Scores, limits: Mapping[str, float], beta: float) -> dict[str, Any]:
    """Return the plan's JSON object, raw units; what has no value (a multiplier where infeasible) is None.

    ``limits`` names costs of ``scores``; costs without a limit play no part.

    Raises:
        NumericalError: the scores are too large for ``beta`` to leave a finite number.
    """
    names = list(limits)
    clusters = near_clusters(scores.asked)
    units = np.unique([clusters[prompt.id] for prompt in scores.asked], return_inverse=True)[1]
    n_prompts, n_units = len(scores.asked), len(set(clusters.values()))
    counted = f"{n_prompts} prompts are {n_units} units (near-copies count once): errors are those of {n_units}"
    near_copies = [] if n_units == n_prompts else [counted]
    # Costs about a slice were divided by its share: the multiplier of the costs as they were is larger by as much.
    shares = np.array([scores.shares.get(name, 1.0) for name in names])
    shot = _solve(scores, limits, beta, units)
    found = shot.diagnostics

    def named(values: FloatArray) -> dict[str, float]:
        return dict(zip(names, values.tolist(), strict=True))

    def achieved(found: Expectations) -> dict[str, Any]:
        return {"reward": found.reward, "costs": named(found.costs), "kl": found.kl}

    reference = achieved(shot.reference)
    del reference["kl"]  # of the reference to itself
    figures = {
        "feasible": shot.feasible,
        "beta": beta,
        "limits": dict(limits),
        "multipliers": named(shot.multipliers / shares),
        "predicted": achieved(shot.predicted),
        "reference": reference,
        "attainable": named(shot.attainable),
        "multiplier_error": named(shot.multiplier_error / shares),
        "diagnostics": {
            "ess_median": found.ess_median,
            "ess_share_below_5": found.ess_share_below_5,
            "logit_spread": found.logit_spread,
            "kl_saturation": found.kl_saturation,
        },
        "warnings": [*_infeasible(names, shot), *shot.warnings, *near_copies],
        "frontier": [
            {"multipliers": named(multipliers / shares)} | achieved(found) for multipliers, found in frontier(shot)
        ],
        "n_prompts": n_prompts,
        "n_units": n_units,
    }
    return dict(plain(figures))


def _solve(scores: Scores, limits: Mapping[str, float], beta: float, units: NDArray[np.intp]) -> OneShot:
    """Return the offline dual; overflow is an error here, because a NaN would pass for a verdict."""
    problem = FiniteProblem(
        log_reference=scores.log_weights,
        reward=scores.reward,
        costs=np.stack([scores.costs[name] for name in limits], axis=-1),
        prompt_weights=scores.prompt_weights,
        limits=np.array(list(limits.values()), dtype=np.float64),
        beta=beta,
    )
    try:
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            return from_problem(problem, draws=scores.draws, units=units)
    except (FloatingPointError, ArithmeticError, np.linalg.LinAlgError) as error:
        raise NumericalError(f"plan: {error}; the scores are too large for beta {beta:g}: rescale them") from error


def _infeasible(names: Sequence[str], shot: OneShot) -> list[str]:
    if shot.feasible:
        return []
    if len(names) == 1:
        return [f"limit {shot.problem.limits[0]:g} of {names[0]!r} is not above {shot.attainable[0]:g}, {LOWEST}"]
    said = [
        f"limit {limit:g} of {name!r} is not above {low:g}, {LOWEST}"
        for name, limit, low in zip(names, shot.problem.limits, shot.attainable, strict=True)
        if limit <= low
    ]
    return said or [f"no policy meets the limits of {', '.join(names)} together, though each alone can be met"]


@dataclass(frozen=True)
class Solution:
    """What a method finds in a finite world; ``figures`` is the object that ``dualign solve --json`` prints."""

    figures: Mapping[str, Any]
    policy: Mapping[str, Any]
    """The responses of each prompt with their probabilities: the object of ``dualign solve --policy``."""

    @property
    def feasible(self) -> bool:
        """Return whether some policy meets the limits."""
        return bool(self.figures["feasible"])

    @property
    def limits_met(self) -> bool:
        """Return whether this policy does."""
        return bool(self.figures["limits_met"])

    @property
    def multipliers(self) -> Mapping[str, float | None]:
        """Return the multiplier of each limit, raw."""
        return dict(self.figures["multipliers"])

    @property
    def beta_raw(self) -> float:
        """Return beta in reward units: the world's, or what ``solve`` was given."""
        return float(self.figures["beta"])

    @property
    def beta_normalised(self) -> float:
        """Return beta for normalised scores: what ``align`` and ``CDPOConfig`` take."""
        return self.beta_raw / float(self.figures["parameters"]["reward_sd"])

    def frontier(self) -> list[dict[str, Any]]:
        """Return the figures of every policy that was fitted, a row a round."""
        return [dict(row) for row in self.figures["iterates"]]


def solve(
    world: "World | Mapping[str, Any] | str | Path",
    *,
    method: str = "c-dpo",
    limits: Named | None = None,
    beta: float | None = None,
    multipliers: Named | None = None,
    **settings: Any,
) -> Solution:
    """Return what a method finds in a finite world, against the exact optimum.

    Args:
        world: ``{"beta": b, "limits": {name: d}, "prompts": [{"prompt", "weight", "responses": [{"response",
            "reference", "reward", "costs": {name: c}}]}]}``, or a JSON file of that.
        method: a method of the table that ``dualign methods`` prints.
        limits: in the place of the world's.
        beta: strength of the KL term in raw reward units, in the place of the world's; ``Solution.beta_normalised`` is
            what ``align`` takes.
        multipliers: use these, raw, and search none.
        settings: ``dual``, ``start``, ``step``, ``loss``, ``labels``, ``temperature``, ``seed``, ``interpolate``,
            ``options``, as in ``dualign.worlds.solving:SolveSettings``.

    Raises:
        ArgumentError, UsageError: an unknown name, or a choice that does not fit the world.
        DataError: something in the world that is wrong; its place is named.
    """
    from dualign.worlds.file import World, load_world, parse_world
    from dualign.worlds.solving import SolveSettings, policy_table
    from dualign.worlds.solving import solve as run

    if isinstance(world, Mapping):
        world = parse_world(json.dumps(world, default=_json), where="world")
    elif not isinstance(world, World):
        world = load_world(Path(world))
    names = world.names
    bare = names[0] if len(names) == 1 else None
    if beta is not None:
        world = replace(world, beta=number("beta", beta, above=0))
    if limits is not None:
        found = {n: number(f"limit {n}", v) for n, v in by_name("limit", limits, names, bare=bare).items()}
        world = replace(world, limits={**world.limits, **found})
    known = [field.name for field in fields(SolveSettings)]
    for name in settings:
        if name not in known:
            raise ArgumentError(f"{name}: no such argument; {nearest(name, [*known, 'limits', 'beta'])}")
    chosen = None if multipliers is None else _multipliers(multipliers, names, bare)
    solution = run(world, SolveSettings(method=method, multipliers=chosen, **settings))
    return Solution(solution.figures, policy_table(world, solution))


def _multipliers(given: Named, names: Sequence[str], bare: str | None) -> FloatArray:
    """Return the multiplier of every limit."""
    found = by_name("multiplier", given, names, bare=bare)
    for name in names:
        if name not in found:
            raise ArgumentError(f"multiplier: {name!r} has none; give {name}=X too")
        if number(f"multiplier {name}", found[name]) < 0:
            raise ArgumentError(f"multiplier {name}: must be 0 or more, got {found[name]:g}")
    return np.array([found[name] for name in names], dtype=np.float64)


def _json(value: object) -> Any:
    """Return an array or a scalar of numpy as JSON has it."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise ArgumentError(f"world: holds {type(value).__name__}; numbers, texts, lists and mappings are needed")
