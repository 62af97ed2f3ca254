"""A chat template, and what it does with turns, found by rendering a few: where answers end, what has no place.

Found once, when a model gets its template (and in a dry run): a template that writes something between prompt and
answer, or ends turns with another token than the tokenizer's EOS, gives wrong figures and no error.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from dualign.errors import DataError, UsageError, shown
from dualign.models.language_model import (
    UNSAID,
    Turns,
    Wording,
    answer_tokens,
    opener,
    special_ids,
    string_tokens,
    tokens_behind,
)
from dualign.records import Prompt, Turn

# Single words and short sentences without white space at their edges, each in no other and in no template.
SYSTEM, ASKED, ANSWER = "Speak plainly", "Name a colour", "Turquoise, I think"
AGAIN, LAST = "Name a river", "Zambezi, perhaps"
PADDED = "  Vermilion  "
ONE = (Turn("user", ASKED),)
OPENED = (Turn("system", SYSTEM), *ONE)
SEVERAL = (*ONE, Turn("assistant", ANSWER), Turn("user", AGAIN))
REFUSES, LEAVES_OUT = "refuses a system turn", "leaves out what a system turn says"
ONCE_ANSWERED = "once an answer follows: prompt and answer are not how the conversation begins"
DAYS = ("2001-02-03", "2030-11-12")
"""Two days on which every part of a date differs."""

UNCHANGING_DAY = "2024-07-26"
"""The day that a scorer's chat template reads from the clock: a score must not depend on when it is asked for.
It is the one that Llama's templates fall back on."""
_CLOCK = (
    "{% macro strftime_now(format) %}{% set made = namespace(text=format) %}{% for code, value in pinned_clock %}"
    "{% set made.text = made.text | replace(code, value) %}{% endfor %}{{ made.text }}{% endmacro %}\n"
)
"""Stands before a template and hides the clock that transformers gives it; its line break is not written."""
_TAG = r"(?:think|thinking|reasoning|seed:think)"
_BLOCK = re.compile(rf"\s*(<{_TAG}>\s*)?(</{_TAG}>\s*)?")
"""A reasoning block without words, or one end of it."""
_OPENED = re.compile(rf"(<{_TAG}>\s*(</{_TAG}>\s*)?|</{_TAG}>\s*)\Z")
"""A reasoning block that a generation prompt ends with."""
_OPENS = re.compile(rf"\A\s*<{_TAG}>\s*")
"""The beginning of an answer that a generation prompt may have written already."""
_THINKS = re.compile(r"think|reason", re.IGNORECASE)


def chat_source(tokenizer: Any) -> str:
    """Return the text of the tokenizer's chat template; of several, the one named ``default``.

    Raises:
        UsageError: the tokenizer has no chat template.
        DataError: there are several, and none is the default.
    """
    found = getattr(tokenizer, "chat_template", None)
    if isinstance(found, list):
        found = {one["name"]: one["template"] for one in found}
    if isinstance(found, Mapping) and "default" not in found:
        raise DataError(
            f"template 'chat': this tokenizer has several chat templates ({', '.join(map(shown, found))}) and none is "
            "named 'default'; name one so, or use 'plain'"
        )
    source = found["default"] if isinstance(found, Mapping) else found
    if not source:
        raise UsageError("template 'chat': this tokenizer has no chat template; use 'plain' or 'beaver'")
    return str(source)


def chat_text(tokenizer: Any, turns: Sequence[Turn], wording: Wording = UNSAID, *, add_generation_prompt: bool) -> str:
    """Return ``turns`` in the tokenizer's chat template, special tokens written out.

    A template that reads the clock reads the date of ``wording``, and where that has none an unchanging one.

    Raises:
        DataError: the template refuses the turns, as some do a system turn.
    """
    from jinja2 import TemplateError

    messages = [{"role": turn.role, "content": turn.text} for turn in with_system(turns, wording.system_prompt)]
    source, given = chat_source(tokenizer), dict(wording.arguments)
    if "strftime_now" in source:
        source, given = _CLOCK + source, {**given, "pinned_clock": _directives(wording.date or UNCHANGING_DAY)}
    try:
        rendered: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, chat_template=source, **given
        )
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        roles = ", ".join(message["role"] for message in messages)
        reason = shown(str(error), 120)[1:-1]
        raise DataError(f"the tokenizer's chat template refuses the turns {roles} ({reason})") from error
    return rendered


def with_system(turns: Sequence[Turn], system_prompt: str | None) -> list[Turn]:
    """Return ``turns`` with the configured system turn, unless they bring one of their own."""
    if system_prompt is None or turns[0].role == "system":
        return list(turns)
    return [Turn("system", system_prompt), *turns]


def _directives(date: str) -> list[list[str]]:
    """Return each directive of ``strftime`` with what it stands for at the beginning of a day."""
    day = datetime.fromisoformat(date)
    codes = [f"%{flag}{letter}" for flag in ("-", "") for letter in "aAwdbBmyYHIpMSfjUWcxXGuVeFDTRhn"]
    # a double sign is set aside, so that what it leaves is no directive
    return [["%%", "\ue000"], *([code, day.strftime(code)] for code in codes), ["\ue000", "%"]]


@dataclass(frozen=True, slots=True)
class Rendering:
    """A tokenizer's chat template, ready to render."""

    tokenizer: Any
    wording: Wording
    template: Callable[[Prompt], list[int]]
    """Prompt -> the tokens that an answer follows."""

    def asked(self, turns: Sequence[Turn], **changes: Any) -> str:
        """Return ``turns`` with the generation prompt; ``changes`` are of the wording. It raises ``DataError``."""
        return chat_text(self.tokenizer, turns, replace(self.wording, **changes), add_generation_prompt=True)

    def told(self, turns: Sequence[Turn], **changes: Any) -> str:
        """Return ``turns`` without the generation prompt."""
        return chat_text(self.tokenizer, turns, replace(self.wording, **changes), add_generation_prompt=False)


@dataclass(frozen=True, slots=True)
class _Seen:
    """One conversation as the template writes it."""

    turns: tuple[Turn, ...]
    """All turns but the answer."""
    answer: str
    prompt: str
    """The turns with the generation prompt."""
    head: str
    """What stands before the answer, where it is part of the conversation."""
    tail: str
    """What stands behind it."""

    @property
    def rests(self) -> tuple[str, str]:
        """Return what prompt and conversation write before the answer, from where they part; empty where alike."""
        shared = os.path.commonprefix([self.prompt, self.head])
        if shared not in (self.prompt, self.head):
            shared = re.sub(r"</?\Z", "", shared)
        return self.prompt[len(shared) :], self.head[len(shared) :]

    @property
    def begins(self) -> bool:
        """Return whether prompt and answer begin the conversation, but for white space and an empty reasoning block."""
        return all(_BLOCK.fullmatch(rest) for rest in self.rests)

    @property
    def parts_in_words(self) -> bool:
        """Return whether they part in more than white space."""
        return any(rest.strip() for rest in self.rests)


def found_turns(rendering: Rendering, ends: Sequence[int], eos: int) -> Turns:
    """Return what the chat template of ``rendering`` does with turns; ``ends`` are the model's own stop ids.

    Raises:
        DataError: prompt and answer are not the beginning of the conversation as the template writes it.
        UsageError: there is a system prompt, and the template has no place for it.
    """
    no_system = _no_system(rendering)
    # an empty one is nothing to leave out, but may be refused or moved all the same
    given = rendering.wording.system_prompt
    if no_system and (given or (given is not None and not no_system.startswith(LEAVES_OUT))):
        raise UsageError(f"system_prompt: the chat template {no_system}; leave it out")
    first = _seen(rendering, ONE, ANSWER)
    _check_beginning(first)
    longer = _longer(rendering, system=not no_system)
    seen = [first, *(one for one in longer if one.begins)]
    closing, stops, terminator = _ending(rendering, first)
    anchor, lead, loose = _before_answers(rendering, seen)
    reads_clock = any(len({rendering.asked(one.turns, date=day) for day in DAYS}) > 1 for one in seen)
    notes = [*_reasoning_notes(rendering, first), *_edge_notes(rendering), *loose]
    if terminator:
        notes.append(f"answers end at the text {shown(terminator)}, which the chat template writes behind them")
    return Turns(
        stops=frozenset((eos, *ends, *stops)),
        closing=closing or (eos,),
        terminator=terminator,
        anchor=anchor,
        lead=lead,
        opens_reasoning=_opens_reasoning(first.prompt),
        reads_clock=reads_clock,
        no_system=no_system,
        no_history=_no_history(longer),
        notes=tuple(notes),
    )


def behind_opened(turns: Turns, answer: str) -> str:
    """Return a given answer as it follows the prompt: a ``<think>`` that the prompt opens is not opened twice."""
    return _OPENS.sub("", answer) if turns.opens_reasoning else answer


def _seen(rendering: Rendering, turns: tuple[Turn, ...], answer: str) -> _Seen:
    """Return a conversation as it is written.

    Raises:
        DataError: the template refuses it, or writes other words than the answer's.
    """
    prompt = rendering.asked(turns)
    whole = rendering.told((*turns, Turn("assistant", answer)))
    place = whole.rfind(answer)
    if place < 0:
        raise DataError(
            f"the tokenizer's chat template does not write the words of an answer ({shown(answer)} became "
            f"{shown(whole[-60:], 60)}); use template plain, or another tokenizer"
        )
    return _Seen(turns, answer, prompt, whole[:place], whole[place + len(answer) :])


def _longer(rendering: Rendering, *, system: bool) -> list[_Seen]:
    """Return conversations of several turns and with a system turn, those that the template has a place for."""
    found = []
    for turns in (SEVERAL, *((OPENED, (*OPENED, *SEVERAL[1:])) if system else ())):
        try:
            found.append(_seen(rendering, turns, LAST))
        except DataError:
            continue  # a prompt that has such turns is refused by name
    return found


def _no_system(rendering: Rendering) -> str:
    """Return why a system turn has no place in the template; empty: it has."""
    try:
        text = rendering.asked(OPENED)
    except DataError as error:
        rendering.asked(ONE, system_prompt=None)
        return f"{REFUSES} ({shown(str(error.__cause__ or error), 120)[1:-1]})"
    if SYSTEM not in text:
        return LEAVES_OUT
    answered = _seen(rendering, OPENED, ANSWER)
    return "" if answered.begins else f"moves or loses a system turn {ONCE_ANSWERED}"


def _no_history(seen: Sequence[_Seen]) -> str:
    """Return why earlier turns have no place in the template; empty: they have, or it refuses them itself."""
    lost = [one for one in seen for turn in one.turns[:-1] if turn.role != "system" and turn.text not in one.prompt]
    if lost:
        return "leaves out what earlier turns say"
    return "" if all(one.begins for one in seen) else f"writes earlier turns otherwise {ONCE_ANSWERED}"


def _check_beginning(seen: _Seen) -> None:
    """Check that prompt and answer begin the conversation.

    Raises:
        DataError: they do not.
    """
    if seen.begins:
        return
    in_prompt, in_conversation = seen.rests
    if in_conversation.strip() and not in_prompt.strip():
        raise DataError(
            f"the tokenizer's chat template writes {shown(in_conversation)} before an answer, which no generation "
            "prompt gives: answers would begin with it; use a template with a generation prompt, or template plain"
        )
    raise DataError(
        f"the tokenizer's chat template ends the prompt with {shown(in_prompt)}, and writes {shown(in_conversation)} "
        "before an answer: prompt and answer are not how the conversation begins; mend the template, or use plain"
    )


def _ending(rendering: Rendering, first: _Seen) -> tuple[tuple[int, ...], set[int], str]:
    """Return (tokens that close an answer, ids at which one ends, text at which one ends); each may be empty.

    What stands behind the last answer of a conversation counts, up to its first special token (a new line may
    follow); where that is nothing, what stands between an answer and the next turn.
    """
    tokenizer = rendering.tokenizer
    special = {*special_ids(tokenizer), *tokenizer.get_added_vocab().values()}
    between = _between(rendering)
    header = string_tokens(tokenizer, first.prompt[: max(first.prompt.find(ASKED), 0)])
    following = string_tokens(tokenizer, between)
    shared = len(os.path.commonprefix([header[::-1], following[::-1]]))
    answered = first.head + first.answer
    for ids in (tokens_behind(tokenizer, first.tail, answered), following[: len(following) - shared]):
        place = next((k for k, token in enumerate(ids) if token in special), len(ids))
        text = tokenizer.decode(ids[:place], clean_up_tokenization_spaces=False)
        if text.strip():
            return tuple(tokens_behind(tokenizer, text.rstrip(), answered)), set(), text.rstrip()
        if place < len(ids):
            return tuple(ids[: place + 1]), {ids[place]}, ""
    # nothing closes a turn: the header of the next one, which no answer holds, at least ends it
    opening = next((token for token in following if token in special), None)
    if opening is not None:
        return (), {opening}, ""
    return (), set(), between.rstrip() if between.strip() else ""


def _between(rendering: Rendering) -> str:
    """Return what stands between an answer and the user's next turn; empty where several turns have no place."""
    try:
        text = rendering.told(SEVERAL)
    except DataError:
        return ""
    return text.partition(ANSWER)[2].partition(AGAIN)[0]


def _before_answers(rendering: Rendering, seen: Sequence[_Seen]) -> tuple[str, str, list[str]]:
    """Return (text behind which an answer is tokenised, white space that it begins with, notes).

    With both, a given answer has the tokens that it has in the whole conversation.

    Raises:
        DataError: there are none, so that a given answer would not have the tokens that the model writes.
    """
    last = seen[0].prompt
    starts = [last.rfind(token) for token in rendering.tokenizer.get_added_vocab() if token]
    start = max([*starts, last.rstrip().rfind("\n") + 1])
    leads = dict.fromkeys(["", *(one.rests[1] for one in seen if not one.rests[0] and not one.parts_in_words)])
    for lead in leads:
        for anchor in ("", last[start:]):
            if all(_continues(rendering, one, anchor, lead) for one in seen):
                return anchor, lead, []
    if any(one.rests != ("", "") for one in seen):
        rests = " and ".join(repr(rest) for rest in seen[0].rests)
        return "", "", [f"the chat template writes {rests} before an answer, as a prompt and as a conversation"]
    raise DataError(
        f"the tokenizer joins the end of the generation prompt ({shown(last[-20:])}) with the beginning of an answer: "
        "prompt and answer are not how the conversation begins; take white space from the end of the template"
    )


def _continues(rendering: Rendering, seen: _Seen, anchor: str, lead: str) -> bool:
    """Return whether prompt and answer, tokenised apart, begin the conversation as one string."""
    tokenizer = rendering.tokenizer
    head = seen.prompt if seen.parts_in_words else seen.head
    whole = opener(tokenizer)(string_tokens(tokenizer, head + seen.answer + seen.tail))
    answer = answer_tokens(tokenizer, lead + seen.answer, anchor)
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in answer:
        return True  # the words of the probe are not in the vocabulary
    apart = [*rendering.template(Prompt(seen.turns[-1].text, history=seen.turns[:-1])), *answer]
    return whole[: len(apart)] == apart


def _opens_reasoning(prompt: str) -> bool:
    """Return whether a generation prompt ends inside of a reasoning block."""
    opened = _OPENED.search(prompt)
    return opened is not None and "</" not in opened.group()


def _reasoning_notes(rendering: Rendering, first: _Seen) -> list[str]:
    """Return what a user should know of reasoning blocks, with the argument that closes them."""
    argument = _closing_argument(rendering, first)
    advice = f"; policy.template_arguments: {{{argument}: false}} mends it" if argument else ""
    if _opens_reasoning(first.prompt):
        return [
            "the generation prompt opens a <think> block, which an answer begins inside of (sampling.reasoning: strip "
            f"keeps it from scorers){advice}"
        ]
    if first.parts_in_words and not _OPENED.search(first.prompt):
        return [
            "the chat template writes an empty <think> block before an answer, which the generation prompt does not"
            + advice
        ]
    if argument:
        return [
            "the chat template leaves it to the model to reason before it answers; "
            f"policy.template_arguments: {{{argument}: false}} closes its reasoning"
        ]
    return []


def _closing_argument(rendering: Rendering, first: _Seen) -> str:
    """Return the argument whose ``false`` makes the generation prompt leave no room for reasoning; empty: none."""
    for name in sorted(words_of(chat_source(rendering.tokenizer))):
        if not _THINKS.search(name) or name in rendering.wording.arguments:
            continue
        try:
            prompt = rendering.asked(first.turns, arguments={**rendering.wording.arguments, name: False})
        except DataError:
            continue
        if prompt != first.prompt and not _opens_reasoning(prompt):
            return name
    return ""


def words_of(source: str) -> set[str]:
    """Return the names that a template may read: its identifiers."""
    return set(re.findall(r"[A-Za-z_]\w*", source))


def _edge_notes(rendering: Rendering) -> list[str]:
    """Return a note where the template trims what turns begin or end with."""
    turns = (Turn("user", PADDED), Turn("assistant", PADDED))
    try:
        kept = rendering.told(turns, system_prompt=None).count(PADDED)
    except DataError:
        return []
    return [] if kept == len(turns) else ["the chat template trims white space at the edges of turns"]
