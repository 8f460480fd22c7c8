"""Lexical shortlists learnt from pairs of sentences."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_seq2seq.data import Seq2SeqDataModule
from lit_seq2seq.nn.translations import Pairs, Translations, pair_of
from lit_seq2seq.shortlist import Shortlist
from lit_seq2seq.types import Padded, UserError


def learn_shortlist(data: Seq2SeqDataModule, frequent: int, translations: int, rows: int = 1_000_000) -> Shortlist:
    """Learn from the training split which target symbols each source symbol needs.

    Args:
        data: its processor is that of the model that the shortlist is for.
        frequent: how many of the most frequent target symbols are always candidates.
        translations: how many candidates each source symbol adds, see `learn_translations`.
        rows: greatest number of rows to learn from, drawn at random.

    Example:
        >>> from datasets import Dataset
        >>> from lit_seq2seq.features import Tokenizer
        >>> pairs = Dataset.from_dict({"source": ["ein Hund", "ein Mann"] * 20, "target": ["a dog", "a man"] * 20})
        >>> data = Seq2SeqDataModule(pairs, source_tokenizer=Tokenizer("word"))
        >>> shortlist = learn_shortlist(data, frequent=1, translations=1)
        >>> source = data.processor.source(["ein Hund"])
        >>> found = shortlist(source.values.numpy(), source.lengths.numpy())
        >>> data.processor.target.tokens(found.values[0].tolist())
        ['<pad>', '<unk>', '<bos>', '<eos>', 'a', 'dog']
    """
    feature, target = data.processor.source_feature, data.processor.target
    if not (isinstance(feature.size, int) and feature.symbols) or data.processor.copy:
        raise UserError("a shortlist needs sources of symbols, and outputs that copy none: this model has others")
    data.setup("fit")
    pairs: list[tuple[Padded, Padded]] = []
    for batch in data.train_dataloader():
        pairs.append(pair_of(batch))
        rows -= len(batch)
        if rows <= 0:
            break
    counts = torch.zeros(target.size, dtype=torch.long)
    for _, outputs in pairs:
        counts += outputs.values[outputs.mask].bincount(minlength=target.size)
    table, _ = learn_translations(pairs, (feature.size, target.size), translations)
    best = counts.topk(min(frequent, target.size)).indices
    return Shortlist(best.numpy(), table.numpy(), target.size, target.specials)


def learn_translations(pairs: Pairs, sizes: tuple[int, int], best: int, iterations: int = 5) -> tuple[Tensor, Tensor]:
    """Estimate `t(f | e)`, the probability that a source symbol e is translated by f; see `Translations.estimate`.

    Args:
        pairs: batches of source ids `(B, S)` and target ids `(B, T)`.
        sizes: number of source symbols and of target symbols.
        best: how many translations K of each source symbol to return.
        iterations: of expectation maximisation, >= 1.

    Returns:
        `(V, K)` target ids of each source symbol, most probable first, -1 where there are fewer; and `(V, K)`
        their probabilities.

    Example:
        >>> source = Padded(torch.tensor([[0, 1], [0, 2]]), torch.tensor([2, 2]))
        >>> target = Padded(torch.tensor([[3, 4], [5, 3]]), torch.tensor([2, 2]))
        >>> learn_translations([(source, target)], (3, 6), best=1)[0].flatten().tolist()
        [3, 4, 5]
    """
    found = Translations.estimate(pairs, sizes, iterations)
    return _best(found.known, found.chance, sizes, best)


def _best(known: Tensor, chance: Tensor, sizes: tuple[int, int], best: int) -> tuple[Tensor, Tensor]:
    """Arrange the most probable translations of each source symbol in a table; see `learn_translations`."""
    order = chance.argsort(descending=True, stable=True)
    order = order[(known[order] // sizes[1]).argsort(stable=True)]
    sources = known[order] // sizes[1]
    rank = torch.arange(len(known)) - torch.searchsorted(sources, sources)
    order, sources, rank = (x[rank < best] for x in (order, sources, rank))
    ids = torch.full((sizes[0], best), -1, dtype=torch.long)
    chances = torch.zeros(sizes[0], best)
    ids[sources, rank] = known[order] % sizes[1]
    chances[sources, rank] = chance[order].float()
    return ids, chances
