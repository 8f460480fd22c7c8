"""The graphs of exported models with their search: one model, or several that decide together."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import onnxruntime

from lit_seq2seq.arrays import Array, log_mean
from lit_seq2seq.files.untrusted import check_archive, checked, read_json, undamaged
from lit_seq2seq.search import GenerationConfig, check_scores, including, prefix_of, search
from lit_seq2seq.search.carried import settle
from lit_seq2seq.search.config import check_generation
from lit_seq2seq.search.task import Host, OtherModel, OutputVocabulary
from lit_seq2seq.settings import spec
from lit_seq2seq.shortlist import Scored, Shortlist
from lit_seq2seq.types import Hypothesis, Joined, Padded, SpecialIds, StepFunction, StepOutput, UserError, averaged

Named = dict[str, Array]
SETTINGS, SHORTLIST, BLIND, BEGINS, FORMAT = "export.json", "shortlist.npz", "blind.npz", "begins.npz", 3
PARTS = ("encoder", "decoder", "output")
_LEAST = 1e-30  # probability of copying that counts as none
_CANDIDATES = "memory.candidates", "memory.columns", "memory.shares"


Values = dict[str, Array]
"""Arrays by the names that graphs give them."""


def digest_of(path: Path) -> str:
    """Return a digest of a file."""
    return blake2b(path.read_bytes(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class GraphState:
    """State of decoders as arrays by name. Implements `SearchState`.

    Those of sources, named `memory.*` and `summary.*`, are `(B, ...)`, those of hypotheses `(B, K, ...)`; those named
    `batch.*` belong to the whole batch.

    Attributes:
        values: the arrays.
        beams: hypotheses per source K.
        reach: how many positions of a source the next step may look at; `None`: all.
    """

    values: Values
    beams: int = 1
    reach: int | None = None

    def narrowed(self, reach: Array) -> Self:
        """Show the next step only the first `reach (1,)` positions of its source."""
        return replace(self, reach=int(reach[0]))

    def select(self, index: Array) -> Self:
        """Reorder the hypotheses by `index (B', K')`; see `SearchState`."""
        rows = index[:, 0] // self.beams

        def chosen(name: str, value: Array) -> Array:
            if name.startswith("batch"):
                return value
            if name.startswith(("memory", "summary")):
                return value[rows]
            return value.reshape(-1, *value.shape[2:])[index]

        return type(self)({name: chosen(name, value) for name, value in self.values.items()}, index.shape[1])


class Session:
    """A graph of onnxruntime, called with arrays by name.

    Args:
        path: the ONNX file.
        threads: number of threads; 0 lets onnxruntime choose.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        with undamaged(path):
            self._session = onnxruntime.InferenceSession(checked(path), options, providers=["CPUExecutionProvider"])
        self.inputs = [one.name for one in self._session.get_inputs()]
        self._outputs = [one.name for one in self._session.get_outputs()]

    def __call__(self, values: Values) -> Values:
        """Compute all outputs; values that the graph does not read are ignored."""
        found = self._session.run(None, {name: values[name] for name in self.inputs})
        return dict(zip(self._outputs, found, strict=True))


class Start(NamedTuple):
    """What is known before the first step.

    Attributes:
        state: the decoder's first state.
        mask: `(B, S)` which positions of the memory are real.
        frames: `(B, S, V)` log-probabilities of CTC; `None` without it.
        prefix: `(B, P)` ids of prompts, padded at the end; `None` where inputs are none.
    """

    state: Any
    mask: Array
    frames: Array | None
    prefix: Array | None = None


class Decodable(ABC):
    """Base of exported models that can be searched.

    Attributes:
        specials: ids of the special symbols of outputs.
        config: options of search.
        reach: how many positions of the source the first of the memory needs, and each other one more; `None` where all
            need the whole source.
        live: names of the graphs that there are of a model that writes while it reads, beside those of every model.
    """

    specials: SpecialIds
    config: GenerationConfig
    reach: tuple[int, int] | None = None
    live: Sequence[str] = ()

    @property
    @abstractmethod
    def shortlist(self) -> Shortlist:
        """The shortlist, which lists candidates for each source.

        Raises:
            UserError: there is none.
        """

    @abstractmethod
    def start(self, source: Named, candidates: Padded | None = None) -> Start:
        """Encode sources.

        Args:
            source: `source (B, S, ...)` and `lengths (B,)`; of several sources `source.NAME` and `lengths.NAME` each.
                For a model that copies also `copy_ids (B, S)`, target ids of the source's symbols.
            candidates: ids among which each source's output is chosen: `step` then takes and scores places among them,
                not ids.
        """

    @abstractmethod
    def step(self, tokens: Array, state: Any) -> StepOutput[Any]:
        """Read `tokens (B * K,)`; the step function of search."""

    def blind(self, count: int) -> GraphState:
        """Return the first state of decoders that know nothing of their sources."""
        raise UserError("internal_weight: an exported ensemble has no internal language model: set it to 0")

    def generate(
        self,
        source: Named,
        config: GenerationConfig | None = None,
        prefix: Array | None = None,
        return_attention: bool = False,
        *,
        vocabulary: OutputVocabulary | None = None,
        raw: Sequence[Any] = (),
        other: Callable[[str], OtherModel] | None = None,
    ) -> list[list[Hypothesis]]:
        """Search for the best outputs, or draw some.

        Args:
            source: see `start`.
            config: options of search; those of the model if `None`.
            prefix: `(B, P)` target ids that every output must start with; see `lit_seq2seq.search.search`. Of a model
                without a source the prompts if `None`.
            return_attention: also return the attention weights of every token.
            vocabulary: of the outputs, for options that are texts.
            raw: the raw inputs, for constraints and scorers that look at them.
            other: opens other models, for scorers that ask for some.
        """
        config = config or self.config
        if config.policy is not None and self.reach is None:
            raise UserError("policy: this model needs its whole source before it writes: set it to null")
        given = prefix if vocabulary is None else prefix_of(config, prefix, vocabulary, len(raw))
        listed = self.shortlist(source["source"], source["lengths"]) if config.shortlist else None
        if listed is not None and given is not None:
            listed = including(listed, given, self.specials)
        start = self.start(source, listed)
        if start.prefix is not None:
            given = prefix_of(config, prefix, vocabulary, len(start.mask), prompts=start.prefix)
        more: Any = {"vocabulary": vocabulary, "raw": raw, "return_attention": return_attention}
        return self.decode(start, config, given, other=other, candidates=listed, **more)

    def decode(
        self,
        start: Start,
        config: GenerationConfig,
        prefix: Array | None = None,
        *,
        other: Callable[[str], OtherModel] | None = None,
        **options: Any,
    ) -> list[list[Hypothesis]]:
        """Search for outputs of sources that are encoded; for the options see `generate` and `search`."""
        state, mask, frames, _ = start
        found = search(
            self.step,
            state,
            batch_size=len(mask),
            specials=self.specials,
            config=config,
            prefix=prefix,
            source_mask=mask,
            frames=None if frames is None else Padded(frames, mask.sum(1)),
            device=None,
            host=None if other is None else self.host(len(mask), other),
            **options,
        )
        check_scores(one.score for row in found for one in row)
        return [[self._counted(one, int(own.sum())) for one in row] for own, row in zip(mask, found, strict=True)]

    def host(self, count: int, other: Callable[[str], OtherModel]) -> Host:
        """Return what scorers ask of a model that searches in `count` sentences."""
        return _Host(self, count, other)

    def _counted(self, one: Hypothesis, length: int) -> Hypothesis:
        """Cut attention weights to the real positions of a memory, and count delays in positions of the source."""
        if one.delays is not None and self.reach is not None:
            one = replace(one, delays=self.reach[0] + self.reach[1] * (one.delays - 1))
        return one if one.attention is None else replace(one, attention=one.attention[:, :length])


@dataclass(frozen=True)
class _Host:
    """What scorers ask of an exported model; see `lit_seq2seq.search.task.Host`."""

    network: Decodable
    count: int
    other: Callable[[str], OtherModel]

    def blind(self) -> tuple[StepFunction[Any], Any]:
        return self.network.step, self.network.blind(self.count)


class Network(Decodable):
    """Encoder and decoder of an exported model.

    Args:
        folder: what `lit-seq2seq export` has written.
        variant: `fp32`, `fp16` or `int8`.
        threads: number of threads; 0 lets onnxruntime choose.
        trust: modules of others whose classes the options of search may name.

    Raises:
        UserError: there is no such model or variant.
    """

    def __init__(
        self, folder: str | os.PathLike[str], variant: str = "fp32", threads: int = 0, trust: tuple[str, ...] = ()
    ) -> None:
        self.folder = Path(folder)
        if not (self.folder / SETTINGS).is_file():
            raise UserError(
                f"there is no exported model in {self.folder}: run lit-seq2seq export --model DIR --output DIR"
            )
        self.settings = read_json(self.folder / SETTINGS)
        with undamaged(self.folder / SETTINGS):
            self._read(variant, trust)
        self.encoder, self.decoder, self.output = (
            Session(self.folder / f"{part}.{variant}.onnx", threads) for part in PARTS
        )

    def _read(self, variant: str, trust: tuple[str, ...]) -> None:
        if self.settings["format"] != FORMAT:
            raise UserError(
                f"{self.folder} was exported in format {self.settings['format']!s:.20}, this version reads {FORMAT}: "
                "export the model again, or use the runtime in the folder"
            )
        if variant not in self.settings["variants"]:
            known = ", ".join(self.settings["variants"])
            raise UserError(
                f"there is no variant {variant!r} of the model in {self.folder}: choose one of {known:.200}"
            )
        self.specials = SpecialIds(**self.settings["specials"]["target"])
        options = check_generation(self.settings["generation"], self.folder / SETTINGS)
        settle(options, self.folder, trust)
        reach = self.settings.get("reach")
        self.live = list(self.settings.get("live", []))
        self.reach = None if reach is None else (int(reach[0]), int(reach[1]))
        self.config = GenerationConfig(**spec.build_arguments(GenerationConfig, options, trust, saved=True))

    @cached_property
    def tables(self) -> Named:
        """The shortlist, `frequent` and `translations`, and the output layer, `weight`, `bias` and `bottleneck`.

        Raises:
            UserError: the model has no shortlist.
        """
        path = self.folder / SHORTLIST
        if not path.is_file():
            raise UserError(
                f"shortlist=True: the model in {self.folder} has none: learn one with lit-seq2seq shortlist --model "
                "DIR and export it again, or set it to false"
            )
        with undamaged(path):
            check_archive(path)
            if self.settings.get("shortlist", known := digest_of(path)) != known:  # 0.1 noted none
                raise UserError(f"{path} is of another model: export this one again")
            with np.load(path) as tables:
                return dict(tables)

    @property
    def shortlist(self) -> Shortlist:
        """See `Decodable.shortlist`."""
        return Shortlist(
            self.tables["frequent"], self.tables["translations"], self.settings["target_size"], self.specials
        )

    def start(self, source: Named, candidates: Padded | None = None) -> Start:
        """Encode sources; see `Decodable.start`."""
        found = self._encode(source)
        state = {name: found[name] for name in self.decoder.inputs if name != "tokens"}
        if "copy_ids" in source:
            copy_ids = source["copy_ids"]
            beyond = max(int(copy_ids.max()) + 1 - self.settings["target_size"], 0)
            # of the second only the width matters
            state |= {"memory.copy_ids": copy_ids, "memory.copy_extra": np.zeros((len(copy_ids), beyond), bool)}
        if candidates is not None:
            symbols, *scored = Scored.of(candidates, self.settings["target_size"])
            state |= dict(zip(_CANDIDATES, (candidates.values, *scored), strict=True))
            state |= {f"batch.{name}": self.tables[name][symbols] for name in ("weight", "bias")}
        return Start(GraphState(state), found["mask"], found.get("frames"), found.get("prefix"))

    def blind(self, count: int) -> GraphState:
        """Return the first state of decoders that know nothing of their sources; see `Decodable.blind`."""
        path = self.folder / BLIND
        if not path.is_file():
            raise UserError(
                f"internal_weight: the model in {self.folder} was exported without what it needs: export it again"
            )
        with undamaged(path):
            check_archive(path)
            with np.load(path) as values:
                return GraphState({name: np.repeat(value, count, axis=0) for name, value in values.items()})

    def _encode(self, source: Named) -> Values:
        if not self.settings["alone"]:
            return self.encoder(source)
        shortest, found = self.settings["shortest"], source["lengths"].min()
        if found < shortest:
            raise UserError(f"a recording of {found} samples is too short for the speech model: it needs {shortest}")
        rows = [
            self.encoder({"source": row[None, :length], "lengths": np.array([length])})
            for row, length in zip(source["source"], source["lengths"], strict=True)
        ]
        return {name: _padded([row[name][0] for row in rows]) for name in rows[0]}

    def step(self, tokens: Array, state: GraphState) -> StepOutput[GraphState]:
        """Read `tokens (B * K,)`; see `Decodable.step`."""
        values, places = state.values, tokens.reshape(-1, state.beams)
        short = "memory.candidates" in values
        ids = np.take_along_axis(values["memory.candidates"], places, axis=1) if short else places
        read = {**values, "tokens": ids}
        if state.reach is not None:
            mask = values["memory.mask"]
            read["memory.mask"] = mask & (np.arange(mask.shape[1]) < state.reach)
        found = self.decoder(read)
        after = {name: found.get(f"next.{name}", value) for name, value in values.items()}
        log_probs = self._among(found["features"], values) if short else self._log_probs(found, values)
        attention = found.get("attention")
        return StepOutput(
            log_probs.reshape(len(tokens), -1),
            GraphState(after, state.beams),
            None if attention is None else attention.reshape(len(tokens), -1),
            fresh=True,
        )

    def _log_probs(self, handed: Values, state: Values) -> Array:
        """Score all symbols: `(B, K, V)`, or with those of the source `(B, K, V + extra)`."""
        found = self.output(handed)
        if "memory.copy_ids" in state:
            return mix(found["log_probs"], found["log_copy"], found["copy_weights"], state)
        return found["log_probs"]

    def _among(self, features: Array, state: Values) -> Array:
        """Score the candidates of each source, `(B, K, C)`, as `lit_seq2seq.nn.shortlist.Shortlisted` does."""
        _, columns, shares = (state[name] for name in _CANDIDATES)
        flat = features.reshape(-1, features.shape[-1])  # one product: of three dimensions NumPy makes one a source
        if "bottleneck" in self.tables:
            flat = flat @ self.tables["bottleneck"].T
        scores = flat @ state["batch.weight"].T + state["batch.bias"]
        scores = scores.reshape(*features.shape[:2], -1)  # (B, K, U)
        rows, hypotheses = np.ogrid[: scores.shape[0], : scores.shape[1]]
        own = scores[rows[..., None], hypotheses[..., None], columns[:, None]] + shares[:, None]  # (B, K, C + M)
        own -= own.max(axis=2, keepdims=True)
        own -= np.log(np.exp(own).sum(axis=2, keepdims=True))
        return own[..., : state["memory.candidates"].shape[1]]


def _padded(arrays: Sequence[Array]) -> Array:
    """Join arrays that differ in positions, with zeros at the end."""
    found = np.zeros((len(arrays), *np.max([array.shape for array in arrays], axis=0)), arrays[0].dtype)
    for row, array in zip(found, arrays, strict=True):
        row[tuple(map(slice, array.shape))] = array
    return found


def mix(log_probs: Array, log_copy: Array, weights: Array, state: Values) -> Array:
    """Spread the weights of copying over the symbols of the source: `(B, K, V + extra)`.

    Args:
        log_probs: `(B, K, V)` of generating.
        log_copy: `(B, K, 1)` log-probability of copying.
        weights: `(B, K, S)` what share of it goes to each source position.
        state: holds `memory.copy_ids (B, S)` and, as its width, the number of symbols beyond V.
    """
    ids = state["memory.copy_ids"]
    same = (ids[:, :, None] == ids[:, None]).astype(np.float32)  # (B, S, S)
    log_copied = log_copy + np.log(np.maximum(weights @ same, _LEAST))  # (B, K, S)
    more = np.full((*log_probs.shape[:2], state["memory.copy_extra"].shape[1]), -np.inf, np.float32)
    mixed = np.concatenate([log_probs, more], axis=2)
    everywhere = np.broadcast_to(ids[:, None], weights.shape)
    generated = np.take_along_axis(mixed, everywhere, axis=2)
    np.put_along_axis(mixed, everywhere, np.logaddexp(generated, log_copied), axis=2)
    return mixed


class Ensemble(Decodable):
    """Exported models of one vocabulary whose probabilities are averaged; see `lit_seq2seq.types.averaged`.

    Args:
        networks: at least one; the options of search are those of the first.
    """

    def __init__(self, networks: Sequence[Decodable]) -> None:
        self.networks = networks
        self.specials, self.config = networks[0].specials, networks[0].config
        known = [network.reach for network in networks if network.reach is not None]
        if len(known) == len(networks):
            self.reach = (max(first for first, _ in known), max(step for _, step in known))

    @property
    def shortlist(self) -> Shortlist:
        """That of the first network."""
        return self.networks[0].shortlist

    def start(self, source: Named, candidates: Padded | None = None) -> Start:
        """Encode sources by each network; see `Decodable.start`."""
        parts = [network.start(source, candidates) for network in self.networks]
        state = Joined(tuple(part.state for part in parts))
        frames = [part.frames for part in parts if part.frames is not None]
        if len(frames) < len(parts):
            return Start(state, parts[0].mask, None, parts[0].prefix)
        if any(part.mask.shape != parts[0].mask.shape or (part.mask != parts[0].mask).any() for part in parts):
            raise UserError("ctc_weight needs encoders that shorten sources alike, but these differ; set it to 0")
        return Start(state, parts[0].mask, log_mean(frames), parts[0].prefix)

    def step(self, tokens: Array, state: Joined) -> StepOutput[Joined]:
        """Read a token by each network; see `Decodable.step`."""
        pairs = zip(self.networks, state.members, strict=True)
        return averaged([network.step(tokens, own) for network, own in pairs])
