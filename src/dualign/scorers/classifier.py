"""How a prompt with its history and a response are written into one text for a judge that reads texts."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from dualign.errors import ConfigError, nearest
from dualign.models.language_model import Encode, encoder
from dualign.models.turns import chat_text
from dualign.protocols import Direction
from dualign.records import FloatArray, Prompt, Turn
from dualign.scorers.encoding import (
    absent_id,
    check_lengths,
    even_batches,
    fitting_length,
    load_model,
    load_tokenizer,
    model_revision,
)
from dualign.scorers.rules import tokenizer_revision
from dualign.scorers.spec import ScorerSpec, Setting, revision_of

if TYPE_CHECKING:
    from torch import Tensor


_SLOT = re.compile(r"\{(prompt|response)\}")


def conversation_text(history: Sequence[Turn], text: str) -> str:
    """Return the prompt ``text``; after other turns, the whole conversation, each turn led by its speaker."""
    if not history:
        return text
    return "\n".join(f"{turn.role}: {turn.text}" for turn in (*history, Turn("user", text)))


def fill(wording: str, *, prompt: str, response: str) -> str:
    """Return ``wording`` with {prompt} and {response} replaced in one pass; every other brace stays.

    A "{response}" inside a prompt is text, and no attribute of anything can be named.
    """
    texts = {"prompt": prompt, "response": response}
    return _SLOT.sub(lambda slot: texts[slot[1]], wording)


RESPONSE = "{response}"
NAMED_TEMPLATES = ("pair", "chat", "response")


class SequenceClassifierSpec(ScorerSpec):
    """Keys of ``kind: sequence-classifier``."""

    model: str
    """Folder or id of the model; its tokenizer is taken from the same place."""
    labels: dict[str, float] = Field(default_factory=dict)
    """Label -> score; the result is the sum of probability x score. Empty: the raw output of a one-label model."""
    template: str = "pair"
    """``pair`` (prompt and response as two segments), ``chat`` (the tokenizer's chat template), ``response`` alone,
    or a text with {prompt} and {response}, special tokens written out, to which only a BOS is added. Earlier turns
    are turns of ``chat``; elsewhere they stand before the prompt, each line led by who speaks."""
    revision: str | None = None
    """Branch, tag or commit of an id."""
    batch_size: int = Field(default=16, ge=1)
    """Changes speed alone: texts of one length are read together, without padding."""
    max_length: int = Field(default=512, ge=1)
    """Longer texts are an error: a cut text would get the score of another."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 halves the memory; on a GPU, whose products may round by the number of rows, scores then vary a little
    with ``batch_size``."""


@dataclass(frozen=True)
class SequenceClassifierScorer:
    """Expected label score, or the raw output of a model with one label."""

    model: Any
    tokenizer: Any
    direction: Direction
    labels: Mapping[str, float] = field(default_factory=dict)
    template: str = "pair"
    batch_size: int = 16
    max_length: int = 512
    name: str = "model"

    def __post_init__(self) -> None:
        check_labels(self.labels, self.model.config)
        if self.template not in NAMED_TEMPLATES and RESPONSE not in self.template:
            raise ConfigError(
                f"scorer {self.id}: template {self.template!r} is none of {', '.join(NAMED_TEMPLATES)} "
                f"and does not contain {RESPONSE}"
            )
        if self.template == "chat" and not getattr(self.tokenizer, "chat_template", None):
            raise ConfigError(f"scorer {self.id}: template 'chat', but the tokenizer has no chat template")

    @property
    def id(self) -> str:
        """Return the kind and the model's name."""
        return f"sequence-classifier({self.name})"

    @property
    def revision(self) -> str:
        """Return a hash of the model, its tokenizer, the label scores and the template."""
        return revision_of(
            kind="sequence-classifier",
            model=model_revision(self.model),
            dtype=str(self.model.dtype),
            tokenizer=tokenizer_revision(self.tokenizer),
            labels=dict(self.labels),
            template=self.template,
        )

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        """Return shape ``[response]`` scores.

        Raises:
            ScorerError: a text is longer than ``max_length``.
        """
        import torch

        encode = encoder(self.tokenizer)
        pairs = zip(prompts, responses, strict=True)
        sequences = [self._tokens(encode, prompt, response) for prompt, response in pairs]
        check_lengths(sequences, self.max_length, self.id)
        scores = np.empty(len(sequences))
        with torch.no_grad():
            for indices, ids, mask in even_batches(sequences, self.batch_size, self.model.device):
                # A pooling model skips this id at the end of a row; it occurs in none of the texts.
                self.model.config.get_text_config().pad_token_id = absent_id([sequences[index] for index in indices])
                logits = self.model(input_ids=ids, attention_mask=mask).logits
                scores[indices] = self._score(logits.double()).cpu().numpy()
        return scores

    def _score(self, logits: "Tensor") -> "Tensor":
        import torch

        if not self.labels:
            return logits[:, 0]
        names = self.model.config.id2label
        weight = [self.labels.get(names[index], 0.0) for index in range(logits.shape[1])]
        # One label, or several that do not exclude each other: each has its own probability.
        independent = logits.shape[1] == 1 or self.model.config.problem_type == "multi_label_classification"
        probability = torch.sigmoid(logits) if independent else torch.softmax(logits, dim=1)
        return probability @ torch.tensor(weight, dtype=logits.dtype, device=logits.device)

    def _tokens(self, encode: Encode, prompt: Prompt, response: str) -> list[int]:
        asked = conversation_text(prompt.history, prompt.text)
        if self.template == "pair":
            return list(self.tokenizer(asked, response)["input_ids"])
        if self.template == "response":
            return list(self.tokenizer(response)["input_ids"])
        if self.template == "chat":
            return self._chat_tokens(encode, prompt, response)
        ids = encode([asked, response], lambda texts: fill(self.template, prompt=texts[0], response=texts[1]))
        begin = self.tokenizer.bos_token_id
        return ids if begin is None or ids[:1] == [begin] else [begin, *ids]

    def _chat_tokens(self, encode: Encode, prompt: Prompt, response: str) -> list[int]:
        turns = (*prompt.history, Turn("user", prompt.text), Turn("assistant", response))

        def render(texts: Sequence[str]) -> str:
            spoken = [replace(turn, text=text) for turn, text in zip(turns, texts, strict=True)]
            return chat_text(self.tokenizer, spoken, add_generation_prompt=False)

        return encode([turn.text for turn in turns], render)


def check_labels(labels: Mapping[str, float], config: Any) -> None:
    """Check that ``labels`` fits the model.

    Raises:
        ConfigError: a label is unknown, or there are several labels and no scores for them.
    """
    known = list(config.id2label.values())
    for name in labels:
        if name not in known:
            raise ConfigError(f"scorer sequence-classifier: labels: unknown {name!r}; {nearest(name, known)}")
    if not labels and len(known) != 1:
        raise ConfigError(
            f"scorer sequence-classifier: the model has labels {', '.join(known)}; 'labels' must say what each "
            f"is worth, for instance {{{known[-1]}: 1}}"
        )


def build(spec: SequenceClassifierSpec, setting: Setting) -> SequenceClassifierScorer:
    """Return the scorer that ``spec`` describes."""
    from transformers import AutoModelForSequenceClassification

    load: dict[str, Any] = {"name": spec.model, "folder": setting.folder, "revision": spec.revision}
    model = load_model(AutoModelForSequenceClassification, dtype=spec.dtype, **load)
    tokenizer = load_tokenizer(**load)
    return SequenceClassifierScorer(
        model=model,
        tokenizer=tokenizer,
        direction=setting.direction,
        labels=spec.labels,
        template=spec.template,
        batch_size=spec.batch_size,
        max_length=fitting_length(spec, model, tokenizer, f"scorer sequence-classifier ({spec.model})"),
        name=Path(spec.model).name,
    )
