"""The pairwise losses that need nothing but log-ratios, and the smoothing of their labels, as recipes."""

from functools import partial

from dualign.errors import UsageError
from dualign.methods.nearest import unknown
from dualign.methods.options import Option, Options, Range
from dualign.methods.recipe import Parts, Recipe, pairwise


def _plain(name: str, *, newton: bool) -> Recipe:
    def parts(beta: float, options: Options) -> Parts:  # noqa: ARG001
        from dualign.maths.losses import LOSSES

        return Parts(pairwise(LOSSES[name], beta))

    return Recipe(name, parts, newton=newton)


DPO = _plain("dpo", newton=True)
IPO = _plain("ipo", newton=False)

SMOOTHING = Option(
    "smoothing",
    0.1,
    "share of the labels that is held to be wrong, from 0 to below 0.5",
    within=Range(0, 0.5, high_included=False),
)


def conservative(loss: str) -> Recipe:
    """Return ``loss`` with smoothed labels; of ``dpo`` it is conservative DPO (Mitchell 2023, a note).

    Raises:
        UsageError: no plain loss has the name.
    """
    if loss not in (DPO.name, IPO.name):
        raise UsageError(unknown("loss with smoothed labels", loss, (DPO.name, IPO.name)))

    def parts(beta: float, options: Options) -> Parts:
        from dualign.maths.losses import LOSSES
        from dualign.maths.losses_robust import smoothed

        smoothing = float(options["smoothing"])
        with_beta = partial(LOSSES[loss], beta=beta)
        expected = smoothed(with_beta, smoothing=smoothing)
        return Parts(lambda preferred, other: expected(preferred.log_ratio, other.log_ratio))

    return Recipe(f"conservative-{loss}", parts, (SMOOTHING,))
