"""``dualign sample``: a model and a file of prompts -> a file of responses."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dualign.cli.columns import Columns, mapping
from dualign.errors import UsageError, inert
from dualign.records import Prompt, Response

if TYPE_CHECKING:
    from dualign.data.prompts import PromptFile


def sample(
    policy: Annotated[str, typer.Argument(help="Model folder, org/name, .gguf file or package:NAME.")],
    prompts: Annotated[
        Path, typer.Argument(help="JSONL, CSV, Parquet or text (one prompt a line); texts or messages.")
    ],
    out: Annotated[Path, typer.Option(help="Where to write the responses, as .jsonl.")],
    adapter: Annotated[Path | None, typer.Option(help="Folder of a LoRA adapter, or of full weights.")] = None,
    n: Annotated[int, typer.Option("--responses", "-n", min=1, help="Responses a prompt.")] = 1,
    temperature: Annotated[float, typer.Option(help="The policy is softmax(logits / temperature).")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest response in tokens.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences decoded together.")] = 32,
    template: Annotated[str | None, typer.Option(help="chat, plain or beaver; default: the model's.")] = None,
    system_prompt: Annotated[str | None, typer.Option(help="System prompt; '' for none at all.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same draws.")] = 0,
    columns: Columns = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing.")] = False,
) -> None:
    """Draw responses of a policy: unbiased draws, each with its tokens and log-probability.

    Example: dualign sample ./model prompts.jsonl --adapter run/rounds/02/fit/policy -n 4 --out answers.jsonl
    """
    from dualign.data.prompts import read_prompts
    from dualign.runs.store import write_text

    if out.suffix != ".jsonl":
        raise UsageError(f"--out {out}: responses are written as JSON lines; name a file that ends in .jsonl")
    if out.exists() and prompts.exists() and out.samefile(prompts):
        raise UsageError(f"--out {out}: is the file of the prompts; name another")
    found = read_prompts(prompts, rename=mapping(columns))
    asked = found.every

    from dualign.backends.protocol import Policy
    from dualign.engine.loading import load_language_model
    from dualign.engine.templates import with_template
    from dualign.sampling.protocol import Sampling
    from dualign.sampling.transformers_engine import TransformersSampler

    language_model = load_language_model(
        policy,
        temperature=temperature,
        max_response_tokens=max_new_tokens,
        system_prompt=system_prompt,
        dtype=dtype,
    )
    if template is not None:
        language_model = with_template(language_model, template, system_prompt=system_prompt)
    settings = Sampling(temperature=temperature, max_new_tokens=max_new_tokens, batch_size=batch_size)
    drawn = TransformersSampler(language_model).generate(
        Policy("sampled", adapter), keyed_apart(asked), n, sampling=settings, seed=seed, stage="sample"
    )
    write_text(out, lines(asked, drawn))
    figures = summary(drawn, out) | {"repeated_prompts": found.duplicates}
    if found.duplicates and not quiet:
        print(f"note: {repeated(found)}", file=sys.stderr)
    if as_json:
        print(json.dumps(figures, allow_nan=False))
    elif not quiet:
        print(
            f"{figures['responses']} responses to {figures['prompts']} prompts, "
            f"{figures['mean_tokens']:.1f} tokens each, "
            f"{figures['share_finished']:.0%} ended by themselves -> {inert(out)}"
        )


def keyed_apart(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return the prompts, the ids of repeated ones marked: draws are keyed by ids, and each row has its own."""
    seen: Counter[str] = Counter()
    keyed = []
    for prompt in prompts:
        seen[prompt.id] += 1
        times = seen[prompt.id]
        keyed.append(prompt if times == 1 else replace(prompt, id=f"{prompt.id}-{times}"))
    return keyed


def repeated(found: "PromptFile") -> str:
    """Return how many rows repeat a prompt, in words."""
    spelt = f", {found.alike} of them in another letter case, white space or Unicode form" if found.alike else ""
    return f"{found.duplicates} of {len(found.every)} prompts repeat another one{spelt}; each has responses of its own"


def lines(prompts: Sequence[Prompt], drawn: Sequence[Sequence[Response]]) -> str:
    """Return one JSON line a response: the prompt with its columns, and what was drawn."""
    from dualign.data.conversations import written

    rows = []
    for prompt, responses in zip(prompts, drawn, strict=True):
        for number, response in enumerate(responses):
            row = {
                **prompt.columns,
                "prompt": written(prompt),
                "prompt_id": prompt.id,
                "sample": number,
                "response": response.text,
                "tokens": list(response.tokens),
                "log_prob": response.log_prob,
                "finished": response.finished,
            }
            rows.append(json.dumps(row, ensure_ascii=False, allow_nan=False))
    return "".join(row + "\n" for row in rows)


def summary(drawn: Sequence[Sequence[Response]], out: Path) -> dict[str, float | int | str]:
    """Return what ``--json`` prints."""
    responses = [response for group in drawn for response in group]
    count = max(1, len(responses))
    return {
        "out": str(out),
        "prompts": len(drawn),
        "responses": len(responses),
        "mean_tokens": sum(len(response.tokens) for response in responses) / count,
        "share_finished": sum(response.finished for response in responses) / count,
    }
