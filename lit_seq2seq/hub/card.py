"""The model card that every saved model carries, in the hub's metadata format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

PLACE = "PATH_OR_HUB_ID"
"""Stands for the model's own name in its card, until it is pushed under one."""

_SPLITS = {"val": "validation"}


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from, and what is known of it.

    Attributes:
        data: what it was trained on: the id of a hub data set, or a few words.
        on_hub: whether `data` is the id of a hub data set.
        command: what trained it.
        scores: measured figures by split and metric, such as `test_bleu`.
        rows: how many rows each split has that was scored, such as `test`.
        license: the hub's name of a license, such as `apache-2.0`.
        languages: ISO codes of its languages, such as `de`.
    """

    data: str | None = None
    on_hub: bool = False
    command: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    license: str | None = None
    languages: Sequence[str] = ()


def model_card(
    task: str, provenance: Provenance, signatures: Mapping[str, str], parameters: int, *, trust: Sequence[str] = ()
) -> str:
    """Write the README.md of a model folder.

    Args:
        task: the hub's name of the task.
        provenance: what is known of the model.
        signatures: per metric the settings that its score depends on.
        parameters: number of weights.
        trust: packages of others that the model is made of.

    Returns:
        Markdown with a YAML head.

    Example:
        >>> card = model_card("translation", Provenance(scores={"test_bleu": 41.4}), {"bleu": "tok:13a"}, 1000)
        >>> from huggingface_hub import ModelCard
        >>> ModelCard(card).data.eval_results[0].metric_value
        41.4
    """
    from huggingface_hub import ModelCardData

    results = [result for name in provenance.scores for result in _result(name, task, provenance, signatures)]
    data = ModelCardData(
        language=list(provenance.languages) or None,
        license=provenance.license,
        library_name="lit_seq2seq",
        pipeline_tag=task,
        tags=["seq2seq", "rnn", "lightning"],
        datasets=[provenance.data] if provenance.on_hub and provenance.data else None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=PLACE if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_text(task, provenance, signatures, parameters, trust)}"


def _result(name: str, task: str, provenance: Provenance, signatures: Mapping[str, str]) -> list[EvalResult]:
    """Describe a score for the hub's table of results; losses have no place there."""
    from huggingface_hub import EvalResult

    split, _, metric = name.partition("_")
    if metric in ("loss", "ppl"):
        return []
    signature = signatures.get(metric)
    return [
        EvalResult(
            task_type=task,
            dataset_type=provenance.data if provenance.data and provenance.on_hub else "own",
            dataset_name=provenance.data or "not recorded",
            dataset_split=_SPLITS.get(split, split),
            metric_type=metric,
            metric_value=round(provenance.scores[name], 4),
            metric_args={"signature": signature} if signature else None,
        )
    ]


def _text(
    task: str, provenance: Provenance, signatures: Mapping[str, str], parameters: int, trust: Sequence[str]
) -> str:
    table = ["| score | value | signature |", "|---|---|---|"]
    for name, value in provenance.scores.items():
        signature = signatures.get(name.partition("_")[2], "").replace("|", "\\|")
        table.append(f"| {name} | {value:.2f} | {signature} |")
    splits = dict.fromkeys(name.partition("_")[0] for name in provenance.scores)
    scored = [
        f"{_SPLITS.get(split, split)} split, {rows:,} rows" for split in splits if (rows := provenance.rows.get(split))
    ]
    if scored:
        table = [f"Measured on the {' and the '.join(scored)}.", "", *table]
    origin = f"[{provenance.data}](https://huggingface.co/datasets/{provenance.data})"
    origin = origin if provenance.on_hub else provenance.data or "not recorded"
    command = ["Trained by", "", "```bash", provenance.command, "```", ""] if provenance.command else []
    lines = [
        "# RNN encoder-decoder",
        "",
        f"A recurrent sequence-to-sequence model with {parameters:,} parameters, trained with lit_seq2seq.",
        "",
        "```python",
        "from lit_seq2seq import pipeline",
        "",
        f'generate = pipeline("{task}", model="{PLACE}"{f", trust={[*trust]}" if trust else ""})',
        'generate("...")',
        "```",
        "",
        "## Training",
        "",
        f"Data: {origin}.",
        "",
        *command,
        "## Measured scores",
        "",
        *(table if provenance.scores else ["None recorded."]),
        "",
        "## Limits",
        "",
        "The model has seen nothing but its training data. On other kinds of input it may write what is fluent and "
        "wrong; nothing checks its outputs.",
        "",
    ]
    return "\n".join(lines)


def published(card: str, name: str, license: str | None = None, languages: Sequence[str] = ()) -> str:
    """Put the name, license and languages under which a model is published into its card; the rest stays as it is."""
    from huggingface_hub import ModelCard

    parsed = ModelCard(card.replace(PLACE, name), ignore_metadata_errors=True)
    data = cast("ModelCardData", parsed.data)
    if license is not None:
        data.license = license
    if languages:
        data.language = list(languages)
    return str(parsed)
