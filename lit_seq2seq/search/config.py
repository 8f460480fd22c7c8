"""Options of the search, under the names that transformers gives them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_type_hints

from lit_seq2seq.files.untrusted import check_settings
from lit_seq2seq.settings.arguments import checked
from lit_seq2seq.types import UserError

LengthNormalization = Literal["none", "average", "power", "wu"]
"""How the log-probability of a hypothesis is made comparable across lengths; see `GenerationConfig`."""
_LARGEST_POWER = 70.0  # natural logarithm of what a length may be raised to, so that scores fit single precision
_MOST_BEAMS = 10_000  # more fill the memory, and none of the literature's searches had them
_LARGEST_COVERAGE_PENALTY = 1000.0  # above it the rounding of attention weights would decide between hypotheses


@dataclass(frozen=True)
class GenerationConfig:
    """How outputs are searched for; names and meanings are those of transformers' `GenerationConfig`.

    The differences: `top_k` is off by default (transformers 4: 50); `early_stopping=False` is exact (see there);
    `num_beams > 1` cannot be joined with `do_sample`; the options from `length_normalization` on are our own.

    A length is the number of generated tokens, *EOS included* where it was produced and a forced prefix excluded, here
    and in `max_new_tokens`, as in transformers.

    Args:
        num_beams: hypotheses kept per sentence, 1 to 10,000; 1 is greedy search.
        num_return_sequences: hypotheses returned per sentence, 1 to 10,000, and <= `num_beams` unless `do_sample`.
        max_new_tokens: most tokens generated, >= 1. What is still open then ends without EOS and competes as it is.
        min_new_tokens: EOS is not produced before this many other tokens; 0 to `max_new_tokens`.
        do_sample: draw each token at random instead of searching for the most probable output.
        temperature: sampling from p ** (1 / temperature), > 0.
        top_k: sampling from the `top_k` most probable tokens only; 0 is off.
        top_p: sampling from the smallest set of tokens whose probabilities sum to at least `top_p`, in (0, 1]; 1 is off
            (nucleus sampling, Holtzman et al. 2020).
        no_repeat_ngram_size: no n-gram of this size occurs twice in an output; 0 is off.
        early_stopping: with `True` a sentence is finished when `num_beams` hypotheses are. With `False` or `"never"` it
            is finished when no open hypothesis can still reach the best `num_return_sequences`, whatever follows: this
            never misses a better hypothesis of the beam. (transformers does so for `"never"`; its `False` compares open
            hypotheses at their present length and may stop too soon when `length_penalty > 0`.)
        length_penalty: the exponent of `"power"` and `"wu"`: above 0 favours long outputs, below 0 short ones. It must
            stay so small that `max_new_tokens ** length_penalty` can be computed: with 128, from -14.4 to 14.4.
        length_normalization: what the log-probability is divided by: `"none"`: 1; `"average"`: length; `"power"`:
            length ** length_penalty, as transformers does; `"wu"`: ((5 + length) / 6) ** length_penalty
            (Wu et al. 2016, eq. 14). With `"none"` a beam prefers short outputs, often empty ones; you get a warning
            when it finds some.
        coverage_penalty: weight beta >= 0 of the penalty on source positions that received little attention
            (Wu et al. 2016, eq. 14), at most 1000; 0 is off.
        ctc_weight: share of CTC in the scores (Watanabe et al. 2017), 0 to 1, for models trained with it; 0 is off.
            With 1, one beam and no limit on what may come next, no decoder runs: the most probable symbol or blank is
            taken at each position of the encoder (best path decoding, Graves et al. 2006).
        shortlist: choose each symbol among the candidates that a lexicon has for the source (Jean et al. 2015): faster
            where the vocabulary is large. Probabilities are then estimates. The model must have a shortlist, see
            `lit-seq2seq shortlist`.
        seed: seed of the sampling; `None` takes torch's global random state (in the runtime of exported models, a new
            one). One seed draws the same random numbers in every call: set it for one reproducible call, not for a
            loop over batches.

    Raises:
        UserError: an option is out of its range.
    """

    num_beams: int = 1
    num_return_sequences: int = 1
    max_new_tokens: int = 128
    min_new_tokens: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    no_repeat_ngram_size: int = 0
    early_stopping: bool | Literal["never"] = False
    length_penalty: float = 1.0
    length_normalization: LengthNormalization = "power"
    coverage_penalty: float = 0.0
    ctc_weight: float = 0.0
    shortlist: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_beams", "num_return_sequences", "max_new_tokens"):
            self._expect_integer(name, minimum=1)
        for name in ("num_beams", "num_return_sequences"):
            self._expect(name, getattr(self, name) <= _MOST_BEAMS, f"at most {_MOST_BEAMS:,}")
        for name in ("min_new_tokens", "top_k", "no_repeat_ngram_size"):
            self._expect_integer(name, minimum=0)
        self._expect_number("temperature", lambda value: 0 < value < math.inf, "a number above 0")
        self._expect_number("top_p", lambda value: 0 < value <= 1, "a number above 0 and at most 1")
        self._expect_number(
            "coverage_penalty", lambda value: 0 <= value <= _LARGEST_COVERAGE_PENALTY, "a number from 0 to 1000"
        )
        self._expect_number("ctc_weight", lambda value: 0 <= value <= 1, "a number from 0 to 1")
        self._expect_number("length_penalty", math.isfinite, "a finite number")
        self._expect("seed", self.seed is None or self._is_seed(), "an integer of 64 bits, or None")
        choices = get_args(LengthNormalization)
        self._expect("length_normalization", self.length_normalization in choices, f"one of {', '.join(choices)}")
        early = self.early_stopping
        self._expect("early_stopping", isinstance(early, bool) or early == "never", "True, False or 'never'")
        self._expect("shortlist", isinstance(self.shortlist, bool), "True or False")
        self._expect_agreement()

    def _expect_agreement(self) -> None:
        self._expect(
            "min_new_tokens",
            self.min_new_tokens <= self.max_new_tokens,
            f"at most max_new_tokens={self.max_new_tokens}",
        )
        self._expect(
            "num_beams", self.num_beams == 1 or not self.do_sample, "1 with do_sample=True; set one or the other"
        )
        self._expect(
            "num_return_sequences",
            self.do_sample or self.num_return_sequences <= self.num_beams,
            f"at most num_beams={self.num_beams}; raise num_beams or set do_sample=True",
        )
        if self.length_normalization in ("power", "wu"):
            largest = _LARGEST_POWER / math.log(max(self.max_new_tokens, 2))
            self._expect(
                "length_penalty",
                abs(self.length_penalty) <= largest,
                f"from {-largest:.3g} to {largest:.3g} with max_new_tokens={self.max_new_tokens}",
            )
        self._expect("shortlist", not (self.shortlist and self.ctc_weight), "False with ctc_weight above 0")

    @property
    def favours_short(self) -> bool:
        """Whether a beam ranks outputs such that each token makes one worse, however likely it is."""
        unscaled = self.length_normalization == "none"
        return self.num_beams > 1 and (
            unscaled or (self.length_normalization != "average" and self.length_penalty <= 0)
        )

    def check_outputs(self, empty: bool) -> None:
        """Warn if a beam has found an empty output because the options favour short ones.

        Args:
            empty: whether there is one.
        """
        if empty and self.favours_short:
            setting = "length_normalization=none"
            if self.length_normalization != "none":
                setting = f"length_penalty={self.length_penalty}"
            warnings.warn(
                f"some outputs are empty, as a beam with {setting} favours short ones: set length_normalization to "
                "average, or length_penalty to 1 with power, or raise min_new_tokens",
                stacklevel=3,
            )

    def changed(self, options: Mapping[str, Any]) -> GenerationConfig:
        """Return these options with some changed, and warn of those that then have no effect.

        Raises:
            UserError: there is no such option, or one is out of its range.
        """
        known = [field.name for field in fields(self)]
        for name in options:
            if name not in known:
                raise UserError(f"there is no generation option {name!r}: choose among {', '.join(known)}")
        found, plain = replace(self, **options), GenerationConfig()
        idle = dict.fromkeys(("temperature", "top_k", "top_p", "seed"), "without do_sample=True")
        if found.do_sample:
            idle = {}
        if found.num_beams == 1:
            idle["early_stopping"] = "with num_beams=1"
        if found.length_normalization in ("none", "average"):
            idle["length_penalty"] = f"with length_normalization={found.length_normalization}"
        for name in options:
            if name in idle and options[name] != getattr(plain, name):
                warnings.warn(f"{name}={options[name]!r:.60} has no effect {idle[name]}", stacklevel=3)
        return found

    @property
    def best_path(self) -> bool:
        """Whether only CTC is asked, and nothing needs a search."""
        searched = self.num_beams > 1 or self.do_sample or self.min_new_tokens or self.no_repeat_ngram_size
        return self.ctc_weight == 1 and not searched and not self.coverage_penalty

    def _is_seed(self) -> bool:
        seed: object = self.seed
        return isinstance(seed, int) and not isinstance(seed, bool) and -(2**63) <= seed < 2**64

    def _expect_integer(self, name: str, minimum: int) -> None:
        value: object = getattr(self, name)
        valid = not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= minimum
        self._expect(name, valid, f"an integer of at least {minimum}")
        self._expect(name, getattr(self, name) < 2**31, "below 2^31")
        object.__setattr__(self, name, int(getattr(self, name)))

    def _expect_number(self, name: str, valid: Callable[[float], bool], expected: str) -> None:
        value: object = getattr(self, name)
        number = _as_float(value) if not isinstance(value, bool) and isinstance(value, Real) else math.nan
        self._expect(name, valid(number), expected)
        if not isinstance(value, int):
            object.__setattr__(self, name, number)

    def _expect(self, name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise UserError(f"{name}={getattr(self, name)!r:.60}: must be {expected}")


def _as_float(value: Real) -> float:
    try:
        return float(value)
    except OverflowError:  # of an integer
        return math.nan


_options = tuple(field.name for field in fields(GenerationConfig))
setattr(GenerationConfig, "__init__", checked(GenerationConfig.__init__, _options))  # noqa: B010


def search_options() -> list[tuple[str, Any, str]]:
    """Return name, type and meaning of each option of search, as `GenerationConfig` has them."""
    import docstring_parser

    types, found = get_type_hints(GenerationConfig), docstring_parser.parse(GenerationConfig.__doc__ or "").params
    return [(one.arg_name, types[one.arg_name], " ".join((one.description or "").split())) for one in found]


def check_generation(settings: object, path: object) -> dict[str, Any]:
    """Return the options of generation that a saved model comes with, if they are within their bounds.

    Raises:
        UserError: they are not, or no options.
    """
    if not isinstance(settings, dict) or not settings.keys() <= {one.name for one in fields(GenerationConfig)}:
        raise UserError(f"{path} has other options of generation than this version knows: it is damaged or hostile")
    check_settings(settings, path)
    try:
        GenerationConfig(**settings)
    except UserError as error:
        raise UserError(f"the options of generation in {path} are wrong: {error}") from error
    return settings
