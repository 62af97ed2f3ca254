"""C-DPO: preference optimisation under limits on expected costs (Liu, Sun & Zheng 2024, arXiv 2403.02475)."""

from collections.abc import Generator, Mapping

from dualign.errors import UsageError
from dualign.maths.dual import DualRule, DualState
from dualign.methods.b_dpo import B_DPO
from dualign.methods.dr_dpo import DR_DPO
from dualign.methods.kldpo import KLDPO
from dualign.methods.options import NO_OPTIONS, Options, filled, unknown
from dualign.methods.recipe import DPO, IPO, Recipe, conservative, objective, trained
from dualign.methods.wdpo import WDPO
from dualign.protocols import Objective, Problem
from dualign.records import FloatArray, Iterate

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe for recipe in (DPO, IPO, conservative("dpo"), KLDPO, WDPO, B_DPO, DR_DPO)
}
"""The losses that the dual loop can be run with. Under limits only the first has a source that we know of."""


def c_dpo(
    problem: Problem,
    *,
    rule: DualRule,
    start: FloatArray,
    loss: str = "dpo",
    labels: str = "soft",
    temperature: float = 1.0,
    options: Options = NO_OPTIONS,  # noqa: ARG001 (every method of the table is called alike)
) -> Generator[Iterate, None, DualState]:
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
    recipe = recipe_of(loss)
    return trained(problem, recipe, rule=rule, start=start, labels=labels, temperature=temperature)


def recipe_of(loss: str) -> Recipe:
    """Return the loss of that name.

    Raises:
        UsageError: there is none.
    """
    if loss not in RECIPES:
        raise UsageError(unknown("loss", loss, RECIPES))
    return RECIPES[loss]


def relabelled(multipliers: FloatArray, beta: float, *, loss: str, labels: str, temperature: float) -> Objective:
    """Return the objective of a round of ``c_dpo``: labels that prefer the larger ``reward - multipliers . costs``.

    Raises:
        UsageError: an unknown loss or label mode, a temperature that is not positive.
    """
    recipe = recipe_of(loss)
    defaults = filled(loss, recipe.options, NO_OPTIONS)
    return objective(recipe, multipliers, beta, labels=labels, temperature=temperature, options=defaults)
