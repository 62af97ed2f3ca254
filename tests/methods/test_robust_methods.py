"""KLDPO, WDPO, B-DPO, Dr. DPO and conservative DPO on finite worlds, alone and under limits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from dualign.errors import UsageError
from dualign.maths.dual import fixed
from dualign.maths.losses import (
    dpo,
    logistic_weights,
    norm_scale,
    root_mean_square_penalty,
    smoothed,
    squared_norm_penalty,
    two_sided,
)
from dualign.methods.options import Settings
from dualign.methods.recipe import conservative
from dualign.methods.recipes import B_DPO, INFORMATION, balanced, pair_spread, with_mutual_information
from dualign.models.log_probs import TokenBatch
from dualign.protocols import Problem, Side
from dualign.records import Evaluation
from dualign.train.pairs import REFERENCE, PairMicroBatch, pair_batch
from dualign.worlds.solving import SolveSettings, solve
from dualign.worlds.tabular import TabularBackend
from small_worlds import small_world

WORLD = small_world(8, beta=0.5)
PAPER_AND_CODE = [
    ("kldpo", {}), ("kldpo", {"tau": 0.1}), ("kldpo", {"rho": 0.2}), ("kldpo", {"form": "code"}),
    ("wdpo", {"rho": 0.1}), ("wdpo", {"form": "code", "rho": 0.1}), ("dr-dpo", {"width": 0.3}),
]  # fmt: skip


def problem(backend: TabularBackend | None = None, **changes: object) -> Problem:
    machine = backend or TabularBackend(WORLD)

    def unread(policy: object) -> Evaluation:
        return Evaluation(0.0, 0.0, np.zeros(1), np.zeros(1), np.zeros(1), 0.0, 0.0, 1)

    made = Problem(machine, WORLD.groups(), np.zeros(1), machine.reference, unread, 0.5, 0)
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "options"), PAPER_AND_CODE)
@pytest.mark.parametrize("seed", range(3))
def test_soft_labels_have_the_optimum_of_c_dpo(name: str, options: dict[str, float | str], seed: int) -> None:
    # Every pair is at its least loss under the Gibbs policy: weights move nothing, and a penalty on its slope is 0.
    settings = SolveSettings(method=name, multipliers=np.array([0.8]), options=options)
    assert solve(small_world(seed, beta=0.5), settings).figures["fit_distance"] <= 2e-6


@pytest.mark.parametrize("loss", ["kldpo", "wdpo", "b-dpo", "dr-dpo", "conservative-dpo"])
def test_under_the_dual_loop_limits_hold(loss: str) -> None:
    # Smoothed labels keep the margin of a pair finite, so they cannot meet every limit; those of these worlds they can.
    for seed in (5, 8):
        settings = SolveSettings(method="c-dpo", loss=loss, dual="bracket")
        assert solve(small_world(seed, beta=0.5), settings).figures["limits_met"]
    with pytest.raises(UsageError, match="slope of a Gibbs policy"):
        solve(WORLD, SolveSettings(method="c-dpo", loss=loss, dual="newton"))


@pytest.mark.parametrize("name", ["apo", "b-dpo", "dr-dpo", "kldpo", "wdpo"])
def test_as_methods_they_meet_limits_too(name: str) -> None:
    # Such as 0 does not meet: the multiplier is what does it.
    for seed in range(3):
        world = small_world(seed, beta=0.5)
        assert not solve(world, SolveSettings(method=name, multipliers=np.zeros(1))).figures["limits_met"]
        figures = solve(world, SolveSettings(method=name)).figures
        assert figures["limits_met"] and figures["multipliers"]["cost0"] > 0


def drawn(name: str, options: dict[str, float | str], labels: str = "bernoulli") -> np.ndarray:
    settings = SolveSettings(method=name, multipliers=np.array([0.8]), options=options, labels=labels, seed=3)
    return solve(WORLD, settings).log_probs


def test_wdpo_without_a_radius_and_kldpo_with_a_wide_one_are_dpo() -> None:
    plain = drawn("c-dpo", {}, "soft")
    np.testing.assert_allclose(drawn("wdpo", {"rho": 0.0}, "soft"), plain, atol=1e-9)
    np.testing.assert_allclose(drawn("kldpo", {"tau": 1e9}, "soft"), plain, atol=1e-9)


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)


def test_conservative_dpo_is_smoothing_by_hand() -> None:
    first, second = torch.tensor([0.7, -2.0]), torch.tensor([-0.1, 0.4])
    wins, loses = dpo(first, second, beta=0.5), dpo(second, first, beta=0.5)
    found = smoothed(lambda a, b: dpo(a, b, beta=0.5), smoothing=0.2)(first, second)
    torch.testing.assert_close(found, 0.8 * wins + 0.2 * loses)


def test_conservative_labels_have_a_finite_optimum_in_closed_form() -> None:
    # A label of 1 becomes 1 - smoothing: on two responses beta h = logit(1 - smoothing), whatever the scores.
    raw = small_world(2, beta=0.5)
    prompts = tuple(replace(p, responses=p.responses[:2]) for p in raw.prompts)
    shares = [sum(r.reference for r in p.responses) for p in prompts]
    prompts = tuple(
        replace(p, responses=tuple(replace(r, reference=r.reference / share) for r in p.responses))
        for p, share in zip(prompts, shares, strict=True)
    )
    world = replace(raw, prompts=prompts)
    backend = TabularBackend(world)
    settings = Settings(fixed(np.zeros(1)), np.zeros(1), labels="hard", options={"smoothing": 0.1})
    run = conservative("dpo").run(replace(problem(backend), groups=world.groups()), settings)
    moved = backend.table(next(run).policy) - backend.table(backend.reference)
    np.testing.assert_allclose(0.5 * np.abs(np.diff(moved, axis=1)), np.log(9), rtol=1e-6)


def test_b_dpo_loss_and_its_weights_by_hand() -> None:
    information = doubles(0.3, -1.0), doubles(0.3, 0.5)
    one, other = logistic_weights(*information)
    equal(one + other, doubles(2, 2))
    for weight, mirrored in zip(logistic_weights(*reversed(information)), (other, one), strict=True):
        equal(weight, mirrored)
    assert one[0] == 1 and one[1] > 1 > other[1]  # less understood: more weight
    scale = norm_scale(one, other)
    equal(scale**2 * (one**2 + other**2), doubles(2, 2))

    def loss(preferred: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        sides = Side(preferred, {INFORMATION: information[0]}), Side(second, {INFORMATION: information[1]})
        return balanced(0.5, weights=logistic_weights, scale=norm_scale)(*sides)

    ratio, second, step = doubles(0.4, 0.4), doubles(-0.2, -0.2), 1e-5
    losses, margin = loss(ratio, second), 0.5 * scale * (one * ratio - other * second)
    equal(losses, torch.log1p(torch.exp(-margin)))
    equal(losses[:1], dpo(ratio[:1], second[:1], beta=0.5))  # both sides equally understood
    by_preferred = (loss(ratio + step, second) - loss(ratio - step, second)) / (2 * step)
    by_second = (loss(ratio, second + step) - loss(ratio, second - step)) / (2 * step)
    equal(by_preferred, -scale * 0.5 * one * torch.sigmoid(-margin))
    equal(by_second, scale * 0.5 * other * torch.sigmoid(-margin))
    zero = doubles(0, 0)
    equal(two_sided(zero, zero, (one, other)), doubles(np.log(2), np.log(2)))


def test_b_dpo_minimises_its_loss() -> None:
    """The tabular fit against a general minimiser of the same sum, written out."""
    backend, multiplier = TabularBackend(WORLD), 0.8
    prepared = with_mutual_information(problem(backend))
    groups = prepared.groups
    run = B_DPO.run(prepared, Settings(fixed(np.array([multiplier])), np.array([multiplier])))
    found = backend.table(next(run).policy)
    reference = backend.table(backend.reference)
    for row, group in enumerate(groups):
        k = len(group.responses)
        score = group.reward - group.costs @ np.array([multiplier])
        information = group.columns[INFORMATION]

        def loss(free: np.ndarray, row: int = row, k: int = k, score: np.ndarray = score,
                 information: np.ndarray = information) -> float:  # fmt: skip
            logits = reference[row, :k] + np.append(free, 0.0)
            ratio = logits - np.logaddexp.reduce(logits) - reference[row, :k]
            total = 0.0
            for i in range(k):
                for j in range(k):
                    if i == j:
                        continue
                    label = 1 / (1 + np.exp(score[j] - score[i]))
                    omega = 2 / (1 + np.exp(information[i] - information[j]))
                    scale = np.sqrt(2 / (omega**2 + (2 - omega) ** 2))
                    total += label * np.logaddexp(0, -0.5 * scale * (omega * ratio[i] - (2 - omega) * ratio[j]))
            return total

        best = minimize(loss, np.zeros(k - 1), method="BFGS", options={"gtol": 1e-9})
        logits = reference[row, :k] + np.append(best.x, 0.0)
        np.testing.assert_allclose(found[row, :k], logits - np.logaddexp.reduce(logits), atol=2e-5)


def test_mutual_information_of_a_table() -> None:
    backend = TabularBackend(WORLD)
    values = backend.mutual_information(backend.reference, WORLD.groups())
    table = np.exp(backend.table(backend.reference))
    text = WORLD.prompts[0].responses[1].text
    holders = [
        (prompt.weight, table[j, [r.text for r in prompt.responses].index(text)])
        for j, prompt in enumerate(WORLD.prompts)
        if text in [r.text for r in prompt.responses]
    ]
    assert len(holders) > 1
    mean = sum(weight * p for weight, p in holders) / sum(weight for weight, _ in holders)
    assert values[0][1] == pytest.approx(np.log(table[0, 1] / mean))


def test_pair_spread_is_the_deviation_over_ordered_pairs() -> None:
    values = [np.array([0.0, 1.0, 3.0]), np.array([2.0, 2.5])]
    squares = [np.mean([(a - b) ** 2 for i, a in enumerate(v) for j, b in enumerate(v) if i != j]) for v in values]
    assert pair_spread(values, [1.0, 3.0]) == pytest.approx(np.sqrt((squares[0] + 3 * squares[1]) / 4))


def test_penalties_by_hand() -> None:
    squared = torch.tensor([1.0, 4.0, 0.25], requires_grad=True)
    weights = torch.tensor([0.5, 0.25, 0.25])
    torch.testing.assert_close(squared_norm_penalty(squared, rho=0.1), 0.1 * squared)
    paper = 0.1 * torch.sqrt((weights * squared).sum())
    ours = (weights * root_mean_square_penalty(squared, weights, rho=0.1)).sum()
    torch.testing.assert_close(ours, paper)
    torch.testing.assert_close(torch.autograd.grad(ours, squared)[0], torch.autograd.grad(paper, squared)[0])
    ones = torch.ones(3)
    torch.testing.assert_close(root_mean_square_penalty(ones, weights, rho=0.1), squared_norm_penalty(ones, rho=0.1))


def test_the_squared_gradient_by_embeddings_is_that_of_the_margin_times_its_slope() -> None:
    """||grad_e l||^2 = beta^2 sigmoid(-beta h)^2 ||grad_e h||^2, for a tiny network in the place of a model."""
    beta, generator = 0.3, torch.Generator().manual_seed(0)
    embeddings, mixing, head = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((6, 4, 5), (5, 5), (5,))
    )
    embeddings.requires_grad_()  # three pairs: rows 0, 2, 4 against rows 1, 3, 5
    log_probs = torch.nn.functional.logsigmoid(torch.tanh(embeddings @ mixing) @ head).sum(dim=1)
    first, second, reference = torch.arange(0, 6, 2), torch.arange(1, 6, 2), doubles(-2.5, -3.0, -1.0)
    ones = torch.ones(3, dtype=torch.float64)
    tokens = TokenBatch(ones, None, None, ones, ones, ones, ones, (3, 2))  # unread: the log-probabilities are given
    sides = {REFERENCE: reference}, {REFERENCE: 0.5 * reference}
    micro = PairMicroBatch(tokens, (first, second), sides, 0 * ones, ones, ones / 3)
    batch = pair_batch(micro, log_probs.reshape(3, 2), embeddings)
    h = log_probs[first] - log_probs[second] - 0.5 * reference
    equal(batch.first.log_ratio - batch.second.log_ratio, h)
    losses = dpo(batch.first.log_ratio, batch.second.log_ratio, beta=beta)
    (by_margin,) = torch.autograd.grad(h.sum(), embeddings, retain_graph=True)
    squared = by_margin.pow(2).reshape(3, -1).sum(dim=1)
    assert batch.embedding_gradient is not None and float(squared.min()) > 0.1
    found = batch.embedding_gradient(losses)
    equal(found, beta**2 * torch.sigmoid(-beta * h) ** 2 * squared)
    equal(torch.autograd.grad(losses.sum(), embeddings)[0].pow(2).sum(), found.sum())


def test_what_makes_no_objective_is_refused() -> None:
    for name, options, said in (
        ("kldpo", {"tau": 0.0}, "option tau"), ("kldpo", {"rho": -1.0}, "option rho"),
        ("kldpo", {"rho": 0.1, "form": "code"}, "form paper"), ("wdpo", {"rho": -1.0}, "option rho"),
        ("dr-dpo", {"width": 0.0}, "width"), ("dpo", {"smoothing": 0.5}, "below 0.5"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            solve(WORLD, SolveSettings(method=name, options=options, multipliers=None))
    with pytest.raises(UsageError, match="has its own"):
        solve(WORLD, SolveSettings(method="kldpo", loss="ipo"))
