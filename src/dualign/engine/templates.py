"""Prompt templates: how a conversation becomes the token ids that a response follows.

Of a policy, prompt and response are tokenised apart, so that no merge can move the boundary between them. A scorer
reads both as one string, because that is how published score models were trained: ``make_transcript``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from dualign.engine.language_model import LanguageModel
from dualign.engine.tokenising import encoder, opener, text_tokens
from dualign.errors import DataError, UsageError
from dualign.records import Prompt, Turn

Template = Callable[[Prompt], list[int]]
Transcript = Callable[[Prompt, str], list[int]]
"""(prompt, response) -> token ids of both."""
RenderTurns = Callable[[Sequence[Turn]], str]
"""Turns, the user's last -> the string that a response follows, special tokens written out."""

BEAVER_HEADER = "BEGINNING OF CONVERSATION: "
BEAVER_TURN = "USER: {input} ASSISTANT:"


def chat(tokenizer: Any, system_prompt: str | None) -> RenderTurns:
    """Return the tokenizer's own chat template, generation prompt included.

    ``system_prompt`` none leaves the system turn to the template (many put a text of their own there); an empty one
    is passed on as an empty system turn, which is what keeps such a default text out.

    Raises:
        UsageError: the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError("template 'chat': this tokenizer has no chat template; use 'plain' or 'beaver'")
    return lambda turns: chat_text(tokenizer, _opened(turns, system_prompt), add_generation_prompt=True)


def chat_text(tokenizer: Any, turns: Sequence[Turn], *, add_generation_prompt: bool) -> str:
    """Return ``turns`` in the tokenizer's chat template, special tokens written out.

    Raises:
        DataError: the template refuses the turns, as some do a system turn.
    """
    from jinja2 import TemplateError

    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    try:
        rendered: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        roles = ", ".join(turn.role for turn in turns)
        raise DataError(f"the tokenizer's chat template refuses the turns {roles} ({error})") from error
    return rendered


def plain(tokenizer: Any, system_prompt: str | None) -> RenderTurns:  # noqa: ARG001
    """Return the template that is the turns' texts alone, an empty line between them; no role is named."""

    def render(turns: Sequence[Turn]) -> str:
        opened = _opened(turns, system_prompt)
        return "\n\n".join(turn.text for turn in opened if turn.text or turn.role != "system")

    return render


def beaver(tokenizer: Any, system_prompt: str | None) -> RenderTurns:
    """Return the template of the Beaver models (Dai et al. 2023, Safe RLHF); it has no system turn.

    Raises:
        UsageError: a system prompt is given.
    """
    if system_prompt:
        raise UsageError("template 'beaver' has no place for a system prompt; leave system_prompt out")

    def render(turns: Sequence[Turn]) -> str:
        if turns[0].role == "system":
            raise DataError("template 'beaver' has no place for the system turn of this prompt; use 'chat' or 'plain'")
        return beaver_text([turn.text for turn in turns], eos=tokenizer.eos_token or "")

    return render


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


TEMPLATES: Mapping[str, Callable[[Any, str | None], RenderTurns]] = MappingProxyType(
    {"chat": chat, "plain": plain, "beaver": beaver}
)


def make_template(name: str, tokenizer: Any, *, system_prompt: str | None) -> Template:
    """Return the template of that name for ``tokenizer``; it raises ``DataError`` for turns it has no place for.

    A system turn of the prompt's own stands in place of ``system_prompt``. A prompt that renders to nothing is the BOS
    token, or the EOS token of a tokenizer that has no other mark of a text's start.

    Raises:
        UsageError: no template has the name.
    """
    transcript = _transcript(name, tokenizer, system_prompt)

    def template(prompt: Prompt) -> list[int]:
        ids = transcript(prompt, "")
        if ids:
            return ids
        starts = [tokenizer.bos_token_id, tokenizer.eos_token_id]
        known = [token for token in starts if token is not None]
        if not known:
            raise UsageError(f"template '{name}': an empty prompt needs a tokenizer with a BOS or an EOS token")
        return known[:1]

    return template


def make_transcript(name: str, tokenizer: Any, *, append_eos: bool) -> Transcript:
    """Return the function from a prompt and a response to the tokens that a scorer reads, one EOS at the end.

    Prompt and response are one string here: "ASSISTANT:Hello" is cut where the tokenizer cuts it.

    Raises:
        UsageError: no template has the name, or the tokenizer has no EOS to append.
    """
    end = [tokenizer.eos_token_id] if append_eos else []
    if None in end:
        raise UsageError("append_eos: this tokenizer has no EOS token; set append_eos to false")
    transcript = _transcript(name, tokenizer, None)
    return lambda prompt, response: [*transcript(prompt, response), *end]


def with_template(language_model: LanguageModel, name: str, *, system_prompt: str | None) -> LanguageModel:
    """Return ``language_model`` (the same weights) with the template of that name."""
    template = make_template(name, language_model.tokenizer, system_prompt=system_prompt)
    return replace(language_model, template=template)


def response_tokens(language_model: LanguageModel, text: str, *, end: bool = True) -> tuple[int, ...]:
    """Return the token ids of a response written by somebody, as text, with the EOS where it ``end``-s by itself."""
    ids = text_tokens(language_model.tokenizer, text)
    return (*ids, language_model.eos) if end else tuple(ids)


def conversation(prompt: Prompt) -> tuple[Turn, ...]:
    """Return all turns of a prompt, its own text last as the user's.

    Raises:
        DataError: after a system turn, if there is one, the roles do not alternate from user to user.
    """
    turns = (*prompt.history, Turn("user", prompt.text))
    start = 1 if turns[0].role == "system" else 0
    for number, turn in enumerate(turns[start:]):
        expected = "assistant" if number % 2 else "user"
        if turn.role != expected:
            raise DataError(f"turn {start + number + 1} is the {turn.role}'s; expected the {expected}'s")
    return turns


def _transcript(name: str, tokenizer: Any, system_prompt: str | None) -> Transcript:
    if name not in TEMPLATES:
        nearest = difflib.get_close_matches(name, TEMPLATES, n=1, cutoff=0.5)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"known: {', '.join(TEMPLATES)}"
        raise UsageError(f"template: unknown name '{name}'; {hint}")
    render_turns = TEMPLATES[name](tokenizer, system_prompt)
    encode, opened = encoder(tokenizer), opener(tokenizer)

    def transcript(prompt: Prompt, response: str) -> list[int]:
        try:
            turns = conversation(prompt)

            def render(texts: Sequence[str]) -> str:
                spoken = [replace(turn, text=text) for turn, text in zip(turns, texts[:-1], strict=True)]
                return render_turns(spoken) + texts[-1]

            return opened(encode([*(turn.text for turn in turns), response], render))
        except DataError as error:
            raise DataError(f"prompt {prompt.id}: {error}") from error

    return transcript


def _opened(turns: Sequence[Turn], system_prompt: str | None) -> list[Turn]:
    """Return ``turns`` with the configured system turn, unless they bring one of their own."""
    if system_prompt is None or turns[0].role == "system":
        return list(turns)
    return [Turn("system", system_prompt), *turns]
