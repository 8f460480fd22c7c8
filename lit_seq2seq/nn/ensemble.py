"""Ensembles of trained networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_seq2seq.arrays import log_mean
from lit_seq2seq.nn.network import EncoderDecoder, Network
from lit_seq2seq.nn.ops import wide
from lit_seq2seq.types import Encoded, Joined, Padded, Source, StepOutput, UserError, averaged


@dataclass(frozen=True)
class EnsembleEncoded(Encoded):
    """A source batch encoded by every network; itself the result of the first.

    Attributes:
        members: the result of each network.
    """

    members: tuple[Encoded, ...] = ()


class Ensemble(Network):
    """Networks of one vocabulary whose probabilities are averaged at each step; see `lit_seq2seq.types.averaged`.

    It offers to search and evaluation what `EncoderDecoder` does; it is not trained.

    Args:
        networks: M networks, at least one, for the same source and target symbols.

    Raises:
        ValueError: networks of different vocabularies, or none.
    """

    def __init__(self, networks: Sequence[EncoderDecoder]) -> None:
        super().__init__()
        sizes = [network.decoder.embedding.num_embeddings for network in networks]
        if not networks or any(size != sizes[0] for size in sizes):
            came = ", ".join(map(str, sizes)) or "none"
            raise ValueError(f"expected networks of one target vocabulary, but their numbers of symbols are {came}")
        if len({network.copies for network in networks}) > 1:
            raise ValueError("expected networks that all copy from the source or all do not, but they differ")
        self.networks: Sequence[EncoderDecoder] = nn.ModuleList(networks)  # type: ignore[assignment]
        self.specials = networks[0].specials

    @property
    def copies(self) -> bool:
        """Whether the networks copy symbols of the source."""
        return self.networks[0].copies

    def encode(self, source: Source) -> EnsembleEncoded:
        """Encode a batch of sources with each network."""
        members = tuple(network.encode(source) for network in self.networks)
        first = members[0]
        return EnsembleEncoded(first.memory, first.final, first.copies, prefix=first.prefix, members=members)

    def start(self, encoded: Encoded, candidates: Padded | None = None) -> Joined:
        """Make the first state of each decoder; see `EncoderDecoder.start`."""
        assert isinstance(encoded, EnsembleEncoded)
        pairs = zip(self.networks, encoded.members, strict=True)
        return Joined(tuple(network.start(member, candidates) for network, member in pairs))

    def step(self, tokens: Tensor, state: Joined) -> StepOutput[Joined]:
        """Read one token per hypothesis; the step function for `lit_seq2seq.search`."""
        pairs = zip(self.networks, state.members, strict=True)
        return averaged([network.step(tokens, member) for network, member in pairs])

    def frames(self, encoded: Encoded) -> Padded | None:
        """Average CTC's probabilities, `(B, S, V)` log-probabilities; `None` where a network has no CTC.

        Raises:
            UserError: the networks' encoders return different numbers of positions.
        """
        assert isinstance(encoded, EnsembleEncoded)
        pairs = zip(self.networks, encoded.members, strict=True)
        found = [frames for network, member in pairs if (frames := network.frames(member)) is not None]
        if len(found) < len(self.networks):
            return None
        if any(not torch.equal(frames.lengths, found[0].lengths) for frames in found):
            raise UserError("ctc_weight needs encoders that shorten sources alike, but these differ; set it to 0")
        return Padded(log_mean([frames.values for frames in found]), found[0].lengths)

    def expect_early(self, who: str) -> None:
        """Check each network; see `Network.expect_early`."""
        for network in self.networks:
            network.expect_early(who)

    def needed(self, positions: int) -> int:
        """Ask for what every network needs; see `Network.needed`."""
        return max(network.needed(positions) for network in self.networks)

    def forward(self, source: Source, target: Padded, reach: Tensor | None = None) -> Tensor:
        """Compute log-probabilities of every symbol at every target position, `(B, T, V)`."""
        scores = [torch.log_softmax(wide(network(source, target, reach)), dim=-1) for network in self.networks]
        average: Tensor = log_mean(scores)
        return average

    @torch.no_grad()
    def score(self, source: Source, target: Padded, reach: Tensor | None = None) -> Tensor:
        """Compute the log-probability of every token of given targets: `(B, T)`, zero at padding."""
        chosen: Tensor = self(source, target, reach).gather(-1, target.values[..., None]).squeeze(-1)  # (B, T)
        return chosen.masked_fill(~target.mask, 0)
