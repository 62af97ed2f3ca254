"""Rules of one row by itself: its texts and numbers."""

import math
import re
from collections.abc import Iterator, Sequence

from dualign.data.checks.context import Context
from dualign.data.checks.measure import said
from dualign.data.preferences import Answer, Fault, PreferenceRow

LONG_ANSWER = 10_000
"""Words."""

LEAST_REPEATED = 12
"""Characters of a prompt with which answers do not open by chance."""

OPENINGS = ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "[BOS]")
"""Tokens that well-known tokenizers put first."""

SPECIAL = re.compile(
    r"<\|[\w./-]{1,40}\|>|</?s>|<(?:bos|eos|pad|unk|mask|start_of_turn|end_of_turn)>|\[/?INST\]|<</?SYS>>",
    re.IGNORECASE,
)
SYSTEM_TURN = re.compile(
    r"^[^\S\n]*[^\w\n]{0,6}system(?:\s+(?:prompt|message|instructions?))?\W{0,3}:|<\|?im_start\|?>\s*system|<<SYS>>"
    r"|<\|(?:start_header_id\|>\s*)?system\b",
    re.IGNORECASE | re.MULTILINE,
)
"""What precedes the word stays on its line: line breaks would be read again from each of them, in quadratic time."""
SCRIPT_OPENING = re.compile(
    r"\s*(?:BEGINNING OF CONVERSATION:\s*)?#{0,3}\s?(?:human|user|instruction)\s?:", re.IGNORECASE
)
"""How a prompt begins that holds a transcript, its speakers named as plain templates name them."""
SCRIPT_END = re.compile(r"(?:\n\s*#{0,3}\s?|\s)(?:assistant|response|gpt|bot)\s?:\s*\Z", re.IGNORECASE)


def sound(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:  # noqa: ARG001
    """Return what keeps a row from being looked at any further: labels without a meaning, texts without a word."""
    return [fault for row in rows for fault in _unsound(row)]


def _unsound(row: PreferenceRow) -> Iterator[Fault]:
    for name, chosen in (("better", row.better), ("safer", row.safer)):
        if chosen is not None and not 0 <= chosen < len(row.answers):
            yield Fault("id out of range", row.line, f"{name} is answer {chosen} of {len(row.answers)}, counted from 0")
    for number, answer in enumerate(row.answers, start=1):
        for name, score in (("reward", answer.reward), ("cost", answer.cost)):
            if score is not None and not math.isfinite(score):
                yield Fault("score not a number", row.line, f"the {name} of answer {number} is {score}")
        if not answer.text.strip():
            yield Fault("empty response", row.line, f"answer {number} of {len(row.answers)} is blank")
    if not row.prompt.text.strip():
        yield Fault("empty prompt", row.line, "the prompt is blank")


def first_tokens(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:
    """Return the rows whose prompt opens with a first token: an error where the tokenizer is known to add it."""
    bos = context.measure.bos
    rule, openings = ("double BOS", (bos,)) if bos else ("opening BOS", OPENINGS)
    found = []
    for row in rows:
        opening = next((token for token in openings if said(row.prompt)[0].lstrip().startswith(token)), None)
        if opening:
            found.append(Fault(rule, row.line, f"the prompt opens with {opening!r}"))
    return found


def special_tokens(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:
    """Return the rows with a text that holds the written form of a special token."""
    own = sorted(context.measure.special, key=len, reverse=True)
    pattern = re.compile("|".join([*map(re.escape, own), SPECIAL.pattern]), re.IGNORECASE) if own else SPECIAL
    return [
        Fault("special token text", row.line, f"{where} holds {match.group()!r}")
        for row in rows
        if (found := _searched(row, pattern)) is not None
        for where, match in [found]
    ]


def system_turns(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:  # noqa: ARG001
    """Return the rows with a text that plays a system turn."""
    return [
        Fault("fake system turn", row.line, f"{where} holds {match.group().strip()!r}")
        for row in rows
        if (found := _searched(row, SYSTEM_TURN)) is not None
        for where, match in [found]
    ]


def scripts(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:  # noqa: ARG001
    """Return the rows whose prompt is a whole transcript in one text, up to the mark of the answer."""
    return [
        Fault("prompt with roles", row.line, f"the prompt opens with {found.group().strip()!r} and ends with {end!r}")
        for row in rows
        if (found := SCRIPT_OPENING.match(row.prompt.text)) and (end := _end(row.prompt.text))
    ]


def _end(prompt: str) -> str:
    found = SCRIPT_END.search(prompt[-80:])
    return found.group().strip() if found else ""


def repeated_prompts(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:  # noqa: ARG001
    """Return the rows whose answers all open with the whole prompt, which a job would teach to be said again."""
    return [
        Fault("prompt in the answers", row.line, f"every answer opens with the prompt, {asked[:40]!r}")
        for row in rows
        if len(asked := row.prompt.text.strip()) >= LEAST_REPEATED
        and all(answer.text.lstrip().startswith(asked) for answer in row.answers)
    ]


def long_answers(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:  # noqa: ARG001
    """Return the rows with an answer of ``LONG_ANSWER`` words or more."""
    found = []
    for row in rows:
        words = max((len(answer.text.split()) for answer in row.answers), default=0)
        if words >= LONG_ANSWER:
            found.append(Fault("very long answer", row.line, f"an answer has {words:,} words"))
    return found


def _searched(row: PreferenceRow, pattern: re.Pattern[str]) -> tuple[str, re.Match[str]] | None:
    """Return the first text of the row in which the pattern is found; a system turn of its own is no fake one."""
    turns = [turn.text for turn in row.prompt.history if turn.role != "system"]
    texts = [("the prompt", text) for text in (*turns, row.prompt.text)]
    texts += [(f"answer {number}", text) for number, text in enumerate(map(_text, row.answers), start=1)]
    return next(((where, match) for where, text in texts if (match := pattern.search(text))), None)


def _text(answer: Answer) -> str:
    return answer.text
