"""What a chat template does with turns, found by rendering a few: where answers end, what has no place, what is added.

Found once, when a model gets its template (and in a dry run): a template that writes something between prompt and
answer, or ends turns with another token than the tokenizer's EOS, gives wrong figures and no error.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from dualign.models.language_model import Turns, Wording
from dualign.models.language_model import answer_tokens, known_tokens, opener, string_tokens, tokens_behind
from dualign.errors import DataError, UsageError, shown
from dualign.records import Turn


# Single words and short sentences without white space at their edges, each in no other and in no template.
SYSTEM, ASKED, ANSWER = "Speak plainly", "Name a colour", "Turquoise, I think"
AGAIN, LAST = "Name a river", "Zambezi, perhaps"
PADDED = "  Vermilion  "
REFUSES, LEAVES_OUT = "refuses a system turn", "leaves out what a system turn says"
ONCE_ANSWERED = "once an answer follows: prompt and answer are not how the conversation begins"
DAYS = ("2001-02-03", "2030-11-12")
"""Two days on which every part of a date differs."""

_TAG = r"(?:think|thinking|reasoning|seed:think)"
_BLOCK = re.compile(rf"\s*(<{_TAG}>\s*)?(</{_TAG}>\s*)?")
"""A reasoning block without words, or one end of it."""
_OPENED = re.compile(rf"(<{_TAG}>\s*(</{_TAG}>\s*)?|</{_TAG}>\s*)\Z")
"""A reasoning block that a generation prompt ends with."""
_OPENS = re.compile(rf"\A\s*<{_TAG}>\s*")
"""The beginning of an answer that a generation prompt may have written already."""
_THINKS = re.compile(r"think|reason", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Rendering:
    """A tokenizer's chat template, ready to render."""

    tokenizer: Any
    wording: Wording
    source: str
    """The text of the template."""
    text: Callable[[Sequence[Turn], bool, Wording], str]
    """(turns, with generation prompt, wording) -> string, special tokens written out; raises ``DataError``."""
    tokens: Callable[[Sequence[Turn]], list[int]]
    """Turns, the user's last -> the tokens that an answer follows."""


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


def plain_turns(ends: Sequence[int], eos: int) -> Turns:
    """Return the turns of a template that marks none: the tokenizer's EOS closes an answer."""
    return Turns(stops=frozenset((eos, *ends)), closing=(eos,))


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
    first = _seen(rendering, (Turn("user", ASKED),), ANSWER)
    _check_beginning(first)
    longer = _longer(rendering, system=not no_system)
    seen = [first, *(one for one in longer if one.begins)]
    closing, stops, terminator = _ending(rendering, first)
    anchor, lead, loose = _before_answers(rendering, seen)
    opened = _OPENED.search(first.prompt)
    reads_clock = _reads_clock(rendering, seen)
    notes = [*_reasoning_notes(rendering, first), *_edge_notes(rendering), *loose]
    if terminator:
        notes.append(f"answers end at the text {shown(terminator)}, which the chat template writes behind them")
    return Turns(
        stops=frozenset((eos, *ends, *stops)),
        closing=closing or (eos,),
        terminator=terminator,
        anchor=anchor,
        lead=lead,
        opens_reasoning=opened is not None and "</" not in opened.group(),
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
    prompt = rendering.text(turns, True, rendering.wording)
    whole = rendering.text((*turns, Turn("assistant", answer)), False, rendering.wording)
    place = whole.rfind(answer)
    if place < 0:
        raise DataError(
            f"the tokenizer's chat template does not write the words of an answer ({shown(answer)} became "
            f"{shown(whole[-60:], 60)}); use template plain, or another tokenizer"
        )
    return _Seen(turns, answer, prompt, whole[:place], whole[place + len(answer) :])


def _longer(rendering: Rendering, *, system: bool) -> list[_Seen]:
    """Return conversations of several turns and with a system turn, those that the template has a place for."""
    several = (Turn("user", ASKED), Turn("assistant", ANSWER), Turn("user", AGAIN))
    opened = (Turn("system", SYSTEM), Turn("user", ASKED))
    found = []
    for turns in (several, *((opened, (*opened, *several[1:])) if system else ())):
        try:
            found.append(_seen(rendering, turns, LAST))
        except DataError:
            continue  # a prompt that has such turns is refused by name
    return found


def _no_system(rendering: Rendering) -> str:
    """Return why a system turn has no place in the template; empty: it has."""
    try:
        text = rendering.text((Turn("system", SYSTEM), Turn("user", ASKED)), True, rendering.wording)
    except DataError as error:
        rendering.text((Turn("user", ASKED),), True, replace(rendering.wording, system_prompt=None))
        return f"{REFUSES} ({shown(str(error.__cause__ or error), 120)[1:-1]})"
    if SYSTEM not in text:
        return LEAVES_OUT
    answered = _seen(rendering, (Turn("system", SYSTEM), Turn("user", ASKED)), ANSWER)
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
    special = known_tokens(tokenizer)
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
    turns = (Turn("user", ASKED), Turn("assistant", ANSWER), Turn("user", AGAIN))
    try:
        text = rendering.text(turns, False, rendering.wording)
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
    apart = [*rendering.tokens(seen.turns), *answer]
    return whole[: len(apart)] == apart


def _reads_clock(rendering: Rendering, seen: Sequence[_Seen]) -> bool:
    days = [replace(rendering.wording, date=day) for day in DAYS]
    return any(len({rendering.text(one.turns, True, day) for day in days}) > 1 for one in seen)


def _reasoning_notes(rendering: Rendering, first: _Seen) -> list[str]:
    """Return what a user should know of reasoning blocks, with the argument that closes them."""
    argument = _closing_argument(rendering, first)
    advice = f"; policy.template_arguments: {{{argument}: false}} mends it" if argument else ""
    opened = _OPENED.search(first.prompt)
    if opened is not None and "</" not in opened.group():
        return [
            "the generation prompt opens a <think> block, which an answer begins inside of (sampling.reasoning: strip "
            f"keeps it from scorers){advice}"
        ]
    if opened is None and first.parts_in_words:
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
    for name in sorted(words_of(rendering.source)):
        if not _THINKS.search(name) or name in rendering.wording.arguments:
            continue
        closed = replace(rendering.wording, arguments={**rendering.wording.arguments, name: False})
        try:
            prompt = rendering.text(first.turns, True, closed)
        except DataError:
            continue
        opened = _OPENED.search(prompt)
        if prompt != first.prompt and (opened is None or "</" in opened.group()):
            return name
    return ""


def words_of(source: str) -> set[str]:
    """Return the names that a template may read: its identifiers."""
    return set(re.findall(r"[A-Za-z_]\w*", source))


def _edge_notes(rendering: Rendering) -> list[str]:
    """Return a note where the template trims what turns begin or end with."""
    turns = (Turn("user", PADDED), Turn("assistant", PADDED))
    try:
        kept = rendering.text(turns, False, replace(rendering.wording, system_prompt=None)).count(PADDED)
    except DataError:
        return []
    return [] if kept == len(turns) else ["the chat template trims white space at the edges of turns"]
