"""Adapters that others trained: what PEFT computes with one is what we compute, or one line refuses it."""

import json
import re
import shutil
from functools import partial
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from dualign.errors import MissingError, UsageError
from dualign.models import adapter_merge, adapters
from dualign.models.adapter_merge import KINDS, check_adapter
from dualign.models.adapters import activated, check_settings, fingerprint
from dualign.models.loading import load_language_model, save_model
from dualign.models.log_probs import PairScorer, rows
from dualign.models.sampler import TransformersSampler
from dualign.protocols import Policy, Sampling
from dualign.records import Prompt
from dualign.train.sft import save_fitted
from engine_parts import independent_log_prob
from sampling_parts import PROMPTS, WORDS, tiny_tokenizer

# PEFT warns of most of the kinds below.
pytestmark = pytest.mark.filterwarnings("ignore")
SHAPE = {
    "vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128, "initializer_range": 0.3,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
BASES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "biased": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=2)),  # experts in one tensor
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(WORDS), n_positions=128, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3,
            bos_token_id=1, eos_token_id=2,
        )
    ),  # transposed weights, tied
}  # fmt: skip


def lora(**settings):
    return partial(
        peft.LoraConfig, **{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **settings}
    )  # fmt: skip


def of(name, **settings):
    return partial(getattr(peft, f"{name}Config"), **{"target_modules": ["q_proj", "v_proj"], **settings})


KINDS_AND_BASES = {
    "plain": ("llama", lora(lora_dropout=0.4)),
    "rslora": ("llama", lora(use_rslora=True)),
    "patterns": ("llama", lora(rank_pattern={"q_proj": 8}, alpha_pattern={"v_proj": 64})),
    "one-layer": ("llama", lora(layers_to_transform=[1])),
    "regex": ("llama", lora(target_modules=r".*\.0\..*up_proj")),
    "excluded": ("llama", lora(exclude_modules=r".*layers\.0.*")),
    "all-linear": ("llama", lora(target_modules="all-linear")),
    "dora": ("llama", lora(use_dora=True)),
    "dora-embedding": ("llama", lora(use_dora=True, target_modules=["q_proj", "embed_tokens"])),
    "bias": ("llama", lora(lora_bias=True)),
    "bias-of-mlp": ("llama", lora(lora_bias=True, target_modules=["up_proj", "o_proj"])),
    "bias-on-bias": ("biased", lora(lora_bias=True)),
    "bias-all": ("biased", lora(bias="all")),
    "bias-lora-only": ("biased", lora(bias="lora_only")),
    "head-and-saved-embedding": ("llama", lora(target_modules=["lm_head"], modules_to_save=["embed_tokens"])),
    "embedding": ("llama", lora(target_modules=["q_proj", "embed_tokens"])),
    "embedding-tied": ("tied", lora(target_modules=["q_proj", "embed_tokens"])),
    "embedding-kept-tied": ("tied", lora(target_modules=["q_proj", "embed_tokens"], ensure_weight_tying=True)),
    "head": ("llama", lora(target_modules=["q_proj", "lm_head"])),
    "head-tied": ("tied", lora(target_modules=["q_proj", "lm_head"])),
    "embedding-and-head-tied": ("tied", lora(target_modules=["embed_tokens", "lm_head"])),
    "saved-head": ("llama", lora(modules_to_save=["lm_head"])),
    "saved-head-tied": ("tied", lora(modules_to_save=["lm_head"])),
    "saved-embedding": ("llama", lora(modules_to_save=["embed_tokens"])),
    "saved-embedding-tied": ("tied", lora(modules_to_save=["embed_tokens"])),
    "saved-embedding-kept-tied": ("tied", lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True)),
    "saved-norms": ("llama", lora(modules_to_save=["norm", "input_layernorm"])),
    "tokens": ("llama", lora(trainable_token_indices={"embed_tokens": [5, 6]})),
    "tokens-tied": ("tied", lora(trainable_token_indices=[5, 6])),
    "transposed": ("gpt2", lora(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "transposed-bias": ("gpt2", lora(target_modules=["c_attn"], fan_in_fan_out=True, lora_bias=True, bias="all")),
    "transposed-dora": ("gpt2", lora(target_modules=["c_attn"], fan_in_fan_out=True, use_dora=True)),
    "transposed-embedding": ("gpt2", lora(target_modules=["c_attn", "wte"], fan_in_fan_out=True)),
    "parameters": ("mixtral", lora(target_modules=None, target_parameters=["mlp.experts.down_proj"])),
    "pissa": ("llama", lora(init_lora_weights="pissa")),
    "olora": ("llama", lora(init_lora_weights="olora")),
    "gaussian": ("llama", lora(init_lora_weights="gaussian")),
    "orthogonal": ("llama", lora(init_lora_weights="orthogonal")),
    "eva": ("llama", lora(init_lora_weights="eva")),
    "mica": ("llama", lora(init_lora_weights="mica")),
    "ia3": ("llama", of("IA3", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "ia3-saved-head": ("llama", of("IA3", feedforward_modules=[], modules_to_save=["lm_head"])),
    "adalora": ("llama", of("AdaLora", init_r=4, total_step=10)),
    "loha": ("llama", of("LoHa", r=4)),
    "lokr": ("llama", of("LoKr", r=4)),
    "oft": ("llama", of("OFT", target_modules=["q_proj"], oft_block_size=8)),
    "boft": ("llama", of("BOFT", target_modules=["q_proj"], boft_block_size=4)),
    "vera": ("llama", of("Vera", target_modules=["q_proj"], r=4)),
    "vera-from-seed": ("llama", of("Vera", target_modules=["q_proj"], r=4, save_projection=False)),
    "norms": ("llama", of("LNTuning", target_modules=["input_layernorm"])),
    "token-rows": ("llama", partial(peft.TrainableTokensConfig, token_indices=[5, 6])),
    "token-rows-tied": ("tied", partial(peft.TrainableTokensConfig, token_indices=[5, 6])),
    "hra": ("llama", of("HRA", r=4)),
    "fourier": ("llama", of("FourierFT", n_frequency=20)),
    "vblora": ("llama", of("VBLoRA", r=4, num_vectors=16, vector_length=8)),
    "c3a": ("llama", of("C3A", target_modules=["q_proj"], block_size=8)),
    "miss": ("llama", of("Miss", target_modules=["q_proj"], r=4)),
    "shira": ("llama", of("Shira", target_modules=["q_proj"], r=4)),
    "road": ("llama", of("Road", target_modules=["q_proj"], group_size=8)),
    "delora": ("llama", of("Delora", r=4)),
}
REFUSED = {
    "prompt": (partial(peft.PromptTuningConfig, num_virtual_tokens=3), "kind 'PROMPT_TUNING'"),
    "prefix": (partial(peft.PrefixTuningConfig, num_virtual_tokens=3), "kind 'PREFIX_TUNING'"),
    "encoder": (partial(peft.PromptEncoderConfig, num_virtual_tokens=3), "kind 'P_TUNING'"),
    "pissa-at-random": (lora(init_lora_weights="pissa_niter_2"), "init_lora_weights 'pissa_niter_2'"),
    "after-tokens": (lora(alora_invocation_tokens=[3]), "alora_invocation_tokens"),
    "more-layers": (lora(layer_replication=[[0, 2], [1, 2]]), "layer_replication"),
    "classes": (lora(task_type="SEQ_CLS"), "made for the task 'SEQ_CLS'"),
}
"""Configs that PEFT itself makes an adapter of, and what the line says that refuses it."""
ANSWERS = [(3, 4, 5, 2), (11, 6), (5, 5, 6, 9, 2)]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    for seed, (name, make) in enumerate(BASES.items()):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = make().eval()
            for key, value in model.named_parameters():
                if key.endswith("bias"):
                    torch.nn.init.normal_(value, 0, 0.2)
        save_model(model, tiny_tokenizer(), folder / name)
    return folder


def written(base, config, folder: Path, seed: int = 1) -> Path:
    """Return ``folder`` with an adapter in it, none of whose tensors is as PEFT begins it."""
    whole = AutoModelForCausalLM.from_pretrained(base) if isinstance(base, Path) else base
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = peft.get_peft_model(whole, config)
        for name, value in model.named_parameters():
            if value.requires_grad and "magnitude" in name:
                value.mul_(1 + torch.rand_like(value) / 2)
            elif value.requires_grad:
                value.add_(torch.randn_like(value) * 0.2)
    model.save_pretrained(folder)
    return folder


def with_peft(base: Path, folder: Path):
    return peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()


def greedy(language_model, n: int = 8):
    sampling = Sampling(max_new_tokens=n, top_k=1)
    drawn = TransformersSampler(language_model).generate(
        Policy("base"), PROMPTS[:3], 1, sampling=sampling, seed=0, stage="greedy"
    )
    return [row[0].tokens for row in drawn]


def scores(language_model, prompts):
    with torch.no_grad():
        batch = rows([(tuple(prompt), tuple(ANSWERS)) for prompt in prompts], language_model.pad)
        return PairScorer(language_model)(batch).tolist()


@pytest.mark.parametrize("kind", KINDS_AND_BASES)
def test_log_probabilities_and_answers_are_those_of_peft(kind, bases, tmp_path):
    base, config = KINDS_AND_BASES[kind]
    folder = written(bases / base, config(task_type="CAUSAL_LM"), tmp_path / "adapter")
    ours = load_language_model(bases / base, adapter=folder)
    theirs = with_peft(bases / base, folder)
    prompts = [ours.template(prompt) for prompt in PROMPTS[:3]]
    found, alone = scores(ours, prompts), scores(load_language_model(bases / base), prompts)
    with torch.no_grad():
        expected = [[float(independent_log_prob(theirs, tuple(p), a)) for a in ANSWERS] for p in prompts]
    assert found == [pytest.approx(row, abs=1e-4) for row in expected]
    # the adapter does something, so that leaving it or a part of it out would show
    assert max(abs(a - b) for x, y in zip(alone, found, strict=True) for a, b in zip(x, y, strict=True)) > 0.05
    for prompt, answer in zip(PROMPTS[:3], greedy(ours), strict=True):
        ids = torch.tensor([ours.template(prompt)])
        told = theirs.generate(input_ids=ids, attention_mask=ids * 0 + 1, do_sample=False, max_new_tokens=8)
        assert tuple(told[0, ids.shape[1] :].tolist()) == answer
    # what is merged reads back as it is, also where embedding and head are two now
    save_fitted(ours, {}, tmp_path / "saved")
    assert scores(load_language_model(tmp_path / "saved"), prompts) == found
    assert bool(ours.model.config.tie_word_embeddings) == (
        ours.model.get_input_embeddings().weight is ours.model.get_output_embeddings().weight
    )


def test_every_supported_kind_is_compared():
    made = {config(task_type="CAUSAL_LM").peft_type.value for _, config in KINDS_AND_BASES.values()}
    assert made == set(KINDS)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_change_of_weights_is_refused_by_name(kind, bases, tmp_path):
    config, said = REFUSED[kind]
    made = config(**({} if "task_type" in config.keywords else {"task_type": "CAUSAL_LM"}))
    made.base_model_name_or_path = str(bases / "llama")
    made.save_pretrained(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(MissingError, match=re.escape(said)) as caught:
        load_language_model(bases / "llama", adapter=tmp_path)
    assert "\n" not in str(caught.value)


LARGER = {
    "both-saved": ("llama", lora(modules_to_save=["embed_tokens", "lm_head"])),
    "both-saved-tied": ("tied", lora(modules_to_save=["embed_tokens", "lm_head"])),
    "kept-tied": ("tied", lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True)),
    "beside": ("llama", lora()),
    "beside-tied": ("tied", lora()),
    "embedding-tied": ("tied", lora(target_modules=["q_proj", "embed_tokens"])),
    "head-and-saved": ("llama", lora(target_modules=["q_proj", "lm_head"], modules_to_save=["embed_tokens"])),
    "tokens": ("llama", lora(trainable_token_indices=[12, 13])),
    "tokens-tied": ("tied", lora(trainable_token_indices=[12, 13])),
}
"""Adapters made after two tokens were added: PEFT saves both matrices whole, in one form or another."""


@pytest.mark.parametrize("kind", LARGER)
def test_an_adapter_for_more_tokens_brings_their_rows(kind, bases, tmp_path):
    base, config = LARGER[kind]

    def larger(seed):
        model = AutoModelForCausalLM.from_pretrained(bases / base)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.resize_token_embeddings(len(WORDS) + 2, mean_resizing=False)
        return model

    made = config(task_type="CAUSAL_LM")
    folder = written(larger(8), made, tmp_path / "adapter")
    ours = load_language_model(bases / base, adapter=folder).model
    theirs = peft.PeftModel.from_pretrained(larger(9), folder).eval()
    tokens = torch.arange(len(WORDS) + 2)[None]
    with torch.no_grad():
        found, expected = (m(input_ids=tokens).logits.log_softmax(-1) for m in (ours, theirs))
    assert (found - expected).abs().max() < 1e-4
    assert ours.config.vocab_size == len(WORDS) + 2


def test_rows_of_new_tokens_are_never_made_up(bases, tmp_path):
    def larger():
        model = AutoModelForCausalLM.from_pretrained(bases / "llama")
        model.resize_token_embeddings(len(WORDS) + 2)
        return model

    # PEFT saves the embedding that it wraps, and not the head beside it, whose new rows are lost
    config = lora(target_modules=["q_proj", "embed_tokens"])(task_type="CAUSAL_LM")
    with pytest.raises(MissingError, match="the rows of the new tokens are not there for lm_head.weight"):
        load_language_model(bases / "llama", adapter=written(larger(), config, tmp_path / "lost"))
    folder = written(larger(), lora()(task_type="CAUSAL_LM"), tmp_path / "adapter")
    head = "base_model.model.lm_head.weight"
    bad = changed(folder, tmp_path / "bad", lambda tensors: {k: v for k, v in tensors.items() if k != head})
    with pytest.raises(MissingError, match="the rows of the new tokens are not there for lm_head.weight"):
        load_language_model(bases / "llama", adapter=bad)


def changed(source: Path, target: Path, change) -> Path:
    shutil.copytree(source, target)
    tensors = load_file(target / "adapter_model.safetensors")
    save_file(change(tensors), target / "adapter_model.safetensors")
    return target


FAULTS = {
    "missing": lambda tensors, name: {key: value for key, value in tensors.items() if key != name},
    "renamed": lambda tensors, name: {key + "x" * (key == name): value for key, value in tensors.items()},
    "reshaped": lambda tensors, name: tensors | {name: torch.cat([tensors[name], tensors[name]])},
}


@pytest.mark.parametrize(
    "kind", ["plain", "dora", "bias", "embedding", "saved-head", "tokens", "tokens-tied", "ia3", "parameters", "vblora"]
)
def test_each_tensor_that_is_missing_unknown_or_of_another_shape_is_named(kind, bases, tmp_path):
    base, config = KINDS_AND_BASES[kind]
    folder = written(bases / base, config(task_type="CAUSAL_LM"), tmp_path / "adapter")
    names = sorted(load_file(folder / "adapter_model.safetensors"))
    own = [name for name in names if "base_layer" not in name]
    for number, name in enumerate([own[0], own[-1]]):
        for fault, change in FAULTS.items():
            bad = changed(folder, tmp_path / f"{fault}-{number}", partial(change, name=name))
            with pytest.raises(MissingError) as caught:
                load_language_model(bases / base, adapter=bad)
            short = name.removeprefix("base_model.model.").removesuffix(".weight")
            assert short in str(caught.value) and "\n" not in str(caught.value)


def test_a_tensor_too_many_is_named(bases, tmp_path):
    folder = written(bases / "llama", lora()(task_type="CAUSAL_LM"), tmp_path / "adapter")
    extra = "model.layers.7.self_attn.q_proj.lora_A.weight"
    bad = changed(folder, tmp_path / "bad", lambda t: t | {f"base_model.model.{extra}": torch.zeros(4, 16)})
    with pytest.raises(MissingError, match=re.escape(f"1 tensor not part of this model: {extra}")):
        load_language_model(bases / "llama", adapter=bad)


def test_another_model_or_not_a_number_is_refused(bases, tmp_path):
    folder = written(bases / "llama", lora()(task_type="CAUSAL_LM"), tmp_path / "adapter")
    with pytest.raises(MissingError, match="cannot be put on this model.*Target modules"):
        load_language_model(bases / "gpt2", adapter=folder)
    bad = changed(folder, tmp_path / "nan", lambda t: {k: v * torch.nan for k, v in t.items()})
    with pytest.raises(MissingError, match="NaN|off by nan"):
        load_language_model(bases / "llama", adapter=bad)


def test_a_merge_that_is_not_what_peft_computes_is_refused(bases, tmp_path, monkeypatch):
    folder = written(bases / "llama", lora(lora_bias=True)(task_type="CAUSAL_LM"), tmp_path / "adapter")
    from peft.tuners.lora.layer import Linear

    merge = Linear.merge

    def forgetful(self, *args, **settings):
        merge(self, *args, **settings)
        self.get_base_layer().bias.data.zero_()

    monkeypatch.setattr(Linear, "merge", forgetful)
    with pytest.raises(MissingError, match="other log-probabilities than PEFT"):
        load_language_model(bases / "llama", adapter=folder)


def test_bias_for_layers_that_can_have_none_is_refused(bases, tmp_path):
    config = lora(lora_bias=True, target_modules=["o_proj"])(task_type="CAUSAL_LM")
    folder = written(bases / "mixtral", config, tmp_path / "adapter")
    with pytest.raises(MissingError, match=r"lora_bias gives 'model.layers.0.self_attn.o_proj.bias' to layers"):
        load_language_model(bases / "mixtral", adapter=folder)


def test_folders_that_are_none(bases, tmp_path):
    with pytest.raises(MissingError, match="no adapter_config.json is there"):
        check_adapter(tmp_path)
    folder = written(bases / "llama", lora()(task_type="CAUSAL_LM"), tmp_path / "adapter")
    weights = folder / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(MissingError, match=r"adapter_model\.bin is not read"):
        check_adapter(folder)
    weights.write_bytes(content[:-3])
    with pytest.raises(MissingError, match="damaged"):
        load_language_model(bases / "llama", adapter=folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    weights.write_bytes(content)
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "twist": None}))
    load_language_model(bases / "llama", adapter=folder)
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "twist": 2}))
    with pytest.raises(MissingError, match="setting 'twist' is unknown to the installed peft"):
        check_adapter(folder)
    for text in ("{", "[]", '{"peft_type": ["LORA"]}'):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(MissingError, match="cannot be read|no mapping|kind"):
            check_adapter(folder)


def test_another_base_is_said_and_the_same_one_is_not(bases, tmp_path):
    folder = written(bases / "llama", lora()(task_type="CAUSAL_LM"), tmp_path / "adapter")
    assert load_language_model(bases / "llama", adapter=folder).notes == ()
    shutil.copytree(bases / "llama", tmp_path / "copy")
    (said,) = load_language_model(tmp_path / "copy", adapter=folder).notes
    assert f"{str(bases / 'llama')!r}, and is put on {str(tmp_path / 'copy')!r}" in said


TEMPLATE = (
    "{% for m in messages %}{{ 'i ' if m.role == 'user' else 'END ' }}{{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}END{% endif %}"
)


def test_its_own_tokenizer_and_template_are_taken(bases, tmp_path):
    folder = written(bases / "llama", lora()(task_type="CAUSAL_LM"), tmp_path / "adapter")
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("END", "h"))
    model = load_language_model(bases / "llama", adapter=folder)
    assert model.tokenizer.convert_ids_to_tokens(model.template(Prompt("a b")))[-4:] == ["i", "a", "b", "h"]
    alone = load_language_model(bases / "llama")
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE.replace("END", "g")}))
    model = load_language_model(bases / "llama", adapter=folder)
    assert model.tokenizer.convert_ids_to_tokens(model.template(Prompt("a b")))[-1] == "g"
    tiny_tokenizer(eos_token="i").save_pretrained(folder)
    model = load_language_model(bases / "llama", adapter=folder)
    assert (alone.eos, model.eos) == (2, 11)


def test_a_tokenizer_that_outgrew_the_embedding_is_refused_and_its_padding_is_not_taken(bases, tmp_path):
    folder = written(bases / "llama", lora()(task_type="CAUSAL_LM"), tmp_path / "adapter")
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    tokenizer.save_pretrained(folder)
    assert tokenizer.pad_token_id == len(WORDS) and load_language_model(bases / "llama", adapter=folder).pad < len(
        WORDS
    )
    tokenizer.add_tokens(["zz"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(MissingError, match=rf"no row among the {len(WORDS)} of the embedding: 'zz'"):
        load_language_model(bases / "llama", adapter=folder)


def test_identity_enters_the_revision(bases, tmp_path):
    folder = written(bases / "llama", lora()(task_type="CAUSAL_LM"), tmp_path / "adapter")
    before = load_language_model(bases / "llama", adapter=folder).revision
    assert before != load_language_model(bases / "llama").revision
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    assert load_language_model(bases / "llama", adapter=folder).revision != before
    other = changed(folder, tmp_path / "other", lambda t: {k: v * 1.001 for k, v in t.items()})
    assert adapter_merge.adapter_identity(other) != adapter_merge.adapter_identity(folder)


def test_merged_in_float32_and_cast_once(bases, tmp_path):
    folder = written(bases / "llama", lora()(task_type="CAUSAL_LM"), tmp_path / "adapter")
    exact = load_language_model(bases / "llama", adapter=folder).model.state_dict()
    coarse = load_language_model(bases / "llama", adapter=folder, dtype="bfloat16").model.state_dict()
    assert all(torch.equal(value.bfloat16(), coarse[name]) for name, value in exact.items())


PARTS = {
    "dora": (lora(use_dora=True), "use_dora"),
    "bias": (lora(lora_bias=True), "lora_bias"),
    "saved-head": (lora(modules_to_save=["lm_head"]), "modules_to_save"),
    "tokens": (lora(trainable_token_indices=[5, 6]), "trainable_token_indices"),
    "pissa": (lora(init_lora_weights="pissa"), "init_lora_weights 'pissa'"),
    "embedding": (lora(target_modules=["q_proj", "embed_tokens"]), "'model.embed_tokens'"),
    "head": (lora(target_modules=["q_proj", "lm_head"]), "'lm_head'"),
    "ia3": (of("IA3", feedforward_modules=[]), "kind 'IA3'"),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("merged", [False, True])
def test_an_adapter_put_on_and_off_is_plain_or_refused(part, merged, bases, tmp_path):
    config, said = PARTS[part]
    folder = written(bases / "llama", config(task_type="CAUSAL_LM"), tmp_path / "adapter")
    model = load_language_model(bases / "llama")
    with pytest.raises(MissingError, match=re.escape(said)), activated(model, Policy("p", folder), merged=merged):
        pass
    # the base is as it was
    assert scores(model, [[1, 3]]) == scores(load_language_model(bases / "llama"), [[1, 3]])


def test_an_adapter_that_was_refused_leaves_nothing_and_is_refused_again(bases, tmp_path):
    folder = written(bases / "llama", lora()(task_type="CAUSAL_LM"), tmp_path / "adapter")
    lost = sorted(load_file(folder / "adapter_model.safetensors"))[0]
    bad = changed(folder, tmp_path / "bad", partial(FAULTS["missing"], name=lost))
    model = load_language_model(bases / "llama")
    for _ in range(2):
        with pytest.raises(MissingError, match="1 tensor missing"), activated(model, Policy("p", bad)):
            pass
    assert not any(adapters.adapter_parameters(model.model, f"policy_{fingerprint(Policy('p', bad))}"))


@pytest.mark.parametrize("kind", ["plain", "rslora", "patterns", "one-layer", "regex", "excluded", "all-linear"])
@pytest.mark.parametrize("merged", [False, True])
def test_plain_ones_are_exact_when_put_on_and_off(kind, merged, bases, tmp_path):
    folder = written(bases / "llama", KINDS_AND_BASES[kind][1](task_type="CAUSAL_LM"), tmp_path / "adapter")
    model, theirs = load_language_model(bases / "llama"), with_peft(bases / "llama", folder)
    with activated(model, Policy("p", folder), merged=merged) as ours, torch.no_grad():
        for answer in ANSWERS:
            found, expected = (float(independent_log_prob(m, (1, 3, 4), answer)) for m in (ours, theirs))
            assert found == pytest.approx(expected, abs=1e-4)


def test_a_fit_that_starts_elsewhere_keeps_the_scale(bases, tmp_path):
    folder = written(bases / "llama", lora(r=4, lora_alpha=8)(task_type="CAUSAL_LM"), tmp_path / "adapter")
    check_settings(folder, peft.LoraConfig(r=4, lora_alpha=8.0))
    with pytest.raises(UsageError, match="was fitted with lora_alpha 8, this fit has 16"):
        check_settings(folder, peft.LoraConfig(r=4, lora_alpha=16))


def test_the_same_tensors_at_another_scale_are_another_policy(bases, tmp_path):
    folder = written(bases / "llama", lora()(task_type="CAUSAL_LM"), tmp_path / "adapter")
    shutil.copytree(folder, tmp_path / "louder")
    for name, value in (("lora_alpha", 80), ("base_model_name_or_path", "elsewhere")):
        path = tmp_path / "louder" / "adapter_config.json"
        settings = json.loads((folder / "adapter_config.json").read_text())
        path.write_text(json.dumps({**settings, name: value}))
        same = fingerprint(Policy("a", folder)) == fingerprint(Policy("b", tmp_path / "louder"))
        assert same == (name == "base_model_name_or_path")
