"""The rules of preference data: how grave each is, what to do about it, and what is wrong with a row by itself.

An error refuses the file; a drop leaves the row out and counts it; a warning leaves the row in. What each rule finds
stands in ``docs/preference-files.md``. Rules of single rows have their function here, which returns what it found
(empty: nothing) in rows that could be read and are sound in themselves (``unsound``); the others are found by the
reader, or by ``GROUP_CHECKS`` in all rows together.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from dualign.data.checks.reading import Context, RowRule
from dualign.data.preferences import Fault, PreferenceRow
from dualign.data.turns import said

Severity = Literal["error", "drop", "warn"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that can be wrong."""

    severity: Severity
    fix: str
    """What the user can do, in one sentence."""


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


def unsound(row: PreferenceRow) -> Iterator[Fault]:
    """Yield what keeps a row from being looked at any further: labels without a meaning, texts without a word."""
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


FIXES: Mapping[Severity, Mapping[str, str]] = {
    "error": {
        "unreadable file": "Copy or export the file again as UTF-8 JSONL, CSV or Parquet.",
        "empty data set": "Export the file again; check the filter that made it.",
        "missing column": "Rename the column, or say which one it is with --columns.",
        "refused format": "Use the sibling data set that the message names.",
        "no common prompt": "Add a prompt column.",
        "several prompts": "Say which one it is with --columns, such as prompt=question.",
        "no readable row": "Name the roles system, user and assistant, or map the columns with --columns.",
        "every pair identical": "Check which columns hold the answers.",
        "all prompts too long": "Raise --max-length.",
        "mixed label types": "Write flags as true and false.",
        "id out of range": "Count the answers from 0.",
        "score not a number": "Score the row again; a failed score is never a number.",
        "double BOS": "Take the token off the text; the tokenizer puts it there.",
        "cost sign": "Negate the costs: up must be bad.",
        "scorer versions mixed": "Score all rows again with one scorer.",
        "prompt in two splits": "Split by prompt, and keep each prompt in one part.",
    },
    "drop": {
        "not a text": "Fill in the text, or do nothing.",
        "mixed plain and chat": "Write all rows in one layout, or do nothing; the row is left out.",
        "lone surrogate": "Repair the text, or do nothing; the row is left out.",
        "wrong role": "Name the roles system, user and assistant, and end each answer with the assistant.",
        "tool turn": "Nothing to do; tools are not read, and the row is left out.",
        "image or sound": "Nothing to do; texts alone are read, and the row is left out.",
        "empty prompt": "Nothing to do; the row is left out.",
        "empty response": "Nothing to do; the row is left out.",
        "parting transcripts": "Nothing to do; the row is left out.",
        "identical pair": "Nothing to do; there is nothing to prefer.",
        "pair labelled both ways": "Decide which label is right, or leave all of them out.",
        "contradictory row": "Choose with --contradictory: drop the rows, fix the winner by the flags, or refuse.",
        "prompt too long": "Raise --max-length if the model allows it.",
        "refused by the template": "Choose another template, or leave the row out.",
        "answer too long": (
            "Raise sampling.max_new_tokens, or set data.long_answers to cut: cut answers are scored as they are cut."
        ),
        "fully truncated answer": "Raise --max-length if the model allows it.",
        "identical after truncation": "Raise --max-length if the model allows it.",
    },
    "warn": {
        "extra columns": "Nothing, if they are meant for slices.",
        "exact duplicates": "Train on the distinct rows.",
        "reply labelled both ways": "Expect noisy labels; compare accuracies with the noise and not with 1.",
        "flag both ways": "Take the majority, or look at the rows.",
        "special token text": "Take it out if it came from a template; it is read as plain text.",
        "opening BOS": "Take it off, or check again with --tokenizer.",
        "fake system turn": "Move a real system prompt into a turn of its own; look at the others.",
        "prompt with roles": (
            "Write its turns as messages: a chat template puts the whole text into one turn of the user."
        ),
        "prompt in the answers": (
            "Cut the prompt off the answers, or leave its column out: what both texts open with is then the prompt."
        ),
        "very long answer": "Look at it; it may be a dump.",
        "severity against flag": "Decide which of the two labels to trust.",
        "category against flag": "Decide which of the two labels to trust.",
        "both unsafe": "Add pairs with a safe answer if the share is large.",
        "near-duplicate in two splits": "Keep near-duplicates on one side when splitting.",
    },
}
"""What the user can do where a rule is broken, in one sentence."""
RULES = {name: Rule(severity, fix) for severity, fixes in FIXES.items() for name, fix in fixes.items()}
"""Every rule by its name, in the order in which they are shown."""
ROW_RULES: Mapping[str, RowRule] = {
    "double BOS": double_bos,
    "identical pair": identical_pair,
    "contradictory row": contradictory,
    "prompt too long": long_prompt,
    "refused by the template": refused_turns,
    "answer too long": long_answer,
    "fully truncated answer": no_room,
    "identical after truncation": same_when_cut,
    "special token text": special_token,
    "opening BOS": opening_bos,
    "fake system turn": system_turn,
    "prompt with roles": script,
    "prompt in the answers": repeated_prompt,
    "very long answer": very_long_answer,
    "both unsafe": both_unsafe,
}
CHOSEN = "answer too long"
"""The rule of drops that a job's own config chooses: it is counted like the others and never refuses the data, unless
nothing is left."""
