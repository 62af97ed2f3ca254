"""Dr. DPO: DPO that trusts the pairs it fits, the opposite of KLDPO (Wu et al. 2024, arXiv 2407.07880)."""

from collections.abc import Generator

from dualign.maths.adversarial import exponential_weights
from dualign.maths.dual import DualRule, DualState
from dualign.methods.options import NO_OPTIONS, POSITIVE, Option, Options
from dualign.methods.recipe import Parts, Recipe, on_arrays, pairwise, refuse_other, trained
from dualign.protocols import Problem
from dualign.records import FloatArray, Iterate


def parts(beta: float, options: Options) -> Parts:
    """Return DPO's loss with weights that fall with it: the gradient of ``-width log mean exp(-loss / width)``."""
    from dualign.maths.losses import dpo

    width = float(options["width"])
    return Parts(
        pairwise(dpo, beta),
        weigh=on_arrays(lambda losses, weights: exponential_weights(losses, weights, tau=-width)),
    )


DR_DPO = Recipe(
    "dr-dpo",
    parts,
    (Option("width", 1.0, "b of the weights exp(-loss / b); smaller trusts fewer pairs", within=POSITIVE),),
)


def dr_dpo(
    problem: Problem,
    *,
    rule: DualRule,
    start: FloatArray,
    loss: str = "dpo",
    labels: str = "soft",
    temperature: float = 1.0,
    options: Options = NO_OPTIONS,
) -> Generator[Iterate, None, DualState]:
    """Return the generator of one iterate for every multiplier; the paper's method is the multiplier 0.

    Raises:
        UsageError: as ``recipe.trained``; another loss, or a width out of range.
    """
    refuse_other(DR_DPO.name, loss)
    return trained(problem, DR_DPO, rule=rule, start=start, labels=labels, temperature=temperature, options=options)
