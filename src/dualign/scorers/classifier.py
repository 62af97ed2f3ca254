"""Scores of classifiers and reward models, and of encoders: how near a response is to its prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from dualign.errors import ConfigError, nearest
from dualign.models.language_model import Encode, encoder
from dualign.models.turns import chat_text
from dualign.protocols import Direction
from dualign.records import FloatArray, Prompt, Turn
from dualign.scorers.encoding import Pretrained, PretrainedSpec, absent_id, load_pretrained
from dualign.scorers.spec import Setting, conversation_text, fill, revision_of

if TYPE_CHECKING:
    from torch import Tensor


RESPONSE = "{response}"
NAMED_TEMPLATES = ("pair", "chat", "response")


class SequenceClassifierSpec(PretrainedSpec):
    """Keys of ``kind: sequence-classifier``."""

    labels: dict[str, float] = Field(default_factory=dict)
    """Label -> score; the result is the sum of probability x score. Empty: the raw output of a one-label model."""
    template: str = "pair"
    """``pair`` (prompt and response as two segments), ``chat`` (the tokenizer's chat template), ``response`` alone,
    or a text with {prompt} and {response}, special tokens written out, to which only a BOS is added. Earlier turns
    are turns of ``chat``; elsewhere they stand before the prompt, each line led by who speaks."""


@dataclass(frozen=True)
class SequenceClassifierScorer:
    """Expected label score, or the raw output of a model with one label."""

    pretrained: Pretrained
    direction: Direction
    labels: Mapping[str, float]
    template: str

    def __post_init__(self) -> None:
        check_labels(self.labels, self.pretrained.model.config)
        if self.template not in NAMED_TEMPLATES and RESPONSE not in self.template:
            raise ConfigError(
                f"scorer {self.id}: template {self.template!r} is none of {', '.join(NAMED_TEMPLATES)} "
                f"and does not contain {RESPONSE}"
            )
        if self.template == "chat" and not getattr(self.pretrained.tokenizer, "chat_template", None):
            raise ConfigError(f"scorer {self.id}: template 'chat', but the tokenizer has no chat template")

    @property
    def id(self) -> str:
        """Return the kind and the model's name."""
        return f"sequence-classifier({self.pretrained.name})"

    @property
    def revision(self) -> str:
        """Return a hash of the model, its tokenizer, the label scores and the template."""
        return revision_of(
            kind="sequence-classifier", labels=dict(self.labels), template=self.template, **self.pretrained.facts
        )

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        """Return shape ``[response]`` scores.

        Raises:
            ScorerError: a text is longer than ``max_length``.
        """
        encode = encoder(self.pretrained.tokenizer)
        pairs = zip(prompts, responses, strict=True)
        sequences = [self._tokens(encode, prompt, response) for prompt, response in pairs]
        return self.pretrained.reading(self.id)(sequences, self._scores)

    def _scores(self, ids: "Tensor", mask: "Tensor") -> "Tensor":
        import torch

        model = self.pretrained.model
        # A pooling model skips this id at the end of a row; it occurs in none of the texts.
        model.config.get_text_config().pad_token_id = absent_id(ids.tolist())
        logits: Tensor = model(input_ids=ids, attention_mask=mask).logits.double()
        if not self.labels:
            return logits[:, 0]
        names = model.config.id2label
        weight = [self.labels.get(names[index], 0.0) for index in range(logits.shape[1])]
        # One label, or several that do not exclude each other: each has its own probability.
        independent = logits.shape[1] == 1 or model.config.problem_type == "multi_label_classification"
        probability = torch.sigmoid(logits) if independent else torch.softmax(logits, dim=1)
        return probability @ torch.tensor(weight, dtype=logits.dtype, device=logits.device)

    def _tokens(self, encode: Encode, prompt: Prompt, response: str) -> list[int]:
        tokenizer, asked = self.pretrained.tokenizer, conversation_text(prompt.history, prompt.text)
        if self.template == "pair":
            return list(tokenizer(asked, response)["input_ids"])
        if self.template == "response":
            return list(tokenizer(response)["input_ids"])
        if self.template == "chat":
            turns = (*prompt.history, Turn("user", prompt.text), Turn("assistant", response))

            def render(texts: Sequence[str]) -> str:
                spoken = [replace(turn, text=text) for turn, text in zip(turns, texts, strict=True)]
                return chat_text(tokenizer, spoken, add_generation_prompt=False)

            return encode([turn.text for turn in turns], render)
        ids = encode([asked, response], lambda texts: fill(self.template, prompt=texts[0], response=texts[1]))
        begin = tokenizer.bos_token_id
        return ids if begin is None or ids[:1] == [begin] else [begin, *ids]


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

    pretrained = load_pretrained(AutoModelForSequenceClassification, spec, setting, kind="sequence-classifier")
    return SequenceClassifierScorer(pretrained, setting.direction, spec.labels, spec.template)


class EmbeddingRelevanceSpec(PretrainedSpec):
    """Keys of ``kind: embedding-relevance``; of a language model as ``model``, last states are averaged just so."""

    batch_size: int = Field(default=32, ge=1)


@dataclass(frozen=True)
class EmbeddingRelevanceScorer:
    """cos(mean hidden state of the prompt, mean hidden state of the response), in [-1, 1]."""

    pretrained: Pretrained
    direction: Direction

    @property
    def id(self) -> str:
        """Return the kind and the model's name."""
        return f"embedding-relevance({self.pretrained.name})"

    @property
    def revision(self) -> str:
        """Return a hash of the model and its tokenizer."""
        return revision_of(kind="embedding-relevance", **self.pretrained.facts)

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        """Return shape ``[response]`` cosines; 0 for a response without any text.

        Raises:
            ScorerError: a text is longer than ``max_length``.
        """
        distinct = list(dict.fromkeys([*(prompt.text for prompt in prompts), *responses]))
        filled = [text for text in distinct if text.strip()]
        sequences = [list(self.pretrained.tokenizer(text)["input_ids"]) for text in filled]
        vectors = dict(zip(filled, self.pretrained.reading(self.id)(sequences, self._units), strict=True))
        pairs = zip(prompts, responses, strict=True)
        return np.array([float(vectors[p.text] @ vectors[r]) if r in vectors else 0.0 for p, r in pairs])

    def _units(self, ids: "Tensor", mask: "Tensor") -> "Tensor":
        """Return the unit vector of each text, ``[row, hidden]``."""
        from torch.nn.functional import normalize

        hidden = self.pretrained.model(input_ids=ids, attention_mask=mask).last_hidden_state.double()
        return normalize(hidden.mean(1), dim=1)


def build_relevance(spec: EmbeddingRelevanceSpec, setting: Setting) -> EmbeddingRelevanceScorer:
    """Return the scorer that ``spec`` describes."""
    from transformers import AutoModel

    return EmbeddingRelevanceScorer(
        load_pretrained(AutoModel, spec, setting, kind="embedding-relevance"), setting.direction
    )
