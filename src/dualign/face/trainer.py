"""``CDPOTrainer``: what a user of TRL expects, around the same job as ``align`` and ``dualign train``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dualign.errors import ArgumentError, UsageError
from dualign.face.inputs import is_table, pairs_in, prompts_in
from dualign.face.run import Run, TrainedPolicy
from dualign.face.tasks import Given, Limit, Tell, joined, quiet, task_of
from dualign.records import Certificate, Prompt
from dualign.runs.store import read_json

LOSSES = {"sigmoid": "dpo"}
"""Names of TRL for losses that have another one here."""


@dataclass(frozen=True)
class CDPOConfig:
    """How a policy is aligned; names follow TRL where the meaning is the same, the key of the config in brackets."""

    output_dir: str | Path
    """Run directory: everything is written there, and an interrupted training goes on from there."""
    beta: float = 0.3
    """Strength of the KL term **for normalised scores**, in units of the reward's SD within a prompt [training.beta];
    ``trainer.run.beta_raw`` is the one in reward units, which ``plan`` and ``solve`` take."""
    learning_rate: float = 4e-4
    """Peak learning rate [training]."""
    num_train_epochs: float = 1.0
    """Passes over the groups [training]."""
    max_steps: int = -1
    """Optimiser steps of a policy, if positive [training]."""
    per_device_train_batch_size: int = 4
    """Prompts a micro-step [training]."""
    gradient_accumulation_steps: int = 1
    """Micro-steps a step [training]."""
    warmup_steps: int = 5
    """Steps of linear warm-up [training]."""
    lr_scheduler_type: str = "linear"
    """``linear``, ``cosine`` or ``constant`` [training]."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm [training]."""
    weight_decay: float = 0.0
    """AdamW's decay [training]."""
    bf16: bool | None = None
    """Whether to compute in bfloat16; none: by a second of timing [training.dtype]."""
    max_prompt_length: int | None = None
    """Longest prompt in tokens; none: 256, as far as the model has room [policy.max_prompt_tokens]."""
    max_completion_length: int | None = None
    """Longest answer in tokens; none: 128, or what ``max_length`` leaves [sampling.max_new_tokens]."""
    max_length: int | None = None
    """Longest prompt and answer together; needs ``max_prompt_length``, the answer gets the rest."""
    num_generations: int = 4
    """Answers of the reference a prompt [sampling.responses_per_prompt]."""
    temperature: float = 1.0
    """The policy is softmax(logits / temperature), everywhere [sampling]."""
    generation_batch_size: int = 64
    """Answers that are decoded together [sampling.batch_size]."""
    loss_type: str = "sigmoid"
    """``sigmoid`` (or ``dpo``), ``ipo`` and the other names of ``dualign solve --loss`` [method.loss]."""
    method: str = "c-dpo"
    """Method of the table that ``dualign methods`` prints [method.name]."""
    max_rounds: int = 8
    """Policies trained at the most [method]."""
    confidence: float = 0.95
    """Of the certificate [certificate]."""
    seed: int = 0
    """Of every stage [run]."""
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Further keys of the config by section: ``{"policy": {"template": "plain"}}``."""

    def as_sections(self) -> dict[str, Any]:
        """Return the sections of the config.

        Raises:
            ArgumentError: lengths that do not go together, or a section that is none.
        """
        answer = self.max_completion_length
        if self.max_length is not None:
            if self.max_prompt_length is None or answer is not None:
                raise ArgumentError("max_length: give it with max_prompt_length and without max_completion_length")
            answer = self.max_length - self.max_prompt_length
        training = (
            *("beta", "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size"),
            *("gradient_accumulation_steps", "warmup_steps", "lr_scheduler_type", "max_grad_norm", "weight_decay"),
        )
        dtype = {None: "auto", True: "bfloat16", False: "float32"}[self.bf16]
        found: dict[str, dict[str, Any]] = {
            "training": {**{name: getattr(self, name) for name in training}, "dtype": dtype},
            "sampling": {
                "responses_per_prompt": self.num_generations,
                "temperature": self.temperature,
                "batch_size": self.generation_batch_size,
                **({} if answer is None else {"max_new_tokens": answer}),
            },
            "policy": {} if self.max_prompt_length is None else {"max_prompt_tokens": self.max_prompt_length},
            "method": {
                "name": self.method,
                "loss": LOSSES.get(self.loss_type, self.loss_type),
                "max_rounds": self.max_rounds,
            },
            "certificate": {"confidence": self.confidence},
            "run": {"seed": self.seed, "name": Path(self.output_dir).resolve().name},
        }
        return joined(found, self.sections)


class TrainOutput(NamedTuple):
    """What ``train`` returns, as TRL's trainers do."""

    global_step: int
    """Optimiser steps of all policies."""
    training_loss: float | None
    """Mean loss at the end of the selected policy's fit."""
    metrics: dict[str, float]


class CDPOTrainer:
    """Trains the most helpful policy that its limits allow, and certifies it."""

    def __init__(
        self,
        model: Any,
        args: CDPOConfig,
        train_dataset: Any,
        *,
        reward: Given,
        limits: Sequence[Limit],
        eval_dataset: Any = None,
        processing_class: Any = None,
        peft_config: Any = None,
        metrics: Mapping[str, Given] | None = None,
        judges: Mapping[str, Given] | None = None,
        progress: Tell | None = None,
    ) -> None:
        """Check what was given and put the job together; nothing is trained, and nothing of the run is written.

        Args:
            model: a folder or a hub id; or a loaded model, with its tokenizer as ``processing_class``.
            args: how to align.
            train_dataset: prompts (a data set, a frame, a list); or rows with ``chosen`` and ``rejected``, which are
                then trained on in the place of the model's own samples.
            reward: what is maximised: a callable ``(prompts, responses) -> numbers``, or a scorer in another form.
            limits: the requirements.
            eval_dataset: prompts to measure and certify on; none: a part of the training prompts is kept for that.
            processing_class: tokenizer of a loaded model.
            peft_config: a ``peft.LoraConfig``; none: LoRA of rank 16 on all linear layers.
            metrics: further scorers, shown on report prompts.
            judges: independent scorers of ``reward`` or of a limit by its name.
            progress: called with each line of progress.

        Raises:
            ArgumentError, ConfigError, DataError: an argument that is wrong.
        """
        self.args = args
        self._progress = progress
        self._run: Run | None = None
        pairs = train_dataset if _holds_pairs(train_dataset) else None
        if pairs is None:
            asked = prompts_in("train_dataset", train_dataset)
        else:
            pairs = pairs_in("train_dataset", train_dataset)
            asked = list({prompt.id: prompt for prompt, _, _ in pairs}.values())
        self._task = task_of(
            model,
            asked if eval_dataset is None else _apart(asked, prompts_in("eval_dataset", eval_dataset), args.seed),
            reward=reward,
            limits=limits,
            pairs=pairs,
            processing_class=processing_class,
            peft_config=peft_config,
            metrics=metrics,
            judges=judges,
            **args.as_sections(),
        )

    def train(self) -> TrainOutput:
        """Return steps, loss and metrics of the finished training; ``run`` and ``certificate`` are there then.

        Raises:
            InfeasibleError: no policy can meet the limits.
            DataError: ``output_dir`` holds a run that was made from something else.
        """
        self._run = self._task.run(Path(self.args.output_dir), self._progress or quiet)
        steps = sum(int(row.get("steps") or 0) for row in self._run.result["iterates"])
        fitted = self._run.folder / "rounds" / str(self._run.selected["name"]) / "fit" / "policy.json"
        loss = read_json(fitted)["report"]["loss"] if fitted.is_file() else None
        return TrainOutput(steps, loss, self._metrics("train", self._run.selected))

    def evaluate(self) -> dict[str, float]:
        """Return the selected policy's reward, costs and KL on tune prompts, and the bounds of its certificate."""
        certificate = self.certificate
        bounds = {} if certificate is None else certificate.upper_bounds
        return self._metrics("eval", self.run.selected) | {f"eval_bound_{name}": b for name, b in bounds.items()}

    def save_model(self, output_dir: str | Path) -> Path:
        """Return ``output_dir``, which then holds the selected policy's weights and tokenizer."""
        return self.policy.save(output_dir)

    @property
    def run(self) -> Run:
        """Return the finished run.

        Raises:
            UsageError: ``train`` was not called.
        """
        if self._run is None:
            raise UsageError("the trainer has no run yet: call train() first")
        return self._run

    @property
    def certificate(self) -> Certificate | None:
        """Return what was claimed and shown on the calibration prompts."""
        return self.run.certificate

    @property
    def policy(self) -> TrainedPolicy:
        """Return the selected policy."""
        return self.run.policy

    @staticmethod
    def _metrics(prefix: str, selected: Mapping[str, Any]) -> dict[str, float]:
        """Return a policy's figures by names as those of TRL."""
        found = {f"{prefix}_reward": selected["reward"], f"{prefix}_kl": selected["kl"]}
        found |= {f"{prefix}_cost_{name}": value for name, value in selected["costs"].items()}
        return found | {f"{prefix}_multiplier_{name}": value for name, value in selected["multipliers"].items()}


def _holds_pairs(data: Any) -> bool:
    """Return whether a table has answers to compare."""
    if not is_table(data):
        return False
    names = getattr(data, "column_names", None) or getattr(data, "columns", None)
    columns = list(data if isinstance(data, Mapping) else data[0] if names is None else names)
    return {"chosen", "rejected"} <= set(columns)


def _apart(train: list[Prompt], held: list[Prompt], seed: int) -> dict[str, list[Prompt]]:
    """Return the splits of a job: all training prompts, and the held ones divided by hash."""
    from dualign.data.splits import near_clusters, split

    shares = {"tune": 0.33, "calibration": 0.5, "report": 0.17}
    return {"train": train, **split(held, shares, seed, clusters=near_clusters(held))}
