"""What a job is made of, from memory: model, prompts, scorers and limits -> a config and what stands behind it."""

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from dualign.config import Config, SplitName, validate
from dualign.errors import ArgumentError, ConfigError, nearest
from dualign.face.inputs import pairs_in, prompts_in
from dualign.face.run import Run, load_run
from dualign.hashing import canonical_digest
from dualign.protocols import Direction, Scorer
from dualign.records import Prompt

if TYPE_CHECKING:
    from dualign.job.inputs import Inputs

Tell = Callable[[str], None]
"""Shows one line of progress."""
MEMORY = "memory"
"""Kind of a scorer, and the beginning of a path, of what was given in memory: the config names it by its hash."""
Given = Callable[..., Any] | Scorer | Mapping[str, Any] | str
"""A scorer: a callable ``(prompts, responses) -> numbers`` of two lists of texts, a ``Scorer``, the keys of a kind as
in a config, the name of a kind, or ``module:attribute``."""


@dataclass(frozen=True)
class Limit:
    """A requirement: the mean (or ``functional``) of a cost is at most ``at_most``."""

    name: str
    scorer: Given
    """What gives the cost, up is bad: a callable ``(prompts, responses) -> numbers``, or a scorer in another form."""
    _: KW_ONLY
    at_most: float
    """Largest allowed value, in the scorer's own units."""
    cap: float | None = None
    """Costs count up to this value in the certificate; needed by all functionals but ``rate``."""
    floor: float | None = None
    """Costs count down to this value in the certificate; none: as they are."""
    functional: str = "mean"
    """``mean``, ``rate`` (share of costs above 0), ``rate:T`` (above T), ``cvar:ALPHA`` or ``relative``."""
    where: Mapping[str, str] = field(default_factory=dict)
    """Column values that name a slice of the prompts; the limit is then about the prompts of the slice."""


def quiet(line: str) -> None:  # noqa: ARG001
    """Show nothing."""


@dataclass(frozen=True)
class Task:
    """All that one job is given, from memory."""

    config: Config
    prompts: Sequence[Prompt] | Mapping[str, Sequence[Prompt]]
    pairs: Sequence[tuple[Prompt, str, str]]
    scorers: Mapping[str, Scorer]
    """Scorers that are there already, by their names in a job."""

    def inputs(self) -> "Inputs":
        """Return what the job runs on, after every check that needs no weights."""
        from dualign.job.checks import check
        from dualign.job.inputs import inputs_in_memory

        check(self.config, ready=self.scorers)
        return inputs_in_memory(self.config, self.prompts, pairs=self.pairs, scorers=self.scorers)

    def run(self, out: Path, tell: Tell) -> Run:
        """Return the finished run in ``out``; an interrupted one goes on."""
        from dualign.job.entry import run_inputs

        run_inputs(self.config, self.inputs(), out, tell)
        return load_run(out)


def task_of(
    model: Any,
    prompts: Any,
    *,
    reward: Given,
    limits: Sequence[Limit],
    pairs: Any = None,
    processing_class: Any = None,
    peft_config: Any = None,
    metrics: Mapping[str, Given] | None = None,
    judges: Mapping[str, Given] | None = None,
    beta: float = 0.3,
    confidence: float = 0.95,
    **sections: Mapping[str, Any],
) -> Task:
    """Return the job that was asked for, with the config that tells what was given by its hashes.

    Raises:
        ArgumentError, ConfigError: an argument that is wrong.
    """
    found = _Scorers()
    given_prompts, given_pairs = _prompts(prompts), pairs_in("pairs", pairs)
    data: dict[str, Any] = {"sources": [{"path": f"{MEMORY}:{_digest(given_prompts)}"}]}
    if given_pairs:
        data["pairs"] = [{"path": f"{MEMORY}:{canonical_digest(given_pairs)[:16]}"}]
    usual = {
        "policy": {"model": model_path(model, processing_class)},
        "data": data,
        "training": {"beta": beta, **lora_keys(peft_config)},
        "evaluation": {},
        "certificate": {"confidence": confidence},
    }
    value = joined(usual, sections)
    value["reward"] = {"scorer": found.spec("reward", reward, "reward")}
    value["constraints"] = [_constraint(limit, found) for limit in _limits(limits)]
    for key, kind, given in (("metrics", "metric", metrics), ("judge", "judge", judges)):
        for name, scorer in (given or {}).items():
            spec = found.spec(f"{kind} {name}", scorer, "reward" if name == "reward" else "cost")
            value["evaluation"][key] = {**value["evaluation"].get(key, {}), name: spec}
    return Task(validate(value, "align"), given_prompts, given_pairs, found.ready)


def joined(first: Mapping[str, Mapping[str, Any]], second: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return sections with the keys of both, the second's before the first's."""
    for name, section in second.items():
        if not isinstance(section, Mapping):
            raise ArgumentError(f"{name}: expected a mapping of keys of that section; given {section!r}")
    return {name: {**first.get(name, {}), **second.get(name, {})} for name in (*first, *second)}


def _limits(limits: Sequence[Limit]) -> Sequence[Limit]:
    """Return the limits, all of which are.

    Raises:
        ArgumentError: one is none.
    """
    given = [limits] if isinstance(limits, Limit) else limits
    wrong = next((limit for limit in given if not isinstance(limit, Limit)), None)
    if wrong is not None:
        raise ArgumentError(f"limits: each is a dualign.Limit(name, scorer, at_most=...); given {type(wrong).__name__}")
    return given


def _constraint(limit: Limit, found: "_Scorers") -> dict[str, Any]:
    """Return a limit as the config has it."""
    return {
        "name": limit.name,
        "scorer": found.spec(f"cost {limit.name}", limit.scorer, "cost"),
        "limit": float(limit.at_most),
        "cap": None if limit.cap is None else float(limit.cap),
        "floor": None if limit.floor is None else float(limit.floor),
        "functional": limit.functional,
        "where": dict(limit.where),
    }


class _Scorers:
    """The scorers of a job: those that are there already, and what the config says of each."""

    def __init__(self) -> None:
        """Begin with none."""
        self.ready: dict[str, Scorer] = {}

    def spec(self, name: str, given: Given, direction: Direction) -> dict[str, Any]:
        """Return what the config says of a scorer; one that is no description is kept under its name.

        Raises:
            ConfigError: it is no scorer, or one of the other direction.
        """
        from dualign.scorers.table import as_scorer

        if isinstance(given, str):
            return {"kind": "callable", "target": given} if ":" in given else {"kind": given}
        if isinstance(given, Mapping):
            return dict(given)
        used = given.direction if isinstance(given, Scorer) and name.startswith("metric") else direction
        try:
            scorer = as_scorer(given, direction=used)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None
        self.ready[name] = scorer
        return {"kind": MEMORY, "id": scorer.id, "revision": scorer.revision}


def _prompts(given: Any) -> list[Prompt] | dict[str, list[Prompt]]:
    """Return prompts, by the name of their split where a mapping names it.

    Raises:
        ArgumentError: a split of another name.
    """
    splits = get_args(SplitName)
    if not isinstance(given, Mapping) or not set(splits) & set(given):
        return prompts_in("prompts", given)
    for name in given:
        if name not in splits:
            raise ArgumentError(f"prompts: unknown split {name!r}; {nearest(name, splits)}")
    return {str(name): prompts_in(f"prompts: {name}", prompts) for name, prompts in given.items()}


def _digest(prompts: Sequence[Prompt] | Mapping[str, Sequence[Prompt]]) -> str:
    """Return 16 digits that stand for the prompts, whatever their order and the form they came in."""
    if isinstance(prompts, Mapping):
        return canonical_digest({name: _digest(split) for name, split in prompts.items()})[:16]
    return canonical_digest(sorted(canonical_digest(replace(prompt, place="")) for prompt in prompts))[:16]


HONOURED = {"r": "lora_r"} | {name: name for name in ("lora_alpha", "lora_dropout", "target_modules")}
"""Fields of a ``peft.LoraConfig`` -> keys of the config."""
IDLE = (
    *("peft_type", "peft_version", "task_type", "auto_mapping"),
    *("base_model_name_or_path", "inference_mode", "revision"),
)
"""Its fields that say nothing about how a policy is trained."""


def lora_keys(peft_config: Any) -> dict[str, Any]:
    """Return what a ``peft.LoraConfig`` says, as keys of the training section.

    Without ``target_modules`` all linear layers get an adapter.

    Raises:
        ArgumentError: it is none, or sets what has no counterpart here.
    """
    if peft_config is None:
        return {}
    kind = type(peft_config)
    if kind.__name__ != "LoraConfig":
        raise ArgumentError(f"peft_config: a peft.LoraConfig is needed; given {kind.__name__}")
    usual = kind()
    for name, value in vars(peft_config).items():
        if name not in (*HONOURED, *IDLE) and value != getattr(usual, name, None):
            raise ArgumentError(f"peft_config: {name}={value!r} has no counterpart here; known: {', '.join(HONOURED)}")
    found = {key: getattr(peft_config, name) for name, key in HONOURED.items()}
    modules = found.pop("target_modules")
    found["lora_alpha"] = float(found["lora_alpha"])
    found["lora_dropout"] = float(found["lora_dropout"])
    if modules is not None:
        found["target_modules"] = modules if isinstance(modules, str) else sorted(modules)
    return found


def model_path(model: Any, processing_class: Any) -> str:
    """Return where a model stands; a loaded one is written once, below the user's cache, under a hash of its weights.

    Raises:
        ArgumentError: it is no model, has no tokenizer, or carries an adapter.
    """
    if isinstance(model, str | Path):
        if processing_class is not None:
            raise ArgumentError(
                "processing_class: goes with a loaded model; a folder or a hub id brings its own tokenizer"
            )
        return str(model)
    if isinstance(model, tuple) and len(model) == 2 and processing_class is None:
        model, processing_class = model
    if not hasattr(model, "save_pretrained") or hasattr(model, "peft_config"):
        wanted = "a folder, a hub id, or a loaded model (merge an adapter first: merge_and_unload)"
        raise ArgumentError(f"model: expected {wanted}; given {type(model).__name__}")
    if processing_class is None:
        raise ArgumentError("processing_class: a loaded model needs its tokenizer")
    from dualign.models.loading import default_cache, identity, save_model

    cache = default_cache()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=cache) as work, _padding_kept(model):
        written = Path(work) / "model"
        save_model(model, copy.deepcopy(processing_class), written)
        target = cache / f"{MEMORY}-{identity(written)}"
        if not target.is_dir():
            written.rename(target)
    return str(target)


@contextmanager
def _padding_kept(model: Any) -> Iterator[None]:
    """Leave the caller's model as it was: a model is written with padding that is not its EOS."""
    configs = [config for config in (model.config, getattr(model, "generation_config", None)) if config is not None]
    before = [config.pad_token_id for config in configs]
    try:
        yield
    finally:
        for config, token in zip(configs, before, strict=True):
            config.pad_token_id = token
