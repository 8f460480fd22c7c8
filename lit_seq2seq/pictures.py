"""Pictures of what a model looked at, whatever its source is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lit_seq2seq.features import Feature
from lit_seq2seq.plots import AttentionExample, CaptionExample, plot_attention_grid, plot_captions
from lit_seq2seq.predictor import Output


def attention_figure(
    sources: Sequence[Any], outputs: Sequence[Output], feature: Feature, path: str | Path | None = None
) -> Figure | None:
    """Draw where attention looked: over the image where there is one, otherwise as a table.

    Args:
        sources: raw inputs.
        outputs: one for each, made with `return_attention`.
        feature: the model's source feature.
        path: where to save it; `None` saves nothing.

    Returns:
        The picture, of at most four tables; `None` for a model without attention, or without any output.

    Example:
        >>> import torch
        >>> from lit_seq2seq.features import Tokenizer
        >>> output = Output("b", tokens=("b",), source_tokens=("a",), attention=torch.ones(1, 1))
        >>> len(attention_figure(["a"], [output], Tokenizer()).axes)  # the table and its colour bar
        2
    """
    pictured, tables = [], []
    for source, output in zip(sources, outputs, strict=True):
        if output.attention is None or not output.attention.numel():
            continue
        image = feature.picture(source)
        if image is None:
            tables.append(AttentionExample(output.attention, output.source_tokens, output.tokens))
        else:
            pictured.append(CaptionExample(image, output.attention, output.tokens, output.text))
    if pictured:
        return plot_captions(pictured, path)
    return plot_attention_grid(tables[:4], path) if tables else None
