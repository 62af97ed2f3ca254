"""The dtype that a fit computes in, where the config leaves it open."""

from __future__ import annotations

from typing import Any, Literal

from dualign.engine.language_model import LanguageModel
from dualign.engine.timing import choose_compute


def faster_dtype(model: Any, tokenizer: Any = None) -> Literal["float32", "bfloat16"]:
    """Return ``float32`` or ``bfloat16``, whichever is faster for ``model`` on this machine; takes about a second."""
    timed = LanguageModel(model=model, tokenizer=tokenizer, template=lambda _: [], eos=0, pad=1)
    return "bfloat16" if choose_compute(timed).dtype == "bfloat16" else "float32"
