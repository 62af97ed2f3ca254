"""Three tiny objectives prove the protocol: per-side coefficients, whole-batch weights, embedding gradients."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional

from dualign.maths.losses import dpo, soft
from dualign.models.pair_store import stored_groups
from dualign.protocols import Objective, Policy
from engine_parts import backend, groups, independent_log_prob, language_model

BETA = 0.5


def objective(**changes):
    basic = Objective(
        loss=lambda first, second: dpo(first.log_ratio, second.log_ratio, beta=BETA), labels=soft,
        multipliers=np.array([0.5]), beta=BETA,
    )  # fmt: skip
    return dataclasses.replace(basic, **changes)


def two_sided(first, second):
    u = BETA * (first.columns["omega"] * first.log_ratio - second.columns["omega"] * second.log_ratio)
    return -functional.logsigmoid(u)


def with_omega(made):
    rng = np.random.default_rng(1)
    return [dataclasses.replace(g, columns={"omega": rng.uniform(0.5, 2, len(g.responses))}) for g in made]


def softmax_of_losses(losses, weights):
    return torch.softmax(losses, 0)


def norm_penalty(batch, losses):
    return 0.1 * batch.embedding_gradient(losses)


CASES = {
    "per-side": objective(loss=two_sided, columns=("omega",), name="per-side"),
    "whole-batch": objective(weigh=softmax_of_losses, name="whole-batch"),
    "embeddings": objective(penalty=norm_penalty, name="embeddings"),
}


def by_hand(model, made, case):
    """The loss of one full-batch step at the reference plus its gradient by autograd on all weights."""
    stored = stored_groups(model, made)
    reference, losses, penalties, weights = [], [], [], []
    rows = []
    for g in stored:
        live = [independent_log_prob(model.model, g.prompt, r) for r in g.responses]
        rows.append((g, live))
        reference.append([v.detach() + 0.1 * k for k, v in enumerate(live)])
    for (g, live), ref in zip(rows, reference, strict=True):
        score = g.reward - g.costs @ np.array([0.5])
        for i, j in g.pairs:
            p = torch.sigmoid(torch.tensor(score[i] - score[j], dtype=torch.float64))
            w1, w2 = (g.columns["omega"][i], g.columns["omega"][j]) if g.columns else (1.0, 1.0)
            u = BETA * (w1 * (live[i] - ref[i]) - w2 * (live[j] - ref[j]))
            losses.append(-p * functional.logsigmoid(u) - (1 - p) * functional.logsigmoid(-u))
            weights.append(1 / len(stored) / len(g.pairs))
            penalties.append((g, i, j, u.detach(), p))
    weights = torch.tensor(weights, dtype=torch.float64)
    losses = torch.stack(losses)
    if case == "whole-batch":
        weights = torch.softmax(losses.detach(), 0)
    return float((weights * losses).sum().detach()), [[float(v) for v in values] for values in reference]


@pytest.mark.parametrize("case", CASES)
def test_first_step_is_the_objective_computed_by_hand(case, tmp_path, monkeypatch) -> None:
    model = language_model()
    made = groups(4, 3)
    if case == "per-side":
        made = with_omega(made)
    made_by_hand, reference = by_hand(model, made, case)
    machine = backend(
        model, tmp_path, adapter="full", max_steps=1, per_device_train_batch_size=2,
        gradient_accumulation_steps=2, learning_rate=1e-9,
    )  # fmt: skip
    monkeypatch.setattr(machine, "_log_probs", lambda policy, store: [np.array(row) for row in reference])
    policy = machine.fit(made, objective=CASES[case], reference=Policy("reference"), start=None, seed=0, name=case)
    found = policy.report.history[0]["loss"]
    if case == "embeddings":
        assert found > made_by_hand + 1e-6
        found -= penalty_by_hand(model, made, reference)
    assert found == pytest.approx(made_by_hand, abs=1e-10)


def penalty_by_hand(model, made, reference):
    """Each pair alone, its two rows' embeddings as leaves: 0.1 |gradient|^2, weighted."""
    stored, total = stored_groups(model, made), 0.0
    for g, ref in zip(stored, reference, strict=True):
        score = g.reward - g.costs @ np.array([0.5])
        for i, j in g.pairs:
            leaves, values = [], []
            for k in (i, j):
                ids = torch.tensor([g.prompt + g.responses[k]])
                leaf = model.model.get_input_embeddings()(ids).detach().requires_grad_()
                table = torch.log_softmax(model.model(inputs_embeds=leaf).logits[0], -1)
                places = torch.arange(len(g.responses[k])) + len(g.prompt) - 1
                leaves.append(leaf)
                values.append(table[places, torch.tensor(g.responses[k])].sum() - ref[k])
            p = 1 / (1 + np.exp(-(score[i] - score[j])))
            u = BETA * (values[0] - values[1])
            loss = -p * functional.logsigmoid(u) - (1 - p) * functional.logsigmoid(-u)
            gradients = torch.autograd.grad(loss, leaves)
            total += 0.1 * float(sum(x.pow(2).sum() for x in gradients)) / len(stored) / len(g.pairs)
    return total
