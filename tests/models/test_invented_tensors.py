"""No tensor of any model is made up: for every kind of folder, one removed, renamed or reshaped ends in 66, named."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from dualign.errors import MissingError
from dualign.models.adapters import activated, merged
from dualign.models.loading import load_language_model, resolve
from dualign.models.tensors import check_shapes, check_tensors, read_model
from dualign.protocols import Policy
from dualign.records import Prompt
from dualign.scorers.score_model import save_score_model
from dualign.scorers.states import StateReader, StateSettings
from dualign.scorers.table import make_scorer
from sampling_parts import WORDS, tiny_tokenizer

SIZE = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.4,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
LAYER = "model.layers.1.self_attn.q_proj.weight"
ADAPTER = f"base_model.model.{LAYER.removesuffix('weight')}lora_B.weight"
PROMPTS, RESPONSES = [Prompt("a b c"), Prompt("d")], ["e f", "a b c d"]


def llama(kind=LlamaForCausalLM, seed=0, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(LlamaConfig(**SIZE | changes)).eval()


def save(model, folder, **how):
    model.save_pretrained(folder, **how)
    tiny_tokenizer().save_pretrained(folder)


def save_adapter(root):
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        base = LlamaForSequenceClassification.from_pretrained(root / "untied", num_labels=1)
        base.name_or_path = str(root / "untied")
        peft = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"]))
        for name, value in peft.named_parameters():
            if "lora_B" in name or "score" in name:
                torch.nn.init.normal_(value)
        peft.save_pretrained(root / "adapter")
    config = root / "adapter" / "adapter_config.json"
    facts = json.loads(config.read_text())
    config.write_text(json.dumps(facts | {"base_model_name_or_path": "untied"}))
    return peft.eval()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a folder with one folder a kind, all of them whole."""
    root = tmp_path_factory.mktemp("whole")
    save(llama(), root / "untied")
    save(llama(tie_word_embeddings=True), root / "tied")
    save(llama(), root / "sharded", max_shard_size="4KB")
    save(llama(LlamaForSequenceClassification, num_labels=1), root / "classifier")
    save(llama(LlamaModel), root / "body")
    (root / "policy").mkdir()
    save_file({n: p.detach() * 1.1 for n, p in llama().named_parameters()}, root / "policy" / "model.safetensors")
    save_score_model(root / "score", llama(LlamaModel), torch.ones(1, 16), torch.zeros(1), tiny_tokenizer())
    save_adapter(root)
    return root


def read_policy(folder):
    return load_language_model(folder)


def read_weights(folder):
    with activated(load_language_model(folder.parent / "untied"), Policy("full", folder)) as model:
        return model.lm_head.weight.sum()


def scorer(kind, **keys):
    def read(folder):
        direction = "cost" if kind == "guard" else "reward"
        spec = {"kind": kind, "model": folder.name, **keys}
        return make_scorer(spec, direction=direction, folder=folder.parent)(PROMPTS, RESPONSES)

    return read


def read_states(folder):
    return StateReader(StateSettings(str(folder), 1, "mean", "plain", 64, "float32"))(PROMPTS, RESPONSES)


CLASSIFIER = scorer("sequence-classifier", template="{prompt} {response}")
GUARD = scorer("guard", instruction="a {prompt} {response}", unsafe=["a"], safe=["b"])
KINDS = {
    "policy": ("untied", read_policy, LAYER),
    "policy, its head": ("untied", read_policy, "lm_head.weight"),
    "policy, tied": ("tied", read_policy, "model.embed_tokens.weight"),
    "policy, sharded": ("sharded", read_policy, LAYER),
    "full weights of a run": ("policy", read_weights, LAYER),
    "classifier": ("classifier", CLASSIFIER, LAYER),
    "classifier, its head": ("classifier", CLASSIFIER, "score.weight"),
    "classifier, adapter": ("adapter", CLASSIFIER, ADAPTER),
    "classifier, adapter's head": ("adapter", CLASSIFIER, "base_model.model.score.weight"),
    "guard": ("untied", GUARD, "lm_head.weight"),
    "embedding": ("body", scorer("embedding-relevance"), "layers.1.self_attn.q_proj.weight"),
    "embedding of a language model": ("untied", scorer("embedding-relevance"), LAYER),
    "hidden states": ("untied", read_states, "model.norm.weight"),
    "score checkpoint": ("score", scorer("score-checkpoint"), LAYER),
    "score checkpoint, its head": ("score", scorer("score-checkpoint"), "score_head.weight"),
    "score checkpoint, its bias": ("score", scorer("score-checkpoint"), "score_head.bias"),
    "score checkpoint, its normaliser": ("score", scorer("score-checkpoint"), "normalizer.var"),
}
DAMAGES = {
    "removed": lambda name, tensor: {},
    "renamed": lambda name, tensor: {f"other.{name}": tensor},
    "reshaped": lambda name, tensor: {name: torch.cat([tensor, tensor], dim=-1)},
    "not finite": lambda name, tensor: {
        name: torch.where(torch.arange(tensor.numel()) == 1, torch.nan, tensor.flatten()).view(tensor.shape)
        if tensor.numel() > 1
        else tensor * torch.nan
    },
}


def damaged(whole, tmp_path, folder, name, damage):
    """Return a copy of a folder, beside copies of all others, in which one tensor was damaged."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    for file in (tmp_path / folder).glob("*.safetensors"):
        tensors = load_file(file)
        if name in tensors:
            save_file(tensors | damage(name, tensors.pop(name)), file, metadata={"format": "pt"})
            return tmp_path / folder
    raise AssertionError(f"no tensor {name}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_folder_is_read(whole, kind):
    folder, read, _ = KINDS[kind]
    read(whole / folder)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_one_tensor_that_is_removed_renamed_reshaped_or_not_finite_is_named(whole, tmp_path, kind, damage, capfd):
    folder, read, name = KINDS[kind]
    hurt = damaged(whole, tmp_path, folder, name, DAMAGES[damage])
    with pytest.raises(MissingError) as caught:
        read(hurt)
    said = str(caught.value)
    assert caught.value.exit_code == 66 and "\n" not in said
    assert name.removeprefix("base_model.model.").removeprefix("model.").removesuffix(".weight") in said, said
    assert "RANDOM" not in capfd.readouterr().err.upper()


@pytest.mark.parametrize("damage", ["removed", "renamed", "reshaped", "one layer more"])
def test_a_gguf_file_with_a_damaged_tensor(tmp_path, damage):
    pytest.importorskip("gguf")
    write_gguf(tmp_path / "good.gguf", None)
    load_language_model(resolve(tmp_path / "good.gguf", cache=tmp_path / "cache"))
    write_gguf(tmp_path / "hurt.gguf", damage)
    named = (
        r"1 tensor (missing|of another shape): model\.layers\.0\.mlp\.up_proj|not part of this model: blk\.[01]\.ffn_"
    )
    with pytest.raises(MissingError, match=named):
        resolve(tmp_path / "hurt.gguf", cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1


def write_gguf(path, damage):
    import gguf

    writer, wide, words = gguf.GGUFWriter(path, "llama"), 32, [*WORDS[:-1], "ab"]
    numbers = {"context_length": 64, "embedding_length": wide, "block_count": 1, "feed_forward_length": wide,
               "head_count": 2, "head_count_kv": 2, "layer_norm_rms_eps": 1e-5, "rope_dimension_count": 16,
               "vocab_size": len(words), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
    for name, value in numbers.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3, 3, 3] + [1] * (len(words) - 3))
    writer.add_token_merges(["a b"])
    shapes = {"token_embd": (len(words), wide), "output": (len(words), wide), "output_norm": (wide,)}
    shapes |= {f"blk.0.{name}_norm": (wide,) for name in ("attn", "ffn")}
    squares = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes |= {f"blk.0.{name}": (wide, wide) for name in squares}
    for name, shape in shapes.items():
        hurt = damage if name == "blk.0.ffn_up" else None
        if hurt != "removed":
            shape = (2 * wide, wide) if hurt == "reshaped" else shape
            tensor = np.random.default_rng(0).normal(size=shape).astype(np.float32)
            writer.add_tensor(f"{'blk.0.ffn_of' if hurt == 'renamed' else name}.weight", tensor)
    if damage == "one layer more":
        writer.add_tensor("blk.1.ffn_up.weight", np.ones((wide, wide), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rewritten(whole, tmp_path, folder, change):
    shutil.copytree(whole / folder, tmp_path / folder)
    file = tmp_path / folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in change(load_file(file)).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    return tmp_path / folder


MORE = torch.ones(4)


@pytest.mark.parametrize(
    ("folder", "read", "change", "says"),
    [
        ("untied", read_policy, lambda w: {f"base_model.model.{n}": t for n, t in w.items()}, "save the model that it"),
        ("untied", read_policy, lambda w: w | {"model.layers.2.mlp.up_proj.weight": MORE}, "not part of .*layers.2"),
        ("untied", read_policy, lambda w: w | {"v_head.summary.weight": MORE}, "not part of this model: v_head"),
        ("untied", read_policy, lambda w: {n: t for n, t in w.items() if ".1." not in n}, "9 tensors .* and 6 more"),
        ("untied", CLASSIFIER, lambda w: w, "1 tensor missing: score.weight"),
        ("classifier", read_policy, lambda w: w, "missing: lm_head.weight; 1 tensor not part .*: score.weight"),
        ("classifier", GUARD, lambda w: w, "missing: lm_head.weight"),
        ("body", read_policy, lambda w: w, "1 tensor missing: lm_head.weight"),
        ("untied", scorer("embedding-relevance"), lambda w: w | {"model.layers.2.norm.weight": MORE}, "layers.2"),
        ("tied", read_policy, lambda w: w | {"lm_head.weight": torch.ones(3, 16)}, r"lm_head.weight \[3, 16\]"),
    ],
)
def test_the_wrong_checkpoint_is_refused(whole, tmp_path, folder, read, change, says):
    with pytest.raises(MissingError, match=says):
        read(rewritten(whole, tmp_path, folder, change))


@pytest.mark.parametrize(
    ("folder", "read", "change"),
    [
        ("tied", read_policy, lambda w: w | {"lm_head.weight": w["model.embed_tokens.weight"]}),
        ("tied", read_policy, lambda w: {n.replace("model.embed_tokens", "lm_head"): t for n, t in w.items()}),
        ("untied", read_policy, lambda w: w | {"model.layers.0.self_attn.rotary_emb.inv_freq": MORE}),
        ("classifier", CLASSIFIER, lambda w: w | {"lm_head.weight": torch.ones(12, 16)}),
        ("score", scorer("score-checkpoint"), lambda w: w | {"lm_head.weight": torch.ones(12, 16)}),
        ("untied", scorer("embedding-relevance"), lambda w: w),
    ],
)
def test_ties_old_buffers_and_heads_that_are_not_read_are_fine(whole, tmp_path, folder, read, change):
    read(rewritten(whole, tmp_path, folder, change))


def test_an_encoder_needs_no_pooler_but_not_half_of_one(tmp_path):
    config = BertConfig(vocab_size=12, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    save(BertForMaskedLM(config), tmp_path / "mlm")
    read = scorer("embedding-relevance")
    read(tmp_path / "mlm")
    file = tmp_path / "mlm" / "model.safetensors"
    save_file(load_file(file) | {"bert.pooler.dense.bias": torch.ones(16)}, file, metadata={"format": "pt"})
    with pytest.raises(MissingError, match=r"1 tensor missing: pooler\.dense\.weight"):
        read(tmp_path / "mlm")


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights_without_their_scales_are_named(whole, tmp_path, kind):
    for folder, read in (("untied", read_policy), ("classifier", scorer("sequence-classifier"))):
        shutil.copytree(whole / folder, tmp_path / folder)
        file = tmp_path / folder / "model.safetensors"
        tensors = load_file(file)
        save_file(tensors | {LAYER: (10 * tensors[LAYER]).to(kind)}, file, metadata={"format": "pt"})
        with pytest.raises(MissingError, match=rf"{LAYER} is in \w+, and config.json has no quantization_config"):
            read(tmp_path / folder)


def test_the_head_of_a_masked_modernbert_is_not_read_and_a_layer_too_many_is(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    save(ModernBertForMaskedLM(ModernBertConfig(vocab_size=len(WORDS), **sizes, **ends)), tmp_path)
    read = scorer("embedding-relevance")
    assert np.isfinite(read(tmp_path)).all()
    save_file({**load_file(tmp_path / "model.safetensors"), "decoder.layers.0.weight": torch.ones(2)},
              tmp_path / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(MissingError, match=r"decoder\.layers\.0\.weight"):
        read(tmp_path)


def test_an_expert_without_one_of_its_tensors_is_named(tmp_path):
    config = Qwen3MoeConfig(
        vocab_size=12, hidden_size=16, intermediate_size=24, moe_intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    save(Qwen3MoeForCausalLM(config), tmp_path)
    file = tmp_path / "model.safetensors"
    left = {name: tensor for name, tensor in load_file(file).items() if "experts.1.gate" not in name}
    save_file(left, file, metadata={"format": "pt"})
    with pytest.raises(MissingError, match=r"1 tensor missing: model\.layers\.0\.mlp\.experts\.gate_up_proj"):
        load_language_model(tmp_path)


def test_an_adapter_of_a_classifier_scores_as_peft_does(whole, tmp_path):
    peft = save_adapter(whole)
    tokenizer = tiny_tokenizer()
    with torch.no_grad():
        ids = [tokenizer(f"<s> {p.text} {r}")["input_ids"] for p, r in zip(PROMPTS, RESPONSES, strict=True)]
        expected = [float(peft(torch.tensor([row])).logits) for row in ids]
    assert CLASSIFIER(whole / "adapter") == pytest.approx(expected, abs=1e-5)
    assert np.std(expected) > 0.05
    spec = {"kind": "sequence-classifier", "model": "adapter", "template": "response"}
    first = make_scorer(spec, direction="reward", folder=whole).revision
    hurt = damaged(whole, tmp_path, "adapter", ADAPTER, lambda name, tensor: {name: 2 * tensor})
    assert make_scorer(spec, direction="reward", folder=hurt.parent).revision != first


def test_an_adapter_whose_head_is_in_its_base_takes_that_one(whole, tmp_path):
    hurt = damaged(whole, tmp_path, "adapter", "base_model.model.score.weight", DAMAGES["removed"])
    config = hurt / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "classifier"}))
    assert np.isfinite(CLASSIFIER(hurt)).all()


def test_an_adapter_of_another_task_or_beside_a_model_is_refused(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    for read, says in ((GUARD, "task SEQ_CLS; CAUSAL_LM is needed"), (scorer("embedding-relevance"), "is an adapter")):
        with pytest.raises(MissingError, match=says):
            read(tmp_path / "adapter")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        for folder in ("untied", "classifier"):
            shutil.copy(tmp_path / "adapter" / file, tmp_path / folder / file)
    for read, folder in ((read_policy, "untied"), (CLASSIFIER, "classifier")):
        with pytest.raises(MissingError, match="a whole model and an adapter"):
            read(tmp_path / folder)


def test_full_weights_of_two_models_are_not_merged(whole, tmp_path):
    hurt = damaged(whole, tmp_path, "policy", LAYER, DAMAGES["reshaped"])
    with pytest.raises(MissingError, match="1 tensor of another shape"):
        merged(Policy("one", whole / "policy"), Policy("two", hurt), share=0.5, folder=tmp_path / "out")


def test_messages_name_a_few_and_are_inert():
    with pytest.raises(MissingError) as caught:
        check_tensors("model x", missing=[f"layer{i}" for i in range(9)], unexpected=["a\n\x1b[2Jb"])
    assert "9 tensors missing: layer0 and 8 more; 1 tensor not part of this model: a" in str(caught.value)
    assert str(caught.value).isprintable()
    same = {"a": torch.ones(2, 3)}
    check_shapes("x", needed=same, found=same)
    with pytest.raises(MissingError, match=r"a \[3, 2\] \(needs \[2, 3\]\)"):
        check_shapes("x", needed=same, found={"a": torch.ones(3, 2)})


def test_a_loader_is_quiet_and_leaves_the_log_as_it_was(whole, capfd):
    from transformers.utils import logging

    level = logging.get_verbosity()
    read_model(AutoModelForCausalLM, str(whole / "untied"), "x")
    assert capfd.readouterr() == ("", "") and logging.get_verbosity() == level
