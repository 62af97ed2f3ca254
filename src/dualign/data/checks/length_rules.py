"""Rules of length: what is left of prompt and answers at the maximal length."""

from collections.abc import Sequence

from dualign.data.checks.context import Context
from dualign.data.checks.pair_rules import compared, identical
from dualign.data.preferences import Fault, PreferenceRow


def long_prompts(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:
    """Return the rows whose prompt alone is longer than allowed."""
    lengths = [(row.line, context.of(row).prompt) for row in rows]
    return [
        Fault("prompt too long", line, f"the prompt has {tokens:,} tokens, {context.max_length:,} are allowed")
        for line, tokens in lengths
        if tokens > context.max_length
    ]


def no_room(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:
    """Return the rows whose prompt fits, but leaves no room for a token of the answer."""
    found = []
    for row in rows:
        tokens = context.of(row).prompt
        if tokens <= context.max_length < tokens + context.measure.tokens_a_piece:
            what = f"the prompt takes {tokens:,} of {context.max_length:,} tokens"
            found.append(Fault("fully truncated answer", row.line, what))
    return found


def same_when_cut(rows: Sequence[PreferenceRow], context: Context) -> list[Fault]:
    """Return the rows whose answers differ only beyond the maximal length."""
    found = []
    for row in compared(rows):
        lengths = context.of(row)
        room = context.max_length - lengths.prompt
        if room < context.measure.tokens_a_piece or max(lengths.answers) <= room or identical(row):
            continue
        if len({context.measure.cut(answer.text, room) for answer in row.answers}) == 1:
            what = f"the answers are the same in the first {room:,} tokens"
            found.append(Fault("identical after truncation", row.line, what))
    return found
