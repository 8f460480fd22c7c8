"""Search in NumPy: picks the algorithm by the options, as `lit_seq2seq.search.search` does."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from lit_seq2seq.runtime.beam import Array, Hypothesis, State, StepFunction, beam_search
from lit_seq2seq.runtime.config import GenerationConfig
from lit_seq2seq.runtime.ctc import best_path, join_ctc
from lit_seq2seq.runtime.sampling import random_of, sample_search
from lit_seq2seq.types import SpecialIds, UserError


def search(
    step: StepFunction,
    state: State,
    mask: Array,
    specials: SpecialIds,
    *,
    config: GenerationConfig,
    frames: Array | None = None,
    random: np.random.Generator | None = None,
) -> list[list[Hypothesis]]:
    """Search as the options say: by sampling, with a beam, or greedily.

    Args:
        step: see `beam_search`.
        state: see `beam_search`.
        mask: see `beam_search`.
        specials: ids of the special symbols.
        config: the options.
        frames: `(B, S, V)` log-probabilities that CTC gives symbols and the blank (padding), for `ctc_weight`.
        random: where sampling takes its random numbers from; a new one by `config.seed` if `None`.

    Returns:
        For each source up to `num_return_sequences` hypotheses, best first.

    Raises:
        UserError: there is a coverage penalty but no attention, or a CTC weight but no CTC.

    Example:
        >>> from lit_seq2seq.runtime.beam import Step
        >>> table = np.log(np.roll(np.eye(6, dtype=np.float32), 1, axis=1) + 1e-9)  # each token is followed by the next
        >>> def step(tokens, state):
        ...     return Step(table[tokens], None, state)
        >>> config = GenerationConfig(do_sample=True, top_k=1)
        >>> search(step, {}, np.ones((1, 1), bool), SpecialIds(eos=5), config=config)[0][0].tokens
        [3, 4]
    """
    if config.ctc_weight:
        if frames is None:
            raise UserError(f"ctc_weight={config.ctc_weight}: needs a model with CTC; set it to 0")
        if config.best_path:
            return best_path(frames, mask, specials, config)
        step, state = join_ctc(step, state, frames, mask, specials=specials, weight=config.ctc_weight)
    if config.do_sample:
        random = random_of(config) if random is None else random
        found = sample_search(step, state, mask, specials, config=config, random=random)
    else:
        found = beam_search(step, state, mask, specials, config=config)
    check_scores(row[0].score if row else math.nan for row in found)
    config.check_outputs(any(not row[0].tokens for row in found))
    return found


def check_scores(scores: Iterable[float]) -> None:
    """Refuse outputs of a model that computes NaN, among which a token that may not be chosen can be drawn.

    Raises:
        UserError: a score is no number, or that of such a token.
    """
    if any(math.isnan(score) or -math.inf < score < -1e35 for score in scores):
        raise UserError("the model computes NaN: its weights are damaged, or too large for the precision: use 32 bits")
