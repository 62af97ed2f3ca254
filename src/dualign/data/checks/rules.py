"""The rules of preference data: how grave each is, what it finds and what to do about it.

An error refuses the file; a drop leaves the row out and counts it; a warning leaves the row in. A rule of single rows
has its function here; the others are found by the reader, or by ``GROUP_CHECKS`` in all rows together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dualign.data.checks import row_rules
from dualign.data.checks.reading import RowRule

Severity = Literal["error", "drop", "warn"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that can be wrong."""

    name: str
    severity: Severity
    finds: str
    fix: str
    """What the user can do, in one sentence."""
    of_row: RowRule | None = None
    """What is wrong with a row by itself; none: the rule is found elsewhere."""


def _rules(severity: Severity, rules: Mapping[str, tuple[str, str] | tuple[str, str, RowRule]]) -> dict[str, Rule]:
    return {name: Rule(name, severity, *about) for name, about in rules.items()}


ERRORS = _rules(
    "error",
    {
        "unreadable file": (
            "a file that cannot be taken apart into rows: cut short, damaged, not UTF-8, a key given twice, "
            "unknown ending",
            "Copy or export the file again as UTF-8 JSONL, CSV or Parquet.",
        ),
        "empty data set": ("a file without rows", "Export the file again; check the filter that made it."),
        "missing column": (
            "a column that the format needs and the file or a row lacks",
            "Rename the column, or say which one it is with --columns.",
        ),
        "refused format": ("data that hold no answers to compare", "Use the sibling data set that the message names."),
        "no common prompt": ("pairs without a prompt column whose two texts share no opening", "Add a prompt column."),
        "several prompts": (
            "two columns that may both be the prompt",
            "Say which one it is with --columns, such as prompt=question.",
        ),
        "no readable row": (
            "a file of which every row is left out, for roles, tools, images or words that are missing",
            "Name the roles system, user and assistant, or map the columns with --columns.",
        ),
        "every pair identical": ("no row with two different answers", "Check which columns hold the answers."),
        "all prompts too long": ("no prompt that fits into the maximal length", "Raise --max-length."),
        "mixed label types": ("a label of another type than the rest", "Write flags as true and false."),
        "id out of range": ("the number of an answer that is not there", "Count the answers from 0."),
        "score not a number": (
            "a reward or cost that is missing, a text or not finite",
            "Score the row again; a failed score is never a number.",
        ),
        "double BOS": (
            "a prompt that opens with the tokenizer's own first token, which is added once more",
            "Take the token off the text; the tokenizer puts it there.",
            row_rules.double_bos,
        ),
        "cost sign": (
            "costs that are higher for answers flagged safe than for answers flagged unsafe",
            "Negate the costs: up must be bad.",
        ),
        "scorer versions mixed": (
            "scores of several scorers, revisions or templates in one file",
            "Score all rows again with one scorer.",
        ),
        "prompt in two splits": (
            "a prompt that is in two splits (a split column, or two of the files given)",
            "Split by prompt, and keep each prompt in one part.",
        ),
    },
)
DROPS = _rules(
    "drop",
    {
        "not a text": ("a prompt or answer that is missing, null or no text", "Fill in the text, or do nothing."),
        "mixed plain and chat": (
            "a text where most rows hold messages, or messages where most hold a text",
            "Write all rows in one layout, or do nothing; the row is left out.",
        ),
        "lone surrogate": (
            "half of a character, which no tokenizer can read",
            "Repair the text, or do nothing; the row is left out.",
        ),
        "wrong role": (
            "turns of an unknown role, two of one speaker in a row, or a last one that is not the assistant's",
            "Name the roles system, user and assistant, and end each answer with the assistant.",
        ),
        "tool turn": (
            "a tool that is described, called or heard",
            "Nothing to do; tools are not read, and the row is left out.",
        ),
        "image or sound": (
            "a prompt or answer with an image, a sound or a film",
            "Nothing to do; texts alone are read, and the row is left out.",
        ),
        "empty prompt": ("a prompt of white space alone", "Nothing to do; the row is left out."),
        "empty response": ("an answer of white space alone", "Nothing to do; the row is left out."),
        "parting transcripts": (
            "two transcripts that differ before their last answer, so that they share no prompt",
            "Nothing to do; the row is left out.",
        ),
        "identical pair": (
            "answers that are all the same",
            "Nothing to do; there is nothing to prefer.",
            row_rules.identical_pair,
        ),
        "pair labelled both ways": (
            "the same answers to the same prompt with different winners in different rows",
            "Decide which label is right, or leave all of them out.",
        ),
        "contradictory row": (
            "the safer answer is flagged unsafe while another one is flagged safe",
            "Choose with --contradictory: drop the rows, fix the winner by the flags, or refuse.",
            row_rules.contradictory,
        ),
        "prompt too long": (
            "a prompt with more tokens than the maximal length",
            "Raise --max-length if the model allows it.",
            row_rules.long_prompt,
        ),
        "refused by the template": (
            "turns that the chat template of the model has no place for",
            "Choose another template, or leave the row out.",
            row_rules.refused_turns,
        ),
        "answer too long": (
            "an answer with more tokens than a job trains on, where long answers are left out",
            "Raise sampling.max_new_tokens, or set data.long_answers to cut: cut answers are scored as they are cut.",
            row_rules.long_answer,
        ),
        "fully truncated answer": (
            "a prompt that leaves no room for a token of the answer",
            "Raise --max-length if the model allows it.",
            row_rules.no_room,
        ),
        "identical after truncation": (
            "answers that are the same up to the maximal length",
            "Raise --max-length if the model allows it.",
            row_rules.same_when_cut,
        ),
    },
)
WARNINGS = _rules(
    "warn",
    {
        "extra columns": ("columns that the format does not know", "Nothing, if they are meant for slices."),
        "exact duplicates": ("rows that repeat an earlier one, labels and all", "Train on the distinct rows."),
        "reply labelled both ways": (
            "an answer that is the safer one in one row and the less safe one in another of that prompt",
            "Expect noisy labels; compare accuracies with the noise and not with 1.",
        ),
        "flag both ways": (
            "an answer that is flagged safe in one row and unsafe in another of that prompt",
            "Take the majority, or look at the rows.",
        ),
        "special token text": (
            "the written form of a special token inside a text",
            "Take it out if it came from a template; it is read as plain text.",
            row_rules.special_token,
        ),
        "opening BOS": (
            "a prompt that opens with the first token of a well-known tokenizer",
            "Take it off, or check again with --tokenizer.",
            row_rules.opening_bos,
        ),
        "fake system turn": (
            "a text that plays a system turn",
            "Move a real system prompt into a turn of its own; look at the others.",
            row_rules.system_turn,
        ),
        "prompt with roles": (
            "a prompt that is a transcript with named speakers in one text, up to where the answer is to come",
            "Write its turns as messages: a chat template puts the whole text into one turn of the user.",
            row_rules.script,
        ),
        "prompt in the answers": (
            "answers that all open with the whole prompt",
            "Cut the prompt off the answers, or leave its column out: what both texts open with is then the prompt.",
            row_rules.repeated_prompt,
        ),
        "very long answer": (
            "an answer of ten thousand words or more",
            "Look at it; it may be a dump.",
            row_rules.very_long_answer,
        ),
        "severity against flag": (
            "severity above 0 for a safe answer, or 0 for an unsafe one",
            "Decide which of the two labels to trust.",
        ),
        "category against flag": (
            "a kind of harm for a safe answer, or none for an unsafe one",
            "Decide which of the two labels to trust.",
        ),
        "both unsafe": (
            "rows in which every answer is unsafe; they teach which is less bad and not how to be safe",
            "Add pairs with a safe answer if the share is large.",
            row_rules.both_unsafe,
        ),
        "near-duplicate in two splits": (
            "a prompt that is much like one in another split",
            "Keep near-duplicates on one side when splitting.",
        ),
    },
)
RULES = {**ERRORS, **DROPS, **WARNINGS}
"""Every rule by its name, in the order in which they are shown."""
CHOSEN = "answer too long"
"""The rule of drops that a job's own config chooses: it is counted like the others and never refuses the data, unless
nothing is left."""
