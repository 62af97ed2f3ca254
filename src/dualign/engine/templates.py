"""Prompt templates: how a prompt becomes the token ids that a response follows.

Prompt and response are tokenised apart, so that no merge can move the boundary between them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from dualign.engine.language_model import LanguageModel
from dualign.errors import UsageError
from dualign.records import Prompt

Template = Callable[[Prompt], list[int]]

BEAVER_HEADER = "BEGINNING OF CONVERSATION: "
BEAVER_TURN = "USER: {input} ASSISTANT:"
_MARK = "\ue000dualign\ue001"
"""Stands for the user's text while a chat template is taken apart; private-use characters, in no template."""


def chat(tokenizer: Any, system_prompt: str | None) -> Template:
    """Return the tokenizer's own chat template, generation prompt included.

    ``system_prompt`` none leaves the system turn to the template (many put a text of their own there); an empty one
    is passed on as an empty system turn, which is what keeps such a default text out.

    Raises:
        UsageError: the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError("template 'chat': this tokenizer has no chat template; use 'plain' or 'beaver'")
    opening = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    special = [token for token in tokenizer.get_added_vocab() if token]

    def render(text: str) -> str:
        turns = [*opening, {"role": "user", "content": text}]
        rendered: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return rendered

    def template(prompt: Prompt) -> list[int]:
        if any(token in prompt.text for token in special):
            # A user who types "<|im_end|>" must not end the turn: the text is then tokenised by itself, as text.
            before, _, after = render(_MARK).partition(_MARK)
            inner = _as_text(tokenizer, prompt.text)
            return _with_bos(tokenizer, [*_tokens(tokenizer, before), *inner, *_tokens(tokenizer, after)])
        return _with_bos(tokenizer, _tokens(tokenizer, render(prompt.text)))

    return template


def plain(tokenizer: Any, system_prompt: str | None) -> Template:
    """Return the template that is the prompt's text alone, after ``system_prompt`` and an empty line if given."""
    opening = f"{system_prompt}\n\n" if system_prompt else ""

    def template(prompt: Prompt) -> list[int]:
        ids = _with_bos(tokenizer, _tokens(tokenizer, opening + prompt.text))
        if not ids:
            raise UsageError("template 'plain': an empty prompt needs a tokenizer with a BOS token")
        return ids

    return template


def beaver(tokenizer: Any, system_prompt: str | None) -> Template:
    """Return the template of the Beaver models (Dai et al. 2023, Safe RLHF); it has no system turn.

    Raises:
        UsageError: a system prompt is given.
    """
    if system_prompt:
        raise UsageError("template 'beaver' has no place for a system prompt; leave system_prompt out")

    def template(prompt: Prompt) -> list[int]:
        return _with_bos(tokenizer, _tokens(tokenizer, beaver_text([prompt.text], eos="")))

    return template


def beaver_text(turns: Sequence[str], *, eos: str) -> str:
    """Return the Beaver prompt string of alternating user and assistant ``turns``, the first and last by the user.

    No space follows ``ASSISTANT:``; each assistant turn ends with the EOS string.

    Raises:
        UsageError: the number of turns is even, so that the last is not the user's.
    """
    if len(turns) % 2 == 0:
        raise UsageError(f"beaver prompt: expected an odd number of turns, given {len(turns)}")
    parts = [BEAVER_TURN.format(input=turn) if i % 2 == 0 else turn + eos for i, turn in enumerate(turns)]
    return BEAVER_HEADER + "".join(parts)


TEMPLATES: Mapping[str, Callable[[Any, str | None], Template]] = MappingProxyType(
    {"chat": chat, "plain": plain, "beaver": beaver}
)


def make_template(name: str, tokenizer: Any, *, system_prompt: str | None) -> Template:
    """Return the template of that name for ``tokenizer``.

    Raises:
        UsageError: no template has the name.
    """
    if name not in TEMPLATES:
        nearest = difflib.get_close_matches(name, TEMPLATES, n=1, cutoff=0.5)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"known: {', '.join(TEMPLATES)}"
        raise UsageError(f"template: unknown name '{name}'; {hint}")
    return TEMPLATES[name](tokenizer, system_prompt)


def with_template(language_model: LanguageModel, name: str, *, system_prompt: str | None) -> LanguageModel:
    """Return ``language_model`` (the same weights) with the template of that name."""
    template = make_template(name, language_model.tokenizer, system_prompt=system_prompt)
    return replace(language_model, template=template)


def response_tokens(language_model: LanguageModel, text: str, *, end: bool = True) -> tuple[int, ...]:
    """Return the token ids of a response written by somebody, as text, with the EOS where it ``end``-s by itself."""
    ids = _as_text(language_model.tokenizer, text)
    return (*ids, language_model.eos) if end else tuple(ids)


def _as_text(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text in which nothing is a special token; one that cannot be cut up is left out."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [token for token in ids if token not in tokenizer.all_special_ids or token == tokenizer.unk_token_id]


def _tokens(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _with_bos(tokenizer: Any, ids: list[int]) -> list[int]:
    """Return ``ids`` with exactly one BOS in front where this tokenizer opens a text with one, else unchanged."""
    bos = tokenizer.bos_token_id
    if bos is None or ids[:1] == [bos] or tokenizer("a")["input_ids"][:1] != [bos]:
        return ids
    return [bos, *ids]
