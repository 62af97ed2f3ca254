"""The seal file of ``certify``: what was claimed at the first opening, and the openings since. No torch.

It is written when an opening is through, and before its verdict is seen: what is refused opens nothing.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualign.certificate.certify import Observations, certify, claim_of
from dualign.certificate.claim import Opening, Seal, Terms, Units, seal
from dualign.errors import DataError, MissingError
from dualign.hashing import digest
from dualign.records import Certificate
from dualign.runs.lock import file_lock
from dualign.runs.store import write_json

SHAPE = {"claim": str, "prompts": str, "openings": list}


@dataclass(frozen=True)
class _Look:
    """What the seal file says of this opening."""

    promise: Seal
    opening: Opening
    content: Mapping[str, Any]
    """The seal file as it will be, this opening recorded."""


def certify_sealed(
    observations: Observations, terms: Terms, units: Units, path: Path, finish: Callable[[Certificate], Certificate]
) -> Certificate:
    """Return what ``finish`` makes of the certificate that keeps to the seal file, the opening recorded in it.

    The same costs again are no new opening: the answer is the same one. Whatever is refused, and whatever fails in
    ``finish``, fails before the file is touched.

    Raises:
        LockedError: another process opens by this file.
        DataError, MissingError: it is no seal file, or cannot be read.
    """
    with file_lock(path.with_name(f".{path.name}.lock")):
        look = _look(path, observations, terms, units)
        certificate = finish(certify(observations, terms, sealed=look.promise, opening=look.opening))
        if certificate.verdict != "INVALID" and (not path.exists() or _read(path) != look.content):
            write_json(path, look.content)
    return certificate


def _look(path: Path, observations: Observations, terms: Terms, units: Units) -> _Look:
    """Return the promise in the seal file and which opening this is; nothing is written."""
    found = seal(units.cluster_of, claim_of(terms, list(observations), units))
    fresh: dict[str, Any] = {"claim": found.claim, "prompts": found.prompts, "openings": []}
    kept = _read(path) if path.exists() else fresh
    evidence = _evidence(observations, terms, units)
    openings = [*kept["openings"], *([evidence] if evidence not in kept["openings"] else [])]
    opening = Opening(openings.index(evidence) + 1, counted="by this seal file")
    return _Look(Seal(kept["claim"], kept["prompts"]), opening, {**kept, "openings": openings})


def _read(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MissingError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path}: not a seal file ({error})") from error
    if not isinstance(kept, dict) or not all(isinstance(kept.get(key), kind) for key, kind in SHAPE.items()):
        raise DataError(f"{path}: not a seal file; expected the fields {', '.join(SHAPE)}")
    return kept


def _evidence(observations: Observations, terms: Terms, units: Units) -> str:
    """Return a hash of the costs that have a limit and of which prompts are together, whatever the order of rows."""
    rows = sorted(
        (policy, name, prompt, float(cost))
        for policy, by_name in observations.items()
        for name in terms.requirements
        for prompt, cost in zip(by_name[name].prompts, by_name[name].costs, strict=True)
    )
    return digest(json.dumps([units.partition, rows]))
