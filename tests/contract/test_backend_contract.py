"""Three tiny objectives that ask a backend for more than DPO does, on a table."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dualign.maths.losses import soft
from dualign.protocols import Objective, PairBatch, Policy, Side
from dualign.records import Group
from dualign.worlds.tabular import TabularBackend
from small_worlds import objective, small_world

WORLD = small_world(11, beta=0.5)
TAU = 0.3


def two_coefficients(preferred: Side, other: Side) -> torch.Tensor:
    """A logistic loss whose sides have coefficients of their own, read from a column."""
    u = preferred.columns["scale"] * preferred.log_ratio - other.columns["scale"] * other.log_ratio
    return -torch.nn.functional.logsigmoid(u)


def columns() -> Objective:
    return Objective(two_coefficients, soft, np.array([1.0]), beta=0.5, columns=("scale",), name="columns")


def weighed() -> Objective:
    def weigh(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return torch.softmax(weights.log() + losses / TAU, dim=0)

    return replace(objective(1.0, beta=0.5), weigh=weigh, name="weighed")


def contradicting() -> Objective:
    """Coefficients that depend on both sides: no policy has every pair at its least loss, and penalties stay."""

    def loss(preferred: Side, other: Side) -> torch.Tensor:
        share = preferred.columns["scale"] / (preferred.columns["scale"] + other.columns["scale"])
        return -torch.nn.functional.logsigmoid(share * preferred.log_ratio - (1 - share) * other.log_ratio)

    return replace(columns(), loss=loss, name="contradicting")


def embeddings() -> Objective:
    def penalty(batch: PairBatch, losses: torch.Tensor) -> torch.Tensor:
        assert batch.embedding_gradient is not None
        return batch.embedding_gradient(losses)

    return replace(contradicting(), penalty=penalty, name="embeddings")


def groups() -> list[Group]:
    rng = np.random.default_rng(0)
    return [replace(g, columns={"scale": rng.uniform(0.2, 1, len(g.reward))}) for g in WORLD.groups()]


def fit(asked: Objective, seed: int = 0) -> tuple[TabularBackend, Policy]:
    backend = TabularBackend(WORLD)
    return backend, backend.fit(groups(), objective=asked, reference=backend.reference, start=None, seed=seed, name="p")


def pair_losses(asked: Objective, state: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return losses and weights of every pair at a policy, and the logits that they depend on."""
    logits = torch.from_numpy(np.where(np.isfinite(state), state, -1e9)).requires_grad_()
    ratios = torch.log_softmax(logits, 1) - torch.from_numpy(WORLD.problem().log_reference)
    losses, weights = [], []
    for row, group in enumerate(groups()):
        i, j = torch.triu_indices(len(group.reward), len(group.reward), offset=1)
        score = torch.from_numpy(group.reward - group.costs @ asked.multipliers)
        scale = torch.from_numpy(group.columns["scale"])
        # Half of it on either side: what the loss's slope by the pair's difference is seen through.
        apart = torch.zeros(len(i), dtype=torch.float64, requires_grad=True)
        one = Side(ratios[row][i] + apart / 2, {"scale": scale[i]})
        other = Side(ratios[row][j] - apart / 2, {"scale": scale[j]})
        p = torch.sigmoid(score[i] - score[j])
        values = p * asked.loss(one, other) + (1 - p) * asked.loss(other, one)
        if asked.penalty is not None:
            values = values + torch.autograd.grad(values.sum(), apart, create_graph=True)[0] ** 2
        losses.append(values)
        weights.append(torch.full_like(p, group.weight / len(p)))
    return torch.cat(losses), torch.cat(weights), logits


@pytest.mark.parametrize("asked", [columns(), weighed(), contradicting(), embeddings()], ids=lambda asked: asked.name)
def test_the_fit_is_a_stationary_point_of_the_loss(asked: Objective) -> None:
    _, policy = fit(asked)
    losses, weights, logits = pair_losses(asked, policy.state)
    if asked.weigh is not None:
        weights = asked.weigh(losses.detach(), weights)
    (weights * losses).sum().backward()
    assert policy.report is not None
    assert policy.report.history[0]["converged"] == 1
    assert float(logits.grad.abs().max()) <= 1e-9


def test_whole_batch_weights_minimise_the_exponential_mean() -> None:
    # The detached softmax weights are the gradient of tau * log mean exp(loss / tau); no small move lowers it.
    def value(state: np.ndarray) -> float:
        losses, weights, _ = pair_losses(weighed(), state)
        return float(TAU * torch.logsumexp(weights.log() + losses / TAU, dim=0).detach())

    _, policy = fit(weighed())
    best, rng = value(policy.state), np.random.default_rng(1)
    for _ in range(50):
        assert value(policy.state + 0.01 * rng.normal(size=policy.state.shape)) > best


def test_the_penalty_moves_the_optimum() -> None:
    one, other = (fit(asked)[1].state for asked in (embeddings(), contradicting()))
    assert np.abs(np.exp(one) - np.exp(other)).max() > 1e-4


@pytest.mark.parametrize("asked", [columns(), weighed(), contradicting(), embeddings()], ids=lambda asked: asked.name)
def test_fits_are_finite_normalised_and_repeat(asked: Objective) -> None:
    _, policy = fit(asked, seed=3)
    probabilities = np.exp(policy.state)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-12)
    assert np.array_equal(policy.state, fit(asked, seed=3)[1].state)
