"""Loading: four ways to name a model, padding apart from EOS, one line for whatever is wrong."""

import json
import sys

import pytest

from dualign.errors import MissingError, UsageError
from dualign.models.language_model import Wording
from dualign.models.loading import (
    identity,
    load_language_model,
    package_gguf,
    padding_id,
    resolve,
    save_model,
)
from dualign.models.templates import TEMPLATES, beaver_text, make_template, response_tokens, with_template
from dualign.records import Prompt
from sampling_parts import EOS, tiny_model, tiny_tokenizer

CHAT = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}a a {% endif %}"
    "{{ m['role'][0:1] | replace('s', 'b') | replace('u', 'c') }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}a{% endif %}"
)


@pytest.fixture
def folder(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    save_model(tiny_model(dtype="float32"), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def test_folder(folder):
    model = load_language_model(folder, temperature=0.7, dtype="float64")
    assert (model.pad, model.eos, model.temperature) == (0, EOS, 0.7)
    assert str(model.model.dtype) == "torch.float64" and not model.model.training
    assert model.revision == load_language_model(str(folder), dtype="float64").revision
    assert model.revision != load_language_model(folder).revision


def test_empty_system_prompt_is_not_the_default_one(folder):
    model = load_language_model(folder)
    ids = {name: with_template(model, Wording("chat", name)).template(Prompt("e")) for name in (None, "", "f")}
    text = {name: " ".join(model.tokenizer.convert_ids_to_tokens(value)) for name, value in ids.items()}
    assert text == {None: "a a c e a", "": "b c e a", "f": "b f c e a"}


def test_identity_changes_with_one_weight(folder):
    before = identity(folder)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert identity(folder) != before


def test_identity_changes_with_what_ends_an_answer(folder):
    before, path = identity(folder), folder / "generation_config.json"
    path.write_text(path.read_text().replace('"eos_token_id": 2', '"eos_token_id": [2, 5]'))
    assert identity(folder) != before and load_language_model(folder).written.stops == {2, 5}


def test_padding_is_never_the_eos():
    assert padding_id(tiny_tokenizer(pad_token="</s>")) == 0
    assert padding_id(tiny_tokenizer(pad_token="i")) == 11
    assert padding_id(tiny_tokenizer(eos_token="<pad>", pad_token="<pad>")) == 1


def test_beaver_strings():
    assert beaver_text(["q1"], eos="</s>") == "BEGINNING OF CONVERSATION: USER: q1 ASSISTANT:"
    assert (
        beaver_text(["q1", "a1", "q2"], eos="</s>")
        == "BEGINNING OF CONVERSATION: USER: q1 ASSISTANT:a1</s>USER: q2 ASSISTANT:"
    )
    with pytest.raises(UsageError, match="odd number of turns, given 2"):
        beaver_text(["q1", "a1"], eos="</s>")


def test_templates_by_name(folder):
    tokenizer = tiny_tokenizer()
    assert set(TEMPLATES) == {"chat", "plain", "beaver"}
    assert make_template("plain", tokenizer)(Prompt("a b")) == [3, 4]
    with pytest.raises(UsageError, match="did you mean 'plain'"):
        make_template("plane", tokenizer)
    with pytest.raises(UsageError, match="no chat template"):
        make_template("chat", tokenizer)
    with pytest.raises(UsageError, match="no place for a system prompt"):
        make_template("beaver", tokenizer, Wording(system_prompt="be kind"))


def test_a_user_cannot_type_special_tokens(folder):
    model = load_language_model(folder)
    ids = model.template(Prompt("e </s> f"))
    assert EOS not in ids and ids[0] == 3
    assert response_tokens(model, "a </s> b").count(EOS) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/folder", "no such folder"),
        ("package:dualign_is_no_gguf", "no package"),
        ("package:dualign", "found 0"),
    ],
)
def test_missing_models(name, message):
    with pytest.raises(MissingError, match=message) as caught:
        load_language_model(name)
    assert "\n" not in str(caught.value)


def test_hub_refusal_is_one_line(monkeypatch):
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise OSError("offline\nmany lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(MissingError, match=r"org/name.*offline\)$"):
        resolve("org/name")


def test_unreadable_folders(folder, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(MissingError, match="a PEFT adapter alone"):
        load_language_model(tmp_path / "adapter")
    (folder / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(MissingError, match="cannot be read") as caught:
        load_language_model(folder)
    assert "\n" not in str(caught.value)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(MissingError, match=r"no \*.safetensors"):
        load_language_model(folder)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("config.json", [], "must be a mapping"),
        ("config.json", {"hidden_size": "16"}, "expected int, got str"),
        ("config.json", {"num_attention_heads": 0}, "ZeroDivisionError"),
        ("config.json", {"pad_token_id": 9999}, "Padding_idx"),
        ("config.json", {"dtype": "foo"}, "no attribute 'foo'"),
        ("generation_config.json", [], "generation_config.json"),
        ("generation_config.json", {"eos_token_id": "x"}, "generation_config.json"),
        ("generation_config.json", "{", "generation_config.json"),
        ("generation_config.json", '{"eos_token_id": 1, "eos_token_id": 2}', "'eos_token_id' occurs twice"),
        ("tokenizer_config.json", [], "cannot be read"),
    ],
)
def test_a_damaged_config_is_one_line(folder, name, content, says):
    path = folder / name
    whole = json.loads(path.read_text())
    text = (
        content if isinstance(content, str) else json.dumps(whole | content if isinstance(content, dict) else content)
    )
    path.write_text(text)
    with pytest.raises(MissingError, match="cannot be read") as caught:
        load_language_model(folder)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_dtype_and_temperature(folder):
    with pytest.raises(UsageError, match="dtype: given 'int3'"):
        load_language_model(folder, dtype="int3")
    with pytest.raises(UsageError, match="temperature: given 0"):
        load_language_model(folder, temperature=0)


def test_package_is_found_and_not_imported(tmp_path, monkeypatch):
    package = tmp_path / "weights_in_a_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert package_gguf("weights_in_a_package") == package / "model.gguf"
    assert "weights_in_a_package" not in sys.modules
    with pytest.raises(MissingError, match="cannot be read"):
        resolve("package:weights_in_a_package", cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())  # nothing half made
