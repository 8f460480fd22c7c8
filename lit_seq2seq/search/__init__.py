"""Search for outputs; it knows no model, only a step function and a state."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from lit_seq2seq import arrays
from lit_seq2seq.arrays import Array
from lit_seq2seq.search.beam import beam_search
from lit_seq2seq.search.best_path import best_path
from lit_seq2seq.search.candidates import including, located, named
from lit_seq2seq.search.config import GenerationConfig, LengthNormalization
from lit_seq2seq.search.constraints import (
    BadWords,
    Constraint,
    ConstraintState,
    ForceWords,
    Lexicon,
    NoRepeatedNGrams,
    Pattern,
    RepetitionPenalty,
    Terminology,
)
from lit_seq2seq.search.greedy import greedy_search
from lit_seq2seq.search.rules import prefix_of
from lit_seq2seq.search.sample import sample_search
from lit_seq2seq.search.scorers import JointCTC, JointModels, LanguageModel, Scorer
from lit_seq2seq.search.stream import stream
from lit_seq2seq.search.task import Host, OutputVocabulary
from lit_seq2seq.types import Hypothesis, Padded, S, SpecialIds, StepFunction, UserError

__all__ = [
    "BadWords",
    "Constraint",
    "ConstraintState",
    "ForceWords",
    "GenerationConfig",
    "JointCTC",
    "JointModels",
    "LanguageModel",
    "LengthNormalization",
    "Lexicon",
    "NoRepeatedNGrams",
    "Pattern",
    "RepetitionPenalty",
    "Scorer",
    "Terminology",
    "beam_search",
    "check_attention",
    "check_scores",
    "greedy_search",
    "including",
    "prefix_of",
    "sample_search",
    "search",
    "stream",
]


@arrays.quiet
def search(
    step: StepFunction[S],
    state: S,
    *,
    batch_size: int,
    specials: SpecialIds,
    config: GenerationConfig,
    prefix: Array | None = None,
    source_mask: Array | None = None,
    frames: Padded | None = None,
    candidates: Padded | None = None,
    device: Any = "cpu",
    return_attention: bool = False,
    vocabulary: OutputVocabulary | None = None,
    raw: Sequence[Any] = (),
    host: Host | None = None,
) -> list[list[Hypothesis]]:
    """Search as the options say: by sampling, with a beam, or greedily.

    Args:
        step: advances every hypothesis by one token.
        state: state before BOS, one hypothesis per sentence.
        batch_size: number of sentences B.
        specials: ids of the special symbols.
        config: the options.
        prefix: `(B, P)` tokens with which each output must begin, without BOS, padded at the end. They are returned as
            part of the hypothesis; being given, they have log-probability 0 and do not count in its length.
        source_mask: `(B, S)` true at real source positions; for the coverage penalty.
        frames: `(B, S, V)` log-probabilities that CTC gives symbols and the blank (padding) at each position, for
            `ctc_weight`.
        candidates: `(B, C)` the ids whose places among them `step` takes and scores: padding, unknown, BOS and EOS
            first, with those of the prefix; `None` where it takes and scores all ids.
        device: where the tensors of torch are; `None`: all arrays are NumPy's.
        return_attention: whether hypotheses carry their attention weights.
        vocabulary: of the outputs, for options that are texts.
        raw: the raw input of each sentence, for constraints and scorers that look at it.
        host: the model, for scorers that ask it for others.

    Returns:
        For each sentence up to `num_return_sequences` hypotheses, best first, with their tensors on the CPU.

    Raises:
        UserError: the prefix is malformed, there is a coverage penalty but no attention, or a CTC weight but no CTC.

    Example:
        >>> import numpy as np
        >>> from lit_seq2seq.types import SpecialIds, StepOutput, Value
        >>> table = np.log(np.eye(6)[[1, 2, 3, 4, 5, 0]] + 1e-9)  # each token is followed by the next
        >>> class Nothing(Value):
        ...     pass
        >>> def step(tokens, state):
        ...     return StepOutput(table[tokens], state)
        >>> specials = SpecialIds(bos=2, eos=5)
        >>> config = GenerationConfig(num_beams=4)
        >>> search(step, Nothing(), batch_size=1, specials=specials, config=config, device=None)[0][0].tokens
        array([3, 4])
    """
    prefix = prefix_of(config, prefix, vocabulary, batch_size)
    if candidates is not None:
        specials, prefix = located(candidates, specials, prefix)
    if frames is not None and config.best_path and prefix is None:
        found = best_path(frames, specials, config)
        check_attention(found[0][0].attention, config)
        return found
    method = sample_search if config.do_sample else beam_search if config.num_beams > 1 else greedy_search
    found = method(
        step,
        state,
        batch_size=batch_size,
        specials=specials,
        config=config,
        prefix=prefix,
        source_mask=source_mask,
        frames=frames,
        device=device,
        return_attention=return_attention or config.attends,
        vocabulary=vocabulary,
        raw=raw,
        host=host,
    )
    config.check_outputs(any(len(row[0].tokens) == 0 for row in found), sum(not row[0].met for row in found))
    check_attention(found[0][0].attention, config)
    return found if candidates is None else named(found, candidates)


def check_attention(attention: Array | None, config: GenerationConfig) -> None:
    """Refuse a model that has no attention where the options ask for it.

    Raises:
        UserError: it has none, or its search does not compute it.
    """
    if config.attends and attention is None:
        raise UserError(
            "the options ask for attention, but this model has none or its search does not compute it: leave out "
            "replace_unknown, and alignment and attention in details"
        )


def check_scores(scores: Iterable[float]) -> None:
    """Refuse outputs of a model that computes NaN, among which a token that may not be chosen can be drawn.

    Raises:
        UserError: a score is no number, or that of such a token.
    """
    if any(math.isnan(score) or -math.inf < score < -1e35 for score in scores):
        raise UserError("the model computes NaN: its weights are damaged, or too large for the precision: use 32 bits")
