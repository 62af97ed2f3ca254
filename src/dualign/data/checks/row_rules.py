"""Rules of single preference rows: what its texts, labels and lengths are. Each returns what it found; empty: nothing.

Rows that could be read and are sound in themselves (``unsound``) are given to the others.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

from dualign.data.checks.reading import Context
from dualign.data.preferences import Fault, PreferenceRow
from dualign.data.turns import said

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


def unsound(rows: Sequence[PreferenceRow]) -> list[Fault]:
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


def double_bos(row: PreferenceRow, context: Context) -> str:
    """Return whether the prompt opens with the first token that the tokenizer is known to add."""
    return _opening(row, (context.measure.bos,)) if context.measure.bos else ""


def opening_bos(row: PreferenceRow, context: Context) -> str:
    """Return whether the prompt opens with a first token of well-known tokenizers, where ours is not known."""
    return "" if context.measure.bos else _opening(row, OPENINGS)


def _opening(row: PreferenceRow, tokens: Sequence[str]) -> str:
    opening = next((token for token in tokens if said(row.prompt)[0].lstrip().startswith(token)), None)
    return f"the prompt opens with {opening!r}" if opening else ""


def special_token(row: PreferenceRow, context: Context) -> str:
    """Return the first text that holds the written form of a special token."""
    return _searched(row, _special(context.measure.special))


@cache
def _special(own: frozenset[str]) -> re.Pattern[str]:
    names = sorted(own, key=len, reverse=True)
    return re.compile("|".join([*map(re.escape, names), SPECIAL.pattern]), re.IGNORECASE) if own else SPECIAL


def system_turn(row: PreferenceRow, context: Context) -> str:  # noqa: ARG001
    """Return the first text that plays a system turn."""
    return _searched(row, SYSTEM_TURN)


def _searched(row: PreferenceRow, pattern: re.Pattern[str]) -> str:
    """Return the first text of the row in which the pattern is found; a system turn of its own is no fake one."""
    turns = [turn.text for turn in row.prompt.history if turn.role != "system"]
    texts = [("the prompt", text) for text in (*turns, row.prompt.text)]
    texts += [(f"answer {number}", answer.text) for number, answer in enumerate(row.answers, start=1)]
    found = ((where, pattern.search(text)) for where, text in texts)
    return next((f"{where} holds {match.group().strip()!r}" for where, match in found if match), "")


def script(row: PreferenceRow, context: Context) -> str:  # noqa: ARG001
    """Return whether the prompt is a whole transcript in one text, up to the mark of the answer."""
    opening, end = SCRIPT_OPENING.match(row.prompt.text), SCRIPT_END.search(row.prompt.text[-80:])
    if not (opening and end):
        return ""
    return f"the prompt opens with {opening.group().strip()!r} and ends with {end.group().strip()!r}"


def repeated_prompt(row: PreferenceRow, context: Context) -> str:  # noqa: ARG001
    """Return whether the answers all open with the whole prompt, which a job would teach to be said again."""
    asked = row.prompt.text.strip()
    repeats = len(asked) >= LEAST_REPEATED and all(answer.text.lstrip().startswith(asked) for answer in row.answers)
    return f"every answer opens with the prompt, {asked[:40]!r}" if repeats else ""


def very_long_answer(row: PreferenceRow, context: Context) -> str:  # noqa: ARG001
    """Return whether an answer has ``LONG_ANSWER`` words or more."""
    words = max(len(answer.text.split()) for answer in row.answers)
    return f"an answer has {words:,} words" if words >= LONG_ANSWER else ""


def identical_pair(row: PreferenceRow, context: Context) -> str:  # noqa: ARG001
    """Return whether there are no two different answers."""
    return "the answers are the same" if len(row.answers) > 1 and identical(row) else ""


def identical(row: PreferenceRow) -> bool:
    """Return whether the answers of a row are all the same, but for white space at their ends."""
    return len({answer.text.strip() for answer in row.answers}) == 1


def refused_turns(row: PreferenceRow, context: Context) -> str:
    """Return what the template of the measure says of turns that it has no place for."""
    return context.of(row).refused


def long_prompt(row: PreferenceRow, context: Context) -> str:
    """Return whether the prompt alone is longer than allowed."""
    tokens, allowed = context.of(row).prompt, context.limits.longest_prompt
    return f"the prompt has {tokens:,} tokens, {allowed:,} are allowed" if tokens > allowed else ""


def long_answer(row: PreferenceRow, context: Context) -> str:
    """Return whether the row is left out because of its length: too few answers fit to be compared."""
    if not context.limits.drops_long:
        return ""
    lengths = context.of(row)
    room = context.limits.room(lengths.prompt)
    fitting = {a.text for a, tokens in zip(row.answers, lengths.answers, strict=True) if tokens <= room}
    if room <= 0 or len(fitting) >= min(2, len({answer.text for answer in row.answers})):
        return ""
    return f"an answer has {max(lengths.answers):,} tokens, {room:,} are trained on"


def no_room(row: PreferenceRow, context: Context) -> str:
    """Return whether the prompt fits, but leaves no room for a token of the answer."""
    tokens, together = context.of(row).prompt, context.limits.together
    full = tokens <= together < tokens + context.measure.tokens_a_piece
    return f"the prompt takes {tokens:,} of {together:,} tokens" if full else ""


def same_when_cut(row: PreferenceRow, context: Context) -> str:
    """Return whether the answers differ only beyond the maximal length."""
    lengths = context.of(row)
    room = context.limits.room(lengths.prompt)
    cut = room >= context.measure.tokens_a_piece and max(lengths.answers) > room and not context.limits.drops_long
    if not cut or len(row.answers) < 2 or identical(row):
        return ""
    same = len({context.measure.cut(answer.text, room) for answer in row.answers}) == 1
    return f"the answers are the same in the first {room:,} tokens" if same else ""


def contradiction(row: PreferenceRow) -> int | None:
    """Return the place of a safe answer that ought to be the safer one, where the named one is flagged unsafe."""
    if row.safer is None or row.answers[row.safer].safe is not False:
        return None
    return next((place for place, answer in enumerate(row.answers) if answer.safe), None)


def mended(row: PreferenceRow) -> PreferenceRow:
    """Return a contradictory row with the first answer that is flagged safe as the safer one; others as they are."""
    place = contradiction(row)
    return row if place is None else replace(row, safer=place)


def contradictory(row: PreferenceRow, context: Context) -> str:  # noqa: ARG001
    """Return whether the safer answer is flagged unsafe while another is flagged safe."""
    place = contradiction(row)
    if place is None or row.safer is None:
        return ""
    return f"answer {row.safer + 1} is the safer one and unsafe, {place + 1} is safe"


def both_unsafe(row: PreferenceRow, context: Context) -> str:  # noqa: ARG001
    """Return whether the row compares unsafe answers alone."""
    unsafe = len(row.answers) > 1 and all(answer.safe is False for answer in row.answers)
    return "every answer is flagged unsafe" if unsafe else ""
