"""On-policy training on sampled answers: gradients by hand, memory between stretches, and that it learns."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dualign.errors import UsageError
from dualign.maths.policy_gradient import multiplier_step
from dualign.models.pair_store import encode_prompt
from dualign.models.sampler import TransformersSampler
from dualign.protocols import OnPolicyObjective, OnPolicyTraining, Policy, Sampling, Scores
from dualign.records import FloatArray, Group, Prompt, Response
from dualign.train import on_policy
from dualign.train.loop import Optimiser
from dualign.train.on_policy import Learner, Stage, batch_at, recall, train_on_policy
from dualign.train.settings import TrainingSettings
from dualign.train.transformer import TransformerBackend
from dualign.train.weights import trained_weights
from sampling_parts import PROMPTS, tiny_language_model

REFERENCE = Policy("reference")
LIMIT, RATE, LARGEST = np.array([0.2]), np.array([0.5]), np.array([50.0])


def score(prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]]) -> Scores:
    """Reward: tokens; cost: whether the answer has an ``a``; every second prompt is looked at."""
    reward = np.array([[len(answer.tokens) / 3 for answer in row] for row in responses])
    inside = np.array([[prompt.text != "b"] for prompt in prompts])
    costs = np.array([[float("a" in answer.text) for answer in row] for row in responses])[..., None]
    return Scores(reward, costs * inside[:, None, :], inside)


def follow(multipliers: FloatArray, mean: FloatArray, deviation: FloatArray) -> FloatArray:  # noqa: ARG001
    return multiplier_step(multipliers, mean - LIMIT, rate=RATE, largest=LARGEST)


def stretch(
    estimator: Any, *, steps: int = 2, answers: int = 1, start: float = 0.5, **settings: float
) -> OnPolicyTraining:
    chosen = {
        "steps": steps, "total": 40, "prompts": 6, "answers": answers, "updates": 1, "critic_rate": 1e-2,
        "learning_rate": 2e-2, "window": 32, "clip": 0.2,
    } | settings  # fmt: skip
    return OnPolicyTraining(
        method="test", estimator=estimator, follow=follow, multipliers=np.array([start]), cost_units=np.array([1.5]),
        aim=lambda m: OnPolicyObjective(multipliers=m, kl=0.05, scale=1 / (1 + float(m.sum()))), settings=chosen,
    )  # fmt: skip


def stage(**training: Any) -> Stage:
    model = tiny_language_model()
    chosen = {"lora_r": 4, "warmup_steps": 0, "lr_scheduler_type": "constant"} | training
    sampling = Sampling(max_new_tokens=8)
    return Stage(model, TransformersSampler(model), sampling, TrainingSettings(**chosen), score, REFERENCE)


def backend(parts: Stage, folder: Path) -> TransformerBackend:
    return TransformerBackend(
        parts.language_model, settings=parts.settings, sampler=parts.sampler, sampling=parts.sampling, folder=folder
    )


def assert_same_files(one: Path, other: Path, *names: str) -> None:
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


FILES = ("adapter_model.safetensors", "practice.safetensors", "practice.json")


EXAMPLES = [(PROMPTS[k], (3 + k % 4, 4, 2)) for k in range(len(PROMPTS))]


def test_a_step_has_its_place_in_the_schedule_of_the_whole_training(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = stage(lr_scheduler_type="linear", min_lr_ratio=0.1, max_grad_norm=0.5, weight_decay=0.3)
    made = stretch("critic", steps=2, total=11, critic_rate=7e-3, learning_rate=2e-2)
    moved: list[tuple[str, float, float]] = []
    with trained_weights(parts.language_model, REFERENCE, parts.settings) as parameters:
        memory = dataclasses.replace(recall(REFERENCE, np.array([0.5])), step=5)
        learner = Learner.of(parts, made, memory, parameters, means=np.zeros(2), seed=1)
        names = {id(optimiser): name for name, optimiser in learner.optimisers.items()}

        def noted(self: Optimiser, *, learning_rate: float, max_grad_norm: float) -> float:
            moved.append((names[id(self)], learning_rate, max_grad_norm))
            return 0.0

        monkeypatch.setattr(Optimiser, "step", noted)
        learner.update([], made.aim(memory.multipliers))
        decays = {name: o.adamw.param_groups[0]["weight_decay"] for name, o in learner.optimisers.items()}
    # half way from step 0 to step 10, the rate has lost half of nine tenths; critics keep theirs, and do not shrink
    assert moved == [("policy", pytest.approx(2e-2 * 0.55), 0.5), ("critic", 7e-3, np.inf)]
    assert decays == {"policy": 0.3, "critic": 0.0}


def test_imitation_goes_through_the_examples_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = dataclasses.replace(stage(), pretraining=EXAMPLES)
    made, seen = stretch("critic", prompts=2), list[tuple[int, ...]]()

    def noted(_: Any, encoded: Any, chosen: Any, step: Any) -> Any:
        seen.extend(tuple(encoded[i][0]) for i in chosen)
        assert list(chosen) == list(step) == [0, 1]
        raise KeyboardInterrupt

    monkeypatch.setattr(on_policy, "token_micro_batch", noted)
    with trained_weights(parts.language_model, REFERENCE, parts.settings) as parameters:
        for number in range(3):
            memory = dataclasses.replace(recall(REFERENCE, np.array([0.5])), step=number)
            with pytest.raises(KeyboardInterrupt):
                Learner.of(parts, made, memory, parameters, means=np.zeros(2), seed=1).imitate(1.0)
    assert sorted(seen) == sorted(tuple(parts.language_model.template(prompt)) for prompt, _ in EXAMPLES)


def test_every_step_draws_anew_and_answers_are_held_against_the_stage_s_reference(tmp_path: Path) -> None:
    parts, seeds = stage(), list[int]()

    class Noting(TransformersSampler):
        def generate(self, *given: Any, **settings: Any) -> Any:
            seeds.append(settings["seed"])
            return super().generate(*given, **settings)

    noting = dataclasses.replace(parts, sampler=Noting(parts.language_model))
    made = stretch("leave-one-out", answers=2, learning_rate=0.1)
    train_on_policy(noting, REFERENCE, PROMPTS, made, seed=1, folder=tmp_path / "p")
    assert len(set(seeds)) == len(seeds) == 2
    other, answers = Policy("p", tmp_path / "p"), [[Response("", (3, 4, 2))]]
    group = [Group(PROMPTS[0], (answers[0][0],) * 2, np.zeros(2), np.zeros((2, 1)))]
    scores = Scores(np.zeros((1, 1)), np.zeros((1, 1, 1)), np.ones((1, 1), dtype=bool))
    for policy in (REFERENCE, other):
        (part,) = on_policy.answer_parts(dataclasses.replace(parts, reference=policy), PROMPTS[:1], answers, scores)
        known = backend(parts, tmp_path).log_probs(policy, group)[0][0]
        assert float(part.reference.sum()) == pytest.approx(known, abs=1e-6)


def test_critics_do_not_move_the_policy() -> None:
    parts = stage()
    scores = Scores(np.zeros((1, 1)), np.zeros((1, 1, 1)), np.ones((1, 1), dtype=bool))
    (part,) = on_policy.answer_parts(parts, PROMPTS[:1], [[Response("", (3, 4, 2))]], scores)
    with trained_weights(parts.language_model, REFERENCE, parts.settings) as parameters:
        module = on_policy.ActorCritic(parts.language_model, np.ones(2))
        module.heads.data.fill_(1.0)
        values = module(part.tokens).values
        slopes = torch.autograd.grad(values.sum(), [module.heads, *parameters.values()], allow_unused=True)
    assert slopes[0].abs().max() > 0 and all(slope is None for slope in slopes[1:])


def test_costs_of_late_answers_are_a_window() -> None:
    scores = Scores(np.zeros((2, 1)), np.array([[[3.0]], [[4.0]]]), np.array([[True], [False]]))
    memory = dataclasses.replace(recall(REFERENCE, np.array([0.5])), costs=((1.0, 2.0),))
    kept = memory.with_scores(scores, window=2)
    # the oldest is forgotten, and an answer that the constraint does not look at is not taken
    assert kept.costs == ((2.0, 3.0),) and kept.means() == [2.5] and kept.deviations() == [0.5]


def test_inflated_costs_are_those_of_prompts_that_a_constraint_looks_at() -> None:
    scores = Scores(np.zeros((2, 1)), np.array([[[3.0]], [[5.0]]]), np.array([[True], [False]]))
    memory = dataclasses.replace(recall(REFERENCE, np.array([0.5])), costs=((1.0, 3.0),))
    plain, raised = (OnPolicyObjective(multipliers=np.ones(1), kl=0.0, inflation=size) for size in (0.0, 0.5))
    assert on_policy._inflated(scores, plain, memory) is scores
    # late costs 1 and 3 have mean 2 and SD 1: 3 + 0.5 (9 - 12) / 2
    assert on_policy._inflated(scores, raised, memory).costs.ravel().tolist() == [2.25, 0.0]


def test_every_pass_over_the_prompts_is_a_permutation() -> None:
    numbers = [k for step in range(9) for k in batch_at(step, 6, 4, seed=1)]
    passes = [numbers[i : i + 6] for i in range(0, 36, 6)]
    assert all(sorted(part) == list(range(6)) for part in passes)
    assert len({tuple(part) for part in passes}) > 1


@pytest.mark.parametrize(("count", "size"), [(6, 4), (6, 5), (7, 3), (7, 6), (5, 5), (6, 9), (1, 4)])
def test_no_prompt_stands_twice_in_a_batch(count: int, size: int) -> None:
    batches = [batch_at(step, count, size, seed=2) for step in range(40)]
    assert all(len(set(batch)) == len(batch) == min(size, count) for batch in batches)
    numbers = [k for batch in batches for k in batch]
    assert all(sorted(numbers[i : i + count]) == list(range(count)) for i in range(0, len(numbers) - count, count))


def test_prompts_of_several_pairs_are_asked_once_a_step(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def noted(prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]]) -> Scores:
        asked.append([prompt.id for prompt in prompts])
        return score(prompts, responses)

    parts = stage()
    groups = [Group(prompt, (), np.zeros(0), np.zeros((0, 1))) for prompt in PROMPTS for _ in range(3)]
    made = stretch("leave-one-out", steps=3, answers=2, prompts=8)
    backend(parts, tmp_path).train_on_policy(
        REFERENCE, groups, training=made, score=noted, reference=REFERENCE, seed=1, name="p"
    )
    assert [sorted(batch) for batch in asked] == [sorted(prompt.id for prompt in PROMPTS)] * 3


@pytest.mark.parametrize(("estimator", "answers"), [("critic", 1), ("leave-one-out", 2)])
def test_two_stretches_are_one_of_both_lengths(tmp_path: Path, estimator: str, answers: int) -> None:
    from safetensors.torch import load_file

    parts = stage()
    whole = train_on_policy(parts, REFERENCE, PROMPTS, stretch(estimator, steps=4, answers=answers), seed=1,
                     folder=tmp_path / "whole")  # fmt: skip
    half = stretch(estimator, answers=answers)
    train_on_policy(parts, REFERENCE, PROMPTS, half, seed=1, folder=tmp_path / "first")
    first = Policy("first", tmp_path / "first")
    later = train_on_policy(parts, first, PROMPTS, half, seed=1, folder=tmp_path / "second")
    assert [dict(row) for row in whole.history[2:]] == [dict(row) for row in later.history]
    for name in ("adapter_model.safetensors", "practice.safetensors"):
        one, other = load_file(tmp_path / "whole" / name), load_file(tmp_path / "second" / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_multiplier_follows_the_costs_of_late_answers(tmp_path: Path) -> None:
    report = train_on_policy(stage(), REFERENCE, PROMPTS, stretch("critic", steps=5), seed=1, folder=tmp_path / "p")
    held = 0.5
    for row in report.history:
        held = min(held * np.exp(0.5 * held * (row["cost_0"] - 0.2)), 50.0)
        assert row["multiplier_0"] == pytest.approx(held)
    memory = recall(Policy("p", tmp_path / "p"), np.array([9.0]))
    assert memory.step == 5 and memory.multipliers[0] == pytest.approx(held)
    # five prompts in six are looked at
    assert len(memory.costs[0]) == 25


def test_critics_begin_at_the_mean_scores_of_the_first_answers(tmp_path: Path) -> None:
    """From 0 they would need as many steps as the mean score has units of Adam's: until then each answer is praised."""
    parts, seen = stage(), []

    def noted(prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]]) -> Scores:
        scores = score(prompts, responses)
        seen.append([scores.reward.mean(), scores.costs.mean()])
        return scores

    made = stretch("critic", steps=2, critic_rate=1e-9)
    train_on_policy(dataclasses.replace(parts, score=noted), REFERENCE, PROMPTS, made, seed=1, folder=tmp_path / "p")
    heads = recall(Policy("p", tmp_path / "p"), np.array([9.0])).part("critic")["weight.heads"]
    np.testing.assert_allclose(heads[-1], seen[0], rtol=1e-6)
    assert heads[:-1].abs().max() < 1e-6 and seen[1] != seen[0]


@pytest.mark.parametrize(("estimator", "answers"), [("critic", 1), ("leave-one-out", 4)])
def test_rewards_rise(tmp_path: Path, estimator: str, answers: int) -> None:
    made = stretch(estimator, steps=30, answers=answers, start=1e-3, prompts=12, learning_rate=3e-2)
    history = train_on_policy(stage(), REFERENCE, PROMPTS, made, seed=3, folder=tmp_path / "p").history
    before = history[0]["reward"]  # of the reference
    after = np.mean([row["reward"] for row in history[-5:]])
    assert after > before + 0.3
    assert history[-1]["kl"] > 0


def token_log_probs(model: Any, prompt: tuple[int, ...], answer: tuple[int, ...]) -> torch.Tensor:
    logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]


@pytest.mark.parametrize("estimator", ["critic", "leave-one-out"])
def test_the_first_gradient_is_the_policy_gradient_by_hand(estimator: Any) -> None:
    parts, answers = stage(), 3
    made = stretch(estimator, answers=answers)
    model, multiplier, kl = parts.language_model.model, 0.5, 0.05
    drawn = parts.sampler.generate(REFERENCE, PROMPTS, answers, sampling=parts.sampling, seed=4, stage="practice")
    scores = score(PROMPTS, drawn)
    memory = recall(REFERENCE, np.array([multiplier]))
    cut = on_policy.answer_parts(parts, PROMPTS, drawn, scores)
    objective = made.aim(memory.multipliers)

    def by_hand(k: int) -> list[torch.Tensor]:
        prompt = encode_prompt(parts.language_model, PROMPTS[k])
        return [token_log_probs(model, prompt, answer.tokens) for answer in drawn[k]]

    with torch.no_grad():
        base = [by_hand(k) for k in range(len(PROMPTS))]
    with trained_weights(parts.language_model, REFERENCE, parts.settings) as parameters:
        # a policy that has moved: a fresh adapter has no gradient in half of its weights, and no KL
        with torch.no_grad():
            for number, value in enumerate(parameters.values()):
                value.add_(0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(number)))
        learner = Learner.of(parts, made, memory, parameters, seed=1, means=np.zeros(2))
        terms = [
            on_policy.answer_losses(learner.module(part.tokens), part, objective, made) for part in learner.looked(cut)
        ]
        loss = sum((term.losses * term.weights).sum() / term.total for term in terms)
        found = torch.autograd.grad(loss, list(parameters.values()))
        wanted = 0.0
        for k in range(len(PROMPTS)):
            own, known = by_hand(k), base[k]
            relabelled = scores.reward[k] - multiplier * scores.costs[k, :, 0]
            for i in range(answers):
                ratio = (own[i] - known[i]).detach()
                if estimator == "leave-one-out":
                    returns = [
                        relabelled[j] / 1.5 - kl * float((own[j] - known[j]).detach().sum()) for j in range(answers)
                    ]
                    advantage = returns[i] - sum(returns[j] for j in range(answers) if j != i) / (answers - 1)
                    wanted = wanted - advantage * own[i].sum() / (answers * len(PROMPTS))
                else:
                    # both streams carry the KL: the cost's in its unit, 1.5
                    rewards = -(kl + multiplier * kl * 1.5) * ratio
                    rewards[-1] += relabelled[i]
                    weights = [0.95**s for s in range(len(rewards))]
                    advantages = torch.stack(
                        [sum(w * r for w, r in zip(weights, rewards[t:], strict=False)) for t in range(len(rewards))]
                    )
                    wanted = wanted - (advantages / 1.5 * own[i]).mean() / (answers * len(PROMPTS))
        expected = torch.autograd.grad(wanted, list(parameters.values()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def imitation(parts: Stage, policy: Policy) -> float:
    """Return the mean negative log-probability of the examples' tokens."""
    from dualign.models.adapters import activated

    model = parts.language_model
    with activated(model, policy), torch.no_grad():
        known = [token_log_probs(model.model, encode_prompt(model, p), answer) for p, answer in EXAMPLES]
    return -float(torch.cat(known).mean())


def test_imitation_is_a_step_along_the_mean_log_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = dataclasses.replace(stage(), pretraining=EXAMPLES)
    made = stretch("critic", prompts=len(EXAMPLES))
    memory = recall(REFERENCE, np.array([0.5]))
    with trained_weights(parts.language_model, REFERENCE, parts.settings) as parameters:
        with torch.no_grad():
            for number, value in enumerate(parameters.values()):
                value.add_(0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(number)))
        model = parts.language_model
        known = [token_log_probs(model.model, encode_prompt(model, p), answer) for p, answer in EXAMPLES]
        loss = -3.0 * torch.cat(known).mean()
        wanted = torch.autograd.grad(loss, list(parameters.values()))
        learner = Learner.of(parts, made, memory, parameters, seed=1, means=np.zeros(2))
        caught: list[torch.Tensor] = []

        def move(self: Learner) -> None:
            caught.extend(p.grad.clone() for p in parameters.values() if p.grad is not None)

        monkeypatch.setattr(Learner, "_move", move)
        assert learner.imitate(3.0) == pytest.approx(loss.item())
    for one, other in zip(caught, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_with_imitation_the_policy_keeps_to_the_examples(tmp_path: Path) -> None:
    parts = dataclasses.replace(stage(), pretraining=EXAMPLES)
    machine = backend(parts, tmp_path)
    machine.pretraining = EXAMPLES
    groups = [Group(prompt, (), np.zeros(0), np.zeros((0, 1))) for prompt in PROMPTS]
    policies = [
        machine.train_on_policy(REFERENCE, groups, training=stretch("critic", steps=12, ptx=weight), score=score,
                         reference=REFERENCE, seed=1, name=f"{weight}")
        for weight in (0.0, 1.0)
    ]  # fmt: skip
    before, alone, imitating = (imitation(parts, policy) for policy in (REFERENCE, *policies))
    assert imitating < before - 0.3 and imitating < alone - 0.3


def test_imitation_needs_examples(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"policy\.warm_start, and there is none"):
        backend(stage(), tmp_path).train_on_policy(
            REFERENCE, [], training=stretch("critic", ptx=1.0), score=score, reference=REFERENCE, seed=1, name="p"
        )


def test_a_merge_of_adapters_is_that_of_their_updates(tmp_path: Path) -> None:
    parts = stage()
    machine = backend(parts, tmp_path)
    policies = []
    for seed in (1, 2):
        folder = tmp_path / f"{seed}"
        train_on_policy(parts, REFERENCE, PROMPTS, stretch("leave-one-out", answers=2), seed=seed, folder=folder)
        policies.append(Policy(f"{seed}", folder))
    merged = machine.merge(*policies, share=0.3, name="merged")
    from dualign.models.adapters import activated, base_parameters

    def weights(policy: Policy) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in base_parameters(parts.language_model.model).items()}

    def whole(policy: Policy) -> dict[str, torch.Tensor]:
        with activated(parts.language_model, policy, merged=True):
            return weights(policy)

    first, second, mixed = (whole(policy) for policy in (*policies, merged))
    assert any(not torch.equal(first[name], second[name]) for name in first)
    for name in first:
        torch.testing.assert_close(mixed[name], 0.7 * first[name] + 0.3 * second[name], rtol=1e-6, atol=1e-7)
    groups = [Group(PROMPTS[0], (Response("", (3, 4, 2)), Response("", (5, 2))), np.zeros(2), np.zeros((2, 1)))]
    same = machine.merge(policies[0], policies[0], share=0.6, name="same")
    np.testing.assert_allclose(machine.log_probs(same, groups)[0], machine.log_probs(policies[0], groups)[0], rtol=1e-5)


def test_a_merge_of_adapters_of_two_ranks_and_scales_is_that_of_their_weights(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from dualign.models.adapters import activated, base_parameters

    kinds = {"four": {"lora_r": 4, "lora_alpha": 8.0}, "eight": {"lora_r": 8, "lora_alpha": 4.0}}
    policies = []
    for name, training in kinds.items():
        made = stretch("leave-one-out", answers=2, learning_rate=0.1)
        train_on_policy(stage(**training), REFERENCE, PROMPTS, made, seed=1, folder=tmp_path / name)
        policies.append(Policy(name, tmp_path / name))
    parts = stage()
    machine = backend(parts, tmp_path)

    def whole(policy: Policy) -> dict[str, torch.Tensor]:
        with activated(parts.language_model, policy, merged=True):
            return {name: value.clone() for name, value in base_parameters(parts.language_model.model).items()}

    first, second = (whole(policy) for policy in policies)
    (tmp_path / "mixed").mkdir()
    save_file({key: 0.7 * first[key] + 0.3 * second[key] for key in first}, tmp_path / "mixed" / "model.safetensors")
    answers = (Response("", (3, 4, 2)), Response("", (5, 2)), Response("", (9, 9, 6, 2)))
    groups = [Group(prompt, answers, np.zeros(3), np.zeros((3, 1))) for prompt in PROMPTS]
    merged = machine.merge(*policies, share=0.3, name="merged")
    wanted, found, own, other = (
        np.array(machine.log_probs(policy, groups))
        for policy in (Policy("mixed", tmp_path / "mixed"), merged, *policies)
    )
    assert np.abs(own - other).max() > 0.1
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=0)


def test_adapters_of_different_layers_are_not_merged(tmp_path: Path) -> None:
    made = stretch("leave-one-out", steps=1, answers=2)
    policies = []
    for layer in ("q_proj", "v_proj"):
        train_on_policy(stage(target_modules=(layer,)), REFERENCE, PROMPTS, made, seed=1, folder=tmp_path / layer)
        policies.append(Policy(layer, tmp_path / layer))
    with pytest.raises(UsageError, match="'q_proj' and 'v_proj' must be adapters of the same layers"):
        backend(stage(), tmp_path).merge(*policies, share=0.5, name="merged")


def test_a_merge_of_whole_models_begins_training_anew(tmp_path: Path) -> None:
    parts = stage(adapter="full")
    policies = []
    for seed in (1, 2):
        made = stretch("critic", steps=1, learning_rate=1e-3)
        train_on_policy(parts, REFERENCE, PROMPTS, made, seed=seed, folder=tmp_path / f"{seed}")
        policies.append(Policy(f"{seed}", tmp_path / f"{seed}"))
    merged = backend(parts, tmp_path).merge(*policies, share=0.5, name="merged")
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == ["config.json", "model.safetensors"]
    memory = recall(merged, np.array([9.0]))
    assert memory.step == 0 and memory.multipliers.tolist() == [9.0] and not memory.tensors
    report = train_on_policy(parts, merged, PROMPTS, stretch("critic"), seed=1, folder=tmp_path / "later")
    assert report.steps == 2


DROPOUT = [("critic", 1, 1), ("critic", 1, 3), ("leave-one-out", 2, 1)]


@pytest.mark.parametrize(("estimator", "answers", "updates"), DROPOUT)
def test_dropout_is_drawn_from_the_seed_alone(tmp_path: Path, estimator: str, answers: int, updates: int) -> None:
    made = stretch(estimator, answers=answers, updates=updates)
    for name, seed, state, dropout in (("one", 1, 5, 0.3), ("two", 1, 6, 0.3), ("other", 2, 5, 0.3), ("off", 1, 5, 0)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(state)
            before = torch.get_rng_state()
            train_on_policy(stage(lora_dropout=dropout), REFERENCE, PROMPTS, made, seed=seed, folder=tmp_path / name)
            assert torch.equal(torch.get_rng_state(), before)
    assert_same_files(tmp_path / "one", tmp_path / "two", *FILES)
    weights = {name: (tmp_path / name / FILES[0]).read_bytes() for name in ("one", "other", "off")}
    assert len(set(weights.values())) == 3  # dropout does act, and by the seed


@pytest.mark.parametrize("updates", [1, 3])
def test_with_dropout_the_ratio_is_one_at_first_and_the_kl_is_of_the_policy_that_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, updates: int
) -> None:
    parts = stage(lora_dropout=0.3)
    train_on_policy(parts, REFERENCE, PROMPTS, stretch("critic", learning_rate=0.1), seed=1, folder=tmp_path / "start")
    start = Policy("start", tmp_path / "start")
    ratios, olds, real = [], [], on_policy.clipped_policy_loss
    real_advantages = on_policy._advantages

    def watched(own: torch.Tensor, old: torch.Tensor, *args: Any, **settings: Any) -> torch.Tensor:
        ratios.append(float((own - old).detach().abs().max()))
        return real(own, old, *args, **settings)

    def advantages(part: on_policy.AnswerPart, old: torch.Tensor, *given: Any) -> Any:
        olds.append(old.sum(dim=1))
        return real_advantages(part, old, *given)

    monkeypatch.setattr(on_policy, "clipped_policy_loss", watched)
    monkeypatch.setattr(on_policy, "_advantages", advantages)
    drawn: list[float] = []

    def noted(prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]]) -> Scores:
        drawn.extend(answer.log_prob for row in responses for answer in row)
        return score(prompts, responses)

    watching = dataclasses.replace(parts, score=noted)
    made = stretch("critic", steps=1, updates=updates)
    train_on_policy(watching, start, PROMPTS, made, seed=1, folder=tmp_path / "p")
    parts_a_step = len(ratios) // updates
    assert ratios[:parts_a_step] == [0.0] * parts_a_step  # log 1, exactly
    assert all(value > 0 for value in ratios[parts_a_step:])
    np.testing.assert_allclose(torch.cat(olds[:parts_a_step]).numpy(), drawn, rtol=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("trained", [False, True])
def test_an_epoch_that_was_killed_inside_is_taken_again_as_it_was(
    tmp_path: Path, trained: bool, dropout: float
) -> None:
    made = stretch("critic", steps=4, updates=2, prompts=4)
    start = REFERENCE
    if trained:
        train_on_policy(stage(lora_dropout=dropout), REFERENCE, PROMPTS, made, seed=1, folder=tmp_path / "start")
        start = Policy("start", tmp_path / "start")
    train_on_policy(stage(lora_dropout=dropout), start, PROMPTS, made, seed=1, folder=tmp_path / "whole")
    parts, calls = stage(lora_dropout=dropout), []

    def killed(prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]]) -> Scores:
        calls.append(len(prompts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(prompts, responses)

    with pytest.raises(KeyboardInterrupt):
        dying = dataclasses.replace(parts, score=killed)
        train_on_policy(dying, start, PROMPTS, made, seed=1, folder=tmp_path / "killed")
    # in the same process, with the model that was being trained
    train_on_policy(parts, start, PROMPTS, made, seed=1, folder=tmp_path / "again")
    assert_same_files(tmp_path / "whole", tmp_path / "again", *FILES)
    assert (tmp_path / "whole" / FILES[0]).read_bytes() != (tmp_path / "killed" / FILES[0]).read_bytes()
