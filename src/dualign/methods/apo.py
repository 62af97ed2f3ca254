"""APO: a reward model retrained against the policy's answers, and the policy by it (Cheng et al. 2023, 2311.08045)."""

from collections.abc import Generator

import numpy as np

from dualign.errors import UsageError
from dualign.maths.adversarial import adversarial_policy
from dualign.maths.dual import DualState
from dualign.maths.exact import FiniteProblem
from dualign.maths.preference import pooled_deviation
from dualign.methods.c_dpo import relabelled
from dualign.methods.loop import dual_loop, fitted
from dualign.methods.options import COUNT, NOT_NEGATIVE, POSITIVE, Option, Options, Settings
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


def apo(problem: Problem, settings: Settings) -> Generator[Iterate, None, DualState]:
    """Return the generator of one iterate for every multiplier, after some rounds of the game.

    Preferences are those of the relabelled scores; the golden answer of a prompt is the group's best by them, where
    the source asks a stronger model. Each round's reward model begins anew, each policy where the last one stands.

    Raises:
        UsageError: a rule that reads the slope of a Gibbs policy, a backend without the game.
    """
    refuse_slopes("apo", settings.rule.name)
    options, backend = settings.options, problem.backend
    if not isinstance(backend, Rejudges):
        raise UsageError("method.name: needs to retrain a reward model, which this backend cannot")
    adversary = Adversary(float(options["coefficient"]), int(options["answers"]), float(options["ridge"]))
    plain = relabelled(np.zeros_like(problem.limits), problem.beta, settings)

    def fit(multipliers: FloatArray, name: str) -> Policy:
        policy: Policy | None = None
        for game in range(int(options["games"])):
            part = f"{name}-{game}"
            groups = backend.rejudge(
                policy or problem.reference, problem.groups, multipliers=multipliers, adversary=adversary, name=part
            )
            policy = fitted(problem, plain, part, groups=groups, start=policy)
        assert policy is not None
        return policy

    return dual_loop(problem, settings, fit)


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
