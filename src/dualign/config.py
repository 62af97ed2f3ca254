"""The config: pydantic models, strict, read from YAML. A leaf: imports no torch.

``docs/config_page.py`` makes docs/config.md from the field docstrings below.
"""

from __future__ import annotations

import datetime
import math
import re
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from dualign.errors import ConfigError, MissingError, UsageError, nearest
from dualign.strict import parse_yaml

SplitName = Literal["train", "tune", "calibration", "report"]


class Section(BaseModel):
    """A section of the config: unknown keys are refused, values are not coerced across types."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


SET_HERE = (
    "messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize", "padding",
    "continue_final_message", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs",
    "return_assistant_tokens_mask", "strftime_now", "pinned_clock",
)  # fmt: skip
"""Names that are no keyword arguments of a chat template's own."""


def check_template_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return ``arguments``, each of which can be one that a chat template reads.

    Raises:
        ValueError: one is set by the program.
    """
    for name in arguments:
        if name in SET_HERE or not name.isidentifier():
            raise ValueError(f"{name!r} is no argument of a chat template; give those it reads, like enable_thinking")
    return arguments


def check_day(date: str | None) -> str | None:
    """Return ``date``, which is none or a day as in ``2026-01-31``.

    Raises:
        ValueError: it is no day.
    """
    try:
        known = date is None or re.fullmatch(r"\d{4}-\d\d-\d\d", date, re.ASCII) and datetime.date.fromisoformat(date)
    except ValueError:
        known = None
    if not known:
        raise ValueError(f"should be a day such as 2026-01-31, given {date!r}")
    return date


def _check_start(start: Any) -> Any:
    number = isinstance(start, int | float) and not isinstance(start, bool) and 0 <= start < math.inf
    if start == "one-shot" or number:
        return start
    raise ValueError(f"should be a number of 0 or more, or one-shot, given {start!r}")


def _check_folder(name: str) -> str:
    if name in (".", ".."):
        raise ValueError(f"should name a folder, given {name!r}")
    return name


class Mix(Section):
    """Some examples of a warm start."""

    count: int = Field(ge=1)
    """How many examples."""
    target: Literal["own", "demonstration"]
    """``own``: the model's own sample to prompts of the train split; ``demonstration``: rows of the file."""
    where: dict[str, str] = Field(default_factory=dict)
    """Column values: with ``own``, of the prompts of the train split; with ``demonstration``, of the rows of the
    file."""
    keep: Literal["any", "complying", "refusing"] = "any"
    """With ``own``: which of its samples may be imitated, judged by how they open."""


class WarmStart(Section):
    """One supervised stage before the job; its result is merged and is the reference."""

    demonstrations: str | None = None
    """File of rows (prompt, response) to imitate, in a known layout; not needed when every mix entry says ``own``."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Column of that file by the name it is read as, such as ``response: answer``; ``a.b.0`` reaches into objects."""
    mix: list[Mix] = Field(min_length=1)
    """What the stage is made of, in order."""
    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate."""
    num_train_epochs: float = Field(1.0, gt=0)
    """Passes over the mix."""
    per_device_train_batch_size: int = Field(8, ge=1)
    """Examples a step."""
    warmup_steps: int = Field(4, ge=0)
    """Steps of linear warm-up; then linear decay to a tenth."""
    max_target_tokens: int = Field(30, ge=2)
    """Demonstrated answers are cut to whole first sentences of at most so many tokens, EOS included, and of no more
    than ``max_new_tokens``."""


class PolicySection(Section):
    """The model to align."""

    model: str | None = None
    """Folder, hub id, ``.gguf`` file, or ``package:NAME`` (a GGUF file inside an installed Python package)."""
    revision: str | None = None
    """Hub revision; pin it."""
    adapter: str | None = None
    """Folder of a PEFT adapter, merged into ``model`` before anything else; the result is the reference, and is kept
    in the run directory. Its tokenizer and chat template replace the model's where it brings them."""
    world: str | None = None
    """Instead of a model: ``assistant`` (the embedded world), or a world file solved on tables."""
    system_prompt: str | None = None
    """System prompt of the chat template; none: the template's own; empty: no text."""
    template: Literal["chat", "plain", "beaver"] = "chat"
    """How a prompt becomes tokens."""
    template_arguments: Annotated[
        dict[str, bool | int | float | str | None], AfterValidator(check_template_arguments)
    ] = Field(default_factory=dict)
    """Keyword arguments of the chat template, such as ``enable_thinking: false``; part of the certificate's claim."""
    template_date: Annotated[str | None, AfterValidator(check_day)] = None
    """The day (``2026-01-31``) that a chat template reads from the clock; none: the day on which the run began."""
    warm_start: list[WarmStart] = Field(default_factory=list)
    """Supervised stages before the job, in order."""
    max_prompt_tokens: int = Field(256, ge=1)
    """Longer prompts are dropped and counted. With ``sampling.max_new_tokens`` it must fit the model's positions; left
    out, it is what they leave, at most the default."""

    @model_validator(mode="after")
    def one_origin(self) -> PolicySection:
        """Check that exactly one of model and world is given."""
        if (self.model is None) == (self.world is None):
            raise ValueError("give exactly one of 'model' and 'world'")
        if self.adapter is not None and self.model is None:
            raise ValueError("'adapter' is merged into a 'model'; a world has no weights for it")
        return self


class Source(Section):
    """A file of prompts."""

    path: str
    """JSONL, CSV or Parquet, of texts or messages; relative paths start at ``data.prompts``, else at the config's
    folder."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Column of the file by the name it is read as, such as ``prompt: question``; ``a.b.0`` reaches into objects."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Constant columns to add, such as ``label: unsafe``; slices are named by them."""
    where: dict[str, str] = Field(default_factory=dict)
    """Keep only rows with these column values."""
    max_words: int | None = Field(None, ge=1)
    """Keep only prompts of at most so many words."""
    splits: dict[SplitName, int | float] = Field(default_factory=dict)
    """Prompts a split: whole numbers are counts, numbers below one shares; splits not named get none.

    Empty: ``data.splits``."""


class PairSource(Section):
    """A preference file whose answers are compared as they are, instead of the model's own samples."""

    path: str
    """JSONL, CSV or Parquet in a known format (docs/preference-files.md); relative paths start as in ``sources``."""
    format: str | None = None
    """Name of the format; none: recognised by its columns."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Column of the file by the name that a format knows it by, such as ``chosen: good_answer``; ``a.b.0`` reaches into
    objects."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Constant columns to add to the prompts, such as ``label: unsafe``."""
    max_words: int | None = Field(None, ge=1)
    """Keep only prompts of at most so many words."""
    count: int | None = Field(None, ge=1)
    """Take at most so many pairs, chosen by hash; none: all."""


def _default_splits() -> dict[SplitName, int | float]:
    """Return the shares of a source that names none."""
    return {"train": 0.4, "tune": 0.2, "calibration": 0.3, "report": 0.1}


class DataSection(Section):
    """Prompts and their splits."""

    prompts: str | None = None
    """Folder that relative source paths start at."""
    sources: list[Source] = Field(default_factory=list)
    """Prompt files."""
    pairs: list[PairSource] = Field(default_factory=list)
    """Preference files to train on; nothing is then sampled for training, and the scorers label the given pairs."""
    long_answers: Literal["drop", "cut"] = "cut"
    """What becomes of an answer of ``pairs`` with more than ``sampling.max_new_tokens`` tokens, those that close it
    counted, or that reaches beyond the model's positions. ``drop``: its pairs are left out and counted; ``cut``: its
    end is cut off, scorers see what is left, and nothing closes it."""
    max_drop: float = Field(0.1, ge=0, le=1)
    """Largest share of a file's rows that may be dropped, by the rules of ``dualign data check`` for ``pairs`` (answers
    that are too long do not count) and as broken for demonstrations; with more the job stops."""
    splits: dict[SplitName, int | float] = Field(default_factory=_default_splits)
    """Default split of a source, by hash of the prompt."""
    cluster: str = Field("auto", min_length=1)
    """Which prompts stand and fall together, in splits and as the unit of the certificate: ``auto``: near-copies (by
    words or letters), ``none``: each prompt alone (for prompts made from templates on purpose), else the column that
    names the cluster."""


class RewardSection(Section):
    """What is maximised."""

    scorer: dict[str, Any]
    """Scorer: ``kind`` and its own keys."""


class ConstraintSection(Section):
    """One requirement: functional(cost) <= limit."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,40}$")
    """Its name, as in ``cost_<name>``."""
    scorer: dict[str, Any]
    """Scorer of the cost, up is bad: ``kind`` and its own keys."""
    functional: str = "mean"
    """What of the cost is bounded: ``mean``, ``rate`` (share of costs above 0), ``rate:T`` (above T), ``cvar:ALPHA`` or
    ``relative``."""
    where: dict[str, str] = Field(default_factory=dict)
    """The slice of the prompts; the population is then the prompts of the slice."""
    limit: float
    """Largest allowed value, in the scorer's own units."""
    cap: float | None = None
    """Costs count up to this value in the certificate; needed to certify."""
    floor: float | None = None
    """Costs count down to this value in the certificate, so that a few very low ones cannot pay for many high ones;
    none: as they are."""


class MethodSection(Section):
    """The outer loop."""

    name: str = "c-dpo"
    """Method of the table that ``dualign methods`` prints."""
    dual: str | None = None
    """Dual rule; none: ``bracket`` for one limit, ``projected_newton`` for several."""
    start: Annotated[float | Literal["one-shot"], BeforeValidator(_check_start)] = "one-shot"
    """First multiplier after 0: a number in raw units, or the one-shot estimate of the plan."""
    labels: Literal["soft", "bernoulli", "hard"] = "soft"
    """How relabelled pairs are read; ``hard`` has no finite optimum."""
    loss: Literal["dpo", "ipo", "conservative-dpo", "kldpo", "wdpo", "b-dpo", "dr-dpo"] = "dpo"
    """Pairwise loss."""
    temperature: float = Field(1.0, gt=0)
    """Label temperature tau."""
    step: float | None = Field(None, gt=0)
    """Step of the ``gradient`` rule in normalised units; none: 0.1, and 1/L in a world file, where L is known."""
    options: dict[str, float | str] = Field(default_factory=dict)
    """Settings of the method's own; ``dualign methods`` lists them."""
    max_rounds: int = Field(8, ge=1)
    """Policies trained at the most, lambda = 0 counted."""
    max_multiplier: float = Field(32.0, gt=0)
    """Largest normalised multiplier tried before a limit is called infeasible."""
    interpolate: bool = False
    """One more policy without training: the mix of the two on either side of the limit, measured like the others."""
    cost_only: float | None = Field(None, gt=0)
    """Normalised multiplier of one more policy for comparison, trained after the search; none: not trained."""


class TrainingSection(Section):
    """How one policy is fitted; names as in Hugging Face."""

    beta: float = Field(0.3, gt=0)
    """KL strength for normalised scores; the raw value is printed beside it."""
    learning_rate: float = Field(4e-4, gt=0)
    """Peak learning rate."""
    num_train_epochs: float = Field(1.0, gt=0)
    """Passes over the groups; not read where ``max_steps`` is positive."""
    max_steps: int = Field(-1, ge=-1)
    """Steps of every fit, if positive."""
    per_device_train_batch_size: int = Field(4, ge=1)
    """Groups a micro-step."""
    gradient_accumulation_steps: int = Field(1, ge=1)
    """Micro-steps a step."""
    warmup_steps: int = Field(5, ge=0)
    """Steps of linear warm-up."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    """Schedule after the warm-up."""
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """Where the schedule ends, as a share of the peak."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decay."""
    adapter: Literal["lora", "full"] = "lora"
    """One LoRA adapter a multiplier, or full weights."""
    lora_r: int = Field(16, ge=1)
    """Rank."""
    lora_alpha: float = Field(32.0, gt=0)
    """Scale."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of the adapter's input while it is trained."""
    target_modules: str | list[str] = "all-linear"
    """Layers that get an adapter: ``all-linear`` (all but the output head), or names of layers."""
    layout: Literal["auto", "rows", "shared"] = "auto"
    """How responses are laid out; ``auto``: shared where the model allows."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """``auto``: by a one-second timing at the start, then kept."""
    checkpoint_seconds: float = Field(60.0, gt=0)
    """A fit saves its state this often."""


class SamplingSection(Section):
    """How responses are drawn; part of the certificate's claim."""

    responses_per_prompt: int = Field(4, ge=2)
    """K, the size of a training group."""
    temperature: float = Field(1.0, gt=0)
    """The policy is softmax(logits / temperature), everywhere."""
    max_new_tokens: int = Field(128, ge=1)
    """Longest response."""
    batch_size: int = Field(64, ge=1)
    """Sequences decoded together."""
    reasoning: Literal["keep", "strip"] = "keep"
    """What scorers, judges and metrics see of a ``<think>…</think>`` part: all of it, or only what stands outside of
    it (nothing, where it is never closed). Tokens and log-probabilities are those of the whole answer."""


class EvaluationSection(Section):
    """How policies are measured."""

    responses_per_prompt: int = Field(1, ge=1)
    """Samples a tune prompt."""
    metrics: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Further scorers shown on report prompts, by name: ``refusal: {kind: refusal}``."""
    judge: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """An independent scorer a constraint (or ``reward``), by name: ``harm: {kind: guard, model: ...}``. It is asked on
    report prompts alone; without it the score reported is the score trained on, and the report says so."""


class CertificateSection(Section):
    """The statistical claim, on prompts that no earlier step has seen."""

    confidence: float = Field(0.95, gt=0.5, lt=1)
    """1 - delta."""
    responses_per_prompt: int = Field(1, ge=1)
    """Samples a calibration prompt."""
    rungs: int = Field(2, ge=1)
    """Policies on the ladder, tested in order until one fails."""
    planned_openings: int | None = Field(None, ge=1)
    """How often the calibration prompts will be opened in this run directory: each opening then spends delta over this
    number. None: the first spends 0.9 delta, each further one a tenth of the one before."""


class RunSection(Section):
    """The run directory."""

    name: Annotated[str, AfterValidator(_check_folder)] = Field("run", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """One path component."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of every stage."""


class Config(Section):
    """A whole job."""

    policy: PolicySection
    data: DataSection = Field(default_factory=lambda: DataSection())
    reward: RewardSection | None = None
    constraints: list[ConstraintSection] = Field(default_factory=list)
    method: MethodSection = Field(default_factory=lambda: MethodSection())
    training: TrainingSection = Field(default_factory=lambda: TrainingSection())
    sampling: SamplingSection = Field(default_factory=lambda: SamplingSection())
    evaluation: EvaluationSection = Field(default_factory=lambda: EvaluationSection())
    certificate: CertificateSection = Field(default_factory=lambda: CertificateSection())
    run: RunSection = Field(default_factory=lambda: RunSection())

    @field_validator("constraints")
    @classmethod
    def distinct_names(cls, constraints: list[ConstraintSection]) -> list[ConstraintSection]:
        """Check that no two constraints share a name."""
        names = [constraint.name for constraint in constraints]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two constraints are named {twice[0]!r}")
        return constraints

    @model_validator(mode="after")
    def complete(self) -> Config:
        """Check that a model has prompts, a reward and limits."""
        if self.policy.world is not None:
            return self
        if not self.data.sources:
            raise ValueError("data.sources: a model needs prompts; name at least one file")
        if self.reward is None:
            raise ValueError("reward: a model needs a reward scorer")
        if not self.constraints:
            raise ValueError("constraints: name at least one limit")
        return self


def config_mapping(path: Path, expected: str) -> dict[str, Any]:
    """Return the mapping that a YAML file holds; ``expected`` says what it should hold.

    Raises:
        MissingError: the file cannot be read.
        ConfigError: it is no YAML, or no mapping.
    """
    try:
        value = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise MissingError(f"config {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"config {path}: not UTF-8 text") from None
    if not isinstance(value, dict):
        raise ConfigError(f"config {path}: expected {expected}, found {type(value).__name__}")
    return value


def load_config(path: Path, overrides: list[str] | None = None) -> Config:
    """Return the config of a YAML file, with ``a.b=value`` overrides applied.

    Raises:
        MissingError: the file cannot be read.
        ConfigError: a key or value of the file is wrong.
        UsageError: an override is wrong.
    """
    value = config_mapping(path, f"sections ({', '.join(Config.model_fields)})")
    for override in overrides or []:
        _apply(value, override)
    try:
        return validate(value, str(path))
    except ConfigError as error:
        raise blamed(error, overrides or []) from None


def overridden(config: Config, overrides: list[str]) -> Config:
    """Return ``config`` with ``a.b=value`` overrides applied; what it did not state is left unstated.

    Raises:
        ConfigError: a value is wrong.
        UsageError: an override is wrong.
    """
    value = config.model_dump(exclude_unset=True)
    for override in overrides:
        _apply(value, override)
    return validate(value, "config")


def blamed(error: ConfigError, overrides: list[str]) -> ConfigError | UsageError:
    """Return ``error``, or a mistake of the command line where an override names the key that it complains of."""
    for override in overrides:
        *sections, key = override.split("=", 1)[0].split(".")
        named = re.search(rf"(?<!\w){re.escape(key)}(?!\w)", str(error))
        if named or any(f"unknown key {section!r}" in str(error) for section in sections):
            return UsageError(f"{error} (after --set)")
    return error


def _apply(value: dict[str, Any], override: str) -> None:
    """Set one ``a.b=value`` in place; list items are named by their index."""
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise UsageError(f"--set {override!r}: expected KEY=VALUE, such as training.beta=0.3")
    try:
        new = parse_yaml(text, f"--set {key}")
    except ConfigError as error:
        raise UsageError(str(error)) from None
    *parents, last = key.split(".")
    place: Any = value
    for part in parents:
        if isinstance(place, list) and part.isdigit() and int(part) < len(place):
            place = place[int(part)]
        elif isinstance(place, dict):
            # a section that is named and left empty is none
            place[part] = {} if place.get(part) is None else place[part]
            place = place[part]
        else:
            raise UsageError(f"--set {key}: {part!r} is not a section")
    if isinstance(place, list) and last.isdigit() and int(last) < len(place):
        place[int(last)] = new
    elif isinstance(place, dict):
        place[last] = new
    else:
        raise UsageError(f"--set {key}: {'.'.join(parents)!r} is not a section")


def validate(value: dict[str, Any], where: str) -> Config:
    """Return the config of a mapping.

    Raises:
        ConfigError: one line that names the key, what was given and what would be right.
    """
    try:
        return Config.model_validate(value)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(error, value)}") from None


def _explain(error: ValidationError, value: dict[str, Any]) -> str:
    """Return one line for the first mistake, unknown keys with their nearest known key."""
    first = min(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")
    place = _place(first["loc"], value)
    if first["type"] == "extra_forbidden":
        section, key = _place(first["loc"][:-1], value), str(first["loc"][-1])
        known = _known_keys(first["loc"][:-1])
        return f"{section + ': ' if section else ''}unknown key {key!r}; {nearest(key, known)}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{place}: missing"
    if first["type"] == "value_error":
        return f"{place + ': ' if place else ''}{message}"
    choices = re.findall(r"'([^']*)'", str(first.get("ctx", {}).get("expected", "")))
    hint = f"; {nearest(first['input'], choices)}" if choices else ""
    return f"{place}: {message[0].lower() + message[1:]}, given {reprlib.repr(first['input'])}{hint}"


def _place(location: tuple[Any, ...], value: dict[str, Any]) -> str:
    """Return ``constraints.harm.limit`` for a location: pydantic's own marks left out, constraints by their name."""
    parts = [str(part) for part in location if part not in ("float", "int", "[key]")]
    if len(parts) > 1 and parts[0] == "constraints" and isinstance(location[1], int):
        entry = value["constraints"][location[1]]
        parts[1] = str(entry.get("name", parts[1])) if isinstance(entry, dict) else parts[1]
    return ".".join(parts)


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """Return the keys of the section at ``location``."""
    model: type[BaseModel] = Config
    for part in location:
        if isinstance(part, int):
            continue
        model = next(iter(held_by(model.model_fields[part].annotation)), model)
    return list(model.model_fields)


def held_by(annotation: Any) -> list[type[Section]]:
    """Return the sections that a field of this annotation holds, itself or in a list or a choice."""
    inner = get_args(annotation)
    if inner:
        return [section for part in inner for section in held_by(part)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, Section) else []
