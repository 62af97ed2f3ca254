"""What can be refused before anything expensive starts, without opening a file of the config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dualign.config import Config
from dualign.errors import ConfigError
from dualign.maths.dual import DUAL_RULES
from dualign.maths.functionals import Functional, parse
from dualign.methods.nearest import unknown
from dualign.methods.table import METHODS
from dualign.records import Constraint
from dualign.scorers.spec import read_spec
from dualign.scorers.table import KINDS


def constraints_of(config: Config) -> tuple[tuple[Constraint, ...], tuple[Functional, ...]]:
    """Return the requirements and what of each cost they bound.

    Raises:
        ConfigError: an unknown functional, or a limit that its cap makes empty.
    """
    constraints, functionals = [], []
    for section in config.constraints:
        try:
            functionals.append(parse(section.functional))
        except ValueError as error:
            raise ConfigError(f"constraints: {section.name}: {error}") from None
        if section.cap is None and section.functional != "rate":
            raise ConfigError(f"constraints: {section.name}: 'cap' is needed to certify: the largest cost that counts")
        if section.cap is not None and section.limit >= section.cap:
            raise ConfigError(
                f"constraints: {section.name}: limit {section.limit:g} must be below the cap {section.cap:g}"
            )
        constraints.append(
            Constraint(
                section.name, section.limit, section.scorer["kind"], section.functional, section.where, section.cap
            )
        )
    return tuple(constraints), tuple(functionals)


def check(config: Config) -> None:
    """Check what needs no file: method, rule and functionals.

    Raises:
        ConfigError: an unknown name; a rule that cannot serve that many limits.
    """
    method = config.method
    if method.name not in METHODS:
        raise ConfigError(f"method.name: {unknown('method', method.name, METHODS)}")
    if method.dual is not None and method.dual not in DUAL_RULES:
        raise ConfigError(f"method.dual: {unknown('dual rule', method.dual, DUAL_RULES)}")
    if method.dual in ("bracket", "newton") and len(config.constraints) > 1:
        raise ConfigError(f"method.dual: {method.dual} serves one limit, {len(config.constraints)} are given; "
                          "use projected_newton")  # fmt: skip
    slopes = method.dual in ("newton", "projected_newton") or (method.dual is None and len(config.constraints) > 1)
    if slopes and config.evaluation.responses_per_prompt < 2:
        raise ConfigError("evaluation.responses_per_prompt: Newton rules need at least 2: "
                          "the slope is a covariance within the prompt")  # fmt: skip
    constraints_of(config)


def scorer_specs(config: Config) -> dict[str, dict[str, Any]]:
    """Return the descriptions of all scorers of a config by role: reward, cost NAME, metric NAME."""
    assert config.reward is not None
    specs = {"reward": config.reward.scorer}
    specs |= {f"cost {section.name}": section.scorer for section in config.constraints}
    return specs | {f"metric {name}": spec for name, spec in config.evaluation.metrics.items()}


def check_scorers(specs: Mapping[str, Mapping[str, Any]]) -> None:
    """Check kinds and keys of scorers without making one.

    Raises:
        ConfigError: an unknown kind or key (the nearest is named).
    """
    for role, spec in specs.items():
        if "kind" not in spec:
            raise ConfigError(f"{role}: scorer: key 'kind' is needed; known kinds: {', '.join(KINDS)}")
        if spec["kind"] not in KINDS:
            raise ConfigError(f"{role}: scorer: {unknown('kind', str(spec['kind']), KINDS)}")
        values = {key: value for key, value in spec.items() if key != "kind"}
        read_spec(KINDS[spec["kind"]].spec, values, f"{role}: scorer {spec['kind']}")
