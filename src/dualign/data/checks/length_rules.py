"""Rules of length: what is left of prompt and answers at the maximal length."""

from collections.abc import Sequence

from dualign.data.checks.context import Context
from dualign.data.checks.pair_rules import compared, identical
from dualign.data.preferences import Fault, PreferenceRow


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
