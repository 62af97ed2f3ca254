"""A finished run, as a notebook reads it: verdict, figures, certificate, report, and the policy itself."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualign.errors import ArgumentError, DataError, MissingError
from dualign.face.inputs import prompts_in
from dualign.hashing import file_digest
from dualign.records import Certificate, Prompt, Response
from dualign.report.build import build_report, summary_text, verdict_word
from dualign.report.reading import RunFiles, read_run
from dualign.runs.store import read_json, relative

if TYPE_CHECKING:
    from dualign.config import Config
    from dualign.models.language_model import LanguageModel


def load_run(folder: str | Path) -> "Run":
    """Return the finished run in a folder, from ``align``, ``CDPOTrainer`` or ``dualign train``; no torch.

    Raises:
        MissingError: there is no run, or it is not finished.
        DataError: a file of it is damaged; it is named.
    """
    return Run(Path(folder), read_run(Path(folder)))


def keyed_apart(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return the prompts, the ids of repeated ones marked: draws are keyed by ids, and each row has its own."""
    seen: Counter[str] = Counter()
    keyed = []
    for prompt in prompts:
        seen[prompt.id] += 1
        times = seen[prompt.id]
        keyed.append(prompt if times == 1 else replace(prompt, id=f"{prompt.id}-{times}"))
    return keyed


@dataclass(frozen=True)
class Run:
    """A finished run and what is in its folder."""

    folder: Path
    files: RunFiles

    @property
    def verdict(self) -> str:
        """Return CERTIFIED, NOT CERTIFIED, NO CERTIFIED POLICY or INVALID."""
        return verdict_word(self.files)

    @property
    def result(self) -> Mapping[str, Any]:
        """Return the object that ``dualign train --json`` prints."""
        return self.files.result

    @property
    def certificate(self) -> Certificate | None:
        """Return what was claimed and shown on the calibration prompts; none for a finite world, which is summed up."""
        found = self.files.certificate
        return Certificate(str(found["verdict"]), found["selected"], found) if found else None

    @property
    def selected(self) -> Mapping[str, Any]:
        """Return the figures of the selected policy: multipliers, reward, costs, KL, errors."""
        return dict(self.result["selected"])

    @property
    def beta_normalised(self) -> float | None:
        """Return beta for normalised scores: what ``align`` and ``CDPOConfig`` take; none for a finite world."""
        return self.result.get("beta")

    @property
    def beta_raw(self) -> float:
        """Return beta in reward units: what ``plan`` and ``solve`` take."""
        return float(self.result["beta_raw"])

    @property
    def warnings(self) -> list[str]:
        """Return what a user should know before relying on the verdict."""
        return [str(line) for line in self.result.get("warnings", [])]

    def frontier(self) -> list[dict[str, Any]]:
        """Return a row a policy, the reference first: multipliers, reward, costs, KL, and their errors on tune prompts.

        ``pandas.DataFrame(run.frontier())`` is a table of them.
        """
        reference = self.result.get("reference")
        return [dict(row) for row in ([reference] if reference else []) + list(self.result["iterates"])]

    def report(self) -> Path:
        """Return the path of ``report.html``, made anew from the run's files."""
        return build_report(self.folder)

    @cached_property
    def policy(self) -> "TrainedPolicy":
        """Return the selected policy, its model loaded when it first answers.

        Raises:
            MissingError: it has no weights (the best of several answers), or answers inside its world alone.
            DataError: they are not those that the run wrote.
        """
        from dualign.config import load_config

        config = load_config(self.folder / "config.yaml")
        if config.policy.world is not None:
            raise MissingError(f"{self.folder}: a policy of the world {config.policy.world} answers inside that alone")
        weights = self.folder / "rounds" / str(self.selected.get("name")) / "fit" / "policy"
        if not weights.is_dir() or not any(weights.glob("*.safetensors")):
            raise MissingError(f"{self.folder}: the policy {self.selected.get('name')!r} of this run has no weights")
        for path in filter(Path.is_file, weights.iterdir()):
            if file_digest(path) != self.files.hashes.get(relative(self.folder, path)):
                raise DataError(f"{self.folder}: {relative(self.folder, path)} is damaged: not as the run wrote it")
        return TrainedPolicy(self.folder, weights, config)

    def __str__(self) -> str:
        """Return the summary that ``dualign train`` ends with."""
        return summary_text(self.folder)

    def __repr__(self) -> str:
        """Return one line: folder and verdict."""
        return f"<Run {self.folder}: {self.verdict}>"


@dataclass(frozen=True)
class TrainedPolicy:
    """A policy of a run: the reference of the run with the weights in ``adapter``."""

    run: Path
    adapter: Path
    """Folder of the PEFT adapter (or of full weights)."""
    config: "Config"
    """Of the run."""

    def generate(
        self,
        prompts: str | Sequence[Any],
        n: int = 1,
        *,
        seed: int = 0,
        max_new_tokens: int | None = None,
        batch_size: int | None = None,
    ) -> list[Any]:
        """Return the text of an answer to each prompt, or a list of ``n``: draws at the temperature of the run.

        Args:
            prompts: texts, messages, rows with ``prompt``, or a data set of them.
            n: answers a prompt.
            seed: same seed, same draws.
            max_new_tokens: longest answer; none: as the run sampled.
            batch_size: answers that are decoded together; none: as the run did.
        """
        drawn = self.responses(prompts, n, seed=seed, max_new_tokens=max_new_tokens, batch_size=batch_size)
        texts = [[response.text for response in row] for row in drawn]
        return [row[0] for row in texts] if n == 1 else texts

    def responses(
        self,
        prompts: str | Sequence[Any],
        n: int = 1,
        *,
        seed: int = 0,
        max_new_tokens: int | None = None,
        batch_size: int | None = None,
    ) -> list[list[Response]]:
        """Return what ``generate`` does, with tokens, log-probabilities, and whether an answer ended by itself."""
        from dualign.models.sampler import TransformersSampler
        from dualign.models.tensors import positions, prompt_room
        from dualign.protocols import Policy, Sampling

        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ArgumentError(f"n: must be a whole number above 0, got {n!r}")
        asked = prompts_in("prompts", [prompts] if isinstance(prompts, str) else prompts)
        sampling = self.config.sampling
        longest = max_new_tokens or sampling.max_new_tokens
        model = self.language_model
        room = prompt_room(None, longest, positions(model.model.config), names=("prompt", "max_new_tokens"))
        model = replace(model, max_response_tokens=longest, max_prompt_tokens=room)
        settings = Sampling(
            temperature=sampling.temperature, max_new_tokens=longest, batch_size=batch_size or sampling.batch_size
        )
        return TransformersSampler(model).generate(
            Policy("policy", self.adapter), keyed_apart(asked), n, sampling=settings, seed=seed, stage="generate"
        )

    def save(self, folder: str | Path) -> Path:
        """Return ``folder``, which then holds the weights of the policy and its tokenizer, for ``peft`` to load."""
        target = Path(folder)
        shutil.copytree(self.adapter, target, dirs_exist_ok=True)
        self.language_model.tokenizer.save_pretrained(str(target))
        return target

    @cached_property
    def language_model(self) -> "LanguageModel":
        """Return the reference of the run with its tokenizer, loaded now, in the precision that the run computed in."""
        from dualign.job.reading import model_name, wording_of
        from dualign.models.loading import load_language_model

        config, choices = self.config, read_json(self.run / "state.json")["choices"]
        wording = wording_of(config)
        if wording.date is None and "template_date" in choices:
            wording = replace(wording, date=choices["template_date"])
        merged = ["adapter"] if config.policy.adapter is not None else []
        stages = merged + [str(stage) for stage in range(len(config.policy.warm_start))]
        base = self.run / "policy" / stages[-1] / "model" if stages else model_name(config)
        return load_language_model(
            base,
            temperature=config.sampling.temperature,
            max_response_tokens=config.sampling.max_new_tokens,
            wording=wording,
            dtype=choices["compute"]["dtype"],
        )
