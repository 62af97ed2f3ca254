import math

import numpy as np
import pytest

from dualign.maths.estimates import intraclass_correlation, paired_difference, prompt_means, standard_error


def grouped(rng: np.random.Generator, prompts: int, responses: int, icc: float) -> tuple[np.ndarray, np.ndarray]:
    effects = math.sqrt(icc) * rng.standard_normal((prompts, 1))
    values = effects + math.sqrt(1 - icc) * rng.standard_normal((prompts, responses))
    return values.ravel(), np.repeat(np.arange(prompts), responses)


def test_means_by_prompt_of_unequal_sizes() -> None:
    assert prompt_means([1, 10, 3, 30, 2], [0, 4, 0, 4, 0]).tolist() == [2.0, 20.0]


def test_the_order_of_rows_changes_no_bit() -> None:
    rng = np.random.default_rng(0)
    values, index = rng.normal(0, 1e6, 999) ** 3, rng.integers(0, 50, 999)
    order = rng.permutation(999)
    assert (prompt_means(values, index) == prompt_means(values[order], index[order])).all()


def test_parallel_columns_are_required() -> None:
    with pytest.raises(ValueError, match="one prompt number a value"):
        prompt_means([1.0, 2.0], [0])


def test_clustered_error_covers_where_the_naive_one_does_not() -> None:
    rng = np.random.default_rng(1)
    covered, naive = 0, 0
    for _ in range(400):
        values, index = grouped(rng, 60, 5, 0.8)
        covered += abs(values.mean()) <= 2.001 * standard_error(prompt_means(values, index))
        naive += abs(values.mean()) <= 1.96 * values.std(ddof=1) / math.sqrt(values.size)
    assert covered / 400 > 0.92
    assert naive / 400 < 0.80


@pytest.mark.parametrize("icc", [0.0, 0.3, 0.74])
def test_icc_recovers_the_share_between_prompts(icc: float) -> None:
    values, index = grouped(np.random.default_rng(2), 3000, 4, icc)
    assert intraclass_correlation(values, index) == pytest.approx(icc, abs=0.03)


def test_icc_by_hand_with_unequal_sizes() -> None:
    # Means 1 and 6 around 4: between = 2*9 + 3*4 = 30; within = 2/3 + ... = 4/3; size = 5 - 13/5 = 2.4.
    values, index = [0.0, 2.0, 5.0, 6.0, 7.0], [0, 0, 1, 1, 1]
    within = (1 + 1 + 1 + 0 + 1) / 3
    assert intraclass_correlation(values, index) == pytest.approx((30 - within) / (30 + 1.4 * within))


def test_icc_lies_in_the_unit_interval_or_is_unknown() -> None:
    assert intraclass_correlation([0, 2, 0, 2], [0, 0, 1, 1]) == 0.0
    assert intraclass_correlation([0, 0, 2, 2], [0, 0, 1, 1]) == 1.0
    for values, index in (([1, 2, 3], [0, 1, 2]), ([1, 2], [0, 0]), ([1, 1, 1, 1], [0, 0, 1, 1]), ([], [])):
        assert math.isnan(intraclass_correlation(values, index))


def test_paired_difference_is_the_one_sample_t_interval() -> None:
    result = paired_difference([3.0, 5.0, 7.0, 9.0], [2.0, 3.0, 4.0, 5.0])  # 1 2 3 4; t(3, .975) = 3.182446
    half = 3.182446 * math.sqrt(5 / 12)
    assert (result.estimate, result.n_prompts) == (2.5, 4)
    assert (result.low, result.high) == pytest.approx((2.5 - half, 2.5 + half), abs=1e-6)


def test_pairing_removes_what_prompts_share() -> None:
    rng = np.random.default_rng(3)
    shared = 50 * rng.standard_normal((200, 1))
    a, b = shared + rng.standard_normal((200, 2)), shared + rng.standard_normal((200, 3)) + 1
    result = paired_difference(a, b)
    assert result.low < -1 < result.high
    assert result.error < 0.2 < a.mean(1).std() / math.sqrt(200)


def test_one_prompt_tells_no_difference() -> None:
    assert paired_difference([1.0], [2.0]).low == -math.inf
    with pytest.raises(ValueError, match="same prompts"):
        paired_difference([1.0, 2.0], [1.0])
