"""Relevance of a response: cosine of the prompt's and the response's embedding under a Hugging Face encoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from dualign.records import FloatArray, Prompt
from dualign.scorers.encoding import (
    check_lengths,
    even_batches,
    fitting_length,
    load_model,
    load_tokenizer,
    model_revision,
)
from dualign.scorers.length import tokenizer_revision
from dualign.scorers.protocol import Direction
from dualign.scorers.spec import ScorerSpec, Setting, revision_of


class EmbeddingRelevanceSpec(ScorerSpec):
    """Keys of ``kind: embedding-relevance``."""

    model: str
    """Folder or id of an encoder (or of a language model: its last hidden states are averaged just so)."""
    revision: str | None = None
    """Branch, tag or commit of an id."""
    batch_size: int = Field(default=32, ge=1)
    """Changes speed alone: texts of one length are read together, without padding."""
    max_length: int = Field(default=512, ge=1)
    """Longer texts are an error."""
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class EmbeddingRelevanceScorer:
    """cos(mean hidden state of the prompt, mean hidden state of the response), in [-1, 1]."""

    model: Any
    tokenizer: Any
    direction: Direction
    batch_size: int = 32
    max_length: int = 512
    name: str = "model"

    @property
    def id(self) -> str:
        """Return the kind and the model's name."""
        return f"embedding-relevance({self.name})"

    @property
    def revision(self) -> str:
        """Return a hash of the model and its tokenizer."""
        return revision_of(
            kind="embedding-relevance",
            model=model_revision(self.model),
            dtype=str(self.model.dtype),
            tokenizer=tokenizer_revision(self.tokenizer),
        )

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        """Return shape ``[response]`` cosines; 0 for a response without any text.

        Raises:
            ScorerError: a text is longer than ``max_length``.
        """
        distinct = list(dict.fromkeys([*(prompt.text for prompt in prompts), *responses]))
        filled = [text for text in distinct if text.strip()]
        vectors = dict(zip(filled, self._embed(filled), strict=True))
        return np.array(
            [
                float(vectors[prompt.text] @ vectors[response]) if response in vectors else 0.0
                for prompt, response in zip(prompts, responses, strict=True)
            ]
        )

    def _embed(self, texts: Sequence[str]) -> list[FloatArray]:
        """Return the unit vector of each text, of shape ``[hidden]``."""
        import torch

        sequences = [list(self.tokenizer(text)["input_ids"]) for text in texts]
        check_lengths(sequences, self.max_length, self.id)
        vectors: list[FloatArray] = [np.empty(0)] * len(texts)
        with torch.no_grad():
            for indices, ids, mask in even_batches(sequences, self.batch_size, self.model.device):
                hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.double()
                weight = mask.unsqueeze(-1).double()
                mean = (hidden * weight).sum(1) / weight.sum(1)
                unit = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
                for row, index in enumerate(indices):
                    vectors[index] = unit[row]
        return vectors


def build(spec: EmbeddingRelevanceSpec, setting: Setting) -> EmbeddingRelevanceScorer:
    """Return the scorer that ``spec`` describes."""
    from transformers import AutoModel

    load: dict[str, Any] = {"name": spec.model, "folder": setting.folder, "revision": spec.revision}
    model, tokenizer = load_model(AutoModel, dtype=spec.dtype, **load), load_tokenizer(**load)
    return EmbeddingRelevanceScorer(
        model=model,
        tokenizer=tokenizer,
        direction=setting.direction,
        batch_size=spec.batch_size,
        max_length=fitting_length(spec, model, tokenizer, f"scorer embedding-relevance ({spec.model})"),
        name=Path(spec.model).name,
    )
