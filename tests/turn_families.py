"""Tiny models of the families that end turns differently, trained until they really end them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
COLOURS = ["red", "blue", "green", "brown", "black", "white", "yellow", "purple", "orange", "grey"]
WORDS = [*COLOURS, "one", "two", "three", "four", "five", "six", "seven", "eight"]
QUESTIONS = [f"{first} {second}" for first in WORDS[:5] for second in WORDS[10:14]]
"""Twenty."""


@dataclass(frozen=True)
class Family:
    """How one family's tokenizer, template and generation config name the end of a turn."""

    special: tuple[str, ...]
    eos: str
    template: str | None
    generation_eos: tuple[str, ...]
    """What the generation config lists."""
    ends: str
    """What ends a turn."""
    bos: str | None = None
    pad: str | None = None
    gpt2: bool = False

    def tokenizer(self, template: Any = None) -> Any:
        """Return the family's tokenizer, with another chat template where one is given."""
        names = {"bos_token": self.bos, "eos_token": self.eos, "pad_token": self.pad}
        return byte_tokenizer(self.special, template=template or self.template, **names)


FAMILIES = {
    "gemma": Family(
        ("<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<eos>", GEMMA, ("<eos>",),
        "<end_of_turn>", bos="<bos>", pad="<pad>",
    ),
    "llama-3": Family(
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|end_of_text|>", LLAMA3, ("<|end_of_text|>", "<|eot_id|>"), "<|eot_id|>", bos="<|begin_of_text|>",
    ),
    "qwen": Family(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>", CHATML, ("<|im_end|>", "<|endoftext|>"),
        "<|im_end|>", pad="<|endoftext|>",
    ),
    "phi": Family(
        ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"), "<|endoftext|>", PHI, ("<|endoftext|>",),
        "<|end|>", pad="<|endoftext|>",
    ),
    "gpt-2": Family(
        ("<|endoftext|>",), "<|endoftext|>", None, ("<|endoftext|>",), "<|endoftext|>",
        bos="<|endoftext|>", pad="<|endoftext|>", gpt2=True,
    ),
}  # fmt: skip


def byte_tokenizer(
    special: tuple[str, ...], *, template: Any = None, more: tuple[str, ...] = (), **names: str | None
) -> Any:
    """Return a byte-level tokenizer that merges the words of these tests, and ``more`` texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([" ".join(WORDS), "user assistant system model", *WORDS, *more] * 3, trainer)
    given = {name: token for name, token in names.items() if token is not None}
    others = [token for token in special if token not in given.values()]
    made = PreTrainedTokenizerFast(tokenizer_object=core, additional_special_tokens=others, **given)
    made.chat_template = template
    return made


def answer_to(question: str) -> str:
    """Return the words that a family's model learns to answer."""
    start = sum(map(ord, question)) % len(WORDS)
    return " ".join(WORDS[(start + k) % len(WORDS)] for k in range(1 + start % 3))


def family_model(name: str, folder: Path, *, steps: int = 60) -> Path:
    """Return ``folder`` with a model that was taught conversations of two answers, and so goes on after the first."""
    import torch

    family, tokenizer = FAMILIES[name], FAMILIES[name].tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tiny_model(family, tokenizer)
        texts = [_taught(tokenizer, question) for question in QUESTIONS]
        _teach(model, [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts], steps)
    model.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids(token) for token in family.generation_eos]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_model(family: Family, tokenizer: Any) -> Any:
    """Return an untrained model of the family's kind."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    if family.gpt2:
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=128, **ends)
        )
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128, initializer_range=0.1, **ends,
        )
    )  # fmt: skip


def _taught(tokenizer: Any, question: str) -> str:
    if tokenizer.chat_template is None:
        return f"{question} {answer_to(question)}{tokenizer.eos_token}{question}"
    said = [("user", question), ("assistant", answer_to(question)), ("user", "red"), ("assistant", "two")]
    messages = [{"role": role, "content": text} for role, text in said]
    return str(tokenizer.apply_chat_template(messages, tokenize=False))


def _teach(model: Any, texts: list[list[int]], steps: int) -> None:
    import torch

    width = max(map(len, texts))
    ids = torch.tensor([text + [0] * (width - len(text)) for text in texts])
    told = torch.tensor([text + [-100] * (width - len(text)) for text in texts])
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(steps):
        loss = model(input_ids=ids, labels=told).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
