"""The workloads' model written as one would without a toolkit: `nn.LSTM`, full scores, `F.cross_entropy`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from benchmarks.models import SIZES
from lit_seq2seq.types import Padded

BOS, PAD = 2, 0


class PlainModel(nn.Module):
    """Bidirectional LSTM encoder, LSTM decoder with general attention, with or without input feeding."""

    def __init__(self, workload: str, source_size: int, target_size: int, feeding: bool = False) -> None:
        super().__init__()
        sizes = SIZES[workload]
        embedding, hidden, layers = (
            int(sizes["embedding_dim"]),
            int(sizes["hidden_size"]),
            int(sizes.get("num_layers", 1)),
        )
        self.feeding, self.dropout = feeding, float(sizes["dropout"])
        self.source, self.target = nn.Embedding(source_size, embedding), nn.Embedding(target_size, embedding)
        between = self.dropout if layers > 1 else 0.0
        self.encoder = nn.LSTM(embedding, hidden // 2, layers, batch_first=True, bidirectional=True, dropout=between)
        fed = hidden if feeding else 0
        self.decoder = nn.LSTM(embedding + fed, hidden, layers, batch_first=True, dropout=between)
        self.key = nn.Linear(hidden, hidden, bias=False)
        self.combine = nn.Linear(2 * hidden, hidden)
        self.output = nn.Linear(hidden, target_size)

    def loss(self, source: Padded, target: Padded) -> tuple[Tensor, Tensor]:
        """Sum the cross-entropy over the real tokens (twice, as the package's networks return loss and likelihood)."""
        packed = pack_padded_sequence(
            self._drop(self.source(source.values)), source.lengths, batch_first=True, enforce_sorted=False
        )
        outputs, (h, c) = self.encoder(packed)
        memory, _ = pad_packed_sequence(outputs, batch_first=True)  # (B, S, H)
        keys, mask = self.key(memory), source.mask[:, None]
        state = tuple(x.unflatten(0, (-1, 2)).transpose(1, 2).flatten(2).contiguous() for x in (h, c))  # (L, B, H)
        tokens = torch.cat([torch.full_like(target.values[:, :1], BOS), target.values[:, :-1]], dim=1)
        embedded = self._drop(self.target(tokens))  # (B, T, E)
        if not self.feeding:
            hidden, _ = self.decoder(embedded, state)
            features = self._attend(hidden, memory, keys, mask)
        else:
            fed, steps = embedded.new_zeros(len(embedded), 1, self.combine.out_features), []
            for column in embedded.split(1, dim=1):
                hidden, state = self.decoder(torch.cat([column, fed.to(column.dtype)], dim=-1), state)
                fed = self._attend(hidden, memory, keys, mask)
                steps.append(fed)
            features = torch.cat(steps, dim=1)
        logits = self.output(features).float()  # (B, T, V)
        total = F.cross_entropy(logits.flatten(0, 1), target.values.flatten(), ignore_index=PAD, reduction="sum")
        return total, total.detach()

    def _attend(self, hidden: Tensor, memory: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        scores = (hidden @ keys.transpose(1, 2)).masked_fill(~mask, -torch.inf)
        context = scores.softmax(-1).to(memory.dtype) @ memory
        return self._drop(torch.tanh(self.combine(torch.cat([hidden, context], dim=-1))))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)
