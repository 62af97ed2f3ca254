"""The methods that can be chosen, one row each; nothing else in the package knows a method by name."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from dualign.maths.conversion import Target as GibbsTarget
from dualign.maths.conversion import from_target, systems
from dualign.maths.dual import DualRule, DualState
from dualign.maths.exact import FiniteProblem, log_policy
from dualign.methods.apo import OPTIONS as APO_OPTIONS
from dualign.methods.apo import apo, apo_target
from dualign.methods.b_dpo import B_DPO, b_dpo
from dualign.methods.best_of_n import OPTIONS as BEST_OF_N_OPTIONS
from dualign.methods.best_of_n import best_of_n, best_of_n_target
from dualign.methods.bfpo import OPTIONS as BFPO_OPTIONS
from dualign.methods.bfpo import bfpo
from dualign.methods.c_dpo import c_dpo
from dualign.methods.caid import OPTIONS as CAID_OPTIONS
from dualign.methods.caid import caid
from dualign.methods.dpo import OPTIONS as DPO_OPTIONS
from dualign.methods.dpo import dpo
from dualign.methods.dr_dpo import DR_DPO, dr_dpo
from dualign.methods.kldpo import KLDPO, kldpo
from dualign.methods.modpo import OPTIONS as MODPO_OPTIONS
from dualign.methods.modpo import modpo
from dualign.methods.options import NO_OPTIONS, Option, Options
from dualign.methods.pd_dpo import pd_dpo
from dualign.methods.pecan import OPTIONS as PECAN_OPTIONS
from dualign.methods.pecan import mocan, pecan, pecan_parameters, pecan_target
from dualign.methods.phases import fixed
from dualign.methods.ppo_lag import OPTIONS as PPO_LAG_OPTIONS
from dualign.methods.ppo_lag import ppo_lag, ppo_lag_parameters, ppo_lag_target
from dualign.methods.reinforce_lag import OPTIONS as REINFORCE_LAG_OPTIONS
from dualign.methods.reinforce_lag import reinforce_lag, reinforce_lag_parameters, reinforce_lag_target
from dualign.methods.repo_dpo import rectified_gibbs, repo_dpo
from dualign.methods.reward_shaping import OPTIONS as REWARD_SHAPING_OPTIONS
from dualign.methods.reward_shaping import reward_shaping
from dualign.methods.sacpo import OPTIONS as SACPO_OPTIONS
from dualign.methods.sacpo import P_SACPO_OPTIONS, p_sacpo, sacpo
from dualign.methods.safedpo import OPTIONS as SAFEDPO_OPTIONS
from dualign.methods.safedpo import safedpo
from dualign.methods.wdpo import WDPO, wdpo
from dualign.protocols import Problem
from dualign.records import FloatArray, Iterate

Target = Callable[[FiniteProblem, FloatArray, Options], FloatArray]
"""(problem, multipliers, options) -> log-probabilities ``[prompt, response]`` of what the method converges to."""
Parameters = Callable[[FloatArray, float, Options], Mapping[str, float]]
"""(multipliers, beta, options), in C-DPO terms -> the method's own parameters."""


def gibbs(problem: FiniteProblem, multipliers: FloatArray, options: Options) -> FloatArray:  # noqa: ARG001
    """Return the Gibbs policy of the multipliers: what most methods aim at."""
    return log_policy(problem, multipliers)


def no_closed_form(problem: FiniteProblem, multipliers: FloatArray, options: Options) -> FloatArray:  # noqa: ARG001
    """Return NaN for every response: the optimum has no closed form."""
    return np.full_like(problem.reward, np.nan)


def unless(option: str) -> Target:
    """Return the Gibbs policy's target where ``option`` is 0, and none otherwise."""

    def target(problem: FiniteProblem, multipliers: FloatArray, options: Options) -> FloatArray:
        return (
            no_closed_form(problem, multipliers, options) if options[option] else gibbs(problem, multipliers, options)
        )

    return target


def c_dpo_parameters(multipliers: FloatArray, beta: float, options: Options) -> Mapping[str, float]:  # noqa: ARG001
    """Return nothing: the method's terms are those of C-DPO."""
    return {}


def converted(system: str) -> Parameters:
    """Return the parameters of ``system`` that mean the same policy; several multipliers count as their sum."""
    row = systems()[system]

    def parameters(multipliers: FloatArray, beta: float, options: Options) -> Mapping[str, float]:
        free = {name: float(options[name]) for name in row.free}
        return from_target(row, GibbsTarget(float(multipliers.sum()), beta), free)

    return parameters


class Run(Protocol):
    """How every method is called; one that has no use for an argument ignores it and says so."""

    def __call__(
        self,
        problem: Problem,
        *,
        rule: DualRule,
        start: FloatArray,
        loss: str = "dpo",
        labels: str = "soft",
        temperature: float = 1.0,
        options: Options = NO_OPTIONS,
    ) -> Generator[Iterate, None, DualState]:
        """Yield an iterate for every policy that was fitted; return the dual's last state."""


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the table."""

    name: str
    run: Run
    source: str
    """Authors, year, arXiv number."""
    needs: tuple[str, ...]
    """What must be there before it runs."""
    weight: Literal["dual rule", "own", "given", "none"]
    """Where the multipliers come from: the dual rule, the method's own search, a hand, or nowhere."""
    reconstruction: bool
    """Whether the method itself, not only its stopping, fills a gap that its source leaves."""
    note: str
    options: tuple[Option, ...] = ()
    """Settings of its own."""
    target: Target = gibbs
    """Its closed form on a finite world with soft labels and the loss ``dpo``; NaN where it has none."""
    parameters: Parameters = c_dpo_parameters
    """Its own names for multipliers and beta."""
    constraint: Literal["mean", "per response", "unsafe at probability 0", "mean, inflated for the test", "none"] = (
        "mean"
    )
    """What it holds to the limits: the mean cost, that mean raised by a test's width, the part of each response's cost
    above 0, no unsafe response at all, or nothing.
    """
    trains: bool = True
    """Whether there are weights of its own; best-of-n has those of the reference."""
    begins_with_dpo: bool = False
    """Whether its policy at multiplier 0, under the loss ``dpo``, is plain DPO on the reward."""


METHODS: Mapping[str, Method] = {
    row.name: row
    for row in (
        Method(
            "c-dpo",
            c_dpo,
            "Liu, Sun & Zheng 2024, arXiv 2403.02475",
            ("reward", "costs", "limits"),
            "dual rule",
            False,
            "rule gradient is the paper's loop; projection, stop, soft labels and the other rules are reconstructions",
            begins_with_dpo=True,
        ),
        Method(
            "dpo",
            dpo,
            "Rafailov et al. 2023, arXiv 2305.18290",
            ("reward",),
            "none",
            False,
            "C-DPO at multiplier 0; limits are measured and ignored",
            options=DPO_OPTIONS,
            constraint="none",
            target=unless("smoothing"),
            begins_with_dpo=True,
        ),
        Method(
            "fixed",
            fixed,
            "C-DPO at one multiplier",
            ("reward", "costs", "multiplier"),
            "given",
            False,
            "one policy at a hand-picked multiplier; without one, the dual rule finds it",
            begins_with_dpo=True,
        ),
        Method(
            "b-dpo",
            b_dpo,
            "Zhao et al. 2026, arXiv 2603.22829",
            ("reward", "costs", "limits", "log-probabilities of bare responses"),
            "dual rule",
            True,
            "weights, scale and estimator of mutual information are in no source; its use under limits is new",
            options=B_DPO.options,
            target=no_closed_form,
        ),
        Method(
            "kldpo",
            kldpo,
            "Xu et al. 2025, arXiv 2502.01930",
            ("reward", "costs", "limits"),
            "dual rule",
            False,
            "robust in a Kullback-Leibler ball; the paper is multiplier 0, its use under limits is new",
            options=KLDPO.options,
        ),
        Method(
            "wdpo",
            wdpo,
            "Xu et al. 2025, arXiv 2502.01930",
            ("reward", "costs", "limits", "input embeddings"),
            "dual rule",
            False,
            "robust in a Wasserstein ball; the paper is multiplier 0, its use under limits is new",
            options=WDPO.options,
        ),
        Method(
            "dr-dpo",
            dr_dpo,
            "Wu et al. 2024, arXiv 2407.07880",
            ("reward", "costs", "limits"),
            "dual rule",
            False,
            "trusts the pairs that it fits; the paper is multiplier 0, its use under limits is new",
            options=DR_DPO.options,
        ),
        Method(
            "apo",
            apo,
            "Cheng et al. 2023, arXiv 2311.08045",
            ("reward", "costs", "limits", "answers of the policy"),
            "dual rule",
            False,
            "reward model against policy; golden answers are the groups' best, light head on models; limits are new",
            options=APO_OPTIONS,
            target=apo_target,
        ),
        Method(
            "pd-dpo",
            pd_dpo,
            "Du, Koong & Srikant 2025, arXiv 2510.05703",
            ("reward", "costs", "limits"),
            "dual rule",
            False,
            "offline two-phase form; its objective is what the abstract forces, rules but gradient are reconstructions",
            parameters=converted("pd-dpo"),
            begins_with_dpo=True,
        ),
        Method(
            "sacpo",
            sacpo,
            "Wachi et al. 2024, arXiv 2404.11049",
            ("reward", "costs", "limits"),
            "dual rule",
            False,
            "two steps, either order; the paper picks the multiplier by hand, the dual rule is new",
            options=SACPO_OPTIONS,
            parameters=converted("sacpo"),
            begins_with_dpo=True,
        ),
        Method(
            "modpo",
            modpo,
            "Zhou et al. 2023, arXiv 2310.03708",
            ("reward", "costs", "limits"),
            "dual rule",
            False,
            "weights are the user's in the paper, the dual rule is new",
            options=MODPO_OPTIONS,
            parameters=converted("modpo"),
            begins_with_dpo=True,
        ),
        Method(
            "mocan",
            mocan,
            "Huang et al. 2024, arXiv 2405.19544",
            ("reward", "costs", "limits", "scored samples of the reference"),
            "own",
            False,
            "one-shot dual, then one fit; the look at the fitted policy is ours",
            begins_with_dpo=True,
        ),
        Method(
            "pecan",
            pecan,
            "Huang et al. 2024, arXiv 2405.19544",
            ("reward and cost preferences", "limits", "the reference's measured costs"),
            "own",
            False,
            "one-shot dual on log-ratios of two preference policies; labels as in the paper's theory, or as released",
            options=PECAN_OPTIONS,
            target=pecan_target,
            parameters=pecan_parameters,
        ),
        Method(
            "caid",
            caid,
            "Zhang et al. 2025, arXiv 2505.19387",
            ("reward", "costs", "limits", "scored samples of the reference"),
            "own",
            False,
            "one-shot start, then a subgradient step a fit, each from the last fit; the stop is a reconstruction",
            options=CAID_OPTIONS,
            begins_with_dpo=True,
        ),
        Method(
            "safedpo",
            safedpo,
            "Kim et al. 2025, arXiv 2505.20065",
            ("reward", "a cost that flags unsafe answers"),
            "none",
            False,
            "unsafe answers get probability 0; limits are measured and ignored",
            options=SAFEDPO_OPTIONS,
            constraint="unsafe at probability 0",
            target=no_closed_form,
        ),
        Method(
            "bfpo",
            bfpo,
            "Zhang et al. 2024, arXiv 2408.15313",
            ("reward", "a cost that flags unsafe answers"),
            "none",
            False,
            "targets of the released program; limits are measured and ignored",
            options=BFPO_OPTIONS,
            constraint="none",
            target=no_closed_form,
        ),
        Method(
            "repo-dpo",
            repo_dpo,
            "Peng et al. 2024, arXiv 2410.19933",
            ("reward", "costs", "limits"),
            "dual rule",
            True,
            "prices max(cost, 0); as relabelling, and with a dual rule, it is a reconstruction",
            target=rectified_gibbs,
            constraint="per response",
        ),
        Method(
            "p-sacpo",
            p_sacpo,
            "Wachi et al. 2024, arXiv 2404.11049",
            ("reward", "costs", "limits"),
            "dual rule",
            False,
            "SACPO merged with its first step: log-probabilities of worlds, weights of models; the dual rule is new",
            options=P_SACPO_OPTIONS,
            parameters=converted("p-sacpo"),
            begins_with_dpo=True,
        ),
        Method(
            "ppo-lag",
            ppo_lag,
            "Dai et al. 2023 (Safe RLHF), arXiv 2310.12773",
            ("reward", "costs", "limits"),
            "own",
            False,
            "own multiplier rule, on its logarithm; exact on worlds; linear critics on models; the stop is ours",
            options=PPO_LAG_OPTIONS,
            target=ppo_lag_target,
            parameters=ppo_lag_parameters,
        ),
        Method(
            "reward-shaping",
            reward_shaping,
            "Dai et al. 2023 (Safe RLHF), arXiv 2310.12773",
            ("reward", "costs", "limits"),
            "dual rule",
            False,
            "PPO on reward - multiplier cost; a weight by hand in the source, the dual rule is new",
            options=REWARD_SHAPING_OPTIONS,
            parameters=converted("reward-shaping"),
        ),
        Method(
            "reinforce-lag",
            reinforce_lag,
            "HC-RLHF 2025, arXiv 2506.08266",
            ("reward", "costs", "limits"),
            "own",
            False,
            "costs inflated for the test to come; exact on worlds, leave-one-out on models; the stop is ours",
            options=REINFORCE_LAG_OPTIONS,
            target=reinforce_lag_target,
            parameters=reinforce_lag_parameters,
            constraint="mean, inflated for the test",
        ),
        Method(
            "best-of-n",
            best_of_n,
            "Beirami et al. 2024, arXiv 2401.01879",
            ("reward", "costs", "limits"),
            "dual rule",
            False,
            "no training: an honest floor; the dual rule is new",
            options=BEST_OF_N_OPTIONS,
            target=best_of_n_target,
            trains=False,
        ),
    )
}
