"""Scores of classifiers and reward models, and of encoders: how near a response is to its prompt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from dualign.errors import ConfigError, nearest
from dualign.models.language_model import encoder
from dualign.models.turns import chat_text
from dualign.records import FloatArray, Prompt, Turn
from dualign.scorers.encoding import PretrainedSpec, Score, absent_id, load_pretrained
from dualign.scorers.spec import RESPONSE, FunctionScorer, Setting, conversation_text, fill

if TYPE_CHECKING:
    from torch import Tensor


NAMED_TEMPLATES = ("pair", "chat", "response")


class SequenceClassifierSpec(PretrainedSpec):
    """Keys of ``kind: sequence-classifier``."""

    labels: dict[str, float] = Field(default_factory=dict)
    """Label -> score; the result is the sum of probability x score. Empty: the raw output of a one-label model."""
    template: str = "pair"
    """``pair`` (prompt and response as two segments), ``chat`` (the tokenizer's chat template), ``response`` alone,
    or a text with {prompt} and {response}, special tokens written out, to which only a BOS is added. Earlier turns
    are turns of ``chat``; elsewhere they stand before the prompt, each line led by who speaks."""


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


def build(spec: SequenceClassifierSpec, setting: Setting) -> FunctionScorer:
    """Return the expected label score, or the raw output of a model with one label.

    Raises:
        ConfigError: the labels are not the model's, or the template cannot be used.
    """
    from transformers import AutoModelForSequenceClassification

    pretrained = load_pretrained(AutoModelForSequenceClassification, spec, setting, kind="sequence-classifier")
    name, model, template = pretrained.reading.scorer, pretrained.model, spec.template
    check_labels(spec.labels, model.config)
    if template not in NAMED_TEMPLATES and RESPONSE not in template:
        raise ConfigError(
            f"scorer {name}: template {template!r} is none of {', '.join(NAMED_TEMPLATES)} "
            f"and does not contain {RESPONSE}"
        )
    if template == "chat" and not getattr(pretrained.tokenizer, "chat_template", None):
        raise ConfigError(f"scorer {name}: template 'chat', but the tokenizer has no chat template")
    scores = pretrained.reading.of(_tokens(pretrained.tokenizer, template), _expected(model, spec.labels))
    return pretrained.scorer(scores, labels=spec.labels, template=template)


def _expected(model: Any, labels: Mapping[str, float]) -> Score:
    """Return what makes scores of rows of tokens."""
    import torch

    def scores(ids: "Tensor", mask: "Tensor", _: Sequence[int]) -> "Tensor":
        # A pooling model skips this id at the end of a row; it occurs in none of the texts.
        model.config.get_text_config().pad_token_id = absent_id(ids.tolist())
        logits: Tensor = model(input_ids=ids, attention_mask=mask).logits.double()
        if not labels:
            return logits[:, 0]
        names = model.config.id2label
        weight = [labels.get(names[index], 0.0) for index in range(logits.shape[1])]
        # One label, or several that do not exclude each other: each has its own probability.
        independent = logits.shape[1] == 1 or model.config.problem_type == "multi_label_classification"
        probability = torch.sigmoid(logits) if independent else torch.softmax(logits, dim=1)
        return probability @ torch.tensor(weight, dtype=logits.dtype, device=logits.device)

    return scores


def _tokens(tokenizer: Any, template: str) -> Callable[[Prompt, str], list[int]]:
    """Return the function from a prompt and a response to the tokens that are read."""
    encode = encoder(tokenizer)

    def tokens(prompt: Prompt, response: str) -> list[int]:
        asked = conversation_text(prompt.history, prompt.text)
        if template == "pair":
            return list(tokenizer(asked, response)["input_ids"])
        if template == "response":
            return list(tokenizer(response)["input_ids"])
        if template == "chat":
            turns = (*prompt.history, Turn("user", prompt.text), Turn("assistant", response))

            def render(texts: Sequence[str]) -> str:
                spoken = [replace(turn, text=text) for turn, text in zip(turns, texts, strict=True)]
                return chat_text(tokenizer, spoken, add_generation_prompt=False)

            return encode([turn.text for turn in turns], render)
        ids = encode([asked, response], lambda texts: fill(template, prompt=texts[0], response=texts[1]))
        begin = tokenizer.bos_token_id
        return ids if begin is None or ids[:1] == [begin] else [begin, *ids]

    return tokens


class EmbeddingRelevanceSpec(PretrainedSpec):
    """Keys of ``kind: embedding-relevance``; of a language model as ``model``, last states are averaged just so."""

    batch_size: int = Field(default=32, ge=1)


def build_relevance(spec: EmbeddingRelevanceSpec, setting: Setting) -> FunctionScorer:
    """Return cos(mean hidden state of the prompt, of the response), in [-1, 1]; 0 for a response without any text."""
    from torch.nn.functional import normalize
    from transformers import AutoModel

    pretrained = load_pretrained(AutoModel, spec, setting, kind="embedding-relevance")

    def units(ids: "Tensor", mask: "Tensor", _: Sequence[int]) -> "Tensor":
        hidden = pretrained.model(input_ids=ids, attention_mask=mask).last_hidden_state.double()
        return normalize(hidden.mean(1), dim=1)

    def cosines(prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        distinct = dict.fromkeys([*(prompt.text for prompt in prompts), *responses])
        filled = [text for text in distinct if text.strip()]
        sequences = [list(pretrained.tokenizer(text)["input_ids"]) for text in filled]
        vectors = dict(zip(filled, pretrained.reading(sequences, units), strict=True))
        pairs = zip(prompts, responses, strict=True)
        return np.array([float(vectors[p.text] @ vectors[r]) if r in vectors else 0.0 for p, r in pairs])

    return pretrained.scorer(cosines)
