"""Units, slices and thresholds of the search; prompts that leak; answers cut at a sentence: by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dualign.config import Config
from dualign.errors import ConfigError, InfeasibleError
from dualign.job.assembly import first_sentences
from dualign.job.inputs import check_slices, load_splits
from dualign.job.measurement import Scored, normalised
from dualign.job.phases import Job
from dualign.job.results import flip_multipliers
from dualign.job.search import Search, first_multipliers, prepare, training_functional
from dualign.maths.functionals import ConditionalValueAtRisk
from dualign.maths.preference import Scale
from dualign.models.templates import response_tokens
from dualign.records import Prompt, Response
from gibbs_jobs import gibbs_config, gibbs_job
from sampling_parts import tiny_language_model

RISKY, BENIGN = {"label": "risky"}, {"label": "benign"}
PROMPTS = (Prompt("x0", RISKY), Prompt("x1", BENIGN), Prompt("x2", BENIGN), Prompt("x3", BENIGN))
REWARD = np.array([[0.0, 2.0], [1.0, 1.0], [0.0, 4.0], [0.0, 0.0]])
HARM = np.array([[1.0, 3.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
WORDS = np.array([[5.0, 1.0], [2.0, 2.0], [0.0, 8.0], [4.0, 4.0]])
SCALE = Scale(reward_sd=2.0, cost_sds=np.array([0.5, 4.0]))
LIMITS = [
    {"name": "harm", "limit": 1.5, "cap": 4.0, "where": RISKY},
    {"name": "words", "limit": 3.0, "cap": 9.0},
]


def search(run: Path, job: Job | None = None) -> Search:
    made = gibbs_job(run, gibbs_config(LIMITS)) if job is None else job
    row = (Response("a"), Response("b"))
    costs = np.stack([HARM, WORDS], axis=-1)[:, :, : len(made.constraints)]
    return Search(made, Scored(PROMPTS, (row,) * 4, REWARD, costs, np.zeros((4, 2))), SCALE, np.zeros((1, 2)))


def test_multipliers_are_reward_per_cost(tmp_path: Path) -> None:
    found = search(tmp_path / "run")
    # one normalised unit: 2 of reward for 0.5, and for 4, of cost
    assert found.scale.raw_multipliers(np.array([1.0, 1.0])).tolist() == [4.0, 0.5]
    assert found.scale.raw_multipliers(SCALE.multipliers(np.array([0.3, 7.0]))) == pytest.approx([0.3, 7.0])
    assert found.beta == pytest.approx(0.3 * 2)
    assert found.problem().limits.tolist() == [3.0, 0.75]


def test_groups_are_in_normalised_units_and_cost_nothing_outside_the_slice(tmp_path: Path) -> None:
    groups = search(tmp_path / "run").groups()
    assert [group.reward.tolist() for group in groups] == (REWARD / 2).tolist()
    assert groups[0].costs.tolist() == [[2.0, 1.25], [6.0, 0.25]]
    assert groups[2].costs.tolist() == [[0.0, 0.0], [0.0, 2.0]]


def outside_costs(found: Search, values: np.ndarray) -> Search:
    """Return the search with costs of harm on the three benign prompts, ``[prompt, response]``."""
    costs = found.train.costs.copy()
    costs[1:, :, 0] = values
    return replace(found, train=replace(found.train, costs=costs))


def labels_of(found: Search, multiplier: float) -> np.ndarray:
    """Return the label's logit of the one pair of each prompt, ``[prompt]``."""
    groups = found.groups()
    scores = np.array([group.reward - group.costs @ np.full(group.costs.shape[1], multiplier) for group in groups])
    return scores[:, 0] - scores[:, 1]


@pytest.mark.parametrize("functional", ["mean", "rate", "cvar:0.5", "relative"])
def test_costs_outside_the_slice_enter_neither_labels_nor_the_plan(functional: str, tmp_path: Path) -> None:
    limit = 0.5 if functional == "rate" else 1.5
    harm = {"name": "harm", "limit": limit, "cap": 4.0, "where": RISKY, "functional": functional}
    job = gibbs_job(tmp_path / "run", gibbs_config([harm]))
    bare = search(tmp_path / "run", job)
    bare = replace(bare, scale=Scale(reward_sd=2.0, cost_sds=np.array([0.5])))
    loud = outside_costs(bare, np.array([[9.0, -7.0], [0.0, 50.0], [3.0, 3.0]]))
    for made in (bare, loud):
        assert [group.costs[:, 0].tolist() for group in made.groups()[1:]] == [[0.0, 0.0]] * 3
        assert labels_of(made, 5.0)[1:].tolist() == labels_of(made, 0.0)[1:].tolist() == [0.0, -2.0, 0.0]
    assert labels_of(loud, 5.0).tolist() == labels_of(bare, 5.0).tolist()
    plans = [made.plan() for made in (bare, loud)]
    assert str(plans[0]) == str(plans[1])  # of a rate that nothing can move the multiplier is no number


def test_the_margin_counts_the_prompts_of_the_slice_and_widens_by_the_bound(tmp_path: Path) -> None:
    found = search(tmp_path / "run")  # 200 prompts to tune and 600 to calibrate, half of each risky
    made = found.measure(found.job.reference)
    harm, words = found.margin(replace(made, cost_spreads=np.array([2.0, 2.0])))
    # the first opening spends .045: z_.955 = 1.6954, z_.90 = 1.2816
    # the betting bound is 1 + .3 sqrt(200 / n) times as wide as that of t
    by_hand = (1.6954 * 2 / 300**0.5 + 1.2816 * 2 * (1 / 300 + 1 / 100) ** 0.5) * (1 + 0.3 * (200 / 300) ** 0.5)
    assert harm == pytest.approx(by_hand, rel=1e-4)
    by_hand = (1.6954 * 2 / 600**0.5 + 1.2816 * 2 * (1 / 600 + 1 / 200) ** 0.5) * (1 + 0.3 * (200 / 600) ** 0.5)
    assert words == pytest.approx(by_hand, rel=1e-4)


def test_the_first_multipliers_aim_below_the_limits_by_the_references_margin(tmp_path: Path) -> None:
    job = gibbs_job(tmp_path / "run", gibbs_config([{"name": "harm", "limit": 0.4, "cap": 1.0, "where": RISKY}]))
    found = prepare(job)
    margin = found.margin(normalised(found.measure(job.reference), found.scale))
    assert margin > 0.02
    lower = replace(job.constraints[0], limit=job.constraints[0].limit - float(margin[0] * found.scale.cost_sds[0]))
    nearer = replace(found, job=replace(job, constraints=(lower,)))
    aimed = found.aimed_plan().multipliers
    assert aimed == pytest.approx(nearer.plan().multipliers, rel=1e-9)
    assert aimed > found.plan().multipliers + 0.01


@pytest.fixture(scope="module")
def on_a_slice(tmp_path_factory: pytest.TempPathFactory) -> Search:
    """Return the search of a job whose only limit is on risky prompts, every second one."""
    config = gibbs_config([{"name": "harm", "limit": 0.4, "cap": 1.0, "where": RISKY}])
    return prepare(gibbs_job(tmp_path_factory.mktemp("slice") / "run", config))


def test_the_plan_keeps_the_limit_on_the_mean_of_the_slice(on_a_slice: Search) -> None:
    multiplier, beta = on_a_slice.plan().multipliers[0], on_a_slice.job.config.training.beta
    means = []
    for group in on_a_slice.groups():
        if group.prompt.columns == RISKY:
            weights = np.exp((group.reward - multiplier * group.costs[:, 0]) / beta)
            means.append(weights @ group.costs[:, 0] / weights.sum())
    assert multiplier > 0.1
    assert np.mean(means) == pytest.approx(0.4 / on_a_slice.scale.cost_sds[0], rel=1e-4)


def test_outside_the_slice_no_cost_is_scored_and_none_enters_the_units(on_a_slice: Search) -> None:
    train = on_a_slice.train
    risky = np.array([prompt.columns == RISKY for prompt in train.prompts])
    assert (train.costs[~risky] == 0).all() and (train.costs[risky] > 0).all()
    by_hand = np.sqrt(train.costs[risky, :, 0].var(axis=1, ddof=1).mean())
    assert on_a_slice.scale.cost_sds[0] == pytest.approx(by_hand, rel=1e-12)
    prompts = [train.prompts[int(np.argmax(risky))], train.prompts[int(np.argmin(risky))]]
    scores = on_a_slice.score(prompts, [[Response("reply 0"), Response("reply 1")]] * 2)
    assert scores.inside[:, 0].tolist() == [True, False]
    assert (scores.costs[0] > 0).all() and (scores.costs[1] == 0).all()


def test_a_limit_on_a_slice_is_a_share_of_a_limit_on_all(tmp_path: Path) -> None:
    assert search(tmp_path / "run")._shares().tolist() == [0.25, 1.0]


def test_the_flip_is_the_median_of_reward_over_cost_where_the_better_is_the_costlier(tmp_path: Path) -> None:
    # harm: only x0, 2 of reward for 2 of cost; words: x0 is better and cheaper, x2 has 4 for 8
    assert flip_multipliers(search(tmp_path / "run")).tolist() == [1.0, 0.5]


def test_a_number_as_start_is_raw(tmp_path: Path) -> None:
    job = gibbs_job(tmp_path / "run", gibbs_config(LIMITS, method={"start": 2.0}))
    assert first_multipliers(search(tmp_path / "run", job)) == pytest.approx([2 * 0.5 / 2, 2 * 4 / 2])


@pytest.mark.parametrize(("limit", "threshold"), [(0.5, 0.5), (2.5, 1.0)])
def test_pairs_of_a_tail_are_labelled_at_the_quantile_or_at_a_lower_limit(
    limit: float, threshold: float, tmp_path: Path
) -> None:
    tail = {"name": "harm", "limit": limit, "cap": 4.0, "where": RISKY, "functional": "cvar:0.5"}
    job = gibbs_job(tmp_path / "run", gibbs_config([tail]))
    fitted = training_functional(job, search(tmp_path / "run", job).train, 0)
    assert fitted == ConditionalValueAtRisk(0.5, threshold)


def test_a_limit_below_every_sample_is_infeasible_before_any_fit(tmp_path: Path) -> None:
    job = gibbs_job(tmp_path / "run", gibbs_config([{"name": "harm", "limit": -0.1, "cap": 1.0}]))
    with pytest.raises(InfeasibleError, match="limit -0.1 of 'harm' is below the lowest cost"):
        prepare(job)
    assert not (tmp_path / "run" / "rounds").exists()


def sources(folder: Path, train: list[str], sealed: list[str]) -> Config:
    for name, texts in (("a", train), ("b", sealed)):
        folder.joinpath(f"{name}.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    rows = [
        {"path": "a.jsonl", "columns": RISKY, "splits": {"train": len(train)}},
        {"path": "b.jsonl", "columns": BENIGN, "splits": {"tune": 1, "report": 1, "calibration": len(sealed) - 2}},
    ]
    return gibbs_config(LIMITS, data={"sources": rows})


SEALED = ["seven eight nine ten", "red green blue black", "oak elm ash fir", "one two three four five six"]


def test_a_prompt_that_resembles_a_later_split_is_not_trained_on(tmp_path: Path) -> None:
    twin, own = "Six five four three two ONE!", "sun moon star sky"
    splits, notes = load_splits(sources(tmp_path, [twin, own], SEALED), tmp_path)
    assert [prompt.text for prompt in splits["train"]] == [own]
    measured = [prompt.text for name in ("tune", "report", "calibration") for prompt in splits[name]]
    assert sorted(measured) == sorted(SEALED)
    assert "1 prompts dropped: a near-duplicate stands in a later split" in notes


def test_a_split_that_leaks_wholly_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no prompts for the split 'train'"):
        load_splits(sources(tmp_path, [SEALED[0].upper()], SEALED), tmp_path)


def test_every_slice_needs_prompts_to_train_tune_and_certify_on(tmp_path: Path) -> None:
    config = sources(tmp_path, ["sun moon star sky"], SEALED)
    job = gibbs_job(tmp_path / "run", config)
    with pytest.raises(ConfigError, match="constraints.harm.where: no tune prompt has {'label': 'risky'}"):
        check_slices(job.constraints, load_splits(config, tmp_path)[0])


TWO_SENTENCES = "a b. c d. e"
"""In the tiny vocabulary a sentence is one token and EOS another; the half sentence at the end is never kept."""


@pytest.mark.parametrize(("limit", "kept"), [(9, "a b. c d."), (3, "a b. c d."), (2, "a b.")])
def test_an_answer_is_cut_after_whole_sentences_that_fit(limit: int, kept: str) -> None:
    model = tiny_language_model()
    assert first_sentences(model, TWO_SENTENCES, limit) == response_tokens(model, kept)


@pytest.mark.parametrize(("text", "limit"), [(TWO_SENTENCES, 1), ("a b c", 9), ("", 9)])
def test_without_a_whole_sentence_there_is_nothing_to_imitate(text: str, limit: int) -> None:
    assert first_sentences(tiny_language_model(), text, limit) is None
