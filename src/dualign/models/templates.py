"""Prompt templates: how a conversation becomes the token ids that a response follows.

Of a policy, prompt and response are tokenised apart, so that no merge can move the boundary between them. A scorer
reads both as one string, because that is how published score models were trained: ``make_transcript``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType
from typing import Any

from dualign.errors import DataError, UsageError, nearest, shown
from dualign.models.language_model import (
    UNSAID,
    LanguageModel,
    Turns,
    Wording,
    answer_tokens,
    encoder,
    opener,
    plain_turns,
)
from dualign.models.turns import Rendering, behind_opened, chat_source, chat_text, found_turns, with_system, words_of
from dualign.records import Prompt, Turn, named

Template = Callable[[Prompt], list[int]]
Transcript = Callable[[Prompt, str], list[int]]
"""(prompt, response) -> token ids of both."""
RenderTurns = Callable[[Sequence[Turn]], str]
"""Turns, the user's last -> the string that a response follows, special tokens written out."""

BEAVER_HEADER = "BEGINNING OF CONVERSATION: "
BEAVER_TURN = "USER: {input} ASSISTANT:"


def chat(tokenizer: Any, wording: Wording) -> RenderTurns:
    """Return the tokenizer's own chat template, generation prompt included.

    A ``system_prompt`` of none leaves the system turn to the template (many put a text of their own there); an empty
    one is passed on as an empty system turn, which is what keeps such a default text out.

    Raises:
        UsageError: the tokenizer has no chat template, or it knows no argument of that name.
        DataError: there are several, and none is the default.
    """
    names = words_of(chat_source(tokenizer))
    for name in wording.arguments:
        if name not in names:
            hint = nearest(name, names)  # of use where one is near alone: most names are words of the template
            near = f"; {hint}" if hint.startswith("did you") else ""
            raise UsageError(f"template_arguments: the tokenizer's chat template reads no {shown(name)}{near}")
    return lambda turns: chat_text(tokenizer, turns, wording, add_generation_prompt=True)


def plain(tokenizer: Any, wording: Wording) -> RenderTurns:  # noqa: ARG001
    """Return the template that is the turns' texts alone, an empty line between them; no role is named."""

    def render(turns: Sequence[Turn]) -> str:
        opened = with_system(turns, wording.system_prompt)
        return "\n\n".join(turn.text for turn in opened if turn.text or turn.role != "system")

    return render


def beaver(tokenizer: Any, wording: Wording) -> RenderTurns:
    """Return the template of the Beaver models (Dai et al. 2023, Safe RLHF); it has no system turn.

    Raises:
        UsageError: a system prompt is given.
    """
    if wording.system_prompt:
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


TEMPLATES: Mapping[str, Callable[[Any, Wording], RenderTurns]] = MappingProxyType(
    {"chat": chat, "plain": plain, "beaver": beaver}
)


def make_template(name: str, tokenizer: Any, wording: Wording = UNSAID) -> Template:
    """Return the template of that name for ``tokenizer``; it raises ``DataError`` for turns it has no place for.

    A system turn of the prompt's own stands in place of the one of ``wording``. A prompt that renders to nothing is the
    BOS token, or the EOS token of a tokenizer that has no other mark of a text's start.

    Raises:
        UsageError: no template has the name, or it takes no arguments.
    """
    transcript = _transcript(name, tokenizer, wording)

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
    transcript = _transcript(name, tokenizer, UNSAID)
    return lambda prompt, response: [*transcript(prompt, response), *end]


def with_template(language_model: LanguageModel, wording: Wording) -> LanguageModel:
    """Return ``language_model`` (the same weights) with the template of that wording, looked at once.

    No name: the tokenizer's chat template, ``plain`` where it has none. A template that reads the clock reads the date
    of ``wording``, the day of today where that has none.

    Raises:
        UsageError: there is no such template, it takes no such argument, or has no place for the system prompt.
        DataError: prompt and answer are not how the template begins a conversation.
    """
    stated = getattr(language_model.model, "generation_config", None)
    template, turns, wording = read_template(
        language_model.tokenizer, wording, ends=end_ids(getattr(stated, "eos_token_id", None)), eos=language_model.eos
    )
    return replace(language_model, template=template, turns=turns, wording=wording)


def read_template(
    tokenizer: Any, wording: Wording, *, ends: Sequence[int], eos: int
) -> tuple[Template, Turns, Wording]:
    """Return the template, what it does with turns, and ``wording`` with its name filled in.

    Its day is filled in where the template reads the clock, and left out where not.

    Args:
        tokenizer: the model's.
        wording: the template and what it is given.
        ends: the stop ids of the model's generation config.
        eos: the tokenizer's EOS.
    """
    name = wording.template or ("chat" if getattr(tokenizer, "chat_template", None) else "plain")
    wording = replace(wording, template=name, date=wording.date or datetime.now().date().isoformat())
    template = make_template(name, tokenizer, wording)
    if name != "chat":
        return template, plain_turns(ends, eos), replace(wording, date=None)
    turns = found_turns(Rendering(tokenizer, wording, template), ends, eos)

    def with_a_place(prompt: Prompt) -> list[int]:
        for turn in prompt.history:
            lacking = turns.no_system if turn.role == "system" else turns.no_history
            if lacking:
                raise DataError(f"{named(prompt)}: the tokenizer's chat template {lacking}")
        return template(prompt)

    return with_a_place, turns, wording if turns.reads_clock else replace(wording, date=None)


def end_ids(value: Any) -> tuple[int, ...]:
    """Return one id, several or none as a tuple."""
    return () if value is None else (value,) if isinstance(value, int) else tuple(int(token) for token in value)


def response_tokens(language_model: LanguageModel, text: str, *, end: bool = True) -> tuple[int, ...]:
    """Return the token ids of a response written by somebody, as text, closed as the template does where it ``end``-s.

    The border to the prompt stays where it is: nothing of the response merges with it.
    """
    turns = language_model.written
    ids = answer_tokens(language_model.tokenizer, turns.lead + behind_opened(turns, text), turns.anchor)
    return (*ids, *turns.closing) if end else tuple(ids)


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


def _transcript(name: str, tokenizer: Any, wording: Wording) -> Transcript:
    if name not in TEMPLATES:
        raise UsageError(f"template: unknown name '{name}'; {nearest(name, TEMPLATES)}")
    if wording.arguments and name != "chat":
        raise UsageError(f"template_arguments: template '{name}' takes none; leave them out, or use 'chat'")
    render_turns = TEMPLATES[name](tokenizer, wording)
    encode, opened = encoder(tokenizer), opener(tokenizer)

    def transcript(prompt: Prompt, response: str) -> list[int]:
        try:
            turns = conversation(prompt)

            def render(texts: Sequence[str]) -> str:
                spoken = [replace(turn, text=text) for turn, text in zip(turns, texts[:-1], strict=True)]
                return render_turns(spoken) + texts[-1]

            return opened(encode([*(turn.text for turn in turns), response], render))
        except DataError as error:
            raise DataError(f"{named(prompt)}: {error}") from error

    return transcript
