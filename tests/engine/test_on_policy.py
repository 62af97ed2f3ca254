"""On-policy training on sampled answers: gradients by hand, memory between stretches, and that it learns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dualign.backends.capabilities import OnPolicyObjective, Practice
from dualign.backends.protocol import Policy, Scores
from dualign.backends.transformer import TransformerBackend
from dualign.engine import on_policy
from dualign.engine.on_policy import Stage, batch_at, practise
from dualign.engine.pair_store import encode_prompt
from dualign.engine.practice_memory import recall
from dualign.engine.settings import TrainingSettings
from dualign.engine.trained_weights import trained_weights
from dualign.maths.policy_gradient import multiplier_step
from dualign.records import FloatArray, Group, Prompt, Response
from dualign.sampling.protocol import Sampling
from dualign.sampling.transformers_engine import TransformersSampler
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


def practice(estimator: Any, *, steps: int = 2, answers: int = 1, start: float = 0.5, **settings: float) -> Practice:
    chosen = {
        "steps": steps, "total": 40, "prompts": 6, "answers": answers, "updates": 1, "critic_rate": 1e-2,
        "learning_rate": 2e-2, "window": 32, "clip": 0.2,
    } | settings  # fmt: skip
    return Practice(
        method="test", estimator=estimator, follow=follow, multipliers=np.array([start]), cost_units=np.array([1.5]),
        aim=lambda m: OnPolicyObjective(multipliers=m, kl=0.05, scale=1 / (1 + float(m.sum()))), settings=chosen,
    )  # fmt: skip


def stage(**training: Any) -> Stage:
    model = tiny_language_model()
    chosen = {"lora_r": 4, "warmup_steps": 0, "lr_scheduler_type": "constant"} | training
    sampling = Sampling(max_new_tokens=8)
    return Stage(model, TransformersSampler(model), sampling, TrainingSettings(**chosen), score, REFERENCE)


def test_every_pass_over_the_prompts_is_a_permutation() -> None:
    numbers = [k for step in range(9) for k in batch_at(step, 6, 4, seed=1)]
    passes = [numbers[i : i + 6] for i in range(0, 36, 6)]
    assert all(sorted(part) == list(range(6)) for part in passes)
    assert len({tuple(part) for part in passes}) > 1


@pytest.mark.parametrize(("estimator", "answers"), [("critic", 1), ("leave-one-out", 2)])
def test_two_stretches_are_one_of_both_lengths(tmp_path: Path, estimator: str, answers: int) -> None:
    from safetensors.torch import load_file

    parts = stage()
    whole = practise(parts, REFERENCE, PROMPTS, practice(estimator, steps=4, answers=answers), seed=1,
                     folder=tmp_path / "whole")  # fmt: skip
    half = practice(estimator, answers=answers)
    practise(parts, REFERENCE, PROMPTS, half, seed=1, folder=tmp_path / "first")
    later = practise(parts, Policy("first", tmp_path / "first"), PROMPTS, half, seed=1, folder=tmp_path / "second")
    assert [dict(row) for row in whole.history[2:]] == [dict(row) for row in later.history]
    for name in ("adapter_model.safetensors", "practice.safetensors"):
        one, other = load_file(tmp_path / "whole" / name), load_file(tmp_path / "second" / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_multiplier_follows_the_costs_of_late_answers(tmp_path: Path) -> None:
    report = practise(stage(), REFERENCE, PROMPTS, practice("critic", steps=5), seed=1, folder=tmp_path / "p")
    held = 0.5
    for row in report.history:
        held = min(held * np.exp(0.5 * held * (row["cost_0"] - 0.2)), 50.0)
        assert row["multiplier_0"] == pytest.approx(held)
    memory = recall(Policy("p", tmp_path / "p"), np.array([9.0]), window=32)
    assert memory.step == 5 and memory.multipliers[0] == held
    # five prompts in six are looked at
    assert len(memory.costs[0]) == 25


@pytest.mark.parametrize(("estimator", "answers"), [("critic", 1), ("leave-one-out", 4)])
def test_rewards_rise(tmp_path: Path, estimator: str, answers: int) -> None:
    made = practice(estimator, steps=30, answers=answers, start=1e-3, prompts=12, learning_rate=3e-2)
    history = practise(stage(), REFERENCE, PROMPTS, made, seed=3, folder=tmp_path / "p").history
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
    made = practice(estimator, answers=answers)
    model, multiplier, kl = parts.language_model.model, 0.5, 0.05
    drawn = parts.sampler.generate(REFERENCE, PROMPTS, answers, sampling=parts.sampling, seed=4, stage="practice")
    scores = score(PROMPTS, drawn)
    memory = recall(REFERENCE, np.array([multiplier]), window=32)
    cut = on_policy._parts(parts, PROMPTS, drawn, scores)
    objective = made.aim(memory.multipliers)

    def by_hand(k: int) -> list[torch.Tensor]:
        prompt = encode_prompt(parts.language_model, PROMPTS[k])
        return [token_log_probs(model, prompt, answer.tokens) for answer in drawn[k]]

    with torch.no_grad():
        base = [by_hand(k) for k in range(len(PROMPTS))]
    with trained_weights(parts.language_model, REFERENCE, parts.training) as parameters:
        # a policy that has moved: a fresh adapter has no gradient in half of its weights, and no KL
        with torch.no_grad():
            for number, value in enumerate(parameters.values()):
                value.add_(0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(number)))
        run = on_policy._Updates(parts, made, memory, parameters)
        run.look(cut)
        loss = sum(run._loss(part, objective) * part.batch.shape[0] / len(PROMPTS) for part in cut)
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


def test_a_merge_of_adapters_is_that_of_their_updates(tmp_path: Path) -> None:
    parts = stage()
    machine = TransformerBackend(
        parts.language_model, training=parts.training, sampler=parts.sampler, sampling=parts.sampling, folder=tmp_path
    )
    policies = []
    for seed in (1, 2):
        folder = tmp_path / f"{seed}"
        practise(parts, REFERENCE, PROMPTS, practice("leave-one-out", answers=2), seed=seed, folder=folder)
        policies.append(Policy(f"{seed}", folder))
    merged = machine.merge(*policies, share=0.3, name="merged")
    from dualign.engine.adapters import activated, base_parameters

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
