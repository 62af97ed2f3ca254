"""Given pairs: answers of a preference file, to be labelled by the scorers instead of samples of the reference.

A file that ``dualign data check`` refuses stops the job. Answers are held as they are trained on, so that scorers,
losses and hashes read one and the same text.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from dualign.config import Config, PairSource
from dualign.data.checks.check import MAX_DROP, CheckReport, RuleCount, check_readings, in_words
from dualign.data.checks.reading import WORDS, Limits, read
from dualign.data.checks.rules import CHOSEN
from dualign.data.formats.table import describe
from dualign.data.preferences import Answer, PreferenceFile, PreferenceRow, grouped
from dualign.data.splits import place
from dualign.data.table_files import Row
from dualign.errors import ConfigError, DataError, UsageError
from dualign.job.reading import Reader, prompt_tokens
from dualign.records import Prompt, Response

GivenPair = tuple[Prompt, Response, Response]
"""A prompt and two different answers; their labels in the file are not read, the scorers label them."""
IN_MEMORY = "the given pairs"
"""What pairs are called that no file holds."""
SAID = 120
"""Characters of a file's own words that an error may repeat."""
TEMPLATE = "refused by the template"
MENDS = {
    CHOSEN: "; raise sampling.max_new_tokens where the model has the positions, or set data.long_answers: cut",
    "missing column": "; name the columns under data.pairs.rename",
    "prompt too long": "; raise policy.max_prompt_tokens",
    "all prompts too long": "; raise policy.max_prompt_tokens",
}
"""What would be right in a job, where the rule's own advice is for ``dualign data check``."""
PROMPT, LONG, SAME, EMPTY, KEPT = "prompt", "long", "same", "empty", "kept"
"""Why a pair is left out, or that it is not."""


@dataclass(frozen=True, slots=True)
class GivenPairs:
    """The pairs of a job, and what has to be said of them."""

    pairs: tuple[GivenPair, ...] = ()
    notes: tuple[str, ...] = ()
    """A sentence for each file, and one for each thing that was left out or cut."""
    warnings: tuple[str, ...] = ()
    """Those that a user should see in the terminal: what is trained on is not all that was given."""
    checks: tuple[dict[str, Any], ...] = ()
    """What ``dualign data check`` says of each file, in words."""


def load_pairs(config: Config, base: Path, reader: Reader | None) -> GivenPairs:
    """Return the pairs of the config's preference files as they are trained on, and what has to be said of them.

    Rows of more than two answers give each pair of them once.
    Single answers (BeaverTails, KTO, HelpSteer2) are put together by prompt.

    Args:
        config: the job.
        base: where its relative paths start.
        reader: how the job reads texts; none (its model is not here yet): words count for tokens, no answer is cut.

    Raises:
        MissingError: a file is missing.
        DataError: ``dualign data check`` refuses a file, by the job's own lengths and ``data.max_drop``.
        ConfigError: a file leaves no pair, or its format or a name of ``rename`` is unknown.
    """
    found = [_of_reading(config, source, _reading(base, source), reader) for source in config.data.pairs]
    return GivenPairs(
        tuple(pair for one in found for pair in one.pairs),
        tuple(note for one in found for note in one.notes),
        tuple(line for one in found for line in one.warnings),
        tuple(checked for one in found for checked in one.checks),
    )


def pairs_in_memory(config: Config, pairs: Sequence[tuple[Prompt, str, str]], reader: Reader | None) -> GivenPairs:
    """Return pairs that are given as (prompt, chosen, rejected), checked and cut as those of a file.

    Raises:
        DataError: ``dualign data check`` would refuse them.
        ConfigError: they leave no pair.
    """
    if not pairs:
        return GivenPairs()
    rows = [
        PreferenceRow(
            line,
            prompt,
            (Answer(first), Answer(second)),
            better=0,
            raw=Row(line, {"prompt": prompt.text, "chosen": first, "rejected": second}),
        )
        for line, (prompt, first, second) in enumerate(pairs, start=1)
    ]
    columns = {name: name for name in ("prompt", "chosen", "rejected")}
    reading = PreferenceFile(IN_MEMORY, "trl-plain-explicit", tuple(rows), total=len(rows), columns=columns)
    return _of_reading(config, PairSource(path=IN_MEMORY), reading, reader)


def _of_reading(config: Config, source: PairSource, reading: PreferenceFile, reader: Reader | None) -> GivenPairs:
    """Return what ``load_pairs`` does, of one file as it was read."""
    longest = math.inf if source.max_words is None else source.max_words
    wanted = tuple(row for row in reading.rows if len(row.prompt.text.split()) <= longest)
    report = check_readings(
        [replace(reading, rows=wanted, total=reading.total - len(reading.rows) + len(wanted))],
        limits=Limits() if reader is None else reader.limits(drops_long=config.data.long_answers == "drop"),
        measure=WORDS if reader is None else reader.measure(),
        max_drop=config.data.max_drop,
    )
    _refuse(config, source, report, reader)
    reading = report.files[0].reading
    # a prompt knows where it was read, for messages
    places = [replace(row.prompt, place=f"{source.path}: line {row.line}") for row in reading.rows]
    rows = tuple(replace(row, prompt=prompt) for row, prompt in zip(reading.rows, places, strict=True))
    found = replace(reading, rows=rows)
    singles = any(len(row.answers) == 1 for row in rows)
    groups: Sequence[PreferenceRow] = grouped(rows) if singles else rows
    made = [one for row in groups for one in _of_row(row, reader, cuts=config.data.long_answers == "cut")]
    taken = _taken([one for one in made if not isinstance(one, str)], source, config.run.seed)
    if not taken:
        raise ConfigError(f"data.pairs: {source.path} leaves no pair of two different answers ({describe(found)})")
    told = _told(found, taken, Counter(one if isinstance(one, str) else KEPT for one in made), reader)
    about = f"{describe(found)}; {found.total - len(rows)} left out, {len(taken)} pairs taken"
    told = [f"{source.path}: {line}" for line in told]
    return GivenPairs(tuple(taken), (about, *told), tuple(told), (in_words(report),))


def _reading(base: Path, source: PairSource) -> PreferenceFile:
    """Return the rows of a file, as the config names it."""
    try:
        return read(base / Path(source.path).expanduser(), format=source.format, columns=source.rename or None)
    except UsageError as error:
        raise ConfigError(f"data.pairs: {source.path}: {str(error).replace('columns:', 'rename:')}") from None


def _refuse(config: Config, source: PairSource, report: CheckReport, reader: Reader | None) -> None:
    """Check that the data may be trained on.

    Raises:
        DataError: they may not; the gravest rule is named, and the command that shows the others.
    """
    if report.accepted:
        return
    if report.errors:
        broken = "it is refused"
        first = report.rules[0]
    else:
        drops = [one for one in report.rules if one.severity == "drop" and (one.rule != CHOSEN or not report.kept)]
        # what no length mends is named first
        first = max(drops, key=lambda one: (one.rule == TEMPLATE, one.count))
        share = report.dropped - (report.chosen if report.kept else 0)
        broken = f"{share:,} of {report.rows:,} rows are dropped"
        broken += f", {report.max_drop:.1%} are allowed (data.max_drop)" if report.kept else ", and nothing is left"
    raise DataError(
        f"data.pairs: {source.path}: {broken}: {_place(first)}{MENDS.get(first.rule, '')}"
        + ("" if source.path == IN_MEMORY else f"; `{_command(config, source, report, reader)}` shows more")
    )


def _place(one: RuleCount) -> str:
    """Return a rule, how many rows break it, where and by what first: one line of bounded length."""
    said = " ".join("".join(letter if letter.isprintable() else " " for letter in one.what).split())
    said = said if len(said) <= SAID else said[:SAID] + "..."
    if not one.rows:
        return f"rule '{one.rule}' ({said})"
    return f"rule '{one.rule}' in {one.count:,} row{'s' if one.count > 1 else ''} (line {one.rows[0]}: {said})"


def _command(config: Config, source: PairSource, report: CheckReport, reader: Reader | None) -> str:
    """Return the command that shows all that is wrong with a file."""
    words = ["dualign", "data", "check", report.paths[0]]
    words += ["--format", source.format] if source.format else []
    words += [word for name, column in source.rename.items() for word in ("--columns", f"{name}={column}")]
    if reader is not None:
        limits = reader.limits(drops_long=False)
        words += ["--tokenizer", reader.name, "--max-length", str(limits.together)]
        words += ["--max-prompt", str(limits.prompt), "--max-answer", str(limits.answer)]
        words += ["--long-answers", config.data.long_answers]
    words += ["--max-drop", f"{config.data.max_drop:g}"] if config.data.max_drop != MAX_DROP else []
    return shlex.join(words)


def _of_row(row: PreferenceRow, reader: Reader | None, *, cuts: bool) -> list[GivenPair | str]:
    """Return the pairs of a row's different answers as they are trained on, or why one is left out."""
    texts = list(dict.fromkeys(answer.text for answer in row.answers))
    if reader is None:
        return [(row.prompt, Response(first), Response(second)) for first, second in combinations(texts, 2)]
    length = prompt_tokens(reader.language_model, row.prompt)
    if length is None:
        return [PROMPT for _ in combinations(texts, 2)]
    answers = [reader.answer(text, length) for text in texts]
    found: list[GivenPair | str] = []
    for first, second in combinations(answers, 2):
        if not cuts and not (first.finished and second.finished):
            found.append(LONG)
        elif not (first.text and second.text):
            found.append(EMPTY)
        else:
            found.append(SAME if first.tokens == second.tokens else (row.prompt, first, second))
    return found


def _taken(pairs: Sequence[GivenPair], source: PairSource, seed: int) -> list[GivenPair]:
    """Return each pair once, whichever way round it stands, and no more than the config wants."""
    distinct: dict[tuple[Any, ...], GivenPair] = {}
    for prompt, first, second in pairs:
        columned = replace(prompt, columns={**prompt.columns, **source.columns})
        sides = sorted((answer.text, answer.tokens) for answer in (first, second))
        distinct.setdefault((prompt.id, *sides), (columned, first, second))
    if source.count is None:
        return list(distinct.values())
    return sorted(distinct.values(), key=lambda pair: (place(pair[0], seed), pair[1].text, pair[2].text))[
        : source.count
    ]


def _told(found: PreferenceFile, taken: Sequence[GivenPair], out: Counter[str], reader: Reader | None) -> list[str]:
    """Return a sentence for each thing that was left out or cut, or that tokens say in another way than the file.

    ``out``: pairs of the file by why they are left out, ``KEPT`` for the others.
    """
    if reader is None:
        return ["the model's tokenizer is not here yet, so that words count for tokens and no answer is cut"]
    model, limits = reader.language_model, reader.limits(drops_long=False)
    placed = limits.together == model.max_prompt_tokens + model.max_response_tokens
    at = f"{limits.answer} tokens" if placed else f"{limits.answer} tokens, or where the model's positions end"
    total = sum(out.values())
    answers = {(prompt.id, one.tokens): one for prompt, *both in taken for one in both}.values()
    cut = sum(not one.finished for one in answers)
    given = {answer.text.strip() for row in found.rows for answer in row.answers}
    other = sum(one.finished and one.text.strip() not in given for one in answers)
    counts = {
        f"pairs left out of {total}: the prompt has more than {model.max_prompt_tokens} tokens, or the template "
        "refuses its turns": out[PROMPT],
        f"pairs left out of {total}: an answer has more than {at}; data.long_answers: cut would keep them": out[LONG],
        f"pairs left out of {total}: the answers are the same in what is left of them at {at}": out[SAME],
        f"pairs left out of {total}: an answer has no token that the tokenizer knows": out[EMPTY],
        f"answers of {len(answers)} are cut at {at}: each is scored as it is cut, and nothing closes it": cut,
        f"answers of {len(answers)} are scored as their tokens say them, which is not what the file says": other,
    }
    return [f"{count} {said}" for said, count in counts.items() if count]
