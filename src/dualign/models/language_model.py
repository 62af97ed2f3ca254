"""A language model in memory, and texts into tokens: what a person wrote stays text, and at most one BOS opens it.

Also which dtype and how many threads compute fastest on this machine, by a second of timing.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dualign.records import Prompt

if TYPE_CHECKING:
    import torch
    from torch import Tensor


Render = Callable[[Sequence[str]], str]
"""Texts -> the one string in which they stand, special tokens written out around them."""
Encode = Callable[[Sequence[str], Render], list[int]]
"""(texts, render) -> token ids of ``render(texts)``."""

REASONING = ("<think>", "</think>")
"""Tags of a reasoning part; some tokenizers count them among their special tokens."""

POSITIONS = 256
"""Rows of the timed product: about a micro-step of short replies."""

_OPEN, _CLOSE = "\ue000", "\ue001"
"""Private-use characters, in no template: a number between them stands for a text while a string is taken apart."""
_MARK = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


def encoder(tokenizer: Any) -> Encode:
    """Return the encoder of ``tokenizer`` in which only ``render`` can write a special token.

    A user who types "<|im_end|>" must not end the turn. A text that contains the name of such a token is tokenised by
    itself, as text; strings in which there is none are tokenised whole, as the model saw them in training, and a
    template finds in them what it looks for, such as the reasoning of earlier turns.
    """
    reserved = [_OPEN, *reserved_tokens(tokenizer)]

    def encode(texts: Sequence[str], render: Render) -> list[int]:
        marked = [
            f"{_OPEN}{index}{_CLOSE}" if any(token in text for token in reserved) else text
            for index, text in enumerate(texts)
        ]
        ids: list[int] = []
        # The split alternates between what stands in the string and the number of a text.
        for place, piece in enumerate(_MARK.split(render(marked))):
            ids += text_tokens(tokenizer, texts[int(piece)]) if place % 2 else string_tokens(tokenizer, piece)
        return ids

    return encode


def reserved_tokens(tokenizer: Any) -> dict[str, int]:
    """Return the tokens that nobody can type, with their ids: special ones, and other added ones that mark turns.

    Tags of reasoning are text that answers hold. Of added tokens that are not special, many are pieces of texts (runs
    of line breaks, HTML tags); those that a chat template writes, or that look like marks, are none.
    """
    special, template = special_ids(tokenizer), str(getattr(tokenizer, "chat_template", None) or "")
    return {
        token: number
        for token, number in tokenizer.get_added_vocab().items()
        if token not in REASONING
        and token.strip()
        and (number in special or token in template or token.startswith(("<|", "<\uff5c")))
    }


def special_ids(tokenizer: Any) -> set[int]:
    """Return the ids of special tokens: those with a role of their own, and those that are only flagged so."""
    flagged = getattr(tokenizer, "added_tokens_decoder", {})
    return {*tokenizer.all_special_ids, *(number for number, token in flagged.items() if token.special)}


def text_tokens(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text in which nothing is a special token but tags of reasoning.

    A token that cannot be cut up is left out.
    """
    special = special_ids(tokenizer)
    tags = {tag: tokenizer.convert_tokens_to_ids(tag) for tag in REASONING}
    tags = {tag: number for tag, number in tags.items() if number in special and number != tokenizer.unk_token_id}
    left_out = {*special, *reserved_tokens(tokenizer).values()} - {tokenizer.unk_token_id}
    ids: list[int] = []
    # the split alternates between text and tag
    for place, piece in enumerate(re.split(f"({'|'.join(tags)})", text) if tags else [text]):
        if place % 2:
            ids.append(tags[piece])
        elif piece:
            said = tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            ids += [token for token in said if token not in left_out]
    return ids


def answer_text(language_model: LanguageModel, tokens: Sequence[int]) -> tuple[str, bool]:
    """Return the text of an answer without what the template writes around it, and whether it ended by itself.

    Special tokens are no text; those that mark reasoning are kept, since without them it would pass for the answer.
    """
    tokenizer, turns = language_model.tokenizer, language_model.written
    ended = bool(tokens) and tokens[-1] in turns.stops
    shut = len(turns.closing) if ended and tuple(tokens[-len(turns.closing) :]) == turns.closing else int(ended)
    said = tokens[: len(tokens) - shut]
    special = special_ids(tokenizer)
    marks = {tokenizer.convert_tokens_to_ids(tag) for tag in REASONING} & special
    if marks.isdisjoint(said):
        text = decode(tokenizer, said)
    else:
        kept = [token for token in said if token in marks or token not in special]
        text = decode(tokenizer, kept, skip_special_tokens=False)
    text = text.removeprefix(turns.lead)
    if turns.terminator and turns.terminator in text:
        return text.partition(turns.terminator)[0], True
    return text, ended


def decode(tokenizer: Any, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
    """Return the text of tokens as they are: no version of transformers takes spaces from before punctuation."""
    settings = {"skip_special_tokens": skip_special_tokens, "clean_up_tokenization_spaces": False}
    return str(tokenizer.decode(list(tokens), **settings))


def opener(tokenizer: Any) -> Callable[[list[int]], list[int]]:
    """Return the function that puts exactly one BOS in front where this tokenizer opens a text with one."""
    bos = tokenizer.bos_token_id
    if bos is None or tokenizer("a")["input_ids"][:1] != [bos]:
        return lambda ids: ids
    return lambda ids: ids if ids[:1] == [bos] else [bos, *ids]


def string_tokens(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a string in which special tokens are written out; none is added."""
    if not text:
        return []
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def tokens_behind(tokenizer: Any, text: str, before: str) -> list[int]:
    """Return the tokens of a string as they stand behind ``before``; its own, where the two merge."""
    head, both = string_tokens(tokenizer, before), string_tokens(tokenizer, before + text)
    return both[len(head) :] if both[: len(head)] == head else string_tokens(tokenizer, text)


def answer_tokens(tokenizer: Any, text: str, anchor: str = "") -> list[int]:
    """Return the tokens of an answer as they follow ``anchor``, the end of a prompt; nothing in it is special.

    Tokenizers that put a space before the first word of every text would put one before the answer.
    """
    if anchor and text:
        encode = encoder(tokenizer)
        before, both = (encode([said], lambda texts: anchor + texts[0]) for said in ("", text))
        if both[: len(before)] == before:
            return both[len(before) :]
    return text_tokens(tokenizer, text)


@dataclass(frozen=True, slots=True)
class Wording:
    """How prompts are put into words: the template and what it is given."""

    template: str | None = None
    """``chat``, ``plain`` or ``beaver``; none: the tokenizer's chat template, ``plain`` where it has none."""
    system_prompt: str | None = None
    """None: the template's own; empty: an empty system turn."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the chat template, such as ``enable_thinking: false``."""
    date: str | None = None
    """The day (``2026-01-31``) that a chat template reads from the clock; none: the day on which the
    model is loaded, or the template reads no clock."""


UNSAID = Wording()
"""The template's own way."""


@dataclass(frozen=True, slots=True)
class Turns:
    """What rendering a few conversations showed of a template: where a turn ends, and what it has no place for."""

    stops: frozenset[int]
    """Token ids at which an answer ends: the tokenizer's EOS, the model's own, the template's terminator."""
    closing: tuple[int, ...]
    """What the template writes behind an answer, up to the token that ends it."""
    terminator: str = ""
    """Text at which an answer ends where the template ends turns in plain text; empty: tokens alone end one."""
    anchor: str = ""
    """Text that an answer is tokenised behind, and cut from; empty: an answer alone gives the same tokens."""
    lead: str = ""
    """White space that stands between the generation prompt and an answer, and is the answer's first token."""
    opens_reasoning: bool = False
    """Whether the generation prompt opens a ``<think>`` block, which answers then begin inside of."""
    reads_clock: bool = False
    no_system: str = ""
    """Why a system turn has no place; empty: it has."""
    no_history: str = ""
    """Why turns before the last have no place; empty: they have."""
    notes: tuple[str, ...] = ()
    """Sentences that a user should read."""


def plain_turns(ends: Sequence[int], eos: int) -> Turns:
    """Return the turns of a template that marks none: the tokenizer's EOS closes an answer."""
    return Turns(stops=frozenset((eos, *ends)), closing=(eos,))


@dataclass(frozen=True)
class LanguageModel:
    """One base model in memory; adapters come and go on it by name.

    The policy is softmax(logits / temperature), everywhere. ``grammar`` restricts what may be generated.
    """

    model: Any
    """A ``PreTrainedModel`` without adapters, in evaluation mode."""
    tokenizer: Any
    template: Callable[[Prompt], list[int]]
    """Prompt -> token ids, generation prompt included, exactly one BOS where the model wants one."""
    eos: int
    """The tokenizer's EOS; ``written`` says what ends an answer, and what closes one that is given."""
    pad: int
    temperature: float = 1.0
    max_prompt_tokens: int = 512
    max_response_tokens: int = 128
    revision: str = ""
    """Hash of the weights' identity: part of every cache key."""
    grammar: Tensor | None = None
    """Boolean ``[position, vocabulary]``: which tokens may stand at the response's position; none: all may.
    Log-probabilities are normalised over the allowed tokens. Positions past the last row use the last row."""
    notes: tuple[str, ...] = ()
    """What is to be said about how it was loaded."""
    wording: Wording = UNSAID
    """What ``template`` was made of."""
    turns: Turns | None = None
    """What the template was found to write; none: turns end with ``eos`` alone."""

    @property
    def written(self) -> Turns:
        """Return what the template was found to write, or what is taken for granted of one that nobody looked at."""
        return plain_turns((), self.eos) if self.turns is None else self.turns

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        device: torch.device = next(self.model.parameters()).device
        return device


@dataclass(frozen=True, slots=True)
class ComputeChoice:
    """What was chosen, and the figures it was chosen by; a run stores it and keeps to it on resume."""

    dtype: str
    """``float32`` or ``bfloat16``."""
    threads: int
    gigaflops: Mapping[str, float]
    """Measured speed by ``dtype/threads``."""
    seconds: float
    """What the timing took."""


def choose_compute(model: Any, *, seconds: float = 1.0) -> ComputeChoice:
    """Return the fastest of {float32, bfloat16} x {1, all} threads on a product of the model's shape, on its device.

    Two spinning threads on a busy machine can be slower than one, and bfloat16 can be 4 times faster or slower
    than float32: neither can be read off the machine's name. More threads must win by a tenth to be taken; beside an
    accelerator they stay as they are.
    """
    import torch

    started = time.perf_counter()
    before = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = sorted({1, cores}) if model.device.type == "cpu" else [before]
    candidates = [(dtype, threads) for threads in counts for dtype in (torch.float32, torch.bfloat16)]
    speeds: dict[str, float] = {}
    best, best_speed = candidates[0], 0.0
    try:
        for dtype, threads in candidates:
            torch.set_num_threads(threads)
            speed = gigaflops(model, dtype, seconds / len(candidates))
            speeds[f"{str(dtype).removeprefix('torch.')}/{threads}"] = round(speed, 2)
            if speed > best_speed * (1.1 if threads > best[1] else 1.0):
                best, best_speed = (dtype, threads), speed
    finally:
        torch.set_num_threads(before)
    name = str(best[0]).removeprefix("torch.")
    return ComputeChoice(name, best[1], speeds, time.perf_counter() - started)


def gigaflops(model: Any, dtype: object, seconds: float) -> float:
    """Return the gigaflops of the multi-layer perceptron's product, after one call to warm up."""
    import torch

    config = model.config.get_text_config()
    width: int = config.hidden_size
    stated = getattr(config, "intermediate_size", None)
    wide: int = stated if isinstance(stated, int) else 4 * width
    device = model.device
    hidden = torch.ones(POSITIONS, width, dtype=dtype, device=device)  # type: ignore[call-overload]
    weight = torch.ones(wide, width, dtype=dtype, device=device)  # type: ignore[call-overload]

    def product() -> None:
        torch.nn.functional.linear(hidden, weight)
        if device.type == "cuda":
            torch.cuda.synchronize()

    product()
    calls, started = 0, time.perf_counter()
    while calls < 3 or time.perf_counter() - started < seconds:
        product()
        calls += 1
    elapsed = time.perf_counter() - started
    return 2e-9 * calls * POSITIONS * wide * width / elapsed
