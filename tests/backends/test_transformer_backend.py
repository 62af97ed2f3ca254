"""The backend fits, goes on after a kill, refuses what is not finite, and leaves folders that PEFT reads."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, MistralConfig, MistralForCausalLM

from dualign.errors import DataError, NumericalError, UsageError
from dualign.maths.losses import bernoulli, dpo, soft
from dualign.models.adapters import activated
from dualign.models.pair_store import stored_groups
from dualign.protocols import Objective, Policy
from dualign.records import Group, Prompt, Response
from dualign.train import loop
from dualign.train.loop import Optimiser
from dualign.train.pairs import fit_key, label
from dualign.train.settings import TrainingSettings
from engine_parts import PAD, backend, groups, independent_log_prob, language_model, tiny_llama

REFERENCE = Policy("reference")


def objective(beta=0.5, multiplier=0.5, **changes):
    basic = Objective(
        loss=lambda first, second: dpo(first.log_ratio, second.log_ratio, beta=beta), labels=soft,
        multipliers=np.array([multiplier]), beta=beta,
    )  # fmt: skip
    return dataclasses.replace(basic, **changes)


def fitted(machine, made, name="p", **changes):
    return machine.fit(made, objective=objective(**changes), reference=REFERENCE, start=None, seed=3, name=name)


def weights(policy):
    from safetensors.torch import load_file

    (path,) = policy.state.glob("*model.safetensors")
    return load_file(path)


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_the_loss_falls_the_base_stays_and_the_slope_rises(adapter, tmp_path) -> None:
    model = language_model()
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    rate = 2e-2 if adapter == "lora" else 5e-3
    machine = backend(model, tmp_path, adapter=adapter, max_steps=30, learning_rate=rate)
    report = fitted(machine, groups()).report
    assert report.history[0]["loss"] == pytest.approx(np.log(2), abs=1e-9)
    assert report.loss < np.log(2) - 0.02
    assert report.slope > 0.2
    for name, value in before.items():
        held = dict(model.model.state_dict())
        key = name if name in held else name.replace(".weight", ".base_layer.weight")
        assert torch.equal(held[key], value)


def test_an_adapter_folder_loads_in_plain_transformers_and_peft(tmp_path) -> None:
    from peft import PeftModel

    made, model = groups(), language_model()
    policy = fitted(backend(model, tmp_path, max_steps=5), made)
    machine = backend(model, tmp_path)
    ours = machine.log_probs(policy, made)
    plain = PeftModel.from_pretrained(tiny_llama(), str(policy.state)).double().eval()
    stored = stored_groups(model, made)
    for group, values in zip(stored, ours, strict=True):
        for k, value in enumerate(values):
            right = independent_log_prob(plain, group.prompt, group.responses[group.index[k]])
            assert float(right.detach()) == pytest.approx(value, abs=1e-6)


def test_full_weights_load_in_plain_transformers(tmp_path) -> None:
    made, model = groups(), language_model()
    policy = fitted(backend(model, tmp_path, adapter="full", max_steps=3), made)
    plain = tiny_llama(seed=9)
    plain.load_state_dict(weights(policy))
    (value, *_), *_ = backend(model, tmp_path).log_probs(policy, made)
    group = stored_groups(model, made)[0]
    right = independent_log_prob(plain, group.prompt, group.responses[0])
    assert float(right.detach()) == pytest.approx(value, abs=1e-10)


def test_merged_weights_say_the_same_and_go_again(tmp_path) -> None:
    model = language_model()
    policy = fitted(backend(model, tmp_path, max_steps=5), groups())
    ids = torch.tensor([[2, 7, 9, 4]])
    base = model.model(ids).logits
    with activated(model, policy) as live:
        adapted = live(ids).logits
    with activated(model, policy, merged=True) as live:
        merged = live(ids).logits
    assert torch.allclose(adapted, merged, rtol=0, atol=1e-10)
    assert float((adapted - base).abs().max()) > 1e-3
    assert torch.equal(model.model(ids).logits, base)


def test_accumulation_is_the_full_batch(tmp_path) -> None:
    made = [dataclasses.replace(g, weight=1.0 + i) for i, g in enumerate(groups(8))]
    model = language_model()
    whole = fitted(backend(model, tmp_path / "a", per_device_train_batch_size=4, max_steps=4), made)
    parts = backend(model, tmp_path / "b", per_device_train_batch_size=1, gradient_accumulation_steps=4, max_steps=4)
    cut = fitted(parts, made)
    for name, value in weights(whole).items():
        assert torch.allclose(value, weights(cut)[name], rtol=0, atol=1e-9)


def test_layouts_train_the_same_policy(tmp_path) -> None:
    model = language_model()
    found = [
        weights(fitted(backend(model, tmp_path / layout, layout=layout, max_steps=4), groups()))
        for layout in ("rows", "shared")
    ]
    assert all(torch.allclose(found[0][name], found[1][name], rtol=0, atol=1e-9) for name in found[0])


class Killed(Exception):
    """Stands for SIGKILL: nothing after it runs but the unwinding."""


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("after", [3, 5])
def test_a_fit_that_was_killed_goes_on_to_the_same_bits(adapter, after, tmp_path, monkeypatch) -> None:
    settings = {"adapter": adapter, "lora_dropout": 0.1, "max_steps": 7, "checkpoint_steps": 2}
    made, model = groups(), language_model()
    whole = fitted(backend(model, tmp_path / "whole", **settings), made, labels=bernoulli)
    step = loop.step

    def dying(task, optimiser, number):
        if number == after:
            raise Killed
        return step(task, optimiser, number)

    monkeypatch.setattr(loop, "step", dying)
    with pytest.raises(Killed):
        fitted(backend(model, tmp_path / "cut", **settings), made, labels=bernoulli)
    done = []
    monkeypatch.setattr(loop, "step", lambda *given: (done.append(given[-1]), step(*given))[1])
    resumed = backend(language_model(), tmp_path / "cut", **settings)
    cut = fitted(resumed, made, labels=bernoulli)
    assert done == list(range(after // 2 * 2, 7))
    assert_same(weights(whole), weights(cut))
    assert whole.report.history == cut.report.history
    assert not (cut.state / "checkpoint").exists()
    assert fitted(resumed, made, labels=bernoulli).report == cut.report
    assert done == list(range(after // 2 * 2, 7))


@pytest.mark.parametrize("harm", ["flip", "foreign"])
def test_a_damaged_or_foreign_checkpoint_is_ignored_and_named(harm, tmp_path, monkeypatch) -> None:
    settings = {"max_steps": 4, "checkpoint_steps": 2}
    made, model = groups(), language_model()
    whole = fitted(backend(model, tmp_path / "whole", **settings), made)
    step = loop.step

    def dying(task, optimiser, number):
        if number == 2:
            raise Killed
        return step(task, optimiser, number)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "step", dying)
        with pytest.raises(Killed):
            fitted(backend(model, tmp_path / "cut", **settings), made, multiplier=0.5 if harm == "flip" else 0.6)
    if harm == "flip":
        (path,) = (tmp_path / "cut" / "p" / "checkpoint").glob("*.safetensors")
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
    machine = backend(model, tmp_path / "cut", **settings)
    assert_same(weights(whole), weights(fitted(machine, made)))
    assert any("ignored" in note for note in machine.notes)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_stops_before_the_step(where, tmp_path, monkeypatch) -> None:
    def poisoned(first, second):
        margin = first.log_ratio - second.log_ratio
        if where == "loss":
            return margin * float("nan")
        return torch.sqrt(margin * 0)  # value 0, derivative inf * 0

    stepped = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: stepped.append(1))
    with pytest.raises(NumericalError, match="not applied"):
        fitted(backend(language_model(), tmp_path), groups(), loss=poisoned)
    assert not stepped
    assert not list((tmp_path / "p").glob("*.safetensors"))


def test_identical_responses_are_left_out(tmp_path) -> None:
    same = Response("", tokens=(5, 6, 1))
    other = Response("", tokens=(7, 1))
    mixed = Group(Prompt("ab"), (same, same, other), np.array([0.0, 1.0, 2.0]), np.zeros((3, 1)))
    equal = Group(Prompt("cd"), (same, same), np.array([0.0, 1.0]), np.zeros((2, 1)))
    model = language_model()
    stored = stored_groups(model, [mixed, equal])
    assert [group.pairs.tolist() for group in stored] == [[[0, 2], [1, 2]], []]
    values = backend(model, tmp_path).log_probs(REFERENCE, [mixed, equal])
    assert [len(v) for v in values] == [3, 2]
    assert values[0][0] == values[0][1]
    with pytest.raises(DataError, match="nothing to learn"):
        fitted(backend(model, tmp_path), [equal])


def test_texts_end_with_eos_and_long_ones_are_cut() -> None:
    model = language_model()
    long, short = Response("x" * 30), Response("y")
    group = Group(Prompt("p" * 50), (long, short), np.zeros(2), np.zeros((2, 1)))
    (stored,) = stored_groups(model, [group])
    assert len(stored.prompt) == 20
    assert len(stored.responses[0]) == 12 and 1 not in stored.responses[0]
    assert stored.responses[1][-1] == 1


def test_reference_figures_are_made_once_and_a_damaged_cache_anew(tmp_path, monkeypatch) -> None:
    from dualign.train import transformer

    calls = []
    compute = transformer.unique_log_probs
    monkeypatch.setattr(transformer, "unique_log_probs", lambda *a, **k: (calls.append(len(a[2])), compute(*a, **k))[1])
    made = groups(4)
    machine = backend(language_model(revision="abc"), tmp_path)
    first = machine.log_probs(REFERENCE, made[:3])
    again = machine.log_probs(REFERENCE, made)
    assert calls == [3, 1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=False))
    (path,) = (tmp_path / "reference").glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    third = backend(language_model(revision="abc"), tmp_path).log_probs(REFERENCE, made)
    assert calls == [3, 1, 4]
    assert all(np.allclose(a, b, rtol=0, atol=1e-10) for a, b in zip(again, third, strict=True))


def test_bernoulli_labels_are_drawn_once_a_fit() -> None:
    stored = stored_groups(language_model(), groups(40))
    zeros = [np.zeros(3) for _ in stored]
    drawn = [
        torch.cat([g.probability for g in label(stored, zeros, objective(labels=bernoulli), seed)])
        for seed in (0, 0, 1)
    ]
    assert set(drawn[0].tolist()) == {0.0, 1.0}
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_mistakes_are_named(tmp_path) -> None:
    model = language_model()
    with pytest.raises(UsageError, match="float32 was asked for"):
        fitted(backend(model, tmp_path, dtype="float32"), groups())
    with pytest.raises(UsageError, match="no linear layer is called 'q_prj'"):
        fitted(backend(model, tmp_path, target_modules=("q_prj",)), groups())
    with pytest.raises(UsageError, match="layout: unknown 'packed'"):
        fitted(backend(model, tmp_path, layout="packed"), groups())
    policy = fitted(backend(model, tmp_path, max_steps=2), groups())
    config = json.loads((policy.state / "adapter_config.json").read_text())
    assert config["r"] == 4 and PAD == 0


def test_a_start_is_gone_on_from(tmp_path) -> None:
    model, made = language_model(), groups()
    first = fitted(backend(model, tmp_path, max_steps=20, learning_rate=2e-2), made)
    machine = backend(model, tmp_path, max_steps=1)
    second = machine.fit(made, objective=objective(), reference=REFERENCE, start=first, seed=3, name="warm")
    assert second.report.history[0]["loss"] < np.log(2) - 0.01
    # With the reference itself trained, and no start, the fit begins there: log 2 once more.
    third = machine.fit(made, objective=objective(), reference=first, start=None, seed=3, name="third")
    assert third.report.history[0]["loss"] == pytest.approx(np.log(2), abs=1e-9)


def test_a_loss_that_is_no_number_stops_the_step_though_its_gradient_is_one(tmp_path) -> None:
    lost = objective(loss=lambda first, second: 0 * (first.log_ratio - second.log_ratio) + torch.nan)
    machine = backend(language_model(), tmp_path)
    with pytest.raises(NumericalError, match="the loss is nan at step 1 of 1; the step was not applied"):
        machine.fit(groups(2), objective=lost, reference=REFERENCE, start=None, seed=3, name="p")


def test_a_gradient_that_is_no_number_moves_nothing() -> None:

    weight = torch.ones(3, requires_grad=True)
    optimiser = Optimiser({"w": weight}, TrainingSettings(adam_beta2=0.99))
    weight.grad = torch.tensor([1.0, torch.inf, 1.0])
    with pytest.raises(NumericalError, match="gradient norm is inf"):
        optimiser.step(learning_rate=0.1, max_grad_norm=1.0)
    assert weight.tolist() == [1.0, 1.0, 1.0] and not optimiser.adamw.state


def test_finished_weights_that_were_altered_are_fitted_again(tmp_path) -> None:
    from safetensors.torch import save_file

    machine = backend(language_model(), tmp_path, max_steps=2)
    policy = fitted(machine, groups(2))
    kept = weights(policy)
    (path,) = policy.state.glob("*model.safetensors")
    save_file({name: torch.zeros_like(value) for name, value in kept.items()}, path)
    assert_same(kept, weights(fitted(machine, groups(2))))


def test_all_that_decides_a_fit_is_in_its_key(tmp_path) -> None:
    from dualign.train.pairs import FitInputs

    model, made = language_model(), groups(2)
    machine = backend(model, tmp_path, max_steps=1)
    stored = stored_groups(model, made)
    inputs = FitInputs(stored, machine.log_probs(REFERENCE, made), objective(), REFERENCE, 3, "rows")
    others = {
        "groups": stored[::-1],
        "reference_log_probs": [values + 1e-9 for values in inputs.reference_log_probs],
        "objective": objective(multiplier=0.6),
        "start": fitted(machine, made),
        "seed": 4,
        "layout": "shared",
    }
    assert others.keys() == {field.name for field in dataclasses.fields(FitInputs)}
    changed = [inputs, *(dataclasses.replace(inputs, **{name: value}) for name, value in others.items())]
    keys = [fit_key(model, one, machine.settings) for one in changed]
    keys.append(fit_key(model, inputs, dataclasses.replace(machine.settings, learning_rate=0.5)))
    assert len(set(keys)) == len(keys) == 8


def test_both_passes_of_a_step_drop_the_same(tmp_path) -> None:
    seen = []

    def loss(first, second):
        values = dpo(first.log_ratio, second.log_ratio, beta=0.5)
        seen.append(values.detach())
        return values

    machine = backend(language_model(), tmp_path, max_steps=3, lora_dropout=0.5, learning_rate=5e-2)
    looking = objective(loss=loss, weigh=lambda losses, plain: plain)
    machine.fit(groups(6), objective=looking, reference=REFERENCE, start=None, seed=3, name="p")
    last = seen[-len(seen) // 3 :]  # a fresh adapter's B is 0, so that the first step shows nothing
    look, train = last[: len(last) // 2], last[len(last) // 2 :]
    assert all(torch.equal(a, b) for a, b in zip(look, train, strict=True))
    assert not torch.equal(torch.cat(look), torch.cat(seen[: len(look)]))


def test_a_response_outside_the_grammar_is_refused_at_its_position() -> None:
    from dualign.models.pair_store import encode_response

    only = torch.zeros(2, 40, dtype=torch.bool)
    only[:, [1, 5, 6]] = True
    group = Group(Prompt("ab"), (Response("", (5, 6, 1)), Response("", (5, 7, 1))), np.zeros(2), np.zeros((2, 1)))
    with pytest.raises(DataError, match="token 7 at position 1 is outside the grammar"):
        stored_groups(language_model(grammar=only), [group])
    long = Response("", tuple([5] * 20))
    assert encode_response(language_model(), long) == (5,) * 12


def test_equal_answers_are_no_pair_and_an_altered_cache_is_not_believed(tmp_path) -> None:
    from safetensors.numpy import load_file, save_file

    model = language_model(revision="abc")
    same = Group(Prompt("ab"), (Response("", (5, 1)),) * 2 + (Response("", (6, 1)),), np.zeros(3), np.zeros((3, 1)))
    assert stored_groups(model, [same])[0].pairs.tolist() == [[0, 2], [1, 2]]
    machine = backend(model, tmp_path)
    right = machine.log_probs(REFERENCE, [same])[0]
    (path,) = (tmp_path / "reference").glob("*.safetensors")
    tensors = load_file(path)
    save_file({**tensors, "log_probs": tensors["log_probs"] + 1}, path, metadata={"check": "0" * 64})
    assert backend(model, tmp_path).log_probs(REFERENCE, [same])[0] == pytest.approx(right, abs=1e-12)


def test_a_row_longer_than_a_sliding_window_is_not_shared_though_shorter_ones_were(tmp_path) -> None:
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.5, "sliding_window": 12}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sliding = MistralForCausalLM(MistralConfig(**sizes, **heads)).double().eval()
    machine = backend(language_model(sliding), tmp_path, layout="auto")

    def group(text):
        return Group(Prompt(text), tuple(Response(t, (), 0.0) for t in ("ab", "cd")), np.zeros(2), np.zeros((2, 1)))

    for text in ("hello", "a prompt that is much longer than the window"):
        (row,) = machine.log_probs(REFERENCE, [group(text)])
        prompt = tuple(machine.language_model.template(Prompt(text)))
        for answer, found in zip(("ab", "cd"), row, strict=True):
            tokens = (*(3 + ord(c) % 30 for c in answer), 1)
            assert found == pytest.approx(float(independent_log_prob(sliding, prompt, tokens)), abs=1e-5)


def test_layers_that_peft_takes_for_experts_are_left_out_or_refused(tmp_path) -> None:
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8}
    widths = {"qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
    experts = {"n_routed_experts": 2, "num_experts_per_tok": 1, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
    config = DeepseekV3Config(**sizes, **heads, **widths, **experts, num_hidden_layers=2, first_k_dense_replace=1)
    model = language_model(DeepseekV3ForCausalLM(config).eval())
    policy = fitted(backend(model, tmp_path, max_steps=2), groups())
    assert {name.split(".")[5] for name in weights(policy)} == {"self_attn"}
    assert np.isfinite(backend(model, tmp_path).log_probs(policy, groups())).all()
    with pytest.raises(UsageError, match="on the experts of DeepseekV3ForCausalLM"):
        fitted(backend(model, tmp_path, max_steps=1, target_modules=("gate_proj", "up_proj")), groups(), name="q")
