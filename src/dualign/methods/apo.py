"""APO: a reward model retrained against the policy's answers, and the policy by it (Cheng et al. 2023, 2311.08045)."""

from collections.abc import Generator

import numpy as np

from dualign.errors import UsageError
from dualign.maths.adversarial import adversarial_policy
from dualign.maths.dual import DualRule, DualState
from dualign.maths.exact import FiniteProblem
from dualign.maths.preference import pooled_deviation
from dualign.methods.c_dpo import relabelled
from dualign.methods.loop import dual_loop
from dualign.methods.options import COUNT, NO_OPTIONS, NOT_NEGATIVE, POSITIVE, Option, Options, filled
from dualign.methods.recipe import refuse_slopes
from dualign.protocols import Adversary, Policy, Problem, Rejudges
from dualign.records import FloatArray, Iterate

OPTIONS = (
    Option(
        "coefficient", 0.1, "weight of golden answers over the policy's, the preferences' being 1", within=NOT_NEGATIVE
    ),
    Option("games", 2.0, "rounds of reward model and policy, for every multiplier", within=COUNT),
    Option("answers", 4.0, "on a language model: answers of the policy to each prompt, in each round", within=COUNT),
    Option(
        "ridge",
        1e-3,
        "on a language model: penalty of the reward head, whose features have unit variance",
        within=POSITIVE,
    ),
)


def apo(
    problem: Problem,
    *,
    rule: DualRule,
    start: FloatArray,
    loss: str = "dpo",
    labels: str = "soft",
    temperature: float = 1.0,
    options: Options = NO_OPTIONS,
) -> Generator[Iterate, None, DualState]:
    """Return the generator of one iterate for every multiplier, after some rounds of the game.

    Preferences are those of the relabelled scores; the golden answer of a prompt is the group's best by them, where
    the source asks a stronger model. Each round's reward model begins anew, each policy where the last one stands.

    Raises:
        UsageError: options out of range, a rule that reads the slope of a Gibbs policy, a backend without the game.
    """
    refuse_slopes("apo", rule.name)
    chosen, backend = filled("apo", OPTIONS, options), problem.backend
    games = int(chosen["games"])
    if not isinstance(backend, Rejudges):
        raise UsageError("method.name: needs to retrain a reward model, which this backend cannot")
    adversary = Adversary(float(chosen["coefficient"]), int(chosen["answers"]), float(chosen["ridge"]))

    def fit(multipliers: FloatArray, name: str) -> Policy:
        policy = problem.reference
        for game in range(games):
            groups = backend.rejudge(
                policy, problem.groups, multipliers=multipliers, adversary=adversary, name=f"{name}-{game}"
            )
            policy = problem.backend.fit(
                groups,
                objective=relabelled(0 * multipliers, problem.beta, loss=loss, labels=labels, temperature=temperature),
                reference=problem.reference,
                start=policy if game else None,
                seed=problem.seed,
                name=f"{name}-{game}",
            )
        return policy

    return dual_loop(problem, rule, start, fit)


def apo_target(problem: FiniteProblem, multipliers: FloatArray, options: Options) -> FloatArray:
    """Return the policy after the same rounds, each solved exactly; with coefficient 0 C-DPO's.

    Preferences are read in units of the reward's pooled SD, as in every job.
    """
    rows = np.isfinite(problem.log_reference)
    unit = pooled_deviation(
        [reward[live] for reward, live in zip(problem.reward, rows, strict=True)],
        list(problem.prompt_weights),
        [np.exp(log_probs[live]) for log_probs, live in zip(problem.log_reference, rows, strict=True)],
    )
    return adversarial_policy(
        problem,
        multipliers,
        coefficient=float(options["coefficient"]),
        rounds=int(options["games"]),
        temperature=unit,
    )
