"""How a job reads texts before its weights are loaded: its own tokenizer, template and lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dualign.config import Config
from dualign.data.checks.reading import Limits, Measure, of_tokenizer
from dualign.errors import ConfigError, DataError, UsageError
from dualign.job.checks import inner_scorers, scorer_specs
from dualign.models.language_model import LanguageModel, Wording
from dualign.models.pair_store import as_trained
from dualign.models.templates import Template, response_tokens
from dualign.models.tensors import changed_logits, positions, prompt_room
from dualign.records import Prompt, Response
from dualign.scorers.table import check_length

KEYS = ("policy.max_prompt_tokens", "sampling.max_new_tokens")


def wording_of(config: Config) -> Wording:
    """Return how the config wants prompts put into words."""
    policy = config.policy
    return Wording(policy.template, policy.system_prompt, policy.template_arguments, policy.template_date)


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

    def prompt(self, prompt: Prompt, *, any_length: bool = False) -> int | None:
        """Return the tokens of a prompt; none: it is too long, or the template refuses its turns."""
        try:
            tokens = len(self.language_model.template(prompt))
        except DataError:
            return None
        return tokens if any_length or tokens <= self.language_model.max_prompt_tokens else None

    def answer(self, text: str, prompt: int) -> Response:
        """Return an answer as it is trained on after a prompt of so many tokens, or the longest that is trained on."""
        tokens = min(prompt, self.language_model.max_prompt_tokens)
        return as_trained(self.language_model, text, room=self.limits(drops_long=False).room(tokens))

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

    policy = config.policy
    name = str(policy.model) if policy.revision is None else f"{policy.model}@{policy.revision}"
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


def short_enough(
    splits: Mapping[str, Sequence[Prompt]], template: Template, longest: int
) -> tuple[dict[str, list[Prompt]], str]:
    """Return the prompts of at most ``longest`` tokens, and a sentence that counts the others.

    Raises:
        ConfigError: nothing is left of a split.
    """
    kept = {name: [p for p in prompts if len(template(p)) <= longest] for name, prompts in splits.items()}
    for name, prompts in splits.items():
        if prompts and not kept[name]:
            raise ConfigError(f"data.sources: {emptied(name, len(prompts), longest)}")
    gone = sum(len(prompts) for prompts in splits.values()) - sum(len(prompts) for prompts in kept.values())
    return kept, f"{gone} prompts dropped: longer than {longest} tokens"


def emptied(name: str, count: int, longest: int) -> str:
    """Return that nothing is left of a split, and what would mend it."""
    return (
        f"all {count} prompts of the split {name!r} are longer than {longest} tokens; "
        f"raise {KEYS[0]}, or lower {KEYS[1]} where the model has no more positions"
    )


def check_limits(config: Config, folder: Path, splits: Mapping[str, Sequence[Prompt]]) -> str | None:
    """Return how many prompts the policy's model has no room for; none where its config is not here yet.

    The policy and every scorer are looked at whose files are on this machine; the others when they are loaded.

    Raises:
        ConfigError: a length is more than its model can hold, or every prompt of a split is too long.
        MissingError: a token of the policy's tokenizer has no row of the embedding.
    """
    base = Path(config.data.prompts) if config.data.prompts is not None else folder
    for name, spec in scorer_specs(config).items():
        for place, found in [(f"scorer of {name}", spec), *inner_scorers(spec, f"scorer of {name}")]:
            check_length(found, base, place)
    reader = job_reader(config, fetch=False)
    if reader is None:
        return None
    template, longest = reader.language_model.template, reader.language_model.max_prompt_tokens
    train = splits["train"] if config.data.pairs else []
    if train and all(len(template(prompt)) > longest for prompt in train):
        others = {name: prompts for name, prompts in splits.items() if name != "train"}
        told = emptied("train", len(train), longest)
        return f"{short_enough(others, template, longest)[1]}; {told}: the job will refuse these pairs"
    return short_enough(splits, template, longest)[1]
