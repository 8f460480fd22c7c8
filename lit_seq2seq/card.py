"""The model card that every saved model carries, in the hub's metadata format."""

from __future__ import annotations

from collections.abc import Mapping


def model_card(config: Mapping[str, object], signatures: Mapping[str, str], parameters: int) -> str:
    """Write the README.md of a model folder.

    Args:
        config: `model` (its description), `task`, and `scores` by name, such as `test_bleu`.
        signatures: per metric the settings that its score depends on.
        parameters: number of weights.

    Returns:
        Markdown with a YAML head.
    """
    task = str(config["task"])
    scores = config["scores"]
    assert isinstance(scores, Mapping)
    head = ["---", "library_name: lit_seq2seq", f"pipeline_tag: {task}", "tags: [seq2seq, rnn, lightning]", "---"]
    table = [f"| {name} | {value:.2f} | {_signature(name, signatures)} |" for name, value in scores.items()]
    body = [
        "",
        "# RNN encoder-decoder",
        "",
        f"A recurrent sequence-to-sequence model with {parameters:,} parameters, trained with lit_seq2seq.",
        "",
        "```python",
        "from lit_seq2seq import pipeline",
        "",
        f'generate = pipeline("{task}", model="PATH_OR_HUB_ID")',
        'generate("...")',
        "```",
        "",
        "## Measured scores",
        "",
        *(["| score | value | signature |", "|---|---|---|", *table] if table else ["None recorded."]),
        "",
    ]
    return "\n".join(head + body)


def _signature(name: str, signatures: Mapping[str, str]) -> str:
    found = next((text for metric, text in signatures.items() if name.endswith("_" + metric)), "")
    return found.replace("|", "\\|")
