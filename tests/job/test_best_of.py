"""Best-of-n as a policy without weights: what is chosen, and what it is said to cost."""

import math
from pathlib import Path

import numpy as np

from dualign.job.phases import Choice, read_choice, select, write_choice
from dualign.protocols import Policy, Scores
from dualign.records import Response


def test_the_best_of_every_n_in_turn_is_given() -> None:
    reward = np.array([[0.0, 3.0, 1.0, 2.0], [5.0, 5.0, 0.0, 1.0]])
    costs = np.array([[0.0, 9.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])[..., None]
    candidates = [[Response(f"{p}{k}", log_prob=-1.0) for k in range(4)] for p in range(2)]
    scores = Scores(reward, costs, np.ones((2, 1), dtype=bool))
    chosen = select(Choice(2, np.array([1.0])), candidates, scores)
    assert [[answer.text for answer in row] for row in chosen] == [["00", "03"], ["10", "13"]]
    assert chosen[0][0].log_prob == -1.0 + math.log(2) - 0.5
    free = select(Choice(4, np.array([0.0])), candidates, scores)
    assert [row[0].text for row in free] == ["01", "10"]


def test_the_rule_is_read_back(tmp_path: Path) -> None:
    folder = write_choice(tmp_path / "policy", 3, np.array([0.5]))
    choice = read_choice(Policy("00", folder))
    assert choice is not None and choice.n == 3 and choice.multipliers.tolist() == [0.5]
    assert read_choice(Policy("reference")) is None
