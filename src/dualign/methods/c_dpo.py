"""C-DPO: preference optimisation under limits on expected costs (Liu, Sun & Zheng 2024, arXiv 2403.02475).

With its special cases: plain DPO, one multiplier picked by hand, and RePO's price of a cost above 0 alone.
"""

from collections.abc import Generator, Mapping
from dataclasses import replace

import numpy as np

from dualign.errors import UsageError
from dualign.maths.dual import DualState
from dualign.maths.exact import FiniteProblem, log_policy
from dualign.methods.options import NO_OPTIONS, Option, Options, Settings, unknown
from dualign.methods.recipe import DPO, IPO, SMOOTHING, Recipe, conservative, refuse_slopes
from dualign.methods.recipes import B_DPO, DR_DPO, KLDPO, WDPO
from dualign.protocols import Objective, Problem
from dualign.records import FloatArray, Iterate

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe for recipe in (DPO, IPO, conservative("dpo"), KLDPO, WDPO, B_DPO, DR_DPO)
}
"""The losses that the dual loop can be run with. Under limits only the first has a source that we know of."""


def c_dpo(problem: Problem, settings: Settings) -> Generator[Iterate, None, DualState]:
    """Return the generator of one iterate for every multiplier that was trained for; it ends with the rule's state.

    Every round relabels the pairs by ``reward - multipliers . costs``, fits a policy on them by DPO from the fixed
    reference, measures its costs, and asks the rule for the next multipliers. The paper is ``rule=gradient(...)`` with
    its reference fixed and its pairs relabelled; projection, stop and the other rules are reconstructions, and so are
    soft labels, whose minimiser is the Gibbs policy of the multipliers. Another loss of ``RECIPES`` has its default
    options here.

    Raises:
        UsageError: an unknown loss or label mode, a temperature that is not positive, a rule that reads a slope which
            policies of the loss do not have.
    """
    return recipe_of(settings.loss).run(problem, replace(settings, options=NO_OPTIONS))


def recipe_of(loss: str) -> Recipe:
    """Return the loss of that name.

    Raises:
        UsageError: there is none.
    """
    if loss not in RECIPES:
        raise UsageError(unknown("loss", loss, RECIPES))
    return RECIPES[loss]


def relabelled(multipliers: FloatArray, beta: float, settings: Settings) -> Objective:
    """Return the objective of a round of ``c_dpo``: labels that prefer the larger ``reward - multipliers . costs``.

    Raises:
        UsageError: an unknown loss or label mode, a temperature that is not positive.
    """
    return recipe_of(settings.loss).objective(multipliers, beta, replace(settings, options=NO_OPTIONS))


def fixed(problem: Problem, settings: Settings) -> Generator[Iterate, None, DualState]:
    """Return the generator of the one iterate at the multipliers ``start``; limits are measured and never acted on.

    What people do today, and the arm that a search is compared with.
    """
    return c_dpo(problem, settings.at(settings.start))


DPO_OPTIONS = (Option(SMOOTHING.name, 0.0, f"{SMOOTHING.meaning}; above 0: conservative DPO", within=SMOOTHING.within),)


def dpo(problem: Problem, settings: Settings) -> Generator[Iterate, None, DualState]:
    """Return the generator of the one iterate at multiplier 0: DPO on the reward (Rafailov et al. 2023, 2305.18290).

    Limits are measured, rule and start ignored.

    Raises:
        UsageError: an unknown loss or label mode, a temperature that is not positive.
    """
    plain = settings.at(np.zeros_like(settings.start))
    return conservative(settings.loss).run(problem, plain) if settings.options["smoothing"] else c_dpo(problem, plain)


def repo_dpo(problem: Problem, settings: Settings) -> Generator[Iterate, None, DualState]:
    """Return the generator of C-DPO whose pairs are priced by ``max(cost, 0)`` (Peng et al. 2024, arXiv 2410.19933).

    So that very safe answers do not pay for unsafe ones. Limits and measured costs stay those of the problem. The
    source optimises by clipped policy gradients; as relabelling it is a reconstruction, and so is the dual rule.

    Raises:
        UsageError: a rule that reads the slope of the cost that is trained on, which is not the cost that is measured.
    """
    refuse_slopes("repo-dpo", settings.rule.name)
    groups = [replace(group, costs=np.maximum(group.costs, 0)) for group in problem.groups]
    return c_dpo(replace(problem, groups=groups), settings)


def rectified_gibbs(problem: FiniteProblem, multipliers: FloatArray, _options: Options) -> FloatArray:
    """Return the Gibbs policy of ``reward - multipliers . max(costs, 0)``."""
    return log_policy(replace(problem, costs=np.maximum(problem.costs, 0)), multipliers)
