"""Pictures of what a model looked at, whatever its source is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from lit_seq2seq.features.feature import Array
from lit_seq2seq.inference.model import Seq2SeqModel
from lit_seq2seq.plots import (
    AttentionExample,
    CaptionExample,
    plot_attention_grid,
    plot_captions,
    plot_lattices,
)
from lit_seq2seq.types import Generated

_MOST = 300
"""Symbols of a text, beyond which its table is not drawn."""


def attention_figure(
    sources: Sequence[Any], outputs: Sequence[Generated], model: Seq2SeqModel, path: str | Path | None = None
) -> Figure | None:
    """Draw where attention looked: over the image where there is one, otherwise as a table; of transducers the lattice.

    Where an image is one of several sources, each word is followed by the share of its attention that the image has.
    There is no picture for a model without attention, for an empty output, or where texts are so long that no screen
    shows the table; of tables there are at most four.

    Args:
        sources: raw inputs.
        outputs: one for each, made with `return_attention`.
        model: what has made them.
        path: where to save it; `None` saves nothing.
    """
    feature, pictured, tables = model.processor.source_feature, [], []
    for source, output in zip(sources, outputs, strict=True):
        if output.attention is None or not output.attention.numel():
            continue
        found = [_part(name, image, output) for name, image in feature.pictures(source).items()]
        pictured += found
        if not found and max(output.attention.shape) <= _MOST:
            lasts = feature.time(output.source_length, output.source_length)
            seconds = lasts and lasts / 1000
            tables.append(AttentionExample(output.attention, output.source_tokens, output.tokens, seconds=seconds))
    if pictured:
        return plot_captions(pictured, path)
    draw = plot_attention_grid if model.searched.transducer is None else plot_lattices
    return draw(tables[:4], path) if tables else None


def _part(name: str, image: Array, output: Generated) -> CaptionExample:
    """Cut out the attention to one of several sources, or take all where there is one."""
    assert output.attention is not None
    if not output.regions:
        return CaptionExample(image, output.attention, output.tokens, output.text)
    parts = torch.split(output.attention, list(output.regions.values()), dim=1)
    weights = dict(zip(output.regions, parts, strict=True))[name]  # (T, S_k)
    shares = [f"{token} {share:.0%}" for token, share in zip(output.tokens, weights.sum(dim=1).tolist(), strict=True)]
    return CaptionExample(image, weights, shares, output.text)
