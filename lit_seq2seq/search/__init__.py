"""Search for outputs; it knows no model, only a step function and a state."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Unpack

from lit_seq2seq import arrays
from lit_seq2seq.arrays import Array
from lit_seq2seq.search.alignments import AlignmentSearch
from lit_seq2seq.search.beam import beam_search
from lit_seq2seq.search.best_path import alone
from lit_seq2seq.search.candidates import among, including, named
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
from lit_seq2seq.search.policies import Monotonic, Policy, WaitK
from lit_seq2seq.search.rules import Options, prefix_of
from lit_seq2seq.search.sample import sample_search
from lit_seq2seq.search.scorers import JointCTC, JointModels, LanguageModel, Scorer
from lit_seq2seq.search.stream import stream
from lit_seq2seq.types import Hypothesis, S, StepFunction, UserError

__all__ = [
    "AlignmentSearch",
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
    "Monotonic",
    "NoRepeatedNGrams",
    "Pattern",
    "Policy",
    "RepetitionPenalty",
    "Scorer",
    "Terminology",
    "WaitK",
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
    step: StepFunction[S], state: S, *, return_attention: bool = False, **options: Unpack[Options]
) -> list[list[Hypothesis]]:
    """Search as the options say: by sampling, with a beam, or greedily.

    Args:
        step: advances every hypothesis by one token.
        state: state before BOS, one hypothesis per sentence.
        return_attention: whether hypotheses carry their attention weights.
        **options: see `Options`.

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
    config, candidates, options = options["config"], options.get("candidates"), among(options)
    if (found := alone(options)) is None:
        method = sample_search if config.do_sample else beam_search if config.num_beams > 1 else greedy_search
        found = method(step, state, return_attention=return_attention or config.attends, **options)
    if (policy := config.policy) is not None:
        mask = options.get("source_mask")
        assert mask is not None, "a policy needs source_mask"
        lengths = mask.sum(1).tolist()
        found = [[policy.delayed(one, size) for one in row] for row, size in zip(found, lengths, strict=True)]
    if "delays" in config.details and found[0][0].delays is None:
        raise UserError("details: delays are those of a policy: set one, or leave them out")
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
            "replace_unknown, a policy that follows it, and alignment and attention in details"
        )


def check_scores(scores: Iterable[float]) -> None:
    """Refuse outputs of a model that computes NaN, among which a token that may not be chosen can be drawn.

    Raises:
        UserError: a score is no number, or that of such a token.
    """
    if any(math.isnan(score) or -math.inf < score < -1e35 for score in scores):
        raise UserError("the model computes NaN: its weights are damaged, or too large for the precision: use 32 bits")
