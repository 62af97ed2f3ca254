"""How a job reads texts before its weights are loaded: the model's own tokenizer, template, clock and lengths."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from dualign.config import Config
from dualign.data.checks.reading import Limits, Measure, of_tokenizer
from dualign.errors import ConfigError, DataError, UsageError, shown
from dualign.models.language_model import LanguageModel, Turns, Wording
from dualign.models.pair_store import as_trained
from dualign.models.templates import response_tokens, with_template
from dualign.models.tensors import changed_logits, positions, prompt_room
from dualign.protocols import Sampling
from dualign.records import Prompt, Response
from dualign.runs.journal import Journal
from dualign.scorers.checked import CLOSING

KEYS = ("policy.max_prompt_tokens", "sampling.max_new_tokens")


def model_name(config: Config) -> str:
    """Return the name of the policy's model, with the revision where one is pinned."""
    revision = config.policy.revision
    return str(config.policy.model) if revision is None else f"{config.policy.model}@{revision}"


def wording_of(config: Config) -> Wording:
    """Return how the config wants prompts put into words."""
    policy = config.policy
    return Wording(policy.template, policy.system_prompt, policy.template_arguments, policy.template_date)


def sampling_of(config: Config) -> Sampling:
    """Return how the config wants answers drawn."""
    return Sampling(**config.sampling.model_dump(include={"temperature", "max_new_tokens", "batch_size"}))


def longest_prompt(config: Config, model_config: Any) -> int:
    """Return the tokens that a prompt may have: the config's own word, or its default as far as the model has room.

    Raises:
        ConfigError: the config states more than the model can hold.
    """
    stated = "max_prompt_tokens" in config.policy.model_fields_set
    asked, response = config.policy.max_prompt_tokens, config.sampling.max_new_tokens
    try:
        room = prompt_room(asked if stated else None, response, positions(model_config), names=KEYS)
    except UsageError as error:
        raise ConfigError(f"model {config.policy.model}: {error}") from None
    return min(asked, room)


@dataclass(frozen=True, slots=True)
class Reader:
    """How a job reads texts: its own tokenizer, template and lengths."""

    language_model: LanguageModel
    """Without its weights."""
    name: str
    """The model, as the config names it."""
    positions: int | None = None
    """Tokens that the model can place; none: its config names no number."""

    def answer(self, text: str, prompt: int) -> Response:
        """Return an answer as it is trained on after a prompt of so many tokens."""
        return as_trained(self.language_model, text, room=self.limits(drops_long=False).room(prompt))

    def limits(self, *, drops_long: bool) -> Limits:
        """Return the lengths that texts are checked against."""
        model = self.language_model
        together = model.max_prompt_tokens + model.max_response_tokens
        together = together if self.positions is None else min(together, self.positions)
        return Limits(together, model.max_prompt_tokens, model.max_response_tokens, drops_long)

    def measure(self) -> Measure:
        """Return how the job counts tokens: prompts in their template, answers with what closes them."""
        model = self.language_model
        known = of_tokenizer(model.tokenizer, self.name)

        def pieces(text: str) -> Sequence[int]:
            return response_tokens(model, text, end=False)

        closing = len(response_tokens(model, ""))
        return replace(known, pieces=pieces, closing=closing, template=model.template)


def job_reader(config: Config, *, fetch: bool) -> Reader | None:
    """Return how the job reads texts; none: its model is not here yet, and ``fetch`` does not allow to fetch it.

    Raises:
        MissingError: there is no such model, or its tokenizer or config cannot be read.
        ConfigError: a length is more than the model can hold, the template is not for this tokenizer, or the model
            changes its logits in a way that no loss here reads.
    """
    from dualign.models.loading import cached, load_reader, read_config, resolve

    policy, name = config.policy, model_name(config)
    folder = resolve(name) if fetch else cached(name)
    if folder is None:
        return None
    model_config = read_config(folder)
    changed = changed_logits(model_config)
    if changed:
        raise ConfigError(
            f"policy.model: {name} changes its logits after the output head ({changed}); such models are not supported"
        )
    try:
        model = load_reader(
            folder,
            wording=wording_of(config),
            max_prompt_tokens=longest_prompt(config, model_config),
            max_response_tokens=config.sampling.max_new_tokens,
            adapter=None if policy.adapter is None else Path(policy.adapter),
        )
    except UsageError as error:
        raise ConfigError(f"policy: {error}") from None
    return Reader(model, name, positions(model_config))


def prompt_tokens(model: LanguageModel, prompt: Prompt) -> int | None:
    """Return the tokens of a prompt; none: it is too long, or the template refuses its turns."""
    try:
        tokens = len(model.template(prompt))
    except DataError:
        return None
    return tokens if tokens <= model.max_prompt_tokens else None


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
    return with_template(model, replace(model.wording, date=day))


def template_notes(tokenizer: Any, turns: Turns, wording: Wording, *, pinned: str = "") -> list[str]:
    """Return the sentences on a template that a user should read."""
    notes = list(turns.notes)
    if len(turns.stops) > 1:
        names = tokenizer.convert_ids_to_tokens(sorted(turns.stops))
        notes.append(f"answers end at {', '.join(shown(str(name)) for name in names if name is not None)}")
    if turns.reads_clock:
        notes.append(f"the chat template reads the clock: it is always {wording.date}{pinned} (policy.template_date)")
    return notes


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
