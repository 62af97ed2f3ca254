"""The chat template of a job: looked at before anything expensive, its clock pinned, its notes and its claim."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from dualign.config import Config
from dualign.errors import ConfigError, shown
from dualign.job.pairs import GivenPair
from dualign.job.reader import job_reader
from dualign.models.language_model import LanguageModel, Turns, Wording
from dualign.models.templates import Template, with_template
from dualign.records import Prompt
from dualign.runs.journal import Journal
from dualign.scorers.composite import CLOSING


def check_template(config: Config, prompts: Iterable[Prompt], pairs: Sequence[GivenPair]) -> list[str]:
    """Return what is to be said of the model's template, without its weights; a model that is not here is left out.

    Raises:
        DualignError: the template does not do, or has no place for the turns of a prompt.
    """
    reader = job_reader(config, fetch=False)
    if reader is None:
        return [f"the template of {shown(str(config.policy.model), 80)} is looked at when the job begins"]
    model = reader.language_model
    assert model.turns is not None, "read with its template"
    check_turns(model.template, prompts)
    check_given(model.turns, answers_of(pairs), "data.pairs")
    pinned = "" if config.policy.template_date is not None else " unless the run began earlier"
    notes = template_notes(model.tokenizer, model.turns, model.wording, pinned=pinned)
    return notes + unread_date(config, model.wording)


def check_turns(template: Template, prompts: Iterable[Prompt]) -> None:
    """Check that the template has a place for each order of turns, by the first prompt of each.

    Raises:
        DataError: it has not; the prompt is named.
    """
    seen = set()
    for prompt in prompts:
        roles = tuple(turn.role for turn in prompt.history)
        if roles not in seen:
            seen.add(roles)
            template(prompt)


def answers_of(pairs: Sequence[GivenPair]) -> list[str]:
    """Return all answers of given pairs."""
    return [answer.text for _, *answers in pairs for answer in answers]


def check_given(turns: Turns | None, answers: Sequence[str], where: str) -> None:
    """Check that given answers are answers where the prompt opens a reasoning block.

    Raises:
        ConfigError: none of them closes it, so that all would be read as reasoning.
    """
    if turns is None or not turns.opens_reasoning or not answers:
        return
    if not any(CLOSING in answer for answer in answers):
        raise ConfigError(f"{where}: no answer holds {CLOSING}, and {turns.notes[0]}")


def dated(model: LanguageModel, config: Config, journal: Journal) -> LanguageModel:
    """Return the model whose template reads the same day for as long as the run lives."""
    if model.turns is None or not model.turns.reads_clock or config.policy.template_date is not None:
        return model
    day = journal.choice("template_date", lambda: datetime.now().date().isoformat())
    policy = config.policy
    return with_template(
        model, policy.template, system_prompt=policy.system_prompt, arguments=policy.template_arguments, date=day
    )


def template_notes(tokenizer: Any, turns: Turns, wording: Wording, *, pinned: str = "") -> list[str]:
    """Return the sentences on a template that a user should read."""
    notes = list(turns.notes)
    if len(turns.stops) > 1:
        names = tokenizer.convert_ids_to_tokens(sorted(turns.stops))
        notes.append(f"answers end at {', '.join(shown(str(name)) for name in names if name is not None)}")
    if turns.reads_clock:
        notes.append(f"the chat template reads the clock: it is always {wording.date}{pinned} (policy.template_date)")
    return notes


def unread_date(config: Config, wording: Wording) -> list[str]:
    """Return a note where a day is set that no template reads."""
    if config.policy.template_date is None or wording.date is not None:
        return []
    return ["policy.template_date: the template reads no clock; the day changes nothing"]


def claimed(model: LanguageModel, config: Config) -> str:
    """Return what the certificate's claim says of the template and of reasoning; empty: nothing out of the ordinary."""
    parts = []
    if model.wording.arguments:
        parts.append(f", template arguments {json.dumps(dict(sorted(model.wording.arguments.items())))}")
    if model.wording.date is not None:
        parts.append(f", template date {model.wording.date}")
    if config.sampling.reasoning == "strip":
        parts.append(", scorers see answers without their <think> parts")
    return "".join(parts)
