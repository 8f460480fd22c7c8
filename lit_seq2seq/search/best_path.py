"""What CTC alone finds."""

from __future__ import annotations

import numpy as np

from lit_seq2seq import arrays
from lit_seq2seq.search.config import GenerationConfig
from lit_seq2seq.search.rules import Options
from lit_seq2seq.search.scorers.ctc import shifted
from lit_seq2seq.search.scores import length_divisor, normalize
from lit_seq2seq.types import Hypothesis, Padded, SpecialIds


def best_path(frames: Padded, specials: SpecialIds, config: GenerationConfig) -> list[list[Hypothesis]]:
    """Take the most probable symbol or blank at each position, join repetitions and drop blanks; never BOS or EOS.

    The best path decoding of Graves et al. (2006, section 3.2): no decoder runs, and nothing is searched. The
    log-probability of a hypothesis is that of its path; a token's is that of its positions and the blanks before them,
    EOS's that of the blanks at the end.

    Args:
        frames: `(B, S, V)` CTC's log-probabilities at each position.
        specials: ids of the special symbols; padding is the blank.
        config: of its options, `max_new_tokens` and those of the score count.

    Returns:
        For each source a list of one hypothesis, with its tensors on the CPU.

    Example:
        >>> likely = np.eye(6)[[[4, 4, 0, 4, 5]]]  # 0 is the blank
        >>> best_path(Padded(np.log(likely + 1e-9), np.array([5])), SpecialIds(), GenerationConfig())[0][0].tokens
        array([4, 4, 5])
    """
    xp, pad = arrays.of(frames.values), specials.pad
    values = xp.copy(frames.values)
    values[..., [index for index in {specials.bos, specials.eos} if index != pad]] = -np.inf
    log_probs = xp.host(xp.where(frames.mask, xp.amax(values), 0.0))  # (B, S)
    paths = xp.host(xp.where(frames.mask, values.argmax(-1), pad))
    found = []
    for path, numbers in zip(paths, log_probs, strict=True):
        starts = (path != pad) & (path != shifted(path[None], pad)[0])
        length = min(int(starts.sum()) + 1, config.max_new_tokens)
        places = np.asarray(starts.cumsum(0) - 1 * (path != pad))  # of the token that a position belongs to
        kept = np.bincount(places, np.asarray(numbers), minlength=length)[:length]
        divisor = length_divisor(np.array([float(length)]), config.length_normalization, config.length_penalty)
        score = float(normalize(kept.sum(), divisor)[0])
        scores = arrays.of(path).array(kept.astype(np.float32))
        found.append([Hypothesis(path[starts][: config.max_new_tokens], score, float(kept.sum()), scores)])
    return found


def alone(options: Options) -> list[list[Hypothesis]] | None:
    """Return what CTC finds without a decoder, if that is asked for; see `GenerationConfig.ctc_weight`."""
    frames, config = options.get("frames"), options["config"]
    wanted = frames is not None and config.best_path and options.get("prefix") is None
    return best_path(frames, options["specials"], config) if wanted else None  # type: ignore[arg-type]
