"""B-DPO, KLDPO and WDPO on a tiny language model: what they read of it, and that they train."""

import numpy as np
import pytest

from dualign.maths.dual import fixed
from dualign.methods.options import Settings
from dualign.methods.recipes import INFORMATION, with_mutual_information
from dualign.methods.table import METHODS
from dualign.protocols import Policy, Problem
from dualign.records import Evaluation
from engine_parts import backend, groups, independent_log_prob, language_model


def problem(machine, made) -> Problem:
    def unread(policy: Policy) -> Evaluation:
        return Evaluation(0.0, 0.0, np.zeros(1), np.zeros(1), np.zeros(1), 0.0, 0.0, 1)

    return Problem(machine, made, np.zeros(1), Policy("reference"), unread, 0.5, 0)


def test_mutual_information_by_hand(tmp_path) -> None:
    model, made = language_model(), groups(3, 3)
    found = backend(model, tmp_path).mutual_information(Policy("reference"), made)
    for values, group in zip(found, made, strict=True):
        prompt = tuple(model.template(group.prompt))
        for value, response in zip(values, group.responses, strict=True):
            given, alone = (float(independent_log_prob(model.model, p, response.tokens)) for p in (prompt, (2,)))
            assert value == pytest.approx((given - alone) / len(response.tokens), abs=1e-10)


def test_mutual_information_does_not_see_the_batch(tmp_path) -> None:
    model, made = language_model(), groups(5, 3)
    machine = backend(model, tmp_path)
    together = machine.mutual_information(Policy("reference"), made)
    for i, group in enumerate(made):
        np.testing.assert_allclose(machine.mutual_information(Policy("reference"), [group])[0], together[i], atol=1e-10)


def test_the_column_has_spread_one(tmp_path) -> None:
    prepared = with_mutual_information(problem(backend(language_model(), tmp_path), groups(6, 2)))
    gaps = [float(np.diff(group.columns[INFORMATION])[0]) for group in prepared.groups]
    assert np.sqrt(np.mean(np.square(gaps))) == pytest.approx(1)


@pytest.mark.parametrize("name", ["b-dpo", "kldpo", "wdpo", "dr-dpo"])
def test_the_method_trains_and_repeats(name: str, tmp_path) -> None:
    states = []
    for attempt in range(2):
        machine = backend(
            language_model(), tmp_path / str(attempt), adapter="full", max_steps=6, per_device_train_batch_size=3,
            gradient_accumulation_steps=2, learning_rate=3e-3,
        )  # fmt: skip
        run = METHODS[name].run(problem(machine, groups(6, 3)), Settings(fixed(np.zeros(1)), np.zeros(1)))
        policy = next(run).policy
        history = policy.report.history
        assert all(np.isfinite(row["loss"]) for row in history)
        states.append((machine.log_probs(policy, groups(6, 3)), machine.log_probs(Policy("reference"), groups(6, 3))))
    (after, before), (again, _) = states
    assert all(np.array_equal(a, b) for a, b in zip(after, again, strict=True))
    assert max(np.abs(a - b).max() for a, b in zip(after, before, strict=True)) > 0.01
