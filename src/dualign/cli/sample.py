"""``dualign sample`` and ``dualign score``: prompts to responses of a model, and responses to scores, file by file."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dualign.cli.scorer import Direction, named_scorer
from dualign.cli.shared import AsJson, Columns, mapping, notes, printed
from dualign.errors import UsageError, inert
from dualign.records import Prompt, Response

if TYPE_CHECKING:
    from dualign.data.prompts import PromptFile, ResponseFile
    from dualign.models.language_model import LanguageModel
    from dualign.protocols import Scorer
    from dualign.records import FloatArray


FINISHED = 0.5
"""Share of responses that end by themselves below which a user is warned."""


def sample(
    policy: Annotated[str, typer.Argument(help="Model folder, org/name, .gguf file or package:NAME.")],
    prompts: Annotated[
        Path, typer.Argument(help="JSONL, CSV, Parquet or text (one prompt a line); texts or messages.")
    ],
    out: Annotated[Path, typer.Option(help="Where to write the responses, as .jsonl.")],
    adapter: Annotated[Path | None, typer.Option(help="Folder of a PEFT adapter, or of full weights.")] = None,
    n: Annotated[int, typer.Option("--responses", "-n", min=1, help="Responses a prompt.")] = 1,
    temperature: Annotated[float, typer.Option(help="The policy is softmax(logits / temperature).")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest response in tokens.")] = 128,
    max_prompt_tokens: Annotated[int | None, typer.Option(min=1, help="Longest prompt; default: what fits.")] = None,
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
    columns: Columns = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing.")] = False,
) -> None:
    """Draw responses of a policy: unbiased draws, each with its tokens and log-probability.

    Example: dualign sample ./model prompts.jsonl --adapter run/rounds/02/fit/policy -n 4 --out answers.jsonl
    """
    from dualign.data.prompts import read_prompts
    from dualign.face.run import keyed_apart
    from dualign.runs.store import write_text

    if out.suffix != ".jsonl":
        raise UsageError(f"--out {out}: responses are written as JSON lines; name a file that ends in .jsonl")
    if out.exists() and prompts.exists() and out.samefile(prompts):
        raise UsageError(f"--out {out}: is the file of the prompts; name another")
    arguments = template_arguments(template_argument or [], template_date)
    found = read_prompts(prompts, rename=mapping(columns))
    asked = found.every

    from dualign.models.adapters import ADAPTER_CONFIG, weights_file
    from dualign.models.language_model import Wording
    from dualign.models.loading import load_language_model
    from dualign.models.sampler import TransformersSampler
    from dualign.models.tensors import positions, prompt_room
    from dualign.protocols import Policy, Sampling

    # an adapter of others is merged into the model; a policy of a run comes and goes on it
    merged = adapter if adapter is not None and (adapter / ADAPTER_CONFIG).is_file() else None
    drawn_from = Policy("sampled", None if merged is not None else adapter)
    weights_file(drawn_from)
    language_model = load_language_model(
        policy,
        temperature=temperature,
        max_response_tokens=max_new_tokens,
        wording=Wording(template, system_prompt, arguments, template_date),
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
    day = language_model.wording.date
    notes(language_model.notes, quiet=quiet, word="warning")
    notes(template_notes(language_model, template_date), quiet=quiet)
    settings = Sampling(temperature=temperature, max_new_tokens=max_new_tokens, batch_size=batch_size)
    drawn = TransformersSampler(language_model).generate(
        drawn_from, keyed_apart(asked), n, sampling=settings, seed=seed, stage="sample"
    )
    write_text(out, lines(asked, drawn, day))
    figures: dict[str, Any] = summary(drawn, out)
    figures |= {"notes": list(language_model.notes)} if language_model.notes else {}
    figures |= {"repeated_prompts": found.duplicates} | ({} if day is None else {"template_date": day})
    notes([repeated(found)] if found.duplicates else [], quiet=quiet)
    share = f"{figures['share_finished']:.0%}"
    if not printed(figures, as_json=as_json) and not quiet:
        drawn_in_all = f"{figures['responses']} responses to {figures['prompts']} prompts"
        each = f"{figures['mean_tokens']:.1f} tokens each, {share} ended by themselves"
        print(f"{drawn_in_all}, {each} -> {inert(out)}", flush=True)
    cut = (
        f"{share} of the responses ended by themselves, the others were cut at {max_new_tokens} tokens; "
        "raise --max-new-tokens, or see where the model ends its turns"
    )
    few = figures["responses"] and figures["share_finished"] < FINISHED
    notes([cut] if few else [], quiet=quiet, word="warning")


def repeated(found: "PromptFile") -> str:
    """Return how many rows repeat a prompt, in words."""
    spelt = f", {found.alike} of them in another letter case, white space or Unicode form" if found.alike else ""
    return f"{found.duplicates} of {len(found.every)} prompts repeat another one{spelt}; each has responses of its own"


def template_arguments(given: Sequence[str], date: str | None) -> dict[str, Any]:
    """Return the arguments of ``K=V`` texts; values are read as in the config.

    Raises:
        UsageError: one is no ``K=V``, or names no argument of a template; ``date`` is no day.
    """
    from dualign.config import check_day, check_template_arguments
    from dualign.strict import parse_yaml

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


def template_notes(language_model: "LanguageModel", date: str | None) -> list[str]:
    """Return what the template does that a user should know, options by their names; ``date`` was typed."""
    turns, day = language_model.turns, language_model.wording.date
    said = list(turns.notes) if turns is not None else []
    if day is not None:
        said.append(f"the chat template reads the clock: it is {day} here (--template-date)")
    elif date is not None:
        said.append("--template-date: the template reads no clock; the day changes nothing")
    named = r"policy\.template_arguments: \{(\w+): false\}"
    return [re.sub(named, r"--template-argument \1=false", note) for note in said]


def lines(prompts: Sequence[Prompt], drawn: Sequence[Sequence[Response]], day: str | None = None) -> str:
    """Return one JSON line a response: the prompt with its columns, and what was drawn.

    ``day`` is the one that the chat template read from the clock.
    ``log_prob`` is the sampler's own: in bfloat16 a reading of the whole answer at once gives another last digit.
    """
    from dualign.data.turns import written

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


GIVER = ("scorer", "revision")
"""Columns that say who gave the scores."""


def score(
    responses: Annotated[
        Path, typer.Argument(help="JSONL, CSV or Parquet: prompt and response, as texts or messages.")
    ],
    scorer: Annotated[str, typer.Option(help="A kind, kind=K,key=value, a YAML or JSON file, or module:attribute.")],
    out: Annotated[Path, typer.Option(help="Where to write the rows: .jsonl, .csv or .parquet.")],
    direction: Annotated[
        Direction | None,
        typer.Option(help="reward (up is good) or cost (up is bad); default: the kind's, else reward."),
    ] = None,
    column: Annotated[str | None, typer.Option(help="Name of the new column; default: the direction.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the scorer; repeat for several.")
    ] = None,
    columns: Columns = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing.")] = False,
) -> None:
    """Score responses; the scorer's id and revision stand beside the numbers.

    Example: dualign score answers.jsonl --scorer length --set unit=words --direction cost --out scored.jsonl
    """
    import numpy as np

    from dualign.data.prompts import read_responses
    from dualign.data.table_files import writer_for
    from dualign.runs.store import write_bytes

    write = writer_for(out)
    if out.exists() and responses.exists() and out.samefile(responses):
        raise UsageError(f"--out {out}: is the file of the responses; name another")
    named = named_scorer(scorer, settings or [], direction=direction, default="reward")
    content = read_responses(responses, rename=mapping(columns))
    name = column or named.direction
    if name in GIVER:
        raise UsageError(f"--column {name}: is where it is said who gave the score; name another")
    if any(name in row for row in content.rows):
        raise UsageError(f"--column {name}: {responses} has such a column already; name another")
    built = named.build()
    # What the format has no room for is told now, and not after hours of scoring.
    write(with_scores(content, name, np.zeros(len(content.rows)), built))
    scores = built(content.prompts, content.responses)
    write_bytes(out, write(with_scores(content, name, scores, built)))
    figures = score_summary(scores, built, name, out)
    if not printed(figures, as_json=as_json) and not quiet:
        said = (
            f"{figures['rows']} responses, {name} by {built.id} ({built.direction}): "
            f"mean {figures['mean']:.4g}, from {figures['min']:.4g} to {figures['max']:.4g} -> {out}"
        )
        print(inert(said))


def with_scores(content: "ResponseFile", name: str, scores: "FloatArray", scorer: "Scorer") -> list[dict[str, Any]]:
    """Return the rows with the score and who gave it; the names of earlier scorers are kept in front."""
    given = dict(zip(GIVER, (f"{name}={scorer.id}", f"{name}={scorer.revision}"), strict=True))
    rows = []
    for row, number in zip(content.rows, scores.tolist(), strict=True):
        joined = {key: f"{row[key]}; {value}" if row.get(key) else value for key, value in given.items()}
        rows.append({**row, name: number, **joined})
    return rows


def score_summary(scores: "FloatArray", scorer: "Scorer", column: str, out: Path) -> dict[str, Any]:
    """Return the figures that ``--json`` prints."""
    return {
        "rows": len(scores),
        "scorer": scorer.id,
        "revision": scorer.revision,
        "direction": scorer.direction,
        "column": column,
        "mean": float(scores.mean()),
        "sd": float(scores.std(ddof=1)) if len(scores) > 1 else None,
        "min": float(scores.min()),
        "max": float(scores.max()),
        "out": str(out),
    }
