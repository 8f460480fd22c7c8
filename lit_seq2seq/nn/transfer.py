"""Weights of a trained network as the start of another one."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_seq2seq.nn.network import EncoderDecoder
from lit_seq2seq.types import UserError


@torch.no_grad()
def transfer_weights(old: EncoderDecoder, new: EncoderDecoder, source_rows: int, target_rows: int) -> None:
    """Copy the weights of a trained network into one of the same parts, whose vocabularies may be others.

    What has a row for each symbol (embeddings, weights and biases of the output layer) takes the first rows from the
    old network and keeps its own random ones after them.

    Args:
        old: the trained network.
        new: a fresh network.
        source_rows: number of source symbols with the same id in both; the size of the source where it has no symbols.
        target_rows: number of target symbols with the same id in both.

    Raises:
        UserError: the networks have other parts, or other sizes beside those of the vocabularies.
    """
    rows = _rows(new, source_rows, target_rows)
    theirs, mine = old.state_dict(), new.state_dict()
    for name in sorted(mine.keys() ^ theirs.keys()):
        has, lacks = ("this model", "the saved one") if name in mine else ("the saved model", "this one")
        raise UserError(f"{has} has {name}, but {lacks} has not: leave out the settings of the model, or give its own")
    names: dict[int, list[str]] = {}
    for name, parameter in new.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    parameters = dict(old.named_parameters(remove_duplicate=False))
    for group in names.values():
        if any(parameters[name] is not parameters[group[0]] for name in group) and rows.get(group[0]) != 0:
            raise UserError(f"{' and '.join(group)} are shared, but not in the saved model: give its tie_embeddings")
    for name, tensor in mine.items():
        _copy(name, theirs[name], tensor, rows.get(name))


def _rows(network: EncoderDecoder, source_rows: int, target_rows: int) -> dict[str, int]:
    """Name the parameters that have a row for each symbol, with the number of rows to keep."""
    source = network.encoder.token_embedding
    kept: dict[int, int] = {} if source is None else {id(source.weight): source_rows}
    kept[id(network.decoder.embedding.weight)] = target_rows
    for layer in (network.decoder, network.output, network.auxiliary, network.second_pass):
        kept |= {id(parameter): target_rows for parameter in (layer.symbol_parameters if layer is not None else ())}
    return {name: kept[id(p)] for name, p in network.named_parameters(remove_duplicate=False) if id(p) in kept}


def _copy(name: str, old: Tensor, new: Tensor, rows: int | None) -> None:
    first = 0 if rows is None else 1  # dimension from which on sizes must agree
    if old.shape[first:] != new.shape[first:]:
        raise UserError(
            f"{name} is {tuple(old.shape)} in the saved model and {tuple(new.shape)} here: leave out the settings of "
            "the model, or give its own"
        )
    new[:rows].copy_(old[:rows]) if new.dim() else new.copy_(old)
