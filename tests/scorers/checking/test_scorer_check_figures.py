"""The figures of a scorer's check by hand, and what must not change them."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from checked_answers import Told, harm, pair_rows, read, single_rows, told
from dualign.errors import DataError
from dualign.scorers import checking_figures
from dualign.scorers.checked import checked
from dualign.scorers.checking import check_scorer, keeps_scores
from dualign.scorers.checking_figures import judged
from dualign.scorers.table import make_scorer

KNOBS = {"beta": 0.3, "temperature": 1.0}
HAND = [
    {"prompt": "a", "response_0": "harm 2", "response_1": "harm -1", "is_response_0_safe": False,
     "is_response_1_safe": True, "better_response_id": 0, "safer_response_id": 1},
    {"prompt": "b", "response_0": "harm 1", "response_1": "harm 3", "is_response_0_safe": False,
     "is_response_1_safe": False, "better_response_id": 0, "safer_response_id": 1},
    {"prompt": "c", "response_0": "harm 0.5", "response_1": "harm 0.50", "is_response_0_safe": False,
     "is_response_1_safe": True, "better_response_id": 1, "safer_response_id": 1},
]  # fmt: skip
"""Pair a: right; pair b: wrong; pair c: a tie (two texts, one number)."""


def test_order_and_flags_by_hand() -> None:
    found = check_scorer(told(harm), read(HAND), **KNOBS)
    order, detection = found["order"], found["detection"]
    assert order["value"] == pytest.approx((1 + 0 + 0.5) / 3) and order["ties"] == pytest.approx(1 / 3)
    test = order["sign_test"]
    assert (test["right"], test["wrong"], test["tied"], test["p_right"]) == (1, 1, 1, 0.75)
    # unsafe 2, 1, 3, 0.5 against safe -1, 0.5: seven of eight comparisons are right, and one is a tie
    assert detection["auc"]["value"] == pytest.approx(7.5 / 8)
    # the sign says unsafe for all but -1: right for 5 of 6; the commoner flag alone for 4
    assert detection["sign"]["value"] == pytest.approx(5 / 6)
    assert detection["commoner_flag"] == pytest.approx(4 / 6)
    assert detection["kappa"] == pytest.approx((5 / 6 - (5 * 4 + 1 * 2) / 36) / (1 - (5 * 4 + 1 * 2) / 36))
    assert found["data"] | {"path": "", "format": ""} == {
        "path": "", "format": "", "rows": 3, "faults": 0, "answers": 6, "prompts": 3, "pairs": 3, "flagged": 6,
        "left_out": {},
    }  # fmt: skip


def test_scale_and_saturation_by_hand() -> None:
    found = check_scorer(told(harm), read(HAND), beta=0.5, temperature=0.25)["scale"]
    # variances within the prompts are 4.5, 2 and 0
    spread = math.sqrt(6.5 / 3)
    assert found["within_prompt_sd"] == pytest.approx(spread)
    # raw labels have logits 12, -8 and 0, and log 99 is 4.595; in units of the SD 8.15, -5.43 and 0
    assert found["saturated"]["raw"] == pytest.approx(2 / 3)
    assert found["saturated"]["normalised"] == pytest.approx(2 / 3)
    # the policy's odds are (3, -2, 0) / SD / 0.5 = 4.08, -2.72, 0: none beyond, at whatever temperature
    assert found["saturated"]["policy"] == 0
    again = check_scorer(told(harm), read(HAND), beta=0.5, temperature=4.0)["scale"]["saturated"]
    assert again == {"raw": 0, "normalised": 0, "policy": 0}


def test_a_unit_changes_the_raw_labels_alone() -> None:
    file = read(pair_rows(80, noise=0.2))
    small, large = (check_scorer(told(lambda text, u=u: u * harm(text)), file, **KNOBS) for u in (0.01, 100.0))
    assert small["order"] == large["order"] and small["detection"] == large["detection"]
    for name in ("normalised", "policy"):
        assert small["scale"]["saturated"][name] == large["scale"]["saturated"][name]
    assert small["scale"]["saturated"]["raw"] == 0 and large["scale"]["saturated"]["raw"] > 0.9
    assert large["scale"]["within_prompt_sd"] == pytest.approx(1e4 * small["scale"]["within_prompt_sd"])


def test_turning_the_sign_mirrors_every_share() -> None:
    file = read(pair_rows(120, noise=0.2))
    there, back = check_scorer(told(harm), file, **KNOBS), check_scorer(told(lambda t: -harm(t)), file, **KNOBS)
    assert back["order"]["value"] == pytest.approx(1 - there["order"]["value"])
    assert back["order"]["low"] == pytest.approx(1 - there["order"]["high"])
    assert back["detection"]["auc"]["value"] == pytest.approx(1 - there["detection"]["auc"]["value"])
    assert (there["verdict"]["word"], back["verdict"]["word"]) == ("usable", "wrong sign")


def test_extremes_count_exact_values() -> None:
    found = checking_figures.extremes(np.array([0.0, 0.0, 0.25, 1.0, 1.0, 1.0]))
    assert (found["at_min"], found["at_max"], found["values"]) == (pytest.approx(1 / 3), 0.5, 3)
    assert not found["constant"]


@pytest.mark.parametrize(
    ("scores", "constant"),
    [([0.0, 0.0], True), ([3.0, 3.0 + 1e-12], True), ([1e-9, 2e-9], False), ([-1.0, 1.0], False), ([5.0], True)],
)
def test_constant_is_rounding_at_the_scale_of_the_scores(scores: list[float], constant: bool) -> None:
    assert checking_figures.extremes(np.array(scores))["constant"] == constant


def test_a_score_that_depends_on_its_batch_is_found() -> None:
    leaking = Told(lambda texts: [harm(text) + 1e-3 * (len(texts) > 1) for text in texts])
    found = check_scorer(checked(leaking), read(pair_rows(30)), **KNOBS)
    assert found["parity"]["largest_change"] == pytest.approx(1e-3) and not found["parity"]["held"]
    assert any("scored alone" in line for line in found["warnings"])
    sound = check_scorer(told(harm), read(pair_rows(30)), **KNOBS)
    assert sound["parity"] == {"answers": 32, "largest_change": 0.0, "allowed": pytest.approx(3e-5, abs=1e-5),
                               "held": True}  # fmt: skip


REMOTE = {"kind": "http", "url": "http://127.0.0.1:9/"}
JUDGE = {
    "kind": "chat-judge",
    "url": "http://127.0.0.1:9/chat/completions",
    "model": "m",
    "rubric": "{response}",
    "minimum": 0,
    "maximum": 1,
}
HARM = {"kind": "regex", "pattern": "harm"}


@pytest.mark.parametrize(
    ("spec", "kept"),
    [
        (REMOTE, True),
        (JUDGE, True),
        ({"kind": "weighted-sum", "terms": [{"scorer": HARM}, {"scorer": REMOTE}]}, True),
        ({"kind": "log-odds", "scorer": {"kind": "weighted-sum", "terms": [{"scorer": REMOTE}]}}, True),
        ({"kind": "compliance-harm", "refusal": REMOTE}, True),
        (HARM, False),
        ({"kind": "weighted-sum", "terms": [{"scorer": HARM}]}, False),
        ({"kind": "log-odds", "scorer": HARM}, False),
    ],
)
def test_scores_that_are_kept_say_nothing_of_an_answer_alone(spec: dict[str, Any], kept: bool) -> None:
    assert keeps_scores(make_scorer(spec, direction="cost")) == kept


def test_what_is_answered_from_kept_scores_is_not_called_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dualign.scorers.checking.keeps_scores", lambda scorer: True)
    leaking = Told(lambda texts: [harm(text) + 1e-3 * (len(texts) > 1) for text in texts])
    found = check_scorer(checked(leaking), read(pair_rows(30)), **KNOBS)
    assert found["parity"] is None and found["verdict"]["word"] == "usable" and found["warnings"] == []


def test_single_answers_are_judged_by_their_flags() -> None:
    alone = check_scorer(told(harm), read(single_rows(60, 1)), **KNOBS)
    assert alone["order"] is None and alone["detection"]["auc"]["value"] == 1
    assert alone["verdict"]["word"] == "usable" and "probability 100.0%" in alone["verdict"]["sentence"]
    grouped = check_scorer(told(harm), read(single_rows(60, 3)), **KNOBS)
    assert grouped["order"]["value"] == 1 and grouped["order"]["n_prompts"] > 30
    assert grouped["data"]["answers"] == 180


def test_an_answer_that_several_people_flagged_counts_once() -> None:
    rows = single_rows(20, 2) + [{"prompt": "new", "response": "harm 9", "is_safe": safe, "category": {}}
                                 for safe in (True, True, False)]  # fmt: skip
    data = judged(read(rows).rows, "cost")
    assert len(data.texts) == 41 and data.unsafe[-1] == 0
    rows[-2]["is_safe"] = False
    assert judged(read(rows).rows, "cost").unsafe[-1] == 1


def test_rewards_are_judged_by_the_more_helpful_answer() -> None:
    file = read(HAND)
    found = check_scorer(told(harm, direction="reward"), file, **KNOBS)
    assert found["detection"] is None and found["human_correction"] is None
    assert found["order"]["value"] == pytest.approx((1 + 0 + 0.5) / 3)


def test_rows_without_labels_are_refused() -> None:
    rows = [{"prompt": f"q {n}", "response": f"harm {n}", "is_safe": True, "category": {}} for n in range(5)]
    with pytest.raises(DataError, match="flags do not name both"):
        check_scorer(told(harm), read(rows), **KNOBS)


def test_labels_of_a_part_correct_the_share_of_unsafe_answers() -> None:
    file = read(single_rows(400, 2, seed=5))
    assert check_scorer(told(harm), file, **KNOBS)["human_correction"] is None
    flagged = tuple(
        row if number % 20 < 2 else replace(row, answers=(replace(row.answers[0], safe=None),))
        for number, row in enumerate(file.rows)
    )
    found = check_scorer(told(harm), replace(file, rows=flagged), **KNOBS)["human_correction"]
    assert (found["people"]["labelled"], found["people"]["unlabelled"]) == (40, 360)
    assert found["people"]["weight"] == 0 and found["corrected"]["weight"] > 0.2
    assert found["corrected"]["error"] < 0.85 * found["people"]["error"]
    distinct = {(row.prompt.id, row.answers[0].text) for row in file.rows}
    assert found["judge"]["value"] == pytest.approx(np.mean([harm(text) > 0 for _, text in distinct]))


def test_two_scorers_are_compared_on_the_same_answers() -> None:
    file = read(pair_rows(100, noise=0.1))
    shifted = told(lambda text: harm(text) - 0.5, id="shifted")
    found = check_scorer(told(harm), file, second=shifted, **KNOBS)["agreement"]
    assert found["spearman"] == pytest.approx(1) and found["pairs"]["value"] == 1 and 0 < found["kappa"] < 1
    assert found["second"]["id"] == "shifted"
    against = check_scorer(told(harm), file, second=told(lambda t: -harm(t), id="turned"), **KNOBS)["agreement"]
    assert against["spearman"] == pytest.approx(-1) and against["pairs"]["value"] == 0
    assert against["second_order"]["value"] < 0.5


def test_a_scorer_beside_itself_is_warned_of() -> None:
    file = read(pair_rows(20))
    same = check_scorer(told(harm), file, second=told(harm), **KNOBS)["warnings"]
    other = check_scorer(told(harm), file, second=told(harm, revision="2"), **KNOBS)["warnings"]
    assert any("is the first" in line for line in same) and not any("is the first" in line for line in other)


def test_a_zero_at_the_wrong_place_is_warned_of() -> None:
    probability = told(lambda text: 1 / (1 + math.exp(-harm(text))))
    found = check_scorer(probability, read(pair_rows(100)), **KNOBS)
    assert found["verdict"]["word"] == "usable" and any("its zero" in line for line in found["warnings"])
    assert not check_scorer(told(harm), read(pair_rows(100)), **KNOBS)["warnings"]


def test_pairs_decide_where_flags_of_other_prompts_mislead() -> None:
    """A cost that knows which prompts are bad, and has the answers within a prompt the wrong way round."""
    rng = np.random.default_rng(8)
    rows = []
    for number in range(120):
        level = 10 * (number % 2)
        a, b = sorted(rng.normal(size=2).round(3))
        # flags follow the prompt; within a prompt, people call the answer of lower score less safe
        low, high = f"harm {level + a:.3f}", f"harm {level + b:.3f}"
        rows.append({"prompt": f"q {number}", "response_0": low, "response_1": high,
                     "is_response_0_safe": not level, "is_response_1_safe": not level, "better_response_id": 0,
                     "safer_response_id": 1})  # fmt: skip
    found = check_scorer(told(harm), read(rows), **KNOBS)
    assert found["detection"]["auc"]["value"] == 1 and found["verdict"]["word"] == "wrong sign"
    assert any("contradict" in line for line in found["warnings"])


def test_chance_is_called_usable_as_seldom_as_the_interval_says() -> None:
    rng = np.random.default_rng(9)
    data = judged(read(pair_rows(150)).rows, "cost")
    outside = [
        not (found["low"] <= 0.5 <= found["high"])
        for found in (checking_figures.order(rng.normal(size=len(data.texts)), data) for _ in range(600))
        if found is not None
    ]
    assert np.mean(outside) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)
