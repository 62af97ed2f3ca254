from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit

from dualign.errors import DataError, ScorerError
from dualign.maths.exact import dual_hessian, expectations, log_policy, optimum
from dualign.protocols import Policy, Scorer
from dualign.worlds import assistant, assistant_scores
from dualign.worlds.assistant import build_assistant_world, language_model, reply_tokens
from dualign.worlds.assistant_text import (
    FULL,
    QUICK,
    all_prompts,
    context_numbers,
    reply_choices,
    reply_numbers,
    reply_texts,
)

REFERENCE = Policy("reference")


@pytest.fixture(scope="module")
def untrained():
    return language_model(3)


@pytest.fixture(scope="module")
def demonstrated():
    """Prompts with the demonstrators' own distribution for a reference, and the true problem on them."""
    prompts = all_prompts()[::13]
    log_reference = np.stack([assistant_scores.demonstrator_log_probs(prompt) for prompt in prompts])
    world = build_assistant_world(FULL, 0)
    return world, prompts, log_reference, world.problem(prompts, log_reference, beta=0.5)


def test_prompts_and_replies_are_as_many_as_the_choices_and_all_different():
    assert len({prompt.id for prompt in all_prompts()}) == 6 * 6 * 8 * 8 == 2304
    assert len(set(reply_texts())) == 4 * 4 * 3 * 3 * 4 * 3 == 1728
    labels = [prompt.columns["label"] for prompt in all_prompts()]
    assert labels.count("risky") == labels.count("benign") == 1152


def test_every_reply_is_found_again_from_its_text_even_with_loose_spaces():
    assert np.array_equal(reply_numbers(reply_texts()), np.arange(1728))
    assert reply_numbers(["  " + reply_texts()[77].replace(" ", "  ") + "\n"]) == [77]


def test_wording_changes_no_context():
    first, second = all_prompts()[0], all_prompts()[64]
    assert first.columns["wording"] != second.columns["wording"]
    assert len(set(context_numbers([first, second]))) == 1


def test_a_foreign_text_is_refused_with_the_nearest_known_one():
    scorer = build_assistant_world(QUICK, 0).exact_scorers["cost"]
    with pytest.raises(ScorerError, match=r"reply 0 is 'Of course, with pleasur.*e\.g\. '"):
        scorer(all_prompts()[:1], ["Of course, with pleasure! Bye."])


def test_tokens_and_texts_are_two_writings_of_one_reply(untrained):
    tokenizer = untrained.tokenizer
    for number in (0, 77, 1000, 1727):
        tokens = reply_tokens(reply_choices()[number].tolist())
        assert tokenizer.decode(tokens, skip_special_tokens=True) == reply_texts()[number]
        assert tuple(tokenizer(reply_texts()[number], add_special_tokens=False)["input_ids"]) == tokens[:-1]
        assert tokens[-1] == untrained.eos


def test_prompts_have_seven_known_tokens_and_the_chat_template_gives_the_same(untrained):
    for prompt in all_prompts()[::101]:
        ids = untrained.template(prompt)
        turns = [{"role": "user", "content": prompt.text}]
        chat = untrained.tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        assert ids == chat
        assert len(ids) == 7
        assert untrained.tokenizer.unk_token_id not in ids


def test_model_is_a_small_llama_and_its_seed_decides_its_weights(untrained):
    assert sum(p.numel() for p in untrained.model.parameters()) < 100_000
    again, other = language_model(3).model, language_model(4).model
    weights = untrained.model.model.embed_tokens.weight
    assert torch.equal(weights, again.model.embed_tokens.weight)
    assert not torch.equal(weights, other.model.embed_tokens.weight)


def test_enumeration_equals_scoring_each_reply_alone(untrained):
    model = replace(untrained, temperature=0.7)
    prompts = all_prompts()[5:2000:450]
    table = assistant.enumerate_log_probs(model, REFERENCE, prompts)
    assert np.abs(np.exp(table).sum(axis=1) - 1).max() < 1e-9
    assert model.grammar is not None
    for row, prompt in enumerate(prompts):
        for reply in (0, 333, 1727):
            tokens = reply_tokens(reply_choices()[reply].tolist())
            with torch.no_grad():
                logits = model.model(torch.tensor([model.template(prompt) + list(tokens)])).logits[0, 6:13]
            allowed = (logits.double() / 0.7).masked_fill(~model.grammar, -torch.inf).log_softmax(-1)
            alone = sum(float(allowed[place, token]) for place, token in enumerate(tokens))
            assert table[row, reply] == pytest.approx(alone, abs=1e-5)


def test_rewards_and_costs_conflict_where_there_is_risk_and_not_elsewhere():
    reward, cost = assistant_scores.hidden_reward(), assistant_scores.hidden_cost()

    def correlation(intent):
        rows = context_numbers([p for p in all_prompts() if p.columns["intent"] == intent])
        return np.mean([np.corrcoef(reward[row], cost[row])[0, 1] for row in rows])

    assert correlation("bypass") > 0.6
    assert abs(correlation("understand")) < 0.3
    safe = context_numbers([p for p in all_prompts() if p.columns["label"] == "benign"])
    assert cost[safe].mean() < -1


def test_scores_are_not_sums_over_slots():
    choices = reply_choices()
    one_hot = np.concatenate([np.eye(4)[choices[:, c]] for c in range(6)], axis=1)
    for table in (assistant_scores.hidden_reward()[380], assistant_scores.hidden_cost()[380]):
        fitted = one_hot @ np.linalg.lstsq(one_hot, table, rcond=None)[0]
        assert np.var(table - fitted) > 0.03 * np.var(table)


def test_the_limit_binds_against_reference_and_unconstrained_optimum(demonstrated):
    _, _, log_reference, truth = demonstrated
    best = optimum(truth)
    assert expectations(truth, log_reference).costs[0] > 0.1
    assert expectations(truth, log_policy(truth, np.zeros(1))).costs[0] > 1
    assert best.feasible
    assert 0.2 < best.multipliers[0] < 0.6
    assert best.expectations.costs[0] == pytest.approx(0, abs=1e-6)
    spread = replace(truth, reward=np.zeros_like(truth.reward), costs=truth.reward[:, :, None])
    assert np.sqrt(dual_hessian(spread, np.zeros(1))[0, 0] * truth.beta) == pytest.approx(1, abs=0.1)


def test_slice_mean_is_the_mean_over_the_risky_prompts(demonstrated):
    world, prompts, log_reference, truth = demonstrated
    cost = world.exact_scorers["cost"].table[context_numbers(prompts)]
    by_prompt = (np.exp(log_reference) * cost).sum(axis=1)
    risky = [prompt.columns["label"] == "risky" for prompt in prompts]
    assert expectations(truth, log_reference).costs[0] == pytest.approx(by_prompt[risky].mean())


def test_gap_is_beta_times_the_divergence_from_the_optimum(demonstrated):
    _, _, log_reference, truth = demonstrated
    best = optimum(truth)
    policy = log_policy(truth, np.array([0.8]))
    parts = assistant.gap(
        truth, multipliers=best.multipliers, best=best.log_probs, believed=log_reference, policy=policy
    )
    divergence = (np.exp(policy) * (policy - best.log_probs)).sum(axis=1).mean()
    assert parts.total == pytest.approx(truth.beta * divergence, abs=1e-9)
    assert parts.total == pytest.approx(parts.scores + parts.training)


def test_judgements_have_the_probabilities_of_the_hidden_scores():
    reward, cost = np.array([[0.0, 1.2]]), np.array([[-0.5, 0.8]])
    pairs = np.tile([[1, 0]], (40_000, 1))
    said = assistant_scores.compare(np.zeros(40_000, dtype=np.int64), pairs, reward=reward, cost=cost, seed=1)
    error = 4 * 0.5 / np.sqrt(40_000)
    assert said.first_better.mean() == pytest.approx(expit(1.2), abs=error)
    assert said.first_worse.mean() == pytest.approx(expit(1.3), abs=error)
    assert said.unsafe.mean(axis=0) == pytest.approx(expit([0.8, -0.5]), abs=error)


def test_demonstrators_refuse_more_where_it_is_risky_and_never_always():
    refusing = reply_choices()[:, 0] == 0
    share = {
        intent: np.exp(assistant_scores.demonstrator_log_probs(prompt))[refusing].sum()
        for intent, prompt in ((p.columns["intent"], p) for p in all_prompts())
    }
    assert 0.05 < share["clean"] < share["bypass"] < 0.5


@pytest.mark.parametrize("signs", [False, True])
def test_gradient_of_the_head_losses_vanishes_at_the_fit(signs):
    generator = np.random.default_rng(0)
    contexts, replies = generator.integers(384, size=300), generator.integers(1728, size=(300, 2))
    said = assistant_scores.compare(
        contexts,
        replies,
        reward=assistant_scores.hidden_reward(),
        cost=assistant_scores.hidden_cost(),
        seed=0,
    )
    groups = ((0,), (1,), (2, 3), (6,))
    weights = assistant_scores.fit_head(
        said,
        labels=said.first_worse,
        signs=said.unsafe if signs else None,
        groups=groups,
        ridge=1.0,
    )
    sides = [assistant_scores.features(contexts, replies[:, side], groups) for side in (0, 1)]

    def loss(at):
        y = [side.matrix @ at for side in sides]
        total = -np.log(expit(np.where(said.first_worse > 0, 1, -1) * (y[0] - y[1]))).sum()
        if signs:
            for side in (0, 1):
                total -= np.log(expit(np.where(said.unsafe[:, side] > 0, 1, -1) * y[side])).sum()
        return total + (sides[0].ridge * at**2).sum() / 2

    for direction in np.eye(len(weights))[::3]:
        slope = (loss(weights + 1e-4 * direction) - loss(weights - 1e-4 * direction)) / 2e-4
        assert abs(slope) < 0.05


@pytest.mark.slow
def test_learned_cost_has_the_hidden_zero_and_scale(demonstrated):
    world, prompts, log_reference, truth = demonstrated
    small = replace(world, settings=replace(FULL, comparisons=30_000))
    heads = assistant_scores.fit_heads(small.comparisons(prompts, log_reference), small.settings, small.seed)
    rows = context_numbers(prompts)
    hidden, learned = world.exact_scorers["cost"].table[rows], heads.cost.table[rows]
    weights = np.exp(log_reference) / len(rows)
    assert (weights * (learned - hidden)).sum() == pytest.approx(0, abs=0.05)
    slope = np.cov(hidden.ravel(), learned.ravel(), aweights=weights.ravel())
    assert slope[0, 1] / slope[0, 0] == pytest.approx(1, abs=0.1)
    believed = optimum(small.problem(prompts, log_reference, heads=heads, beta=truth.beta))
    best = optimum(truth)
    lost = assistant.lagrangian(truth, best.multipliers, best.log_probs) - assistant.lagrangian(
        truth, best.multipliers, believed.log_probs
    )
    assert 0 <= lost < 0.08
    report = heads.report
    assert report.reward_accuracy_ceiling - 0.05 < report.reward_accuracy
    assert report.cost_correlation > 0.95


@pytest.mark.parametrize("settings", [FULL, QUICK])
def test_splits_are_disjoint_and_fit(settings):
    parts = build_assistant_world(settings, 1).splits()
    ids = [prompt.id for part in parts.values() for prompt in part]
    assert len(set(ids)) == len(ids) <= 2304


def test_scorers_keep_the_protocol_and_their_revision_follows_their_numbers():
    scorers = build_assistant_world(QUICK, 0).exact_scorers
    assert all(isinstance(scorer, Scorer) for scorer in scorers.values())
    assert scorers["reward"].revision != scorers["cost"].revision


def test_a_problem_without_its_slice_is_refused():
    world = build_assistant_world(QUICK, 0)
    benign = [prompt for prompt in all_prompts() if prompt.columns["label"] == "benign"][:3]
    log_reference = np.stack([assistant_scores.demonstrator_log_probs(prompt) for prompt in benign])
    with pytest.raises(DataError, match="no prompt has"):
        world.problem(benign, log_reference, beta=0.5)
