"""What can be refused before anything expensive starts, without opening a file of the config."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

from dualign.certificate.claim import Requirement, Terms, check_terms
from dualign.config import Config, ConstraintSection
from dualign.errors import ConfigError, UsageError, nearest
from dualign.maths.dual_rules import DUAL_RULES
from dualign.maths.functionals import FUNCTIONALS, Functional, Mean, Rate, parse
from dualign.methods.options import filled, unknown
from dualign.methods.table import METHODS
from dualign.records import Constraint
from dualign.worlds.assistant_text import WORLDS

ONE_LIMIT = ("bracket", "newton")
"""Dual rules that serve one limit."""
WORLD_FILE_SECTIONS = ("policy", "method", "run")
"""Sections that mean something where the policy is a world file: all else is in the file."""


def constraints_of(config: Config) -> tuple[tuple[Constraint, ...], tuple[Functional, ...]]:
    """Return the requirements and what of each cost they bound.

    Raises:
        ConfigError: an unknown functional, a missing cap, or a limit that its cap makes empty.
    """
    functionals = tuple(_functional(section, config) for section in config.constraints)
    constraints = tuple(
        Constraint(s.name, s.limit, str(s.scorer.get("kind")), s.functional, s.where, s.cap, s.floor)
        for s in config.constraints
    )
    return constraints, functionals


def _functional(section: ConstraintSection, config: Config) -> Functional:
    """Return what the section bounds, after a look at whether its limit could ever be certified."""
    where = f"constraints.{section.name}"
    if (kind := section.functional.strip().split(":")[0]) not in FUNCTIONALS:
        raise ConfigError(f"{where}.functional: unknown functional {kind!r}; {nearest(kind, FUNCTIONALS)}")
    try:
        functional = parse(section.functional)
    except ValueError as error:
        raise ConfigError(f"{where}.functional: {error}") from None
    if section.cap is None and not isinstance(functional, Rate):
        raise ConfigError(f"{where}.cap: missing; name the largest cost that counts, no certificate exists without")
    # The cap of a tail grows with its threshold, which is fitted later; the cap of the costs is its least value.
    claimed = Mean() if section.functional.startswith("cvar") else functional
    terms = Terms(
        {section.name: Requirement(section.limit, section.cap, claimed, floor=section.floor)},
        1 - config.certificate.confidence,
    )
    try:
        check_terms(terms)
    except UsageError as error:
        raise ConfigError(f"{where}: {error}") from None
    return functional


def check(config: Config, ready: Collection[str] = ()) -> None:
    """Check what needs no file: method, rule, functionals, scorers, and that no section is there for nothing.

    ``ready``: names of scorers (``scorer_specs``) that are not made from the config.

    Raises:
        ConfigError: an unknown name; a rule that cannot serve that many limits; a section that would be ignored.
    """
    _check_method(config)
    if config.policy.world in WORLDS:
        _check_embedded(config)
    elif config.policy.world is not None:
        _check_world_file(config)
    else:
        for name, spec in scorer_specs(config).items():
            if name not in ready:
                for place, found in scorers_in(spec, f"scorer of {name}"):
                    _check_scorer(found, place, direction_of(name) if found is spec else None)
    check_rule(config.method.dual, len(config.constraints))
    slopes = config.method.dual in ("newton", "projected_newton") or (
        config.method.dual is None and len(config.constraints) > 1
    )
    if slopes and config.evaluation.responses_per_prompt < 2 and config.constraints:
        raise ConfigError("evaluation.responses_per_prompt: Newton rules need at least 2: "
                          "the slope is a covariance within the prompt")  # fmt: skip
    constraints_of(config)
    for name in config.evaluation.judge:
        known = ["reward", *(section.name for section in config.constraints)]
        if name not in known:
            raise ConfigError(f"evaluation.judge: {unknown('score', name, known)}")


def _check_method(config: Config) -> None:
    """Check the method, its options, its rule, and that it has a form for this kind of job."""
    method = config.method
    if method.name not in METHODS:
        raise ConfigError(f"method.name: {unknown('method', method.name, METHODS)}")
    try:
        filled(method.name, METHODS[method.name].options, method.options)
    except UsageError as error:
        raise ConfigError(f"method.options: {error}") from error
    if float(method.options.get("ptx", 0)) > 0 and not config.policy.warm_start:
        raise ConfigError("method.options.ptx: imitates the answers of policy.warm_start, and there is none")
    if method.dual is not None and method.dual not in DUAL_RULES:
        raise ConfigError(f"method.dual: {unknown('dual rule', method.dual, DUAL_RULES)}")
    if method.interpolate and len(config.constraints) > 1:
        raise ConfigError(f"method.interpolate: serves one limit, {len(config.constraints)} are given; leave it out")
    if method.interpolate and not METHODS[method.name].trains:
        raise ConfigError(f"method.interpolate: {method.name} trains no weights that could be mixed; leave it out")
    if method.dual == "fixed":
        raise ConfigError(
            "method.dual: fixed finds nothing; give method.name: fixed and the multiplier as method.start"
        )


def check_rule(dual: str | None, limits: int) -> None:
    """Check that a dual rule can serve that many limits.

    Raises:
        ConfigError: it serves one, and there are more.
    """
    if dual in ONE_LIMIT and limits > 1:
        raise ConfigError(f"method.dual: {dual} serves one limit, {limits} are given; use projected_newton")


def _check_embedded(config: Config) -> None:
    """Check that the scorers are those that the embedded world learns."""
    if config.evaluation.judge:
        raise ConfigError(
            f"evaluation.judge: the {config.policy.world} world is judged by its hidden scores; leave it out"
        )
    if config.reward is None or len(config.constraints) != 1:
        raise ConfigError(
            f"policy.world: the {config.policy.world} world has a reward and one limit, {len(config.constraints)} "
            "given; `dualign init` prints a config that runs"
        )
    limited, world = config.constraints[0], WORLDS[str(config.policy.world)]
    if limited.functional != "mean" or dict(limited.where) != dict(world.where):
        raise ConfigError(
            f"constraints.{limited.name}: the {config.policy.world} world knows the truth of the mean where "
            f"{dict(world.where)}; given {limited.functional} where {dict(limited.where)}"
        )
    wanted = {"reward": "assistant-reward", f"constraints.{config.constraints[0].name}": "assistant-cost"}
    for (place, kind), spec in zip(wanted.items(), (config.reward.scorer, config.constraints[0].scorer), strict=True):
        if dict(spec) != {"kind": kind}:
            raise ConfigError(f"{place}.scorer: this world learns its own, {{kind: {kind}}}; given {dict(spec)}")


def _check_world_file(config: Config) -> None:
    """Check that nothing is set that a world file brings itself, and that would be ignored."""
    for name, field in Config.model_fields.items():
        if name not in WORLD_FILE_SECTIONS and getattr(config, name) != field.get_default(call_default_factory=True):
            raise ConfigError(
                f"{name}: a world file brings its own scores, limits and beta, and needs no training; leave it out"
            )


def scorer_specs(config: Config) -> dict[str, dict[str, Any]]:
    """Return every scorer that the config describes: ``reward``, ``cost NAME``, ``metric NAME``, ``judge NAME``."""
    specs = {} if config.reward is None else {"reward": config.reward.scorer}
    specs |= {f"cost {section.name}": section.scorer for section in config.constraints}
    specs |= {f"metric {name}": spec for name, spec in config.evaluation.metrics.items()}
    return specs | {f"judge {name}": spec for name, spec in config.evaluation.judge.items()}


def direction_of(name: str) -> Literal["reward", "cost"] | None:
    """Return what the scorer of that name is used as; none: a metric, which may be either."""
    if name.startswith("metric "):
        return None
    return "reward" if name in ("reward", "judge reward") else "cost"


def _check_scorer(spec: Mapping[str, Any], where: str, direction: str | None) -> None:
    """Check kind and keys of one scorer; ``direction``: what it is used as, none: either. Nothing is built.

    Raises:
        ConfigError: an unknown kind or key, or a kind that cannot be used as what it is given for.
    """
    # pydantic models, a dozen modules: not for the other commands
    from dualign.scorers.spec import read_spec
    from dualign.scorers.table import KINDS

    kind = spec.get("kind")
    if kind is None:
        raise ConfigError(f"{where}: names no kind; known: {', '.join(KINDS)}")
    if kind not in KINDS:
        raise ConfigError(f"{where}: {unknown('kind', str(kind), KINDS)}")
    only = KINDS[kind].direction
    if direction is not None and only not in (None, direction):
        raise ConfigError(f"{where}: {kind} is a {only}, given as a {direction}; its sign would be wrong")
    try:
        read_spec(KINDS[kind].spec, {key: value for key, value in spec.items() if key != "kind"}, str(kind))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def scorers_in(spec: Mapping[str, Any], where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield a scorer and those inside it, those inside them too, with their places."""
    inside: list[tuple[str, Any]] = [(where, spec)]
    while inside:
        place, value = inside.pop(0)
        if isinstance(value, Mapping) and ("kind" in value or value is spec):
            yield place, value
        items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
        inside = [(f"{place}.{key}", item) for key, item in items] + inside
