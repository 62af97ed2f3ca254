"""The methods that can be chosen, one row each; nothing else in the package knows a method by name."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from dualign.errors import UsageError
from dualign.maths.conversion import Target as GibbsTarget
from dualign.maths.conversion import from_target, systems
from dualign.maths.dual import DualState
from dualign.maths.exact import FiniteProblem, log_policy
from dualign.methods import (
    apo,
    best_of_n,
    c_dpo,
    flagged,
    lagrangian,
    one_shot,
    pecan,
    recipes,
    two_step,
)
from dualign.methods.options import Option, Options, Settings, filled
from dualign.methods.recipe import Recipe
from dualign.protocols import Problem
from dualign.records import FloatArray, Iterate

Run = Callable[[Problem, Settings], Generator[Iterate, None, DualState]]
"""Yields an iterate for every policy that was fitted, and returns the dual's last state."""
Target = Callable[[FiniteProblem, FloatArray, Options], FloatArray]
"""(problem, multipliers, options) -> log-probabilities ``[prompt, response]`` of what the method converges to."""
Parameters = Callable[[FloatArray, float, Options], Mapping[str, float]]
"""(multipliers, beta, options), in C-DPO terms -> the method's own parameters."""


def gibbs(problem: FiniteProblem, multipliers: FloatArray, _options: Options) -> FloatArray:
    """Return the Gibbs policy of the multipliers: what most methods aim at."""
    return log_policy(problem, multipliers)


def no_closed_form(problem: FiniteProblem, _multipliers: FloatArray, _options: Options) -> FloatArray:
    """Return NaN for every response: the optimum has no closed form."""
    return np.full_like(problem.reward, np.nan)


def unless(option: str, target: Target = gibbs) -> Target:
    """Return ``target`` where ``option`` is 0, and none otherwise."""
    return lambda problem, multipliers, options: (no_closed_form if options[option] else target)(
        problem, multipliers, options
    )


def converted(system: str) -> Parameters:
    """Return the parameters of ``system`` that mean the same policy; several multipliers count as their sum."""
    row = systems()[system]

    def parameters(multipliers: FloatArray, beta: float, options: Options) -> Mapping[str, float]:
        free = {name: float(options[name]) for name in row.free}
        return from_target(row, GibbsTarget(float(multipliers.sum()), beta), free)

    return parameters


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the table."""

    name: str
    algorithm: Run
    """Is given every option that the row names."""
    source: str
    """Authors, year, arXiv number."""
    note: str
    """What is the paper's and what is ours."""
    needs: tuple[str, ...] = ("reward", "costs", "limits")
    """What must be there before it runs."""
    weight: Literal["dual rule", "own", "given", "none"] = "dual rule"
    """Where the multipliers come from: the dual rule, the method's own search, a hand, or nowhere."""
    reconstruction: bool = False
    """Whether the method itself, not only its stopping, fills a gap that its source leaves."""
    options: tuple[Option, ...] = ()
    """Settings of its own."""
    target: Target = gibbs
    """Its closed form on a finite world with soft labels and the loss ``dpo``; NaN where it has none."""
    parameters: Parameters = lambda _multipliers, _beta, _options: {}
    """Its own names for multipliers and beta; none where they are those of C-DPO."""
    constraint: Literal["mean", "per response", "unsafe at probability 0", "mean, inflated for the test", "none"] = (
        "mean"
    )
    """What it holds to the limits: the mean cost, that mean raised by a test's width, the part of each response's cost
    above 0, no unsafe response at all, or nothing.
    """
    trains: bool = True
    """Whether there are weights of its own; best-of-n has those of the reference."""
    own_loss: bool = False
    """Whether it has a loss of its own, or none, so that no other can be asked for."""
    begins_with_dpo: bool = False
    """Whether its policy at multiplier 0, under the loss ``dpo``, is plain DPO on the reward."""

    def run(self, problem: Problem, settings: Settings) -> Generator[Iterate, None, DualState]:
        """Yield an iterate for every policy that was fitted; return the dual's last state.

        Raises:
            UsageError: a loss where the method has its own, options that it does not know or that are out of range, and
                what the method itself refuses.
        """
        if self.own_loss and settings.loss not in ("dpo", self.name):
            raise UsageError(f"loss: {self.name} has its own, {settings.loss!r} was given; leave it out")
        options = filled(self.name, self.options, settings.options)
        loss = "dpo" if self.own_loss else settings.loss
        return self.algorithm(problem, replace(settings, loss=loss, options=options))


def of_loss(recipe: Recipe, source: str, note: str, **more: Any) -> Method:
    """Return the row of a loss that the dual loop is run with, and that takes no other."""
    return Method(recipe.name, recipe.run, source, note, options=recipe.options, own_loss=True, **more)


METHODS: Mapping[str, Method] = {
    row.name: row
    for row in (
        Method(
            "c-dpo",
            c_dpo.c_dpo,
            "Liu, Sun & Zheng 2024, arXiv 2403.02475",
            "rule gradient is the paper's loop; projection, stop, soft labels and the other rules are reconstructions",
            begins_with_dpo=True,
        ),
        Method(
            "dpo",
            c_dpo.dpo,
            "Rafailov et al. 2023, arXiv 2305.18290",
            "C-DPO at multiplier 0; limits are measured and ignored",
            needs=("reward",),
            weight="none",
            options=c_dpo.DPO_OPTIONS,
            constraint="none",
            target=unless("smoothing"),
            begins_with_dpo=True,
        ),
        Method(
            "fixed",
            c_dpo.fixed,
            "C-DPO at one multiplier",
            "one policy at a hand-picked multiplier; without one, the dual rule finds it",
            needs=("reward", "costs", "multiplier"),
            weight="given",
            begins_with_dpo=True,
        ),
        of_loss(
            recipes.B_DPO,
            "Zhao et al. 2026, arXiv 2603.22829",
            "weights, scale and estimator of mutual information are in no source; its use under limits is new",
            needs=("reward", "costs", "limits", "log-probabilities of bare responses"),
            reconstruction=True,
            target=no_closed_form,
        ),
        of_loss(
            recipes.KLDPO,
            "Xu et al. 2025, arXiv 2502.01930",
            "robust in a Kullback-Leibler ball; the paper is multiplier 0, its use under limits is new",
        ),
        of_loss(
            recipes.WDPO,
            "Xu et al. 2025, arXiv 2502.01930",
            "robust in a Wasserstein ball; the paper is multiplier 0, its use under limits is new",
            needs=("reward", "costs", "limits", "input embeddings"),
        ),
        of_loss(
            recipes.DR_DPO,
            "Wu et al. 2024, arXiv 2407.07880",
            "trusts the pairs that it fits; the paper is multiplier 0, its use under limits is new",
        ),
        of_loss(
            recipes.SIMPO,
            "Meng et al. 2024, arXiv 2405.14734",
            "no reference, means over tokens, a margin; labels from scores and its use under limits are new",
            target=unless("gamma_beta_ratio", recipes.simpo_target),
        ),
        Method(
            "apo",
            apo.apo,
            "Cheng et al. 2023, arXiv 2311.08045",
            "reward model against policy; golden answers are the groups' best, light head on models; limits are new",
            needs=("reward", "costs", "limits", "answers of the policy"),
            options=apo.OPTIONS,
            target=apo.apo_target,
        ),
        Method(
            "pd-dpo",
            two_step.pd_dpo,
            "Du, Koong & Srikant 2025, arXiv 2510.05703",
            "offline two-phase form; its objective is what the abstract forces, rules but gradient are reconstructions",
            parameters=converted("pd-dpo"),
            begins_with_dpo=True,
        ),
        Method(
            "sacpo",
            two_step.sacpo,
            "Wachi et al. 2024, arXiv 2404.11049",
            "two steps, either order; the paper picks the multiplier by hand, the dual rule is new",
            options=two_step.SACPO_OPTIONS,
            parameters=converted("sacpo"),
            begins_with_dpo=True,
        ),
        Method(
            "modpo",
            two_step.modpo,
            "Zhou et al. 2023, arXiv 2310.03708",
            "weights are the user's in the paper, the dual rule is new",
            options=two_step.MODPO_OPTIONS,
            parameters=converted("modpo"),
            begins_with_dpo=True,
        ),
        Method(
            "mocan",
            one_shot.mocan,
            "Huang et al. 2024, arXiv 2405.19544",
            "one-shot dual, then one fit; the look at the fitted policy is ours",
            needs=("reward", "costs", "limits", "scored samples of the reference"),
            weight="own",
            begins_with_dpo=True,
        ),
        Method(
            "pecan",
            pecan.pecan,
            "Huang et al. 2024, arXiv 2405.19544",
            "one-shot dual on log-ratios of two preference policies; labels as in the paper's theory, or as released",
            needs=("reward and cost preferences", "limits", "the reference's measured costs"),
            weight="own",
            options=pecan.OPTIONS,
            target=pecan.pecan_target,
            parameters=pecan.pecan_parameters,
        ),
        Method(
            "caid",
            one_shot.caid,
            "Zhang et al. 2025, arXiv 2505.19387",
            "one-shot start, then a subgradient step a fit, each from the last fit; the stop is a reconstruction",
            needs=("reward", "costs", "limits", "scored samples of the reference"),
            weight="own",
            options=one_shot.CAID_OPTIONS,
            begins_with_dpo=True,
        ),
        Method(
            "safedpo",
            flagged.safedpo,
            "Kim et al. 2025, arXiv 2505.20065",
            "unsafe answers get probability 0; limits are measured and ignored",
            needs=("reward", "a cost that flags unsafe answers"),
            weight="none",
            options=flagged.SAFEDPO_OPTIONS,
            constraint="unsafe at probability 0",
            target=no_closed_form,
            own_loss=True,
        ),
        Method(
            "bfpo",
            flagged.bfpo,
            "Zhang et al. 2024, arXiv 2408.15313",
            "targets of the released program; limits are measured and ignored",
            needs=("reward", "a cost that flags unsafe answers"),
            weight="none",
            options=flagged.BFPO_OPTIONS,
            constraint="none",
            target=no_closed_form,
            own_loss=True,
        ),
        Method(
            "repo-dpo",
            c_dpo.repo_dpo,
            "Peng et al. 2024, arXiv 2410.19933",
            "prices max(cost, 0); as relabelling, and with a dual rule, it is a reconstruction",
            reconstruction=True,
            target=c_dpo.rectified_gibbs,
            constraint="per response",
        ),
        Method(
            "p-sacpo",
            two_step.p_sacpo,
            "Wachi et al. 2024, arXiv 2404.11049",
            "SACPO merged with its first step: log-probabilities of worlds, weights of models; the dual rule is new",
            options=two_step.P_SACPO_OPTIONS,
            parameters=converted("p-sacpo"),
            begins_with_dpo=True,
        ),
        Method(
            "ppo-lag",
            lagrangian.ppo_lag,
            "Dai et al. 2023 (Safe RLHF), arXiv 2310.12773",
            "own multiplier rule, on its logarithm; exact on worlds; linear critics on models; the stop is ours",
            weight="own",
            options=lagrangian.PPO_LAG_OPTIONS,
            target=lagrangian.ppo_lag_target,
            parameters=lagrangian.multiplier_and_kappa,
            own_loss=True,
        ),
        Method(
            "reward-shaping",
            lagrangian.reward_shaping,
            "Dai et al. 2023 (Safe RLHF), arXiv 2310.12773",
            "PPO on reward - multiplier cost; a weight by hand in the source, the dual rule is new",
            options=lagrangian.REWARD_SHAPING_OPTIONS,
            parameters=converted("reward-shaping"),
            own_loss=True,
        ),
        Method(
            "reinforce-lag",
            lagrangian.reinforce_lag,
            "HC-RLHF 2025, arXiv 2506.08266",
            "costs inflated for the test to come; exact on worlds, leave-one-out on models; the stop is ours",
            weight="own",
            options=lagrangian.REINFORCE_LAG_OPTIONS,
            target=lagrangian.reinforce_lag_target,
            parameters=lagrangian.multiplier_and_kappa,
            constraint="mean, inflated for the test",
            own_loss=True,
        ),
        Method(
            "best-of-n",
            best_of_n.best_of_n,
            "Beirami et al. 2024, arXiv 2401.01879",
            "no training: an honest floor; the dual rule is new",
            options=best_of_n.OPTIONS,
            target=best_of_n.best_of_n_target,
            trains=False,
            own_loss=True,
        ),
    )
}
