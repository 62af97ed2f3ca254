"""``align`` and ``compare``: a model, prompts, a reward and limits from memory -> the same job as ``dualign train``."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualign.config import Config, overridden
from dualign.errors import ArgumentError, DualignError
from dualign.face.run import Run, load_run
from dualign.face.tasks import Given, Limit, Task, Tell, joined, quiet, task_of
from dualign.hashing import canonical_digest

if TYPE_CHECKING:
    from dualign.job.cells import Cell, Family


def align(
    model: Any,
    prompts: Any,
    *,
    reward: Given,
    limits: Sequence[Limit],
    out: str | Path | None = None,
    pairs: Any = None,
    processing_class: Any = None,
    method: str | Mapping[str, Any] = "c-dpo",
    beta: float = 0.3,
    confidence: float = 0.95,
    seed: int = 0,
    peft_config: Any = None,
    metrics: Mapping[str, Given] | None = None,
    judges: Mapping[str, Given] | None = None,
    progress: Tell | None = None,
    **sections: Mapping[str, Any],
) -> Run:
    """Return the run that trained a policy as helpful as its limits allow, and certified it.

    Args:
        model: a folder, a hub id, ``.gguf`` or ``package:NAME``; or a loaded model, with its tokenizer as
            ``processing_class`` or as ``(model, tokenizer)``.
        prompts: texts, messages, rows with ``prompt``, a frame or a ``datasets.Dataset``; further columns name slices.
            They are split by hash; ``{"train": ..., "tune": ..., "calibration": ..., "report": ...}`` splits them by
            hand.
        reward: what is maximised: a callable ``(prompts, responses) -> numbers`` of two lists of texts, or a scorer in
            another form.
        limits: the requirements, each a ``Limit``.
        out: run directory; none: one below ``runs`` that is named by what was given. The same call goes on where it was
            interrupted.
        pairs: rows of ``prompt``, ``chosen``, ``rejected`` to train on, in the place of the model's own samples.
        processing_class: tokenizer of a loaded model.
        method: a method of the table that ``dualign methods`` prints; or keys of that section of the config,
            ``{"name": "c-dpo", "max_rounds": 4}``.
        beta: strength of the KL term **for normalised scores** (in units of the reward's SD within a prompt);
            ``Run.beta_raw`` is the one in reward units, which ``plan`` and ``solve`` take.
        confidence: of the certificate.
        seed: of every stage.
        peft_config: a ``peft.LoraConfig``; none: LoRA of rank 16 on all linear layers.
        metrics: further scorers, shown on report prompts.
        judges: independent scorers of ``reward`` or of a limit by its name, asked on report prompts alone.
        progress: called with each line of progress.
        sections: further keys of the config by section: ``training={"learning_rate": 1e-4}``,
            ``sampling={"max_new_tokens": 64}``, ``policy={"template": "plain"}``.

    Raises:
        ArgumentError, ConfigError: an argument that is wrong; nothing was trained.
        InfeasibleError: no policy can meet the limits.
        DataError: ``out`` was made from something else.
    """
    chosen = {"name": method} if isinstance(method, str) else method
    named = {} if out is None else {"name": Path(out).resolve().name}
    task = task_of(
        model,
        prompts,
        reward=reward,
        limits=limits,
        pairs=pairs,
        processing_class=processing_class,
        peft_config=peft_config,
        metrics=metrics,
        judges=judges,
        beta=beta,
        confidence=confidence,
        **joined({"method": chosen, "run": {"seed": seed, **named}}, sections),
    )
    folder = Path(out) if out is not None else Path("runs") / f"align-{canonical_digest(task.config.model_dump())[:8]}"
    return task.run(folder, progress or quiet)


def compare(
    model: Any,
    prompts: Any = None,
    *,
    methods: Sequence[str] = ("c-dpo", "dpo"),
    seeds: Sequence[int] = (0,),
    out: str | Path | None = None,
    progress: Tell | None = None,
    **given: Any,
) -> "Comparison":
    """Return the table of several methods under several seeds, each cell a run of its own below ``out``.

    Args:
        model: as for ``align``; or a config file (``.yaml``), which needs nothing else: each cell is then trained by a
            process of its own, as by ``dualign compare``.
        prompts: as for ``align``.
        methods: names, or ``NAME:KEY=VALUE+KEY=VALUE`` with settings; the first is what others differ from.
        seeds: whole numbers.
        out: folder of the cells; none: one below ``runs``. Finished cells are reused.
        progress: called with each line of progress.
        given: the other arguments of ``align``, but ``method`` and ``seed``.

    Raises:
        ArgumentError, ConfigError, UsageError: an argument that is wrong, or no cell that finished.
    """
    from dualign.job.cells import FileFamily
    from dualign.job.compare import compare_cells

    names, numbers, tell = list(methods), list(seeds), progress or quiet
    if not names or not numbers or len(set(names)) < len(names) or len(set(numbers)) < len(numbers):
        raise ArgumentError("methods, seeds: at least one of each is needed, and none twice")
    if isinstance(model, str | Path) and str(model).endswith((".yaml", ".yml")):
        if prompts is not None or given:
            raise ArgumentError(f"model: the config {model} brings everything but methods, seeds and out")
        family: Family = FileFamily(Path(model))
    else:
        family = MemoryFamily(task_of(model, prompts, **given), tell)
    folder = Path(out) if out is not None else Path("runs") / f"compare-{family.name}"
    return Comparison(folder, compare_cells(family, names, numbers, folder, tell))


@dataclass(frozen=True)
class Comparison:
    """The table of a comparison; ``figures`` is the object that ``dualign compare --json`` prints."""

    folder: Path
    """The cells, and ``compare.html``, ``.md``, ``.csv``, ``.json``."""
    figures: Mapping[str, Any]

    @property
    def best(self) -> str | None:
        """Return the method with the largest objective among those whose limits held; none where they held for none."""
        best: str | None = self.figures["best"]
        return best

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Return a row a method."""
        return [dict(row) for row in self.figures["rows"]]

    def run(self, method: str, seed: int = 0) -> Run:
        """Return the run of one cell."""
        from dualign.job.cells import cells, parse_arm

        return load_run(cells([parse_arm(method)], [seed], self.folder)[0].run)

    def __str__(self) -> str:
        """Return the table in Markdown."""
        from dualign.report.compare_page import markdown

        return markdown(self.figures)


@dataclass(frozen=True)
class MemoryFamily:
    """The cells of a job from memory, trained one after the other in this process."""

    task: Task
    tell: Tell

    @property
    def name(self) -> str:
        """Return the name of the job."""
        return self.task.config.run.name

    def config(self, cell: "Cell") -> Config:
        """Return the cell's config, checked."""
        from dualign.job.cells import check_arm, overrides

        return check_arm(cell, overridden(self.task.config, overrides(cell)), self.task.scorers)

    def train(self, cell: "Cell") -> tuple[int, str | None, int]:
        """Return exit code, error line, and the peak bytes of this process so far."""
        import resource

        from dualign.job.entry import run_inputs

        code, said = 0, None
        try:
            task = replace(self.task, config=self.config(cell))
            code = run_inputs(task.config, task.inputs(), cell.run, self.tell)[1]
        except DualignError as error:
            code, said = error.exit_code, str(error)
        unit = 1 if sys.platform == "darwin" else 1024
        return code, said, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
