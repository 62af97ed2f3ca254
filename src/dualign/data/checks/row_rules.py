"""Rules of one row by itself: its texts and numbers."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

from dualign.data.checks.reading import Context, said
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


def very_long_answers(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:  # noqa: ARG001
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


Reply = tuple[str, str]
"""Id of a prompt and the text of an answer to it."""


def compared(rows: Iterable[PreferenceRow]) -> list[PreferenceRow]:
    """Return the rows that hold two answers or more."""
    return [row for row in rows if len(row.answers) > 1]


def identical(row: PreferenceRow) -> bool:
    """Return whether the answers of a row are all the same, but for white space at their ends."""
    return len({answer.text.strip() for answer in row.answers}) == 1


def identical_pairs(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:  # noqa: ARG001
    """Return the rows without two different answers."""
    return [Fault("identical pair", row.line, "the answers are the same") for row in compared(rows) if identical(row)]


def labelled_both_ways(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:  # noqa: ARG001
    """Return all rows of a pair whose rows name different winners."""
    same: dict[Hashable, list[PreferenceRow]] = defaultdict(list)
    for row in compared(rows):
        if not identical(row):
            same[row.prompt.id, frozenset(answer.text for answer in row.answers)].append(row)
    found = []
    for members in same.values():
        kinds = [kind for kind in ("better", "safer") if len(_winners(members, kind)) > 1]
        if kinds:
            what = f"{len(members)} rows hold this pair, with different winners ({' and '.join(kinds)})"
            found += [Fault("pair labelled both ways", row.line, what) for row in members]
    return found


def _winners(rows: Iterable[PreferenceRow], kind: str) -> set[str]:
    chosen = ((row, row.better if kind == "better" else row.safer) for row in rows)
    return {row.answers[place].text for row, place in chosen if place is not None}


def repeated(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:  # noqa: ARG001
    """Return the rows that say the same as an earlier one, whatever the order of their answers."""
    first: dict[Hashable, PreferenceRow] = {}
    later = [row for row in rows if first.setdefault(record(row), row) is not row]
    return [Fault("exact duplicates", row.line, "an earlier row says the same") for row in later]


def record(row: PreferenceRow) -> Hashable:
    """Return what a row says: its prompt, and every answer with its labels and whether it wins."""
    answers = (
        (answer.text, answer.safe, answer.severity, answer.categories, answer.reward, answer.cost, answer.desirable,
         _wins(row.better, place), _wins(row.safer, place))
        for place, answer in enumerate(row.answers)
    )  # fmt: skip
    return row.prompt.text, row.prompt.history, row.split, frozenset(Counter(answers).items())


def _wins(chosen: int | None, place: int) -> bool | None:
    return None if chosen is None else chosen == place


def replies_both_ways(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:  # noqa: ARG001
    """Return the rows with a reply that is the safer one here and the less safe one in another row of the prompt."""
    return _in_dispute("reply labelled both ways", rows, safer_opinions(rows), "the safer answer and the less safe one")


def flags_both_ways(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:  # noqa: ARG001
    """Return the rows with a reply that other rows of the prompt flag differently."""
    return _in_dispute("flag both ways", rows, flag_opinions(rows), "safe and unsafe")


def safer_opinions(rows: Iterable[PreferenceRow]) -> dict[Reply, set[bool]]:
    """Return for every reply that was compared whether it was the safer one, in all rows that say so."""
    opinions: dict[Reply, set[bool]] = defaultdict(set)
    for row in compared(rows):
        if row.safer is not None and not identical(row):
            for place, answer in enumerate(row.answers):
                opinions[row.prompt.id, answer.text].add(place == row.safer)
    return opinions


def flag_opinions(rows: Iterable[PreferenceRow]) -> dict[Reply, set[bool]]:
    """Return for every reply that was flagged all its flags."""
    opinions: dict[Reply, set[bool]] = defaultdict(set)
    for row in rows:
        for answer in row.answers:
            if answer.safe is not None:
                opinions[row.prompt.id, answer.text].add(answer.safe)
    return opinions


def _in_dispute(
    rule: str, rows: Sequence[PreferenceRow], opinions: Mapping[Reply, set[bool]], words: str
) -> list[Fault]:
    found = []
    for row in rows:
        places = [
            number
            for number, answer in enumerate(row.answers, start=1)
            if len(opinions.get((row.prompt.id, answer.text), ())) > 1
        ]
        if places:
            found.append(Fault(rule, row.line, f"answer {places[0]} is {words} in different rows"))
    return found


def long_prompts(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:
    """Return the rows whose prompt alone is longer than allowed."""
    lengths, allowed = [(row.line, context.of(row).prompt) for row in rows], context.limits.longest_prompt
    return [
        Fault("prompt too long", line, f"the prompt has {tokens:,} tokens, {allowed:,} are allowed")
        for line, tokens in lengths
        if tokens > allowed
    ]


def refused_turns(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:
    """Return the rows whose turns the template of the measure has no place for."""
    refusals = [(row.line, context.of(row).refused) for row in rows]
    return [Fault("refused by the template", line, reason) for line, reason in refusals if reason]


def long_answers(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:
    """Return the rows that are left out because of their length: too few answers fit to be compared."""
    if not context.limits.drops_long:
        return []
    found = []
    for row in rows:
        lengths = context.of(row)
        room = context.limits.room(lengths.prompt)
        fitting = {a.text for a, tokens in zip(row.answers, lengths.answers, strict=True) if tokens <= room}
        if room > 0 and len(fitting) < min(2, len({answer.text for answer in row.answers})):
            what = f"an answer has {max(lengths.answers):,} tokens, {room:,} are trained on"
            found.append(Fault("answer too long", row.line, what))
    return found


def no_room(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:
    """Return the rows whose prompt fits, but leaves no room for a token of the answer."""
    found = []
    for row in rows:
        tokens = context.of(row).prompt
        together = context.limits.together
        if tokens <= together < tokens + context.measure.tokens_a_piece:
            what = f"the prompt takes {tokens:,} of {together:,} tokens"
            found.append(Fault("fully truncated answer", row.line, what))
    return found


def same_when_cut(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:
    """Return the rows whose answers differ only beyond the maximal length."""
    if context.limits.drops_long:  # nothing is cut
        return []
    found = []
    for row in compared(rows):
        lengths = context.of(row)
        room = context.limits.room(lengths.prompt)
        if room < context.measure.tokens_a_piece or max(lengths.answers) <= room or identical(row):
            continue
        if len({context.measure.cut(answer.text, room) for answer in row.answers}) == 1:
            what = f"the answers are the same in the first {room:,} tokens"
            found.append(Fault("identical after truncation", row.line, what))
    return found
