"""``dualign sample``: a model and a file of prompts -> a file of responses."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from dualign.errors import UsageError
from dualign.records import Prompt, Response


def sample(
    policy: Annotated[str, typer.Argument(help="Model folder, org/name, .gguf file or package:NAME.")],
    prompts: Annotated[Path, typer.Argument(help="JSONL, CSV, Parquet or text (one prompt a line).")],
    out: Annotated[Path, typer.Option(help="Where to write the responses, as .jsonl.")],
    adapter: Annotated[Path | None, typer.Option(help="Folder of a PEFT adapter, or of full weights.")] = None,
    n: Annotated[int, typer.Option("--responses", "-n", min=1, help="Responses a prompt.")] = 1,
    temperature: Annotated[float, typer.Option(help="The policy is softmax(logits / temperature).")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest response in tokens.")] = 128,
    max_prompt_tokens: Annotated[int | None, typer.Option(min=1, help="Longest prompt; default: what fits.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences decoded together.")] = 32,
    template: Annotated[str | None, typer.Option(help="chat, plain or beaver; default: the model's.")] = None,
    system_prompt: Annotated[str | None, typer.Option(help="System prompt; '' for none at all.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same draws.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing.")] = False,
) -> None:
    """Draw responses of a policy: unbiased draws, each with its tokens and log-probability.

    Example: dualign sample ./model prompts.jsonl --adapter run/rounds/02/fit/policy -n 4 --out answers.jsonl
    """
    from dualign.data.prompts import load_prompts
    from dualign.runs.store import write_text

    if out.suffix != ".jsonl":
        raise UsageError(f"--out {out}: responses are written as JSON lines; name a file that ends in .jsonl")
    if out.exists() and prompts.exists() and out.samefile(prompts):
        raise UsageError(f"--out {out}: is the file of the prompts; name another")
    asked = load_prompts(prompts)

    from dualign.backends.protocol import Policy
    from dualign.engine.adapters import ADAPTER_CONFIG, weights_file
    from dualign.engine.limits import positions, prompt_room
    from dualign.engine.loading import load_language_model
    from dualign.engine.templates import with_template
    from dualign.sampling.protocol import Sampling
    from dualign.sampling.transformers_engine import TransformersSampler

    merged = adapter if adapter is not None and (adapter / ADAPTER_CONFIG).is_file() else None
    drawn_from = Policy("sampled", None if merged is not None else adapter)
    weights_file(drawn_from)
    language_model = load_language_model(
        policy,
        temperature=temperature,
        max_response_tokens=max_new_tokens,
        system_prompt=system_prompt,
        dtype=dtype,
        adapter=merged,
    )
    room = prompt_room(
        max_prompt_tokens,
        max_new_tokens,
        positions(language_model.model.config),
        names=("--max-prompt-tokens", "--max-new-tokens"),
    )
    language_model = replace(language_model, max_prompt_tokens=room)
    if not quiet:
        for note in language_model.notes:
            print(f"warning: {note}", file=sys.stderr)
    if template is not None:
        language_model = with_template(language_model, template, system_prompt=system_prompt)
    settings = Sampling(temperature=temperature, max_new_tokens=max_new_tokens, batch_size=batch_size)
    drawn = TransformersSampler(language_model).generate(
        Policy("sampled", None if merged is not None else adapter),
        asked,
        n,
        sampling=settings,
        seed=seed,
        stage="sample",
    )
    write_text(out, lines(asked, drawn))
    figures = summary(drawn, out) | ({"notes": list(language_model.notes)} if language_model.notes else {})
    if as_json:
        print(json.dumps(figures, allow_nan=False))
    elif not quiet:
        print(
            f"{figures['responses']} responses to {figures['prompts']} prompts, "
            f"{figures['mean_tokens']:.1f} tokens each, {figures['share_finished']:.0%} ended by themselves -> {out}"
        )


def lines(prompts: Sequence[Prompt], drawn: Sequence[Sequence[Response]]) -> str:
    """Return one JSON line a response: the prompt with its columns, and what was drawn.

    ``log_prob`` is the sampler's own: in bfloat16 a reading of the whole answer at once gives another last digit.
    """
    rows = []
    for prompt, responses in zip(prompts, drawn, strict=True):
        for number, response in enumerate(responses):
            row = {
                **prompt.columns,
                "prompt": prompt.text,
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
