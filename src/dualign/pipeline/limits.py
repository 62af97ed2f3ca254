"""A job's lengths against what its models can hold: said at the dry run, before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dualign.config import Config
from dualign.engine.limits import check_vocabulary, positions, prompt_room
from dualign.engine.loading import local_folder, readable
from dualign.engine.templates import Template, make_template
from dualign.errors import ConfigError, UsageError
from dualign.pipeline.checks import inner_scorers, scorer_specs
from dualign.records import Prompt
from dualign.scorers.encoding import check_length

KEYS = ("policy.max_prompt_tokens", "sampling.max_new_tokens")


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
            raise ConfigError(
                f"data.sources: all {len(prompts)} prompts of the split {name!r} are longer than {longest} tokens; "
                f"raise {KEYS[0]}, or lower {KEYS[1]} where the model has no more positions"
            )
    gone = sum(len(prompts) for prompts in splits.values()) - sum(len(prompts) for prompts in kept.values())
    return kept, f"{gone} prompts dropped: longer than {longest} tokens"


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
    here = local_folder(str(config.policy.model))
    if here is None:
        return None
    from transformers import AutoConfig, AutoTokenizer

    with readable(f"model {here}"):
        model_config = AutoConfig.from_pretrained(str(here), local_files_only=True, trust_remote_code=False)
        longest = longest_prompt(config, model_config)
        tokenizer = AutoTokenizer.from_pretrained(str(here), local_files_only=True, trust_remote_code=False)
    check_vocabulary(tokenizer, model_config.get_text_config().vocab_size, f"model {here}")
    try:
        template = make_template(config.policy.template, tokenizer, system_prompt=config.policy.system_prompt)
    except UsageError as error:
        raise ConfigError(f"policy.template: {error}") from None
    return short_enough(splits, template, longest)[1]
