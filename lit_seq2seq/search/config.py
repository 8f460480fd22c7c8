"""Options of the search, under the names that transformers gives them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_type_hints

from lit_seq2seq.files.lines import counted
from lit_seq2seq.files.untrusted import check_settings
from lit_seq2seq.search.constraints import Constraint
from lit_seq2seq.search.constraints.terms import comparable, read_terms
from lit_seq2seq.search.options import Range, counts, option
from lit_seq2seq.search.policies import Policy
from lit_seq2seq.search.reranker import Reranker
from lit_seq2seq.search.scorers import Scorer
from lit_seq2seq.settings import spec
from lit_seq2seq.settings.arguments import checked, shown
from lit_seq2seq.types import UserError

_BY_ID = ("bad_words", "force_words", "constraints", "scorers", "policy")  # options that ask for all symbols
P = TypeVar("P")
Detail = Literal["score", "tokens", "alignment", "attention", "delays", "times", "emission", "met"]
"""What an output can tell beside its text; see `Generated.told`."""
LengthNormalization = Literal["none", "average", "power", "wu"]
"""How the log-probability of a hypothesis is made comparable across lengths; see `GenerationConfig`."""
_LARGEST_POWER = 70.0  # natural logarithm of what a length may be raised to, so that scores fit single precision
_MOST_BEAMS = 10_000  # more fill the memory, and none of the literature's searches had them
_DESCRIBED = """{"class_path": "NAME", "init_args": {...}}"""
_LARGEST_COVERAGE_PENALTY = 1000.0  # above it the rounding of attention weights would decide between hypotheses


def _made(given: Any, kind: type, home: str = "lit_seq2seq.search") -> Any:
    """Make a part from its description or factory; a plain name is looked up in `home`."""
    if isinstance(given, Mapping):
        path = str(given.get("class_path", ""))
        full = path if "." in path else f"{home}.{path}"
        given = spec.build({**given, "class_path": full}, hint=Callable[[], kind])
    return given() if callable(given) and not isinstance(given, kind) else given


@dataclass(frozen=True)
class GenerationConfig:
    """How outputs are searched for; names and meanings are those of transformers' `GenerationConfig`.

    The differences: `top_k` is off by default (transformers 4: 50); `early_stopping=False` is exact (see there);
    `num_beams > 1` cannot be joined with `do_sample`; words are given as texts, not as ids; and the options that
    transformers does not have are our own.

    A length is the number of generated tokens, *EOS included* where it was produced and a forced prefix excluded, here
    and in `max_new_tokens`, as in transformers.

    Raises:
        UserError: an option is out of its range.
    """

    num_beams: int = option(1, "hypotheses kept per sentence, 1 to 10,000; 1 is greedy search.", counts(1, _MOST_BEAMS))
    num_return_sequences: int = option(
        1,
        "hypotheses returned per sentence, 1 to 10,000, and <= `num_beams` unless `do_sample`.",
        counts(1, _MOST_BEAMS),
    )
    max_new_tokens: int = option(
        128, "most tokens generated, >= 1. What is still open then ends without EOS and competes as it is.", counts(1)
    )
    min_new_tokens: int = option(
        0, "EOS is not produced before this many other tokens; 0 to `max_new_tokens`.", counts(0)
    )
    do_sample: bool = option(False, "draw each token at random instead of searching for the most probable output.")
    temperature: float = option(1.0, "sampling from p ** (1 / temperature), > 0.", Range(above=0))
    top_k: int = option(0, "sampling from the `top_k` most probable tokens only; 0 is off.", counts(0))
    top_p: float = option(
        1.0,
        """sampling from the smallest set of tokens whose probabilities sum to at least `top_p`, in (0, 1]; 1 is off
        (nucleus sampling, Holtzman et al. 2020).""",
        Range(above=0, most=1),
    )
    no_repeat_ngram_size: int = option(0, "no n-gram of this size occurs twice in an output; 0 is off.", counts(0))
    repetition_penalty: float = option(
        1.0,
        """log-probabilities of symbols that an output already has are multiplied by this (Keskar et al. 2019); 1 is
        off.""",
        Range(above=0, most=1000),
    )
    prefix: str = option("", "text with which each output begins.")
    bad_words: tuple[str, ...] = option(
        (), "texts that must not occur in outputs, as the vocabulary spells them in symbols."
    )
    force_words: tuple[str, ...] = option(
        (),
        """texts that must occur in each output, in any order; needs `num_beams` above 1 (dynamic beam allocation,
        Post and Vilar 2018).""",
    )
    constraints: tuple[Constraint, ...] = option(
        (), "further constraints on outputs, such as `Lexicon`, `Pattern` and `Terminology`.", part=True
    )
    scorers: tuple[Scorer, ...] = option(
        (),
        "what scores continuations beside the model: a `LanguageModel`, other models (`JointModels`).",
        part=True,
    )
    policy: Policy | None = option(  # noqa: RUF009  (as the others)
        None,
        """how much of the source has been read before each token, for models that write while they read, such as
        `WaitK`. Tokens are then final: until the source has ended, a beam takes the most probable one.""",
        part=True,
    )
    num_beam_groups: int = option(
        1,
        """groups into which the beam is divided, so that they find different outputs (diverse beam search, Vijayakumar
        et al. 2018); a divisor of `num_beams`. What several groups find comes once, so that fewer outputs may come than
        are asked for.""",
        counts(1, _MOST_BEAMS),
    )
    diversity_penalty: float = option(
        0.0,
        """taken off the log-probability of a token for each hypothesis of an earlier group that has just taken it; it
        decides what a group keeps, and does not count in scores.""",
        Range(0, 1000),
    )
    early_stopping: bool | Literal["never"] = option(
        False,
        """with `True` a sentence is finished when `num_beams` hypotheses are. With `False` or `"never"` it is finished
        when no open hypothesis can still reach the best `num_return_sequences`, whatever follows: this never misses a
        better hypothesis of the beam. (transformers does so for `"never"`; its `False` compares open hypotheses at
        their present length and may stop too soon when `length_penalty > 0`.)""",
    )
    length_penalty: float = option(
        1.0,
        """the exponent of `"power"` and `"wu"`: above 0 favours long outputs, below 0 short ones. It must stay so small
        that `max_new_tokens ** length_penalty` can be computed: with 128, from -14.4 to 14.4.""",
        Range(),
    )
    length_normalization: LengthNormalization = option(  # noqa: RUF009  (as the others)
        "power",
        """what the log-probability is divided by: `"none"`: 1; `"average"`: length; `"power"`: length **
        length_penalty, as transformers does; `"wu"`: ((5 + length) / 6) ** length_penalty (Wu et al. 2016, eq. 14).
        With `"none"` a beam prefers short outputs, often empty ones; you get a warning when it finds some.""",
    )
    coverage_penalty: float = option(
        0.0,
        """weight beta >= 0 of the penalty on source positions that received little attention (Wu et al. 2016, eq. 14),
        at most 1000; 0 is off.""",
        Range(0, _LARGEST_COVERAGE_PENALTY),
    )
    ctc_weight: float = option(
        0.0,
        """share of CTC in the scores (Watanabe et al. 2017), 0 to 1, for models trained with it; 0 is off. With 1, one
        beam and no limit on what may come next, no decoder runs: the most probable symbol or blank is taken at each
        position of the encoder (best path decoding, Graves et al. 2006).""",
        Range(0, 1),
    )
    shortlist: bool = option(
        False,
        """choose each symbol among the candidates that a lexicon has for the source (Jean et al. 2015): faster where
        the vocabulary is large. Probabilities are then estimates. The model must have a shortlist, see `lit-seq2seq
        shortlist`.""",
    )
    seed: int | None = option(
        None,
        """seed of the sampling; `None` takes torch's global random state (in the runtime of exported models, a new
        one). One seed draws the same random numbers in every call: set it for one reproducible call, not for a loop
        over batches.""",
    )
    reranker: Reranker | None = option(  # noqa: RUF009  (as the others)
        None,
        """reranks outputs by their texts, such as `MinimumBayesRisk`; the model's own if `None`.""",
        part=True,
    )
    replace_unknown: bool = option(
        False,
        """put the source word that an unknown symbol of an output attends to most in its place (Luong et al. 2015,
        section 3.3), or what `unknown_words` has for that word.""",
    )
    unknown_words: str | None = option(
        None,
        "CSV file for `replace_unknown`, a source word and its translation a line; case does not matter.",
        part=True,
    )
    details: Detail | tuple[Detail, ...] = option(  # noqa: RUF009  (as the others)
        (),
        """what each output tells beside its text, one or a list of: `score`, what outputs are ranked by; `tokens`, its
        symbols, each with its log-probability; `alignment`, the source position that each symbol attends to most, as
        `0-0 1-2` (source-output, from 0, special symbols left out); `attention`, all weights over the source symbols;
        `delays`, how many source positions had been read before each symbol, under a policy; `times`, when each symbol
        is written on the best alignment, in milliseconds of sound or source positions, by a transducer, a
        `HardMonotonicDecoder` or CTC; `emission`, how a transducer spends its frames; `met`, whether it meets the
        constraints.""",
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if (allowed := one.metadata["allowed"]) is not None:
                try:
                    object.__setattr__(self, one.name, allowed.check(value))
                except ValueError as error:
                    self._expect(one.name, False, str(error))
            elif one.type == "bool":
                self._expect(one.name, isinstance(value, bool), "True or False")
            elif one.type == "str":
                self._expect(one.name, isinstance(value, str), "a text")
            elif one.type == "tuple[str, ...]":
                good = isinstance(value, Sequence) and not isinstance(value, str)
                good = good and all(isinstance(text, str) and text for text in value)
                self._expect(one.name, good, 'a list of texts, such as ["one", "15"]')
                object.__setattr__(self, one.name, tuple(value))
        self._expect("seed", self.seed is None or self._is_seed(), "an integer of 64 bits, or None")
        choices = get_args(LengthNormalization)
        self._expect("length_normalization", self.length_normalization in choices, f"one of {', '.join(choices)}")
        early = self.early_stopping
        self._expect("early_stopping", isinstance(early, bool) or early == "never", "True, False or 'never'")
        self._expect("unknown_words", isinstance(self.unknown_words, str | None), "the path of a CSV file, or None")
        details = (self.details,) if isinstance(self.details, str) else self.details
        known = get_args(Detail)
        good = isinstance(details, Sequence) and all(one in known for one in details)
        self._expect("details", good, f"one or a list of {', '.join(known)}")
        object.__setattr__(self, "details", tuple(details))
        object.__setattr__(self, "constraints", self._made("constraints", Constraint))
        object.__setattr__(self, "scorers", self._made("scorers", Scorer))
        single: dict[str, tuple[type, str]] = {
            "policy": (Policy, "lit_seq2seq.search"),
            "reranker": (Reranker, "lit_seq2seq.reranking"),
        }
        for name, (kind, home) in single.items():
            given = getattr(self, name)
            object.__setattr__(self, name, None if given is None else _made(given, kind, home))
            good = isinstance(getattr(self, name), kind | None)
            self._expect(name, good, f"a part of kind {kind.__name__}, {_DESCRIBED}")
        self._expect_agreement()

    def _made(self, name: str, kind: type[P]) -> tuple[P, ...]:
        """Return the parts of an option, made from their descriptions where need be."""
        given = getattr(self, name)
        several = isinstance(given, Sequence) and not isinstance(given, str)
        made = tuple(map(partial(_made, kind=kind), given)) if several else ()
        good = several and all(isinstance(one, kind) for one in made)
        self._expect(name, good, f"a list of parts of kind {kind.__name__}, each {_DESCRIBED}")
        return made

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
        named = next((name for name in _BY_ID if getattr(self, name)), None)
        self._expect("shortlist", not (self.shortlist and named), f"False with {named}")
        whole = ["ctc_weight"] * bool(self.ctc_weight)
        parts: tuple[Scorer | Constraint, ...] = (*self.scorers, *self.constraints)
        whole += [type(one).__name__ for one in parts if one.whole_source]
        self._expect(
            "policy",
            self.policy is None or not whole,
            f"None with {next(iter(whole), '')}, which looks at the whole source",
        )
        self._expect(
            "policy",
            self.policy is None or self.reranker is None,
            f"None with {type(self.reranker).__name__}, which chooses among whole outputs",
        )
        asking = ["force_words"] * bool(self.force_words) + [type(c).__name__ for c in self.constraints if c.needs_beam]
        needs = next(iter(asking), None)
        self._expect("num_beams", self.num_beams > 1 or not needs, f"above 1 with {needs}")
        self._expect(
            "num_beam_groups", self.num_beams % self.num_beam_groups == 0, f"a divisor of num_beams={self.num_beams}"
        )
        self._expect("num_beam_groups", self.num_beam_groups == 1 or not needs, f"1 with {needs}")

    def quick(self, num_beams: int) -> GenerationConfig:
        """Return these options with another beam and one output, for validation and for streams.

        Options that need a larger beam, or one that divides otherwise, are left out.
        """
        divided = num_beams % self.num_beam_groups == 0 and num_beams > 1
        return replace(
            self,
            num_beams=num_beams,
            num_return_sequences=1,
            num_beam_groups=self.num_beam_groups if divided else 1,
            force_words=self.force_words if num_beams > 1 else (),
            constraints=tuple(one for one in self.constraints if num_beams > 1 or not one.needs_beam),
        )

    def moved(self, move: Callable[[str, str], str]) -> GenerationConfig:
        """Return these options with each path that they name replaced by `move(path, kind)`."""

        def changed(value: Any, kind: str = "file") -> Any:
            if isinstance(value, str):
                return move(value, kind)
            if isinstance(value, tuple):
                return tuple(changed(one, kind) for one in value)
            new = {name: changed(getattr(value, name), kind) for name, kind in getattr(value, "outside", {}).items()}
            return replace(value, **new) if new else value

        return replace(self, **{one.name: changed(getattr(self, one.name)) for one in search_options() if one.part})

    @property
    def needs_frames(self) -> bool:
        """Whether search needs CTC's log-probabilities."""
        return self.ctc_weight > 0 or any(one.needs_frames for one in self.scorers)

    @property
    def favours_short(self) -> bool:
        """Whether a beam ranks an output lower with each token, however likely it is."""
        unscaled = self.length_normalization == "none"
        return self.num_beams > 1 and (
            unscaled or (self.length_normalization != "average" and self.length_penalty <= 0)
        )

    @property
    def attends(self) -> bool:
        """Whether attention weights are needed."""
        follows = self.policy is not None and self.policy.attends
        return follows or self.replace_unknown or "alignment" in self.details or "attention" in self.details

    @property
    def aligns(self) -> bool:
        """Whether the best alignments of outputs are needed."""
        return "times" in self.details or "emission" in self.details

    @property
    def unknown(self) -> Callable[[str], str] | None:
        """The replacement of an unknown symbol by the source word it attends to; `None`: it stays."""
        if not self.replace_unknown:
            return None
        entries = read_terms(self.unknown_words).entries if self.unknown_words else {}
        return lambda word: entries.get(comparable(word), word)

    def check_outputs(self, empty: bool, unmet: int = 0) -> None:
        """Warn about outputs that do not meet the constraints, and about empty ones if the options favour them.

        Args:
            empty: whether there is one.
            unmet: number of sentences of which no output meets them.
        """
        if unmet:
            warnings.warn(
                f"{counted(unmet, 'output')} not as the constraints ask: the search has found none that is; raise "
                "num_beams or max_new_tokens",
                stacklevel=3,
            )
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
        """Return these options with some changed, and warn about those that have no effect.

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
        if found.num_beam_groups == 1:
            idle["diversity_penalty"] = "with num_beam_groups=1"
        if found.length_normalization in ("none", "average"):
            idle["length_penalty"] = f"with length_normalization={found.length_normalization}"
        if not found.replace_unknown:
            idle["unknown_words"] = "without replace_unknown=True"
        for name in options:
            if name in idle and options[name] != getattr(plain, name):
                warnings.warn(f"{name}={options[name]!r:.60} has no effect {idle[name]}", stacklevel=3)
        return found

    @property
    def best_path(self) -> bool:
        """Whether only CTC is asked, and nothing needs a search."""
        searched = self.num_beams > 1 or self.do_sample or self.min_new_tokens or self.no_repeat_ngram_size
        changed = self.coverage_penalty or self.repetition_penalty != 1 or any(getattr(self, name) for name in _BY_ID)
        return self.ctc_weight == 1 and not searched and not changed and not self.prefix

    def _is_seed(self) -> bool:
        seed: object = self.seed
        return isinstance(seed, int) and not isinstance(seed, bool) and -(2**63) <= seed < 2**64

    def _expect(self, name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise UserError(f"{name}={shown(getattr(self, name))}: must be {expected}")


_options = tuple(one.name for one in fields(GenerationConfig))
setattr(GenerationConfig, "__init__", checked(GenerationConfig.__init__, _options))  # noqa: B010


class SearchOption(NamedTuple):
    """What commands, schemas and pages need to know about an option.

    Attributes:
        name: its name.
        kind: its type.
        about: what it does.
        allowed: which numbers it may be.
        part: whether it names parts or files, which a request over HTTP may not.
    """

    name: str
    kind: Any
    about: str
    allowed: Range | None
    part: bool


def search_options() -> list[SearchOption]:
    """Return the options, in their order."""
    types = get_type_hints(GenerationConfig)
    return [SearchOption(one.name, types[one.name], **one.metadata) for one in fields(GenerationConfig)]


def _documented(cls: type) -> None:
    """Add the options' own descriptions to the docstring of their class."""
    about = "".join(f"        {one.name}: {one.metadata['about']}\n" for one in fields(cls))
    before, after = (cls.__doc__ or "").split("    Raises:")
    cls.__doc__ = f"{before}    Args:\n{about}\n    Raises:{after}"


if GenerationConfig.__doc__:  # python -OO leaves it out
    _documented(GenerationConfig)


def check_generation(settings: object, path: object) -> dict[str, Any]:
    """Return the options of generation that a saved model comes with, if they are within their bounds.

    Raises:
        UserError: they are not, or no options.
    """
    if not isinstance(settings, dict) or not settings.keys() <= {one.name for one in fields(GenerationConfig)}:
        raise UserError(f"{path} has other options of generation than this version knows: it is damaged or hostile")
    check_settings(settings, path)
    parts = {one.name for one in search_options() if one.part}  # which are built where it is known who is trusted
    try:
        GenerationConfig(**{name: value for name, value in settings.items() if name not in parts})
    except UserError as error:
        raise UserError(f"the options of generation in {path} are wrong: {error}") from error
    return settings
