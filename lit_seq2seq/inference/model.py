"""`Seq2SeqModel`: a network with its vocabulary, which encodes, decodes and is saved as a folder."""

from __future__ import annotations

import copy
import inspect
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, Self, Unpack

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lit_seq2seq import arrays
from lit_seq2seq.features import Processor
from lit_seq2seq.files.paths import Loading, Pushing
from lit_seq2seq.files.weights import check_finite
from lit_seq2seq.hub.card import Provenance, model_card
from lit_seq2seq.hub.folder import ModelFolder, load_folder, push_folder, save_folder
from lit_seq2seq.inference.out_of_memory import lacks_memory, release_memory
from lit_seq2seq.live.growing import GrowingText
from lit_seq2seq.nn import EncoderDecoder, Ensemble, OutputLayer, ParallelDecoder, TextEncoder
from lit_seq2seq.nn.kernels.packed import prepare
from lit_seq2seq.nn.network import (
    AttentionLossFactory,
    AuxiliaryFactory,
    DecoderFactory,
    EncoderFactory,
    Network,
    OutputFactory,
    SecondPassFactory,
    Tie,
)
from lit_seq2seq.nn.transfer import transfer_weights
from lit_seq2seq.reranking import Reranker, reranked
from lit_seq2seq.search import GenerationConfig, check_attention, check_scores, including, prefix_of, search, stream
from lit_seq2seq.search.alignments import emission
from lit_seq2seq.search.carried import place_of
from lit_seq2seq.search.rules import Options, constraints_of
from lit_seq2seq.search.task import Task
from lit_seq2seq.settings import spec
from lit_seq2seq.settings.arguments import checked
from lit_seq2seq.shortlist import Shortlist
from lit_seq2seq.types import (
    CellState,
    Encoded,
    Hypothesis,
    Padded,
    Returning,
    Shared,
    Source,
    SpecialIds,
    StepFunction,
    UserError,
    Value,
)

RerankerFactory = Callable[[], Reranker]
_PARTS = ("encoder", "decoder", "output", "attention_losses", "auxiliary", "second_pass")
UNTRAINED = "the model's weights are random: fit it, or load trained ones with from_pretrained or ckpt_path"


class Seq2SeqModel(nn.Module):
    """A network with its vocabulary: all that using a model needs. `LitSeq2Seq` has one, and trains it.

    Sizes come from the data: `attach` builds the network. Every argument is a plain value or a factory, so that a YAML
    recipe, a checkpoint and a model folder can all describe the model alike.

    Args:
        encoder: makes the encoder from the size of the source vocabulary (or features).
        decoder: makes the decoder from the size of the target vocabulary and the encoder's shape.
        tie_embeddings: which embeddings share weights; see `EncoderDecoder`.
        output: makes the output layer from the sizes of what the decoder hands over and of the target vocabulary.
        attention_losses: makes each of the terms that are added to the loss for what attention does.
        auxiliary: makes what predicts the target beside the decoder and shares in the loss, such as `CTC`.
        second_pass: makes a second decoder over the same encoder, which shares in the loss and rates outputs; see
            `lit_seq2seq.reranking.Rescoring`.
        generation: options of search for validate, test and predict.
        reranker: makes the reranker of a beam; `None` for none.
        task: the hub's name of the task, for the model card and the pipeline.

    Attributes:
        description: the arguments as plain values, and in a model that was trained those of its training.
        provenance: what it was trained on, and its scores.
        signatures: how each score is computed, by its name without the split.
    """

    @checked
    def __init__(
        self,
        encoder: EncoderFactory = TextEncoder,
        decoder: DecoderFactory = ParallelDecoder,
        *,
        tie_embeddings: Tie = "none",
        output: OutputFactory = OutputLayer,
        attention_losses: Sequence[AttentionLossFactory] = (),
        auxiliary: AuxiliaryFactory | None = None,
        second_pass: SecondPassFactory | None = None,
        generation: GenerationConfig = GenerationConfig(),  # noqa: B008  (immutable)
        reranker: RerankerFactory | None = None,
        task: str = "translation",
    ) -> None:
        given = dict(locals())
        super().__init__()
        self.description: MutableMapping[str, Any] = describe(Seq2SeqModel, given)
        self.make_network = partial(
            EncoderDecoder,
            encoder=factory(encoder, EncoderFactory),
            decoder=factory(decoder, DecoderFactory),
            tie_embeddings=tie_embeddings,
            output=factory(output, OutputFactory),
            attention_losses=[factory(loss, AttentionLossFactory) for loss in attention_losses],
            auxiliary=factory(auxiliary, AuxiliaryFactory),
            second_pass=factory(second_pass, SecondPassFactory),
        )
        self.generation = GenerationConfig(**generation) if isinstance(generation, Mapping) else generation
        self.reranker: Reranker | None = None if reranker is None else factory(reranker, RerankerFactory)()
        self.task = task
        self.network: Network | None = None
        self.shortlist: Shortlist | None = None
        self.provenance = Provenance()
        self.signatures: Mapping[str, str] = {}
        self._built: list[Tensor] = []
        self._processor: Processor | None = None
        self._opened: dict[str, Seq2SeqModel] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out other models that search has opened."""
        return {**self.__dict__, "_opened": {}}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.searched.parameters()).device

    @property
    def attached(self) -> bool:
        """Whether the vocabulary is known."""
        return self._processor is not None

    @property
    def processor(self) -> Processor:
        """Source feature and target tokenizer; known once attached to data, or loaded."""
        if self._processor is None:
            raise UserError(
                "the model has no vocabulary yet: fit it with a Seq2SeqDataModule, or load a trained one with "
                "from_pretrained or ckpt_path"
            )
        return self._processor

    @property
    def net(self) -> EncoderDecoder:
        """The network; built once the vocabulary is known."""
        if not isinstance(self.searched, EncoderDecoder):
            raise UserError("an ensemble has no network of its own: take those of its models")
        return self.searched

    @property
    def searched(self) -> Network:
        """What search asks for its steps: the network, or several that decide together."""
        if self.network is None:
            _ = self.processor  # which says more where there is none
            raise UserError("the model has no network yet: fit it with a Seq2SeqDataModule, attach or load one first")
        return self.network

    @checked
    def attach(self, processor: Processor) -> None:
        """Give the model its vocabulary, and build the network for it unless it has one.

        Raises:
            UserError: the network was built for another vocabulary.
        """
        if self._processor is not None and self._processor.identity() != processor.identity():
            raise UserError(
                "the data has another vocabulary than the model's: give the settings it was trained with, or set "
                "data.processor to the model's folder and data.source_tokenizer to null"
            )
        self._processor = processor
        if self.network is None:
            self._build(processor)
        if (copies := self.searched.copies) != processor.copy:
            verb, given = ("copies", "out") if copies else ("does not copy", "")
            raise UserError(
                f"the model's output {verb}, but the data comes with{given} what can be copied: "
                f"set copy={copies} on the Seq2SeqDataModule, or change the output"
            )

    def _build(self, processor: Processor) -> None:
        try:
            self.network = self.make_network(
                processor.source_feature.size, processor.target.size, specials=processor.target.specials
            )
        except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
            raise UserError(f"the model cannot be built: {error}") from error
        self._built = _sample(self.net)
        self.description["encoder"] = self.net.encoder.completed(self.description["encoder"])

    @property
    def untrained(self) -> bool:
        """Whether all weights are as they were built: nobody has trained them, or loaded others."""
        now = _sample(self.searched)
        same = [torch.equal(built.to(new.dtype), new) for built, new in zip(self._built, now, strict=False)]
        return len(self._built) == len(now) and all(same)

    def warn_if_untrained(self) -> None:
        """Warn of random weights."""
        if self.untrained:
            rank_zero_warn(UNTRAINED)

    @checked
    def adapt(self, processor: Processor) -> None:
        """Give a trained model another vocabulary, keeping every weight that has a place in it.

        Where a side's old symbols are the first of the new ones, their rows in embeddings and output layer stay, and
        the rows of the others start as those of a new model: embeddings from N(0, 1 / sqrt(E)), see `new_embedding`,
        output weights as in `torch.nn.Linear`, biases at 0. Otherwise all rows of that side start fresh. `fit`
        does this by itself when the data's vocabulary is the model's and more.

        Raises:
            UserError: what is read, or what is copied, is of another kind.
        """
        old = copy.copy(self)
        old._modules = dict(self._modules)
        self.detach()
        self.attach(processor)
        self.take(old)

    def detach(self) -> None:
        """Forget vocabulary and network."""
        self._processor = self.network = self.shortlist = None

    def take(self, other: Seq2SeqModel) -> None:
        """Take over the weights of a trained model of another vocabulary; see `adapt`."""
        kept = other.processor.kept_by(self.processor)
        transfer_weights(other.net, self.net, *kept)
        features = {"source": self.processor.source_feature, "target": self.processor.target}
        for (side, feature), rows in zip(features.items(), kept, strict=True):
            if feature.symbols and not rows:
                rank_zero_info(f"the {side} vocabulary is another one: it starts anew")

    def prepared(self, dtype: torch.dtype = torch.float32) -> Self:
        """Make a copy that decodes faster on a CPU; see `lit_seq2seq.nn.kernels.packed.prepare`."""
        model = copy.copy(self)
        model._modules = {**self._modules, "network": prepare(self.searched, dtype)}
        return model

    @checked
    def encode(self, source: Source | Sequence[Any]) -> Encoded:
        """Encode a batch of sources: one memory vector per position, and final states.

        Args:
            source: as the processor makes it, or a list of raw inputs, such as texts.
        """
        source = self._read(source)
        encoded = self.searched.encode(source)
        return encoded if self.shortlist is None else replace(encoded, candidates=self._candidates(source))

    def _read(self, raw: Source | Sequence[Any]) -> Source:
        if isinstance(raw, Value):
            return raw
        feature = self.processor.source_feature
        for number, one in enumerate(raw, start=1):
            if not feature.accepts(one):
                raise UserError(f"expected {feature.input_kind}, but input {number} is {one!r:.60}")
        if not raw:
            raise UserError(f"expected a list of inputs, each {feature.input_kind}, but it is empty")
        return self.processor.source(raw).to(self.device)

    def _candidates(self, source: Source) -> Padded:
        assert self.shortlist is not None
        if isinstance(source, Shared):
            return self._candidates(source.distinct).select(source.index)
        assert isinstance(source, Padded)
        return self.shortlist(source.values.cpu().numpy(), source.lengths.cpu().numpy()).to(source.values.device)

    @checked
    @torch.no_grad()
    def decode(
        self,
        encoded: Encoded,
        config: GenerationConfig | None = None,
        prefix: Tensor | None = None,
        return_attention: bool = False,
    ) -> list[list[Hypothesis]]:
        """Search for the best outputs of an encoded batch.

        Args:
            encoded: from `encode`.
            config: options of search; those of the model if `None`.
            prefix: `(B, P)` target ids that every output must start with; of a model without a source the prompts if
                `None`.
            return_attention: also return the attention weights of every token.

        Returns:
            Per source a list of `num_return_sequences` hypotheses, best first, with their texts. Symbols that were
            copied from beyond the vocabulary are unknown in these: `generate` has the sources to name them.
        """
        found = self._search(encoded, config, prefix, return_attention)
        check_scores(one.score for row in found for one in row)
        return self.processor.texts(found)

    def _search(
        self,
        encoded: Encoded,
        config: GenerationConfig | None,
        prefix: Tensor | None,
        return_attention: bool,
        *,
        raw: Sequence[Any] = (),
    ) -> list[list[Hypothesis]]:
        step, state, options = self._asked(encoded, config or self.generation, prefix, raw)
        found = search(step, state, return_attention=return_attention, **options)
        found = [[_trimmed(self.delayed(one), encoded.memory, place) for one in row] for place, row in enumerate(found)]
        return self._aligned(encoded, found) if (config or self.generation).aligns else found

    def _aligned(self, encoded: Encoded, found: list[list[Hypothesis]]) -> list[list[Hypothesis]]:
        """Add where the best alignment writes each token."""
        places = iter(self.searched.forced_align(*self._paired(encoded, found)).tolist())
        frames = encoded.memory.lengths.tolist()
        return [[self.placed(one, next(places), size) for one in row] for row, size in zip(found, frames, strict=True)]

    def rated(self, encoded: Encoded, found: list[list[Hypothesis]], passes: Sequence[str]) -> list[list[Hypothesis]]:
        """Let other parts of the network rate outputs; see `EncoderDecoder.passes`."""
        if not passes:
            return found
        ratings = self.searched.passes(*self._paired(encoded, found), passes)
        rows = iter(torch.stack(list(ratings.values()), dim=1).tolist())
        return [[replace(one, passes=dict(zip(ratings, next(rows), strict=True))) for one in row] for row in found]

    def _paired(self, encoded: Encoded, found: Sequence[Sequence[Hypothesis]]) -> tuple[Encoded, Padded]:
        """Put all outputs of a batch into one of targets, each beside its source."""
        target = self.processor.target
        ids = [[*one.tokens.tolist(), target.specials.eos] for row in found for one in row]
        rows = torch.tensor([place for place, row in enumerate(found) for _ in row], device=self.device)
        return encoded.select(rows), target.collate([np.array(one) for one in ids]).to(self.device)

    def placed(self, one: Hypothesis, places: Sequence[int], frames: int) -> Hypothesis:
        """Tell an output where each of its tokens is written: `places` in a memory of so many `frames`."""
        own = places[: len(one.tokens)]
        if -1 in own:
            return one
        needed = torch.tensor([self.searched.needed(place + 1) for place in own], dtype=torch.long)
        return replace(one, written=needed, emission=emission(own, frames) if self.searched.transducer else {})

    def delayed(self, one: Hypothesis) -> Hypothesis:
        """Count delays in positions of the source instead of those of the memory."""
        if one.delays is None:
            return one
        return replace(one, delays=torch.tensor([self.searched.needed(count) for count in one.delays.tolist()]))

    def check_generation(self) -> None:
        """Open what the options of search name, before anything depends on it.

        Raises:
            UserError: a file or model is missing, outputs have no symbols for a word, or no policy fits the network.
        """
        target, config = self.processor.target, self.generation
        host = ModelHost(self, Encoded(Padded(torch.zeros(1, 1, 1), torch.ones(1)), CellState(torch.zeros(1, 1, 1))))
        constraints_of(config, Task(1, target.specials, arrays.NUMPY, target, raw=[""], host=host))
        if config.policy is not None:
            self.searched.expect_early("generation.policy")
        for part in config.scorers:
            for name in part.outside:
                value = getattr(part, name)
                for one in [value] if isinstance(value, str) else value:
                    host.other(one)

    def _asked(
        self, encoded: Encoded, config: GenerationConfig, prefix: Tensor | None, raw: Sequence[Any]
    ) -> tuple[StepFunction[Any], Any, Options]:
        """Return the step function, first state and options of the search of an encoded batch."""
        network, target, count = self.searched, self.processor.target, len(encoded.memory.lengths)
        if config.policy is not None:
            network.expect_early("generation.policy")
        prefix = prefix_of(config, prefix, target, count, prompts=encoded.prefix)
        if prefix is not None and not network.copies and (prefix >= target.size).any():
            raise UserError(
                f"prefix has the id {int(prefix.max())}, but the vocabulary has ids from 0 to {target.size - 1}"
            )
        candidates = allowed(encoded, config, prefix, network.specials)
        options: Options = {
            "batch_size": count,
            "specials": network.specials,
            "config": config,
            "prefix": prefix,
            "source_mask": encoded.memory.mask,
            "candidates": candidates,
            "frames": network.frames(encoded) if config.needs_frames else None,
            "device": encoded.memory.values.device,
            "vocabulary": target,
            "raw": raw,
            "host": ModelHost(self, encoded),
        }
        return network.step, network.start(encoded, candidates), options

    @checked
    @torch.no_grad()
    def generate(
        self,
        source: Source | Sequence[Any],
        config: GenerationConfig | None = None,
        prefix: Tensor | None = None,
        return_attention: bool = False,
        *,
        check: bool = True,
        raw: Sequence[Any] = (),
    ) -> list[list[Hypothesis]]:
        """Encode and decode; see `encode` and `decode`.

        Scores that are no numbers are refused unless `check` is false: a network in training may have such for a while.
        Constraints that look at the sources need `raw`, what these were encoded from, unless `source` is that itself.
        """
        raw = raw if isinstance(source, Value) else source
        source = self._read(source)
        found = self._search(self.encode(source), config, prefix, return_attention, raw=raw)
        if check:
            check_scores(one.score for row in found for one in row)
        return self.processor.texts(found, source, raw, (config or self.generation).unknown)

    def write(
        self,
        source: Source,
        raw: Sequence[Any],
        config: GenerationConfig | None = None,
        return_attention: bool = False,
        *,
        check: bool = True,
    ) -> list[list[Hypothesis]]:
        """Generate, restore what the source feature hides, and rerank; see `generate`.

        If memory runs out, the batch is decoded in halves.

        Args:
            source: the encoded sources.
            raw: what they were encoded from, or what the source feature's `show` says of it.
            config: options of search; those of the model if `None`.
            return_attention: see `decode`.
            check: see `generate`.
        """
        try:
            found = self._write(source, raw, config, return_attention)
            if check:
                check_scores(one.score for row in found for one in row)
            return found
        except (RuntimeError, MemoryError) as error:
            if len(raw) == 1 or not lacks_memory(error):
                raise
        release_memory()
        half, places = len(raw) // 2, torch.arange(len(raw), device=source.lengths.device)
        parts = ((places[:half], raw[:half]), (places[half:], raw[half:]))
        return [
            row
            for own, some in parts
            for row in self.write(source.select(own), some, config, return_attention, check=check)
        ]

    def _write(
        self, source: Source, raw: Sequence[Any], config: GenerationConfig | None, return_attention: bool
    ) -> list[list[Hypothesis]]:
        config = config or self.generation
        reranker, wanted = reranked(config, self.reranker)
        encoded = self.encode(source)
        found = self._search(encoded, wanted, None, return_attention, raw=raw)
        if reranker is not None:
            found = self.rated(encoded, found, reranker.passes)
        found = self.processor.texts(found, source, raw, wanted.unknown)
        restore = self.processor.source_feature.restore
        written = [[replace(h, text=restore(h.text, one)) for h in row] for one, row in zip(raw, found, strict=True)]
        if reranker is None:
            return written
        best = [reranker.order(row, one, config) for one, row in zip(raw, written, strict=True)]
        return [row[: config.num_return_sequences] for row in best]

    @checked
    def stream(
        self, raw: Any, config: GenerationConfig | None = None, *, source: Source | None = None
    ) -> Generator[str, None, bool]:
        """Write the output of one input piece by piece, greedily or by sampling.

        A piece is given as soon as no later token can change it; joined, the pieces are the text of `write`. There is
        no reranking. The generator returns whether the output meets the constraints, and warns if it does not.

        Args:
            raw: what the source feature of the model accepts, such as a text.
            config: options of search; those of the model with one beam if `None`.
            source: what the feature made of it, if that is at hand.

        Raises:
            UserError: the input cannot be read, or the options ask for several beams or outputs.
        """
        if source is None and not self.processor.source_feature.is_missing(raw):
            source = self._read([raw])
        return self._stream(raw, config or self.generation.quick(1), source)

    @torch.inference_mode()
    def _stream(self, raw: Any, config: GenerationConfig, source: Source | None) -> Generator[str, None, bool]:
        if source is None:
            return True
        processor, encoded = self.processor, self.encode(source)
        read, state, options = self._asked(encoded, config, None, [raw])

        def step(tokens: Tensor, state: Any) -> Any:
            made = read(tokens, state)
            check_scores([float(made.log_probs.max())])
            check_attention(made.attention, config)
            if config.replace_unknown and made.attention is not None:
                looked.append(made.attention)
            return made

        tokens = Returning(stream(step, state, **options))
        ids: list[int] = []
        looked: list[Tensor] = []
        growing = GrowingText()
        for token in tokens:
            ids.append(token)
            attention = torch.cat(looked[: len(ids)])[:, : int(encoded.memory.lengths)] if looked else None
            known = Hypothesis(torch.tensor(ids), 0.0, 0.0, torch.zeros(len(ids)), attention)
            [[said]] = processor.texts([[known]], source, [raw], config.unknown)
            if new := growing.grow(processor.source_feature.restore(said.text, raw)):
                yield new
        if rest := growing.end():
            yield rest
        return tokens.value

    @checked
    def forward(self, source: Source, target: Padded) -> Tensor:
        """Score every symbol at every position of given targets: logits `(B, T, V)`."""
        logits: Tensor = self.searched(source, target)
        return logits

    # ---------------------------------------------------------------------------------------------- as a folder

    def others(self) -> tuple[str, ...]:
        """Name what of the model is neither this package's nor torch's: whoever loads its folder has to trust it."""
        return spec.trust_of([dict(self.description), *([self._processor.to_dict()] if self._processor else [])])

    @checked
    def save_pretrained(self, folder: str | os.PathLike[str], scores: Mapping[str, float] | None = None) -> None:
        """Write `config.json`, `model.safetensors`, the tokenizers and a model card to `folder`.

        Args:
            folder: made if needed.
            scores: measured figures for the model card, such as `{"test_bleu": 41.4}`; those known before if `None`.

        Raises:
            UserError: the folder cannot be written.
        """
        network = self.net
        self.warn_if_untrained()
        check_finite(network.state_dict(), "the model")
        if scores:
            self.provenance = replace(self.provenance, scores=dict(scores), rows={})
        origin = {name: value for name, value in vars(self.provenance).items() if name != "scores"}
        carried: dict[str, Callable[[Path], object]] = {}

        def carry(name: str, kind: str) -> str:
            if kind == "file" and not Path(name).is_file():
                raise UserError(f"the options of generation name {name}, which is gone: put it back before you save")
            place = place_of(name, len(carried))
            carried[place] = partial(shutil.copyfile, name) if kind == "file" else partial(_carry, name)
            return place

        generation = spec.describe(self.generation.moved(carry))
        config = {
            "model": {**self.description, "generation": generation},
            "task": self.task,
            "scores": dict(self.provenance.scores),
            "signatures": dict(self.signatures),
            "provenance": origin,
        }
        parameters = sum(p.numel() for p in network.parameters())
        card = model_card(self.task, self.provenance, self.signatures, parameters, trust=self.others())
        save_folder(folder, config, network, self.processor, card=card, shortlist=self.shortlist, carried=carried)

    @checked
    def push_to_hub(
        self,
        repo_id: str,
        *,
        scores: Mapping[str, float] | None = None,
        license: str | None = None,
        languages: Sequence[str] = (),
        **options: Unpack[Pushing],
    ) -> str:
        """Put the model on the Hugging Face hub, as `save_pretrained` writes it, in one commit.

        Args:
            repo_id: `user/name`; the repository is made if needed.
            scores: measured figures for the model card; those known before if `None`.
            license: for the model card: the hub's name of a license, such as `apache-2.0`.
            languages: for the model card: ISO codes, such as `de`.
            **options: `private`, `revision`, `token`, `commit_message`; see `lit_seq2seq.files.paths.Pushing`.

        Returns:
            Address of the commit.

        Raises:
            UserError: the hub does not take it.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, scores)
            return push_folder(folder, repo_id, license=license, languages=languages, **options)

    @classmethod
    @checked
    def from_pretrained(
        cls, name: str | os.PathLike[str], changes: Mapping[str, Any] | None = None, **options: Unpack[Loading]
    ) -> Self:
        """Load a model from a folder or a hub repository, ready to use.

        Args:
            name: folder or hub id.
            changes: arguments of the model in place of the saved ones, such as `{"reranker": None}`.
            **options: `revision`, `token`, `cache_dir`, `local_files_only`, `trust`; see
                `lit_seq2seq.files.paths.Loading`.

        Raises:
            UserError: the folder is missing, damaged or not trusted, or its weights do not fit the changes.
        """
        folder = load_folder(name, **options)
        described = folder.config["model"]
        names = inspect.signature(cls).parameters
        with explained(folder.path):
            given = {name: value for name, value in described.items() if name in names}
            model = cls(**{**spec.build_arguments(cls, given, folder.trust, saved=True), **(changes or {})})
        model.description = {**described, **model.description}
        return model.restore(folder)

    def restore(self, folder: ModelFolder) -> Self:
        """Take over the vocabulary, weights and provenance of a model folder; leave the model in evaluation mode.

        Raises:
            UserError: the folder is damaged, or its weights do not fit.
        """
        parts = [self.description[part] for part in _PARTS]
        with explained(folder.path), folder.weights.bound(parts):
            self.attach(folder.processor)
        folder.weights.load(self.net)
        self.shortlist, self.provenance, self.signatures = folder.shortlist, folder.provenance, folder.signatures
        return self.eval()


def _carry(name: str, place: Path) -> None:
    """Put a model that the options of search name into a model folder."""
    Seq2SeqModel.from_pretrained(name).save_pretrained(place)


class ModelHost:
    """What scorers ask of a model; see `lit_seq2seq.search.task.Host`."""

    def __init__(self, model: Seq2SeqModel, encoded: Encoded) -> None:
        self._model, self._encoded = model, encoded

    def other(self, name: str) -> _Other:
        """Return another model; see `Host.other`."""
        opened, device = self._model._opened, self._model.device
        if name not in opened:
            found = Seq2SeqModel.from_pretrained(name).to(device)
            opened[name] = found.prepared() if device.type == "cpu" else found
        return _Other(opened[name])

    def blind(self) -> tuple[StepFunction[Any], Any]:
        """Return the step function, and a state that knows nothing; see `Host.blind`."""
        network = self._model.searched
        return network.step, network.blind(self._encoded)


class _Other:
    """A model beside another one; see `lit_seq2seq.search.task.OtherModel`."""

    def __init__(self, model: Seq2SeqModel) -> None:
        self._model, self.vocabulary = model, model.processor.target
        self.reads_sources = not model.processor.source_feature.begins_output

    def begin(self, raw: Sequence[Any]) -> tuple[StepFunction[Any], Any]:
        network = self._model.searched
        return network.step, network.start(self._model.encode(list(raw)))


class EnsembleModel(Seq2SeqModel):
    """Trained models whose probabilities are averaged at each step; see `Ensemble`.

    Args:
        models: models of one source and target vocabulary, such as runs of one recipe with several seeds; the options
            of generation are those of the first.

    Raises:
        UserError: their vocabularies differ, or there are none.
    """

    def __init__(self, models: Sequence[Seq2SeqModel]) -> None:
        if not models:
            raise UserError("expected models to join, but there are none")
        first = models[0]
        for model in models:
            model.warn_if_untrained()
        for position, model in enumerate(models[1:], start=2):
            if model.processor.identity() != first.processor.identity():
                raise UserError(
                    f"expected models of one vocabulary, but model {position} has another than the first: "
                    "join runs of one recipe on the same data"
                )
        super().__init__(generation=first.generation, task=first.task)
        self.description, self.reranker = first.description, first.reranker
        self.provenance, self.signatures, self.shortlist = first.provenance, first.signatures, first.shortlist
        self._processor = first.processor
        self.network = Ensemble([model.net for model in models])
        self.eval()

    def save_pretrained(self, folder: str | os.PathLike[str], scores: Mapping[str, float] | None = None) -> None:
        """Refuse: there is nothing to save that is not in the folders of its models."""
        raise UserError("an ensemble is not saved as one: save its models, and name all their folders to use it")


class Trained(Protocol):
    """What holds a model, such as a `LitSeq2Seq`."""

    @property
    def model(self) -> Seq2SeqModel:
        """The model."""


def model_of(given: Seq2SeqModel | Trained) -> Seq2SeqModel:
    """Return a model, or that of what holds one."""
    return given if isinstance(given, Seq2SeqModel) else given.model


def allowed(encoded: Encoded, config: GenerationConfig, prefix: Tensor | None, specials: SpecialIds) -> Padded | None:
    """Return the candidates among which a search chooses, if it has a shortlist.

    Raises:
        UserError: it wants one, and the model has none.
    """
    if not config.shortlist:
        return None
    if encoded.candidates is None:
        raise UserError(
            "shortlist=True: the model has none: learn one with lit-seq2seq shortlist --model DIR, or set it to false"
        )
    return encoded.candidates if prefix is None else including(encoded.candidates, prefix, specials)


def describe(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the arguments that a constructor was given."""
    return {name: spec.describe(given[name]) for name in inspect.signature(cls).parameters if name in given}


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say which folder it is whose description does not fit; whatever its classes do with it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path} describes a model that this version cannot build: {reason:.300}") from error


def factory(value: Any, hint: Any) -> Any:
    """Accept a description (from a checkpoint) wherever a factory is expected."""
    return spec.build(value, hint=hint) if isinstance(value, Mapping) else value


def _sample(network: nn.Module) -> list[Tensor]:
    """Return a few numbers of each of the weights."""
    return [weight.detach().flatten()[:8].cpu().clone() for weight in network.parameters()]


def _trimmed(hypothesis: Hypothesis, memory: Padded, row: int) -> Hypothesis:
    """Cut the attention weights to the real positions of the memory, and say which source each belongs to."""
    attention = hypothesis.attention
    if attention is None:
        return hypothesis
    return replace(hypothesis, attention=attention[:, : int(memory.lengths[row])].float(), regions=memory.regions(row))
