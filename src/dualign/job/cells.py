"""One cell of a comparison: a method and a seed in a run directory of its own, and what it came to."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dualign.config import Config, load_config
from dualign.errors import NONE_CERTIFIED, NOT_CERTIFIED, UsageError
from dualign.hashing import canonical_digest
from dualign.job.checks import check
from dualign.job.phases import FAMILY, Tell
from dualign.maths.estimates import standard_error
from dualign.maths.functionals import Mean, Rate, parse
from dualign.methods.options import filled, unknown
from dualign.methods.table import METHODS
from dualign.records import FloatArray
from dualign.runs.journal import CONFIG, open_run, read_events
from dualign.runs.store import read_json, read_table, write_json

RECORD = "cell.json"
FAMILIES = "families.json"
"""Of a comparison: the cells that were fixed together, family by family."""
OPENED = "opened.json"
"""Of a comparison: its cells whose calibration prompts were opened, or are being trained now; kept when a cell's folder
is removed."""
SHARED = ("policy", "reference", "scorers")
"""Folders of a run that no method has a part in: warm start, samples of the reference and their scores, scorers."""
OWN_CHOICES = ("opening-", "evidence-", "seal")
"""Choices of a run that no other takes over: what was opened there."""
LONGEST_NAME = 44
"""Of an arm's folder: with its seed behind, it is the run's name, which has 64 characters."""
ENDED = (0, NOT_CERTIFIED, NONE_CERTIFIED)
"""Exit codes of a job that went to its end, whatever its verdict."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A method with settings of its own, as it was asked for."""

    label: str
    method: str
    settings: Mapping[str, str]
    """``loss``, ``dual``, ``labels`` and the like of the config's method section, or an option of the method."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One arm under one seed, in its own run directory."""

    arm: Arm
    seed: int
    run: Path


def parse_arm(text: str) -> Arm:
    """Return the arm that ``NAME`` or ``NAME:KEY=VALUE+KEY=VALUE`` stands for.

    Raises:
        UsageError: an unknown method, or a setting that is no ``KEY=VALUE``.
    """
    name, _, given = text.partition(":")
    if name not in METHODS:
        raise UsageError(f"--methods: {unknown('method', name, METHODS)}")
    settings = {}
    for part in filter(None, given.split("+")):
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise UsageError(f"--methods {text}: expected KEY=VALUE, got {part!r}")
        settings[key] = value
    return Arm(text, name, settings)


def overrides(cell: Cell) -> list[str]:
    """Return the ``--set`` arguments of a cell; a setting that is an option of the method goes to its options."""
    own = {option.name for option in METHODS[cell.arm.method].options}
    chosen = {"method.name": cell.arm.method, "run.seed": str(cell.seed), "run.name": cell.run.name}
    for key, value in cell.arm.settings.items():
        chosen[f"method.options.{key}" if key in own else f"method.{key}"] = value
    return [f"{key}={value}" for key, value in chosen.items()]


class Family(Protocol):
    """What the cells of a comparison are made of: the config of each, and a way to train it."""

    @property
    def name(self) -> str:
        """Of the job that they vary."""

    def config(self, cell: Cell) -> Config:
        """Return the cell's config, checked.

        Raises:
            DualignError: the arm does not fit the job.
        """

    def train(self, cell: Cell) -> tuple[int, str | None, int]:
        """Return exit code, error line and peak bytes of the cell's training."""


def check_arm(cell: Cell, config: Config, ready: Collection[str] = ()) -> Config:
    """Return ``config``, checked for the cell; ``ready``: names of scorers that are not made from it.

    Raises:
        DualignError: the arm does not fit.
    """
    check(config, ready)
    filled(cell.arm.method, METHODS[cell.arm.method].options, config.method.options)
    return config


@dataclass(frozen=True)
class FileFamily:
    """Cells of a config file, each trained by a process of its own, so that its memory is its own."""

    path: Path
    given: Sequence[str] = ()
    """``--set`` arguments for all cells."""

    @property
    def name(self) -> str:
        """Return the name of the config's run."""
        return load_config(self.path, list(self.given)).run.name

    def config(self, cell: Cell) -> Config:
        """Return the cell's config, checked."""
        return check_arm(cell, load_config(self.path, [*self.given, *overrides(cell)]))

    def train(self, cell: Cell) -> tuple[int, str | None, int]:
        """Return how ``dualign train`` went in a process of its own."""
        program = "from dualign.cli.main import main; main()"
        settings = [part for value in (*self.given, *overrides(cell)) for part in ("--set", value)]
        command = [sys.executable, "-c", program, "train", str(self.path), "--out", str(cell.run), *settings]
        with subprocess.Popen(
            [*command, "--json", "--quiet"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            try:
                said = process.stderr.read()
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
            finally:
                # A comparison that is ended ends its cell; both go on by the same command.
                if process.returncode is None:
                    process.terminate()
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        error = lines[-1].removeprefix("error: ") if lines else None
        # kilobytes on Linux, bytes on macOS
        return process.returncode, error, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run_cell(cell: Cell, family: Family, tell: Tell, *, like: Path | None = None) -> dict[str, Any]:
    """Return the cell's record: exit code, error line, seconds and peak bytes; one that is finished is read.

    ``like``: the run of another method under the same seed, whose shared folders are linked in.
    """
    config = family.config(cell)
    known = finished_before(cell, config)
    if known is not None:
        tell(f"{cell.run.name}: finished before")
        return known
    begun = any(event.get("event") in ("started", "chosen") for event in read_events(cell.run))
    if like is not None and not begun:
        share(config, like, cell.run)
    tell(f"{cell.run.name}: training")
    _opened_cells(cell.run.parent, begins=cell.run.name)
    began = time.perf_counter()
    code, error, peak = family.train(cell)
    seconds = round(time.perf_counter() - began, 3)
    _opened_cells(cell.run.parent)
    finished = code in ENDED and _has_result(cell)
    found = {"arm": cell.arm.label, "method": cell.arm.method, "seed": cell.seed, "code": code, "finished": finished}
    found |= {"error": error, "wall_seconds": seconds, "peak_bytes": peak}
    if finished:
        write_json(cell.run / RECORD, found)
    else:
        tell(f"{cell.run.name}: failed with exit code {code}: {error}")
    return found


def finished_before(cell: Cell, config: Config) -> dict[str, Any] | None:
    """Return the record of a cell that is finished under ``config``; none where it has to be trained.

    Raises:
        DataError: the cell's folder was made by another config; nothing in it is changed.
    """
    if not (cell.run / RECORD).exists():
        return None
    open_run(cell.run, config.model_dump(mode="json"))
    known = read_json(cell.run / RECORD)
    return dict(known) if known.get("finished") and _has_result(cell) else None


def fix_family(todo: Sequence[Cell], configs: Mapping[Path, Config], out: Path) -> None:
    """Write which cells are fixed together, before any of them opens its calibration prompts.

    Cells that are asked for when some of an earlier family have been opened are a further opening: who adds them may
    have seen what came out. So is a cell whose folder was removed after it had been opened.
    """
    path = out / FAMILIES
    families: list[list[str]] = read_json(path) if path.exists() else []
    known = {name for family in families for name in family}
    opened = _opened_cells(out, known=known)
    if not opened:
        families, known = [], set()
    removed = {name for name in opened if not (out / name / CONFIG).is_file()}
    added = [cell.run.name for cell in todo if cell.run.name not in known - removed]
    families += [added] if added else []
    write_json(path, families)
    for cell in todo:
        if cell.run in configs and not _opened(cell.run):
            number = max(k for k, family in enumerate(families) if cell.run.name in family)
            open_run(cell.run, configs[cell.run].model_dump(mode="json"))
            write_json(cell.run / FAMILY, {"cells": len(families[number]), "opening": number + 1}, run=cell.run)


def _opened_cells(out: Path, *, known: Iterable[str] = (), begins: str | None = None) -> set[str]:
    """Return the cells of ``out`` that were opened, or may have been before their folder was removed; it is recorded.

    ``begins``: a cell that is trained now. Until that ends, nobody can tell whether it was opened.
    """
    path = out / OPENED
    marks: dict[str, bool] = read_json(path) if path.exists() else {}  # name -> known for certain
    for name in {*known, *marks}:
        if _opened(out / name):
            marks[name] = True
        elif not marks.get(name, True) and (out / name / CONFIG).is_file():
            del marks[name]
    if begins is not None:
        marks.setdefault(begins, False)
    write_json(path, marks)
    return set(marks)


def _opened(run: Path) -> bool:
    """Return whether the calibration prompts of a cell were opened."""
    return (run / "certificate.json").exists() or any(
        event.get("event") == "chosen" and str(event.get("choice", "")).startswith("opening-")
        for event in read_events(run)
    )


def _has_result(cell: Cell) -> bool:
    """Return whether there is something to compare: a job that no policy can do ends without."""
    return (cell.run / "result.json").exists()


def share(config: Config, like: Path, run: Path) -> None:
    """Make ``run`` with the parts of ``like`` that its own phases would make again; each is checked by its seal."""
    choices = {e["choice"]: e["value"] for e in read_events(like) if e.get("event") == "chosen"}
    journal = open_run(run, config.model_dump(mode="json"))
    for name in choices:
        if not name.startswith(OWN_CHOICES):
            journal.choice(name, partial(dict.get, choices, name))
    for folder in SHARED:
        if (like / folder).is_dir():
            shutil.copytree(like / folder, run / folder, copy_function=_link)


def _link(source: str, target: str) -> None:
    """Link a file, or copy it where the file system has no links: finished files are never changed in place."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def cells(arms: list[Arm], seeds: list[int], out: Path) -> list[Cell]:
    """Return all cells, seed by seed, in the order of the arms."""
    found = []
    for seed in seeds:
        for arm in arms:
            name = re.sub(r"[^A-Za-z0-9._-]", "-", arm.label)
            if len(name) > LONGEST_NAME:  # it is cut, and told from others by its hash
                name = f"{name[: LONGEST_NAME - 9]}-{canonical_digest(arm.label)[:8]}"
            found.append(Cell(arm, seed, out / f"{name}-seed-{seed}"))
    return found


Figures = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The selected policy of one cell."""

    arm: str
    seed: int
    holds: bool
    """By truth where the world knows it, else whether the certificate was given."""
    reward: float
    costs: Mapping[str, float]
    kl: float
    """Nats; on a language model over the tune prompts of constrained slices."""
    objective: float
    """reward - raw beta * KL, both of the same prompts."""
    errors: Mapping[str, float] = field(default_factory=dict)
    """Standard errors of ``reward``, ``objective`` (that of its reward) and each cost by its name; 0 where exact."""
    front: Sequence[tuple[float, float, float]]
    """(cost of the first limit, reward, objective) of every policy that the method trained."""
    seconds: float
    """Of training alone, what it samples itself included; what is shared between methods, and measuring, is not."""
    wall_seconds: float
    peak_bytes: int
    policies: int
    seconds_to_limit: float = math.nan
    """Of training, up to the first policy whose limits held on tune prompts by their errors; NaN: none did."""
    multipliers: Mapping[str, float] = field(default_factory=dict)
    """Of the selected policy, raw."""
    refusals: Mapping[str, float] = field(default_factory=dict)
    """Share refused by slice, where the job measures refusals and the slice has no limit."""
    by_prompt: Mapping[str, float] = field(default_factory=dict)
    """Reward by report prompt, for differences that are paired."""
    family: Mapping[str, Any] = field(default_factory=dict)
    """Of the certificate, where there is one: how many cells were fixed together, and which policies hold as the best
    of them."""


def read_outcome(run: Path, record: Figures) -> Outcome:
    """Return the outcome of a finished run.

    Raises:
        MissingError: a file of the run is absent.
        DataError: a file of the run is damaged.
    """
    result = read_json(run / "result.json", run=run)
    limits, spent = result["limits"], training_seconds(run)
    search = [row for row in result["iterates"] if row.get("role") != "cost-only"]
    if (run / "exact.json").exists():
        exact = read_json(run / "exact.json", run=run)
        chosen = exact["selected"]
        holds = all(chosen["costs"][key] <= limit for key, limit in limits.items())
        # the reference first, then the iterates in their order, then arms that were asked for besides
        rows = zip(result["iterates"], exact["arms"][1:], strict=False)
        trained = [arm for row, arm in rows if row["role"] != "cost-only"]
    else:
        chosen = result["selected"] if result.get("enumerated") else _of_model(result, run)
        holds = result["verdict"] == "CERTIFIED"
        trained = [{**row, "objective": row["reward"] - result["beta_raw"] * row["kl"]} for row in search]
    known = ("reward", "costs", "kl", "objective", "errors", "refusals", "by_prompt")
    certificate = run / "certificate.json"
    return Outcome(
        arm=str(record["arm"]),
        seed=int(record["seed"]),
        seconds=round(sum(seconds for _, seconds in spent), 3),
        seconds_to_limit=seconds_to_limit(spent, search),
        wall_seconds=float(record["wall_seconds"]),
        peak_bytes=int(record["peak_bytes"]),
        multipliers=dict(result["selected"]["multipliers"]),
        policies=len(search),
        family=dict(read_json(certificate, run=run).get("family") or {}) if certificate.exists() else {},
        holds=holds,
        front=[(row["costs"][next(iter(limits))], row["reward"], row["objective"]) for row in trained],
        **{key: chosen[key] for key in known if key in chosen},
    )


def training_seconds(run: Path) -> list[tuple[str, float]]:
    """Return (round's folder, seconds) of every phase that trains, in order: fits, games and their own samples.

    A fit counts as its report does: the first of a run also computes the reference's log-probabilities of the training
    groups, which the cells of a comparison share.
    """
    found = []
    for event in read_events(run):
        target, phase = str(event.get("target", "")), event.get("phase")
        trains = phase in ("fit", "game") or (phase == "sample" and "-game" in target)
        if event.get("event") == "finished" and trains and "cost-only" not in target:
            record = run / target / "policy.json"
            report = read_json(record, run=run).get("report") if phase == "fit" and record.is_file() else None
            found.append((target, float((report or event)["seconds"])))
    return found


def seconds_to_limit(spent: Sequence[tuple[str, float]], iterates: Sequence[Figures]) -> float:
    """Return what was spent when the first policy whose limits held was trained; NaN where none is."""
    held = {f"rounds/{row['name']}/fit" for row in iterates if row.get("limits_met")}
    total = 0.0
    for target, seconds in spent:
        total += seconds
        if target in held:
            return round(total, 3)
    return math.nan


def _of_model(result: Figures, run: Path) -> dict[str, Any]:
    """Return rewards and costs on report prompts; KL and objective are on tune prompts of constrained slices.

    A cost is what its limit bounds: of a tail or a difference from the reference, whose other side is not in the
    table of answers, the figure on tune prompts.
    """
    table = read_table(run / "report" / "answers.parquet", run=run)
    rows = [k for k, role in enumerate(table["policy"]) if role == "selected"]

    def column(name: str) -> FloatArray:
        return np.array([math.nan if table[name][k] is None else table[name][k] for k in rows], dtype=np.float64)

    reward, selected = column("reward"), result["selected"]
    values = {
        name: _bounded(column(f"cost_{name}"), result["constraints"][name]["functional"]) for name in result["limits"]
    }
    return {
        "reward": float(reward.mean()),
        "costs": {n: selected["costs"][n] if costs is None else float(costs.mean()) for n, costs in values.items()},
        "kl": float(selected["kl"]),
        "objective": selected["reward"] - float(result["beta_raw"]) * selected["kl"],
        "errors": {"reward": standard_error(reward), "objective": selected["reward_error"]}
        | {n: selected["errors"][n] if costs is None else standard_error(costs) for n, costs in values.items()},
        "refusals": _refusals(table, rows, column),
        "by_prompt": {table["prompt_id"][k]: table["reward"][k] for k in rows},
    }


def _bounded(costs: FloatArray, functional: str) -> FloatArray | None:
    """Return the single costs whose mean a functional bounds, those outside its slice left out; none: it needs more."""
    known = parse(functional)
    return known.transform(costs[np.isfinite(costs)], None) if isinstance(known, Mean | Rate) else None


def _refusals(table: Figures, rows: Sequence[int], column: Any) -> dict[str, float]:
    """Return the share refused by slice; none where the job has no metric of that name."""
    if "refusal" not in table:
        return {}
    values, slices = column("refusal"), np.array([table["slice"][k] for k in rows])
    return {str(name): float(values[slices == name].mean()) for name in dict.fromkeys(slices.tolist())}


def front_at(front: Sequence[tuple[float, float, float]], cost: float) -> tuple[float, float]:
    """Return reward and objective at ``cost``, linear between the policies of a front; NaN outside their costs.

    The objective prices KL at beta: at equal cost it compares rewards as if KL were equal too. A policy that another
    beats in cost and reward is left out.
    """
    kept = [p for p in front if not any(q[:2] != p[:2] and q[0] <= p[0] and q[1] >= p[1] for q in front)]
    points = sorted(set(kept))
    if not points or not points[0][0] <= cost <= points[-1][0]:
        return math.nan, math.nan
    costs, rewards, objectives = zip(*points, strict=True)
    return float(np.interp(cost, costs, rewards)), float(np.interp(cost, costs, objectives))
