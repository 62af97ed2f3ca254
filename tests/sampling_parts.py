"""A tiny random Llama and a tokenizer of one word a token, for the tests of loading, sampling and fine-tuning."""

from typing import Any

from dualign.models.language_model import LanguageModel
from dualign.records import Prompt

WORDS = ["<pad>", "<s>", "</s>", *"abcdefghi"]
PAD, BOS, EOS = 0, 1, 2


def tiny_tokenizer(**special: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(WORDS)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def tiny_model(seed: int = 0, dtype: str = "float64", scale: float = 0.5) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        initializer_range=scale,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()


def tiny_language_model(**changes: Any) -> LanguageModel:
    tokenizer = tiny_tokenizer()
    fields: dict[str, Any] = {
        "model": tiny_model(),
        "tokenizer": tokenizer,
        "template": lambda prompt: [BOS, *tokenizer(prompt.text, add_special_tokens=False)["input_ids"]],
        "eos": EOS,
        "pad": PAD,
    }
    return LanguageModel(**(fields | changes))


PROMPTS = [Prompt(text) for text in ("a b c d e f", "b", "c d", "a a a", "e f g h i a b c", "i")]
