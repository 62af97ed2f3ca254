"""``kind: score-checkpoint``: the end score of a reward or cost model in the layouts of Safe RLHF (Dai et al. 2023)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dualign.errors import ConfigError, UsageError
from dualign.models.templates import make_transcript
from dualign.protocols import Direction
from dualign.records import FloatArray, Prompt
from dualign.scorers.encoding import Reading, ReadingSpec, fitting_length, load_tokenizer
from dualign.scorers.score_model import ScoreModel, check_end_token, check_tokenizer, load_score_model
from dualign.scorers.spec import Setting, folder_revision, revision_of, tokenizer_revision


class ScoreCheckpointSpec(ReadingSpec):
    """Keys of ``kind: score-checkpoint``; whether it is a reward or a cost is told by where it is used."""

    model: str
    """Local folder with config, weights and tokenizer."""
    template: Literal["beaver", "chat", "plain"] = "beaver"
    """What the model was trained with; another template gives other scores."""
    append_eos: bool = True
    """Whether an end token follows the response, as in training; some model cards show scores without."""
    batch_size: int = Field(default=8, ge=1)


@dataclass(frozen=True)
class ScoreCheckpointScorer:
    """The score that a reward or cost model gives at the end of prompt and response."""

    model: ScoreModel
    tokenizer: Any
    spec: ScoreCheckpointSpec
    direction: Direction
    weights: str
    """Hash of the files that the model was loaded from."""

    def __post_init__(self) -> None:
        size = len(self.model.head_weight)
        if size != 1:
            raise ConfigError(f"scorer {self.id}: the model gives {size} scores a text; one is needed")

    @property
    def id(self) -> str:
        """Return the kind and the model's name."""
        return f"score-checkpoint({Path(self.spec.model).name})"

    @property
    def revision(self) -> str:
        """Return a hash of the files, the tokenizer, the direction and the settings that decide the numbers."""
        return revision_of(
            kind="score-checkpoint",
            weights=self.weights,
            tokenizer=tokenizer_revision(self.tokenizer),
            direction=self.direction,
            **self.spec.model_dump(include={"template", "append_eos", "dtype"}),
        )

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        """Return shape ``[response]`` scores.

        Raises:
            ScorerError: a text is longer than ``max_length``.
            DataError: the template has no place for a turn of a prompt.
        """
        transcript = make_transcript(self.spec.template, self.tokenizer, append_eos=self.spec.append_eos)
        sequences = [transcript(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        reading = Reading(self.id, self.model.head_weight.device, self.spec.batch_size, self.spec.max_length)
        return reading(sequences, lambda ids, mask: self.model.end_scores(ids, mask, self.direction)[:, 0])


def build(spec: ScoreCheckpointSpec, setting: Setting) -> ScoreCheckpointScorer:
    """Return the scorer that ``spec`` describes.

    Raises:
        ConfigError: the template does not go with the tokenizer, or the model gives several scores.
        MissingError: the folder, or the weights in it, are not there.
        DataError: the checkpoint is damaged, of another architecture, or its tokenizer is another model's.
    """
    folder = setting.existing(spec.model, "scorer score-checkpoint: model")
    tokenizer = load_tokenizer(spec.model, setting.folder)
    try:
        make_transcript(spec.template, tokenizer, append_eos=spec.append_eos)
    except UsageError as error:
        raise ConfigError(f"scorer score-checkpoint: {error}") from error
    model = load_score_model(folder, dtype=spec.dtype)
    check_tokenizer(tokenizer, model.backbone, str(folder))
    longest = fitting_length(spec, model.backbone, tokenizer, f"scorer score-checkpoint ({spec.model})")
    spec = spec.model_copy(update={"max_length": longest})
    if spec.append_eos:
        check_end_token(tokenizer, model.backbone.config, str(folder))
    return ScoreCheckpointScorer(model, tokenizer, spec, setting.direction, folder_revision(folder))
