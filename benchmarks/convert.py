"""The trained model of W1 in a peer's format, so that both decode with the same weights."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_seq2seq import LitSeq2Seq
from lit_seq2seq.features import Tokenizer

SPECIALS = {"<unk>": "<unk>", "<blank>": "<pad>", "<s>": "<bos>", "</s>": "<eos>"}
LAYERS = {"encoder.rnn": "encoder.stack.layers.0.rnn", "decoder.rnn": "decoder.below.layers.0.rnn"}


def to_eole(model: LitSeq2Seq, folder: Path) -> None:
    """Put the weights of a model into a folder that eole has written for a model of the same sizes.

    eole's combination of hidden vector and context has no bias: that of the model is set to zero. Its attention
    multiplies the query, `(W' q) v`, where this package multiplies the memory, `q (W v)`.
    """
    vocabulary = json.loads((folder / "vocab.json").read_text())
    processor = model.processor
    assert isinstance(processor.source_feature, Tokenizer)
    source = _rows(vocabulary["src"], processor.source_feature.symbols)
    target = _rows(vocabulary["tgt"], processor.target.symbols)
    net = model.net
    net.decoder.get_parameter("combination.dense.bias").data.zero_()
    ours = net.state_dict()
    dense = ours["decoder.combination.dense.weight"]
    size = dense.shape[0]
    made: dict[str, Tensor] = {
        "src_emb.embeddings.weight": ours["encoder.embedding.weight"][source],
        "tgt_emb.embeddings.weight": ours["decoder.embedding.weight"][target],
        "generator.weight": ours["output.projection.weight"][target],
        "generator.bias": ours["output.projection.bias"][target],
        "decoder.attn.linear_in.weight": ours["decoder.attention.key.weight"].t(),
        "decoder.attn.linear_out.weight": torch.cat([dense[:, size:], dense[:, :size]], dim=1),  # context first
    }
    for theirs, mine in LAYERS.items():
        made |= {theirs + name.removeprefix(mine): weight for name, weight in ours.items() if name.startswith(mine)}
    path = folder / "model.00.safetensors"
    known = load_file(path)
    if {name: weight.shape for name, weight in known.items()} != {name: weight.shape for name, weight in made.items()}:
        raise SystemExit(f"the model in {folder} has other sizes than this package's")
    save_file({name: weight.contiguous().clone() for name, weight in made.items()}, path)


def _rows(theirs: list[str], ours: list[str]) -> Tensor:
    """Where each of their symbols stands among ours."""
    places = {symbol: place for place, symbol in enumerate(ours)}
    return torch.tensor([places[SPECIALS.get(symbol, symbol)] for symbol in theirs])


def main() -> None:
    """Convert; the model loses the bias that eole has no place for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of this package's model; changed")
    parser.add_argument("--eole", type=Path, required=True, help="folder of eole's, trained for a step; changed")
    arguments = parser.parse_args()
    model = LitSeq2Seq.from_pretrained(arguments.model)
    to_eole(model, arguments.eole)
    model.save_pretrained(arguments.model)


if __name__ == "__main__":
    main()
