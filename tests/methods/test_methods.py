import inspect
from dataclasses import replace

import numpy as np
import pytest
from dualign.methods.offline import one_shot_multipliers

from dualign.errors import UsageError
from dualign.maths.dual import DualRule, DualState, Observation, gradient
from dualign.maths.dual_rules import DUAL_RULES
from dualign.maths.exact import dual_gradient, expectations
from dualign.methods.c_dpo import c_dpo, relabelled
from dualign.methods.options import Settings
from dualign.methods.table import METHODS
from dualign.protocols import Policy, Problem
from dualign.records import Evaluation
from dualign.worlds.tabular import TabularBackend
from small_worlds import small_world

WORLD = small_world(8, beta=0.5)


def problem() -> Problem:
    exact, backend = WORLD.problem(), TabularBackend(WORLD)

    def evaluate(policy: Policy) -> Evaluation:
        found = expectations(exact, policy.state)
        return Evaluation(found.reward, 0.0, found.costs, np.zeros(1), np.zeros(1), found.kl, 0.0, len(exact.reward))

    return Problem(backend, WORLD.groups(), exact.limits, backend.reference, evaluate, exact.beta, 0)


def test_two_rounds_of_the_paper_by_hand() -> None:
    # lambda_{k+1} = max(0, lambda_k + eta (E_k[c] - d)), and E_k[c] - d is minus the dual gradient at lambda_k.
    run = c_dpo(problem(), Settings(gradient(step=0.3), np.array([0.2])))
    found = [next(run) for _ in range(4)]
    second = 0.2 - 0.3 * dual_gradient(WORLD.problem(), np.array([0.2]))[0]
    third = second - 0.3 * dual_gradient(WORLD.problem(), np.array([second]))[0]
    assert [iterate.round for iterate in found] == [0, 1, 2, 3]
    np.testing.assert_allclose(
        [float(iterate.multipliers[0]) for iterate in found], [0, 0.2, max(0, second), max(0, third)], atol=1e-9
    )


def asks_in_turn(order: list[float]) -> DualRule:
    def update(observation: Observation, state: DualState) -> DualState:
        state = replace(state, history=(*state.history, observation))
        if state.round == len(order):
            return replace(state, status="converged")
        return replace(state, multipliers=np.array([order[state.round]]))

    return DualRule("in turn", lambda start: DualState(np.array([order[0]]), start), update)


def test_a_multiplier_that_was_evaluated_is_looked_up() -> None:
    run = c_dpo(problem(), Settings(asks_in_turn([0.0, 1.0, 0.0, 1.0, 2.0]), np.ones(1)))
    iterates = []
    try:
        while True:
            iterates.append(next(run))
    except StopIteration as ended:
        state = ended.value
    assert [float(iterate.multipliers[0]) for iterate in iterates] == [0, 1, 2]
    assert state.round == 5
    assert state.history[0].violation == state.history[2].violation


def test_the_margin_moves_what_the_rule_sees() -> None:
    aimed = replace(problem(), margin=lambda evaluation: np.array([0.25]))
    seen = []
    for asked in (problem(), aimed):
        run = c_dpo(asked, Settings(asks_in_turn([0.5]), np.ones(1)))
        next(run)
        with pytest.raises(StopIteration) as ended:
            next(run)
        seen.append(float(ended.value.value.history[0].violation[0]))
    assert seen[1] - seen[0] == pytest.approx(0.25)


def test_a_dual_that_is_solved_at_once_ends_below_the_limit_by_the_references_margin() -> None:
    # the gradient of the dual is limit - E[cost] at the multipliers found: nothing, or the margin
    reference, of = expectations(WORLD.problem(), problem().reference.state).reward, []

    def margin(evaluation: Evaluation) -> np.ndarray:
        of.append(evaluation.reward)
        return np.array([0.05])

    for asked, below in ((problem(), 0.0), (replace(problem(), margin=margin), 0.05)):
        found = one_shot_multipliers(asked)
        assert found[0] > 0.1
        assert dual_gradient(WORLD.problem(), found) == pytest.approx([below], abs=1e-6)
    assert of == [reference]


@pytest.mark.parametrize("name", METHODS)
def test_every_row_of_the_table_runs_alike(name: str) -> None:
    row = METHODS[name]
    assert row.name == name and row.source and row.needs
    assert set(inspect.signature(row.algorithm).parameters) == {"problem", "settings"}
    settings = Settings(DUAL_RULES["bracket"](), np.array([1.5]))
    first, again = next(row.run(problem(), settings)), next(row.run(problem(), settings))
    assert np.all(first.multipliers >= 0)
    assert np.isfinite(first.evaluation.reward) and np.all(np.isfinite(first.evaluation.costs))
    assert np.array_equal(first.policy.state, again.policy.state)
    begins = {"given": 1.5, "dual rule": 0, "none": 0}
    assert row.weight == "own" or first.multipliers[0] == begins[row.weight]


def test_unknown_losses_and_labels_name_the_nearest() -> None:
    settings = Settings(gradient(step=0.3), np.zeros(1))
    for key, value, said in (("loss", "dpoo", "'dpo'"), ("labels", "sft", "'soft'"), ("temperature", -1.0, "above 0")):
        with pytest.raises(UsageError, match=said):
            relabelled(np.zeros(1), 0.5, replace(settings, **{key: value}))  # type: ignore[arg-type]
