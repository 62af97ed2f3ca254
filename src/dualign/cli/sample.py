"""``dualign sample``: a model and a file of prompts -> a file of responses."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dualign.errors import UsageError
from dualign.records import Prompt, Response

if TYPE_CHECKING:
    from dualign.engine.language_model import LanguageModel

FINISHED = 0.5
"""Share of responses that end by themselves below which a user is warned."""


def sample(
    policy: Annotated[str, typer.Argument(help="Model folder, org/name, .gguf file or package:NAME.")],
    prompts: Annotated[Path, typer.Argument(help="JSONL, CSV, Parquet or text (one prompt a line).")],
    out: Annotated[Path, typer.Option(help="Where to write the responses, as .jsonl.")],
    adapter: Annotated[Path | None, typer.Option(help="Folder of a LoRA adapter, or of full weights.")] = None,
    n: Annotated[int, typer.Option("--responses", "-n", min=1, help="Responses a prompt.")] = 1,
    temperature: Annotated[float, typer.Option(help="The policy is softmax(logits / temperature).")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest response in tokens.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences decoded together.")] = 32,
    template: Annotated[str | None, typer.Option(help="chat, plain or beaver; default: the model's.")] = None,
    system_prompt: Annotated[str | None, typer.Option(help="System prompt; '' for none at all.")] = None,
    template_argument: Annotated[
        list[str] | None, typer.Option(help="K=V of the chat template, such as enable_thinking=false; repeatable.")
    ] = None,
    template_date: Annotated[
        str | None, typer.Option(help="Day that a chat template reads from the clock, 2026-01-31; default: today.")
    ] = None,
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
    arguments = template_arguments(template_argument or [], template_date)
    asked = load_prompts(prompts)

    from dualign.backends.protocol import Policy
    from dualign.engine.language_model import Wording
    from dualign.engine.loading import load_language_model
    from dualign.sampling.protocol import Sampling
    from dualign.sampling.transformers_engine import TransformersSampler

    language_model = load_language_model(
        policy,
        temperature=temperature,
        max_response_tokens=max_new_tokens,
        wording=Wording(template, system_prompt, arguments, template_date),
        dtype=dtype,
    )
    day = language_model.wording.date
    if not quiet:
        tell_of_template(language_model)
        if template_date is not None and day is None:
            typer.echo("note: --template-date: the template reads no clock; the day changes nothing", err=True)
    settings = Sampling(temperature=temperature, max_new_tokens=max_new_tokens, batch_size=batch_size)
    drawn = TransformersSampler(language_model).generate(
        Policy("sampled", adapter), asked, n, sampling=settings, seed=seed, stage="sample"
    )
    write_text(out, lines(asked, drawn, day))
    figures = summary(drawn, out) | ({} if day is None else {"template_date": day})
    if as_json:
        print(json.dumps(figures, allow_nan=False))
    elif not quiet:
        print(
            f"{figures['responses']} responses to {figures['prompts']} prompts, "
            f"{figures['mean_tokens']:.1f} tokens each, {figures['share_finished']:.0%} ended by themselves -> {out}"
        )
    if drawn and float(figures["share_finished"]) < FINISHED and not quiet:
        typer.echo(
            f"warning: {figures['share_finished']:.0%} of the responses ended by themselves, the others were cut at "
            f"{max_new_tokens} tokens; raise --max-new-tokens, or see where the model ends its turns",
            err=True,
        )


def template_arguments(given: Sequence[str], date: str | None) -> dict[str, Any]:
    """Return the arguments of ``K=V`` texts; values are read as in the config.

    Raises:
        UsageError: one is no ``K=V``, or names no argument of a template; ``date`` is no day.
    """
    from dualign.config import check_day, check_template_arguments
    from dualign.yaml_core import parse_yaml

    arguments = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign:
            raise UsageError(f"--template-argument {text!r}: expected K=V, such as enable_thinking=false")
        arguments[name] = parse_yaml(value, f"--template-argument {name}")
    try:
        check_template_arguments(arguments)
    except ValueError as error:
        raise UsageError(f"--template-argument: {error}") from None
    try:
        check_day(date or "2000-01-01")
    except ValueError as error:
        raise UsageError(f"--template-date: {error}") from None
    return arguments


def tell_of_template(language_model: "LanguageModel") -> None:
    """Print on stderr what the template does that a user should know."""
    turns, day = language_model.turns, language_model.wording.date
    notes = list(turns.notes) if turns is not None else []
    if day is not None:
        notes.append(f"the chat template reads the clock: it is {day} here (--template-date)")
    for note in notes:
        here = re.sub(r"policy\.template_arguments: \{(\w+): false\}", r"--template-argument \1=false", note)
        typer.echo(f"note: {here}", err=True)


def lines(prompts: Sequence[Prompt], drawn: Sequence[Sequence[Response]], day: str | None = None) -> str:
    """Return one JSON line a response: the prompt with its columns, and what was drawn.

    ``day`` is the one that the chat template read from the clock.
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
                **({} if day is None else {"template_date": day}),
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
