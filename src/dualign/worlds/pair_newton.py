"""Minimises pairwise losses over tables of log-ratios, in float64, by a damped Newton method.

The unknowns of a prompt are the *gaps* between log-ratios of responses that are neighbours in the order of their
scores. A label's logit L leaves a pair the curvature exp(-|L|); in the gaps, and scaled by their own curvature, the
Hessian stays well conditioned all the same, and no gradient is the difference of two larger ones. So the fit is exact
where a first-order method would stop at |L| of about 25.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dualign.errors import NumericalError
from dualign.protocols import Objective, PairBatch, Side

STEP_TOLERANCE = 1e-8
"""Largest Newton step, in units of beta * log-ratio, at which a fit is finished. A runaway keeps a step of about 1."""
LARGEST_STEP = 6.0
"""Trust region in the same units: a logistic loss is far from its quadratic model beyond."""
HALVINGS = 40
FLATTEST = 1e-9
"""Smallest curvature, relative to its diagonal, that a non-convex loss is given."""


@dataclass(frozen=True, slots=True)
class PairTable:
    """Every pair of every group, padded to the largest group; padding has weight 0 and is never shown to a loss."""

    log_reference: Tensor
    """Shape ``[group, response]``, ``-inf`` at padding."""
    spans: Tensor
    """Shape ``[group, response, gap]``: log-ratio = spans @ gaps; 1 where the gap lies below the response."""
    first: Tensor
    second: Tensor
    """Shape ``[group, pair]``: columns of the two sides."""
    real: Tensor
    """Shape ``[group, pair]``: False at padding."""
    weight: Tensor
    """Shape ``[group, pair]``, sums to 1; pairs of a group share the group's weight."""
    wins: Tensor
    loses: Tensor
    """Shape ``[group, pair]``: probability that the first side wins, and its complement, both to full precision."""
    label_logit: Tensor
    """Shape ``[group, pair]``: logit of the label before anything was drawn."""
    columns: Mapping[str, Tensor]
    """Per-response columns, each ``[group, response]``."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """Where a minimisation ended."""

    log_ratios: Tensor
    """Shape ``[group, response]``, up to a constant a group."""
    loss: float
    gradient: float
    """Largest entry of the gradient."""
    steps: int
    converged: bool
    """False where the budget ended the search; hard labels always do, they have no finite optimum."""


class _Slopes(NamedTuple):
    """Weighted losses and their derivatives by a pair's difference d and mean level m, each ``[group, pair]``."""

    losses: Tensor
    by_difference: Tensor
    by_level: Tensor
    weights: Tensor
    """Shape ``[real pair]``: the weights that were used."""


class _Model(NamedTuple):
    """The quadratic model: ``[group, gap]`` gradient and ``[group, gap, gap]`` inverse curvature."""

    losses: Tensor
    gradient: Tensor
    inverse: Tensor


def minimise(table: PairTable, objective: Objective, *, start: Tensor, budget: int) -> Fitted:
    """Return the gaps' minimum of ``objective`` on ``table``, from ``start`` of shape ``[group, gap]``.

    A step is damped by halving until the loss falls, or until the next step, with the same curvature, is shorter
    (the natural monotonicity test of Deuflhard 2011, section 3.3): near the optimum the loss itself is lost in
    rounding, and whole-batch weights have no common loss to lower. Weights and penalties tie the groups together: they
    get one length for all.

    Raises:
        NumericalError: a loss that is not finite.
    """
    gaps, converged, steps = start, False, 0
    for steps in range(1, budget + 1):  # noqa: B007 (reported)
        model = _model(table, objective, gaps)
        step = -torch.einsum("ngh,nh->ng", model.inverse, model.gradient)
        length = objective.beta * step.abs().amax(dim=1, keepdim=True)
        accepted = _damped(table, objective, gaps, model, step * (LARGEST_STEP / length).clamp(max=1))
        gaps = gaps + accepted
        converged = bool(length.max() <= STEP_TOLERANCE)
        if converged or not accepted.any():
            break
    last = _slopes(table, objective, gaps)
    gradient = _gradient(table, gaps, last)
    ratios = torch.einsum("nkg,ng->nk", table.spans, gaps)
    return Fitted(ratios, float(last.losses.sum()), float(gradient.abs().max()), steps, converged)


def _damped(table: PairTable, objective: Objective, gaps: Tensor, model: _Model, step: Tensor) -> Tensor:
    """Return ``step``, shortened group by group until it is an improvement; 0 where none was found."""
    length = torch.ones(len(gaps), 1, dtype=gaps.dtype)
    size = torch.linalg.vector_norm(step, dim=1)
    descent = (model.gradient * step).sum(dim=1)
    before = model.losses.sum(dim=1)
    tied = objective.weigh is not None or objective.penalty is not None
    for _ in range(HALVINGS):
        trial = _slopes(table, objective, gaps + length * step)
        gradient = _gradient(table, gaps + length * step, trial)
        following = torch.linalg.vector_norm(torch.einsum("ngh,nh->ng", model.inverse, gradient), dim=1)
        after, goal = trial.losses.sum(dim=1), before + 1e-4 * length[:, 0] * descent
        if tied:
            better = following.norm() <= (1 - length.min() / 4) * size.norm()
            if objective.weigh is None:
                better |= after.sum() <= goal.sum()
            better = better.expand(len(gaps))
        else:
            better = (following <= (1 - length[:, 0] / 4) * size) | (after <= goal)
        better = better | (objective.beta * size * length[:, 0] <= STEP_TOLERANCE)
        if better.all():
            return length * step
        length = torch.where(better[:, None], length, length / 2)
    return torch.where(better[:, None], length * step, torch.zeros_like(step))


def _model(table: PairTable, objective: Objective, gaps: Tensor) -> _Model:
    """Return the quadratic model at ``gaps``.

    Curvatures are differences of gradients: automatic second derivatives of log sigmoid(u) cancel for u above 20.
    """
    here = _slopes(table, objective, gaps)
    width = 1e-4 / objective.beta
    up, down = (_slopes(table, objective, gaps, difference=move, weights=here.weights) for move in (width, -width))
    curvature = (up.by_difference - down.by_difference) / (2 * width)
    spread = _spread(table)
    hessian = torch.einsum("npg,nph->ngh", spread, curvature[..., None] * spread)
    if here.by_level.any():
        up, down = (_slopes(table, objective, gaps, level=move, weights=here.weights) for move in (width, -width))
        mixed = (up.by_difference - down.by_difference) / (2 * width)
        level = (up.by_level - down.by_level) / (2 * width)
        hessian = hessian + _level_curvature(table, gaps, here, mixed, level)
    gradient = _gradient(table, gaps, here)
    return _Model(here.losses, gradient, _inverse(hessian, gradient.abs() * objective.beta / LARGEST_STEP))


def _slopes(
    table: PairTable,
    objective: Objective,
    gaps: Tensor,
    *,
    difference: float = 0.0,
    level: float = 0.0,
    weights: Tensor | None = None,
) -> _Slopes:
    """Return losses and slopes at ``gaps``, every pair moved by ``difference`` and ``level``.

    Without ``weights`` they are the table's, or what the objective makes of them with the losses of all pairs.
    """
    ratios = torch.einsum("nkg,ng->nk", table.spans, gaps)
    normaliser = torch.logsumexp(table.log_reference + ratios, dim=1, keepdim=True)
    one, other = ratios.gather(1, table.first), ratios.gather(1, table.second)
    here = (one - other)[table.real], ((one + other) / 2 - normaliser)[table.real]
    apart, height = (here[0] + difference).requires_grad_(), (here[1] + level).requires_grad_()
    losses = _softened(table, objective, _sides(table, apart, height))
    if objective.penalty is not None:
        losses = losses + _penalty(table, objective, here, (apart, height))
    if not bool(torch.isfinite(losses).all()):
        raise NumericalError(f"objective {objective.name!r}: a loss is not finite in a finite world")
    slopes = torch.autograd.grad(losses.sum(), (apart, height), allow_unused=True, materialize_grads=True)
    losses = losses.detach()
    if weights is None:
        weights = table.weight[table.real]
        weights = weights if objective.weigh is None else objective.weigh(losses, weights).detach()
    loss, by_difference, by_level = (
        torch.zeros_like(table.weight).masked_scatter(table.real, weights * part) for part in (losses, *slopes)
    )
    return _Slopes(loss, by_difference, by_level, weights)


def _sides(table: PairTable, apart: Tensor, height: Tensor) -> tuple[Side, Side]:
    """Return both sides of each real pair, from their difference and their mean level."""
    columns = [
        {name: values.gather(1, index)[table.real] for name, values in table.columns.items()}
        for index in (table.first, table.second)
    ]
    return Side(height + apart / 2, columns[0]), Side(height - apart / 2, columns[1])


def _softened(table: PairTable, objective: Objective, sides: tuple[Side, Side]) -> Tensor:
    """Return the expected loss of each real pair under its label."""
    won, lost = objective.loss(*sides), objective.loss(*reversed(sides))
    return table.wins[table.real] * won + table.loses[table.real] * lost


def _penalty(
    table: PairTable, objective: Objective, here: tuple[Tensor, Tensor], moved: tuple[Tensor, Tensor]
) -> Tensor:
    """Return the penalty of each real pair at ``moved``.

    The batch holds every pair twice: with its weight at ``here``, and without weight at ``moved``. What a penalty
    takes of the whole batch is so that of ``here``, and a difference quotient sees a pair's own curvature alone.
    A table has no embeddings: its convention is a margin whose gradient by them has norm 1, so that the squared norm
    of a loss's gradient is its squared derivative by the margin.
    """
    still = tuple(part.requires_grad_() for part in here)
    places = (still, moved)
    both = [_sides(table, *place) for place in places]
    losses = torch.cat([_softened(table, objective, sides) for sides in both])

    def embedding_gradient(values: Tensor) -> Tensor:
        slopes = torch.autograd.grad(values.sum(), [apart for apart, _ in places], create_graph=True)
        return torch.cat(slopes) ** 2

    first, second = (
        Side(
            torch.cat([sides[k].log_ratio for sides in both]),
            {name: torch.cat([sides[k].columns[name] for sides in both]) for name in table.columns},
        )
        for k in (0, 1)
    )
    weight, logit = table.weight[table.real], table.label_logit[table.real]
    batch = PairBatch(
        first, second, torch.cat([logit, logit]), torch.cat([weight, torch.zeros_like(weight)]), embedding_gradient
    )
    assert objective.penalty is not None
    return objective.penalty(batch, losses)[len(weight) :]


def _spread(table: PairTable) -> Tensor:
    """Return shape ``[group, pair, gap]``: d(difference) / d(gap), in {-1, 0, 1}; 0 at padding."""
    one, other = (_rows(table.spans, index) for index in (table.first, table.second))
    return (one - other) * table.real[..., None]


def _rows(spans: Tensor, index: Tensor) -> Tensor:
    return spans.gather(1, index[..., None].expand(-1, -1, spans.shape[2]))


def _policy(table: PairTable, gaps: Tensor) -> Tensor:
    return torch.softmax(table.log_reference + torch.einsum("nkg,ng->nk", table.spans, gaps), dim=1)


def _levels(table: PairTable, gaps: Tensor) -> Tensor:
    """Return shape ``[group, pair, gap]``: d(level) / d(gap), the normaliser included."""
    mean = torch.einsum("nk,nkg->ng", _policy(table, gaps), table.spans)
    middle = (_rows(table.spans, table.first) + _rows(table.spans, table.second)) / 2
    return (middle - mean[:, None]) * table.real[..., None]


def _gradient(table: PairTable, gaps: Tensor, slopes: _Slopes) -> Tensor:
    gradient = torch.einsum("np,npg->ng", slopes.by_difference, _spread(table))
    if slopes.by_level.any():
        gradient = gradient + torch.einsum("np,npg->ng", slopes.by_level, _levels(table, gaps))
    return gradient


def _level_curvature(table: PairTable, gaps: Tensor, slopes: _Slopes, mixed: Tensor, level: Tensor) -> Tensor:
    """Return what losses that do not depend on the difference alone add to the Hessian."""
    spread, levels, policy = _spread(table), _levels(table, gaps), _policy(table, gaps)
    crossed = torch.einsum("npg,nph->ngh", spread, mixed[..., None] * levels)
    squared = torch.einsum("npg,nph->ngh", levels, level[..., None] * levels)
    mean = torch.einsum("nk,nkg->ng", policy, table.spans)
    centred = table.spans - mean[:, None]
    normaliser = torch.einsum("nkg,nkh->ngh", centred, policy[..., None] * centred)
    return crossed + crossed.mT + squared - slopes.by_level.sum(dim=1)[:, None, None] * normaliser


def _inverse(hessian: Tensor, floor: Tensor) -> Tensor:
    """Return the inverse of each Hessian, made positive where it is not; a gap without curvature or floor stays.

    ``floor`` is the curvature that a gap has at the least. Far beyond a label a loss is straight: what is left of its
    curvature is rounding, and the floor makes the step there as long as the trust region.
    """
    raw = hessian.diagonal(dim1=1, dim2=2)
    diagonal = torch.maximum(raw.abs(), floor)
    hessian = hessian + torch.diag_embed(diagonal - raw)
    scale = torch.where(diagonal > 0, diagonal.sqrt(), torch.inf)
    scaled = hessian / scale[:, :, None] / scale[:, None, :]
    identity = torch.eye(hessian.shape[1], dtype=hessian.dtype)
    scaled = scaled + torch.diag_embed((diagonal == 0).to(hessian.dtype))
    factor, failed = torch.linalg.cholesky_ex(scaled + FLATTEST * 1e-4 * identity)
    if not failed.any():
        inverse = torch.cholesky_inverse(factor)
    else:
        values, vectors = torch.linalg.eigh(scaled)
        inverse = (vectors / values.abs().clamp(min=FLATTEST)[:, None, :]) @ vectors.mT
    return inverse / scale[:, :, None] / scale[:, None, :]
