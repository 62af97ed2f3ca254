import numpy as np
import pytest

from dualign.maths.functionals import (
    FUNCTIONALS,
    ConditionalValueAtRisk,
    Mean,
    Rate,
    Relative,
    parse,
)

COSTS = np.array([-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 12.0])


def test_mean_and_rate() -> None:
    assert Mean().transform(COSTS).mean() == 3.0
    assert Rate().transform(COSTS).mean() == 0.7  # zero is no event
    assert (Mean().transform_cap(9.0), Mean().transform_cap(None), Rate().transform_cap(None)) == (9.0, None, 1.0)


def test_cvar_is_the_mean_of_the_worst_share() -> None:
    fitted = ConditionalValueAtRisk(0.8).fit(COSTS)
    assert fitted.transform(COSTS).mean() == pytest.approx(9.0)  # (6 + 12) / 2
    assert ConditionalValueAtRisk(0.7).fit(COSTS).transform(COSTS).mean() == pytest.approx((5 + 6 + 12) / 3)


def test_another_threshold_only_raises_cvar() -> None:
    best = ConditionalValueAtRisk(0.8).fit(COSTS).transform(COSTS).mean()
    for threshold in np.linspace(-5, 15, 41):
        assert ConditionalValueAtRisk(0.8, threshold).transform(COSTS).mean() >= best - 1e-12


@pytest.mark.parametrize("spec", ["mean", "rate", "cvar:0.9:1.5", "relative"])
def test_contract_specs_read_back_and_caps_bound_the_transform(spec: str) -> None:
    functional = parse(spec)
    assert functional.spec == spec
    assert parse(functional.fit(COSTS).spec) == functional.fit(COSTS)
    cap = functional.transform_cap(4.0)
    assert cap is not None
    assert functional.transform(np.minimum(COSTS, 4.0), np.zeros(10)).max() <= cap + 1e-12


@pytest.mark.parametrize("spec", ["mean", "rate", "cvar:0.9:1.5", "relative"])
def test_contract_clipping_before_and_after_agree(spec: str) -> None:
    # What the certificate does: transform, then cut at the transformed cap.
    functional, reference = parse(spec), np.zeros(10)
    before = functional.transform(np.minimum(COSTS, 4.0), reference)
    after = np.minimum(functional.transform(COSTS, reference), functional.transform_cap(4.0))
    assert before == pytest.approx(after)


def test_a_cap_below_the_threshold_leaves_the_threshold() -> None:
    assert ConditionalValueAtRisk(0.9, 5.0).transform_cap(3.0) == 5.0


def test_relative_is_a_difference_and_needs_its_other_side() -> None:
    assert Relative().transform([3.0, 5.0], [1.0, 1.0]).tolist() == [2.0, 4.0]
    with pytest.raises(ValueError, match="reference's costs"):
        Relative().transform([3.0])


def test_cvar_without_its_threshold_refuses() -> None:
    with pytest.raises(ValueError, match="not fitted"):
        parse("cvar:0.9").transform(COSTS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quartile!", "known are mean, rate, cvar, relative"),
        ("cvar", "for example cvar:0.9"),
        ("cvar:x", "for example cvar:0.9"),
        ("cvar:1.0", "strictly between 0 and 1"),
        ("rate:2:3", "rate:THRESHOLD"),
        ("relative:2", "takes no argument"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_the_table() -> None:
    assert set(FUNCTIONALS) == {"mean", "rate", "cvar", "relative"}
