"""A job's lengths against what its models can hold: said at the dry run, before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dualign.config import Config
from dualign.engine.templates import Template
from dualign.errors import ConfigError
from dualign.pipeline.checks import inner_scorers, scorer_specs
from dualign.pipeline.reader import KEYS, job_reader
from dualign.records import Prompt
from dualign.scorers.encoding import check_length


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
