"""The language model of the assistant world: a two-layer Llama and its tokenizer of one token a phrase."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from dualign.engine.language_model import LanguageModel
from dualign.records import Prompt
from dualign.worlds.assistant_text import prompt_phrases, reply_phrases

if TYPE_CHECKING:
    from torch import Tensor

PAD, BOS, EOS, TURN, UNKNOWN = "<pad>", "<bos>", "<eos>", "<reply>", "<unk>"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'user' %}" + TURN + "{% else %}{{ eos_token }}{% endif %}{% endfor %}"
)
HIDDEN, LAYERS, HEADS, INTERMEDIATE = 64, 2, 4, 128
PROMPT_TOKENS, RESPONSE_TOKENS = 7, 7


def vocabulary() -> tuple[str, ...]:
    """Return the tokens in the order of their ids: five special ones, the prompts' phrases, the replies' phrases."""
    slots = tuple(phrase for slot in reply_phrases() for phrase in slot)
    return (PAD, BOS, EOS, TURN, UNKNOWN, *prompt_phrases(), *slots)


def tokenizer() -> Any:
    """Return a fast tokenizer that cuts a text into the world's phrases; a piece it does not know is ``<unk>``."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = vocabulary()
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=UNKNOWN))
    # Longest first: no phrase may be cut short by another one that begins it.
    pattern = "|".join(re.escape(word) for word in sorted(words[5:], key=len, reverse=True))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[TURN],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def grammar() -> Tensor:
    """Return the boolean mask ``[7, vocabulary]``: the phrases of each slot, then EOS."""
    words = vocabulary()
    mask = torch.zeros(RESPONSE_TOKENS, len(words), dtype=torch.bool)
    for position, phrases in enumerate(reply_phrases()):
        mask[position, [words.index(phrase) for phrase in phrases]] = True
    mask[-1, words.index(EOS)] = True
    return mask


def reply_tokens(choices: Sequence[int]) -> tuple[int, ...]:
    """Return the token ids of the reply with these options, EOS included."""
    words = vocabulary()
    phrases = [slot[choice] for slot, choice in zip(reply_phrases(), choices, strict=True)]
    return (*(words.index(phrase) for phrase in phrases), words.index(EOS))


def language_model(seed: int) -> LanguageModel:
    """Return an untrained model of under 100,000 parameters, its weights drawn from ``seed``."""
    from transformers import LlamaConfig, LlamaForCausalLM

    words = vocabulary()
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=32,
        tie_word_embeddings=True,
        initializer_range=0.08,
        pad_token_id=words.index(PAD),
        bos_token_id=words.index(BOS),
        eos_token_id=words.index(EOS),
        attention_dropout=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
    text_tokenizer = tokenizer()

    def template(prompt: Prompt) -> list[int]:
        ids: list[int] = text_tokenizer(BOS + prompt.text + TURN, add_special_tokens=False)["input_ids"]
        return ids

    return LanguageModel(
        model=model,
        tokenizer=text_tokenizer,
        template=template,
        eos=words.index(EOS),
        pad=words.index(PAD),
        max_prompt_tokens=PROMPT_TOKENS,
        max_response_tokens=RESPONSE_TOKENS,
        revision=revision(seed),
        grammar=grammar(),
    )


def revision(seed: int) -> str:
    """Return a hash of what determines the untrained weights."""
    shape = (HIDDEN, LAYERS, HEADS, INTERMEDIATE, seed)
    return hashlib.sha256(repr((vocabulary(), shape)).encode()).hexdigest()[:16]
