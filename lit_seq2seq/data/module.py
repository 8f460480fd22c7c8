"""The Lightning data module: any dataset of sources and texts, as length-bucketed batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cached_property, partial
from typing import Any, ClassVar, cast

import numpy as np
from datasets.fingerprint import Hasher
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from lit_seq2seq.data.batching import Batches, BucketBatchSampler, EpochSampler, Position
from lit_seq2seq.data.encoding import RowEncoder
from lit_seq2seq.data.examples import Examples, Limits, seeded
from lit_seq2seq.data.grouping import group_references
from lit_seq2seq.data.loading import FixedBatches, TrainingLoader, make_loader
from lit_seq2seq.data.rows import Columns, RowMapper
from lit_seq2seq.data.running import PieceSampler, RunningText
from lit_seq2seq.data.sources import Source, Split, Splits, open_dataset, origin_of
from lit_seq2seq.data.splits import SplitSettings, carve, columns_of, on_disk, only_split, overlaps, undecoded
from lit_seq2seq.data.streaming import BatchStream
from lit_seq2seq.data.vocabulary import Learner, fits
from lit_seq2seq.features import Feature, Processor, Prompt, Tokenizer
from lit_seq2seq.features.feature import describe_feature
from lit_seq2seq.features.tokenizer import Units
from lit_seq2seq.hub.folder import find_folder, trusted
from lit_seq2seq.settings import arguments, spec
from lit_seq2seq.settings.arguments import checked
from lit_seq2seq.types import Batch, UserError

_LIMITS = ("max_source_length", "max_target_length", "overlong", "empty")


class Seq2SeqDataModule(LightningDataModule):
    """Reads sources and texts with Hugging Face `datasets`, learns tokenizers, and gives batches of similar length.

    Tokenizers and ids are computed once and kept in the cache of `datasets`; nothing but lengths stays in memory.

    Args:
        dataset: a hub id; a folder; a csv, tsv, json, jsonl, parquet, arrow or text file (also as `.gz`, `.bz2` or
            `.xz`, and at an address such as `https://` or `hf://`), a pattern or a list of them; a mapping from split
            to files; two line-aligned text files; a `BuiltinDataset`; or rows in memory: a dataset, a DataFrame, a list
            of pairs or of mappings, a mapping from column to values, or from split to any of these.
        name: configuration of a hub dataset.
        revision: git revision of a hub dataset.
        streaming: read the training split as it comes, without a copy on disk.
        columns: where sources and texts are in a row; see `Columns`.
        splits: what the splits are called, and what to carve out; see `SplitSettings`.
        limits: what to do with rows that are empty or too long; see `Limits`.
        batches: how examples are put into batches; see `Batches`.
        seed: of carving and shuffling.
        source_prefix: text put before every source.
        source_feature: how a source that is not text is read, such as `lit_seq2seq.features.LogMel`.
        source_tokenizer: settings of the source tokenizer, or its units alone, such as `word`; 8,000 of BPE if neither
            this nor `source_feature` is set; none where `columns.source` is null.
        target_tokenizer: settings of the target tokenizer; those of the source if unset.
        shared_vocabulary: use one tokenizer for both sides, learned from both.
        tokenizer_rows: learn tokenizers and features from so many rows at most, spread over the training split.
        copy: tell the model which target symbol each source symbol is, as `CopyOutput` needs; recipes set it by
            themselves.
        num_proc: processes that encode.
        predict_dataset: what to predict for, named as `dataset` is; the test split if unset. Needs no targets.
        processor: a trained processor, or the folder or the hub id of a model that has one, to use instead of learning
            tokenizers; with a `target_tokenizer` beside it, only its source side.
        extend_vocabulary: greatest number of symbols that the vocabularies of `processor` may grow by, learned from the
            training split; see `extend_vocabulary` of `lit_seq2seq.features`.
        trust: packages, beyond this one and torch, whose classes the `processor` of a folder may name; without it no
            code of others runs.

    Raises:
        UserError: if data or settings do not fit.
    """

    renamed: ClassVar = {
        "source_column": "columns.source",
        "target_column": "columns.target",
        "reference_columns": "columns.references",
        "feature_columns": "columns.tags",
        "speaker_column": "columns.speaker",
        "group_references": "splits.group_references",
        "train_split": "splits.train",
        "validation_split": "splits.validation",
        "test_split": "splits.test",
        "validation_size": "splits.validation_size",
        "test_size": "splits.test_size",
        "max_source_length": "limits.max_source_length",
        "max_target_length": "limits.max_target_length",
        "overlong": "limits.overlong",
        "empty": "limits.empty",
        "max_tokens": "batches.max_tokens",
        "batch_size": "batches.size",
        "eval_max_tokens": "batches.eval_max_tokens",
        "eval_batch_size": "batches.eval_size",
        "keep_targets_together": "batches.keep_targets_together",
        "longest_first": "batches.longest_first",
        "num_workers": "batches.num_workers",
    }
    """What settings were called in 0.1, as they are still read in YAML, on the command line and in Python."""

    @arguments.renamed(renamed)
    @partial(checked, unchecked=("dataset", "predict_dataset"))  # `open_dataset` looks at these
    def __init__(
        self,
        dataset: Source,
        name: str | None = None,
        revision: str | None = None,
        *,
        streaming: bool = False,
        columns: Columns = Columns(),  # noqa: B008  (immutable)
        splits: SplitSettings = SplitSettings(),  # noqa: B008  (immutable)
        limits: Limits = Limits(),  # noqa: B008  (immutable)
        batches: Batches = Batches(),  # noqa: B008  (immutable)
        seed: int = 0,
        source_prefix: str = "",
        source_feature: Feature | None = None,
        source_tokenizer: Tokenizer | Units | None = None,
        target_tokenizer: Tokenizer | Units | None = None,
        shared_vocabulary: bool = False,
        tokenizer_rows: int = 1_000_000,
        copy: bool = False,
        num_proc: int | None = None,
        predict_dataset: Source | None = None,
        processor: Processor | str | None = None,
        extend_vocabulary: int = 0,
        trust: str | list[str] | None = None,
    ) -> None:
        super().__init__()
        if processor is not None and (source_feature is not None or source_tokenizer is not None):
            raise UserError(
                "expected a processor (init_from of a model names one), or a source_tokenizer or source_feature, but "
                "both are set: unset one, as by --data.source_tokenizer null (and target_tokenizer too, to keep the "
                "processor's)"
            )
        if extend_vocabulary < 0 or (extend_vocabulary and processor is None):
            raise UserError(f"extend_vocabulary, {extend_vocabulary}, must be at least 0 and needs a processor: set it")
        if source_feature is not None and source_tokenizer is not None:
            raise UserError("expected source_feature or source_tokenizer, but both are set: unset one")
        if columns.source is None and processor is None:
            source_feature = Prompt() if source_feature is None else source_feature
            if source_tokenizer is not None or not source_feature.begins_output:
                raise UserError(
                    "columns.source is null, so that there is nothing to read: unset source_tokenizer and "
                    "source_feature; target_tokenizer is that of the texts"
                )
        if batches.bptt is not None:
            named = {"columns.source": columns.source, "limits.max_target_length": limits.max_target_length}
            refused = [*(name for name, value in named.items() if value is not None), *["streaming"] * streaming]
            if refused:
                raise UserError(f"expected no {refused[0]} beside batches.bptt, but it is set: set it to null or false")
        self.dataset, self.name, self.revision, self.streaming = dataset, name, revision, streaming
        self.mapper = RowMapper(**vars(columns))
        self.split_settings, self.limits, self.batches = splits, limits, batches
        self.seed, self.source_prefix = seed, source_prefix
        self.source = _tokenizer(source_tokenizer) if source_feature is None else source_feature
        self.target, self.shared = _tokenizer(target_tokenizer), shared_vocabulary
        self.tokenizer_rows, self.copy, self.num_proc = tokenizer_rows, copy, num_proc
        self.predict_dataset = predict_dataset
        self._given, self.trust = processor, trust
        self._processor: Processor | None = None
        self.of_checkpoint: Processor | None = None  # of the model that is evaluated, as the command line knows it
        self.extend_vocabulary = extend_vocabulary
        self._splits: Splits | None = None
        self._carved: set[str] = set()
        self._examples: dict[str, Examples] = {}
        self._start = Position()
        self._training: TrainingLoader | None = None

    @property
    def processor(self) -> Processor:
        """The trained source feature and target tokenizer; learned from the training split when first asked for.

        Where a trained model is evaluated or predicts, they are those of the model.
        """
        if self._processor is None:
            self._processor = self._of_the_model()
        if self._processor is None:
            given = self._load(self._given) if isinstance(self._given, str) else self._given
            changes = given is None or self.extend_vocabulary or self.target is not None
            self._processor = self._learn(given) if changes else given
        assert self._processor is not None
        return self._processor

    @processor.setter
    def processor(self, processor: Processor) -> None:
        self._processor = processor

    def _of_the_model(self) -> Processor | None:
        """Return the processor of a model that is not trained now, unless the settings here ask for another."""
        if self._trainer_function == "fit":
            return None
        assert self.trainer is not None
        model = cast(Any, self.trainer.lightning_module)
        known = self.of_checkpoint or (model.processor if getattr(model, "attached", False) else None)
        if not isinstance(known, Processor) or isinstance(self._given, Processor):
            return None
        return known if fits(known, self.source, self.target, self.source_prefix) else None

    @property
    def _trainer_function(self) -> str:
        return (self.trainer and self.trainer.state.fn) or "fit"

    @property
    def has_alignments(self) -> bool:
        """Whether training batches come with alignments, of which `columns.alignment` tells."""
        return self.mapper.alignment is not None

    @property
    def trusted(self) -> tuple[str, ...]:
        """Packages whose classes a checkpoint's processor may name: those of the source feature here, and `trust`."""
        known = self._processor or self._given
        feature = known.source_feature if isinstance(known, Processor) else self.source
        if feature is None:
            return trusted(self.trust)
        own = describe_feature(feature) if feature.is_trained else spec.describe(type(feature))
        return (*trusted(self.trust), *spec.trust_of(own))

    def _load(self, name: str) -> Processor:
        try:
            folder = find_folder(name)
        except UserError as error:
            raise UserError(
                f"processor: {error}; to go on with a run from ckpt_path, give the processor of "
                "LitSeq2Seq.load_from_checkpoint(PATH)"
            ) from error
        return Processor.load(folder, trusted(self.trust))

    def _learn(self, given: Processor | None) -> Processor:
        train = self._split("train")
        source = self.source if given is None else given.source_feature
        mapper = replace(self.mapper, ends=None).resolve(columns_of(train), targets=True, source=source)
        prefix = self.source_prefix if given is None else given.source_prefix
        learner = Learner(train, mapper, self.tokenizer_rows, prefix)
        if given is not None:
            return learner.extended(given, self.target, self.extend_vocabulary)
        return learner.processor(source, self.target, self.shared, self.copy)

    @property
    def splits(self) -> list[str]:
        """Those of `train`, `validation` and `test` that there are."""
        if self._splits is None and (named := self._named_alone):
            return named
        return list(self._opened())

    @property
    def _named_alone(self) -> list[str]:
        """The splits that a mapping names, where a model is evaluated: each is opened without the others."""
        if self._trainer_function == "fit" or not isinstance(self.dataset, dict):
            return []
        return [role for role, name in self.split_settings.names.items() if name in self.dataset]

    @property
    def origin(self) -> tuple[str | None, bool]:
        """What the data is, for the model card: the id of a hub data set, or a few words; and which of them."""
        return origin_of(self.dataset, self._columns)

    def prepare_data(self) -> None:
        """Download, learn tokenizers and encode, once per machine."""
        self._prepare(self._trainer_function)

    def setup(self, stage: str) -> None:
        """Load what `stage` needs: `fit`, `validate`, `test` or `predict`.

        Raises:
            UserError: another process has other data, or has learned another vocabulary.
        """
        self._prepare(stage)
        if self.trainer is not None and self.trainer.world_size > 1 and not self._waits:
            self._expect_the_same_everywhere()

    def _prepare(self, stage: str) -> None:
        if stage == "fit":
            self._start, self._training = Position(), None
            if not self._examples:
                self._report_overlaps()
            if not self.streaming:
                self._encoded("train")
            if "validation" in self._opened():
                self._encoded("validation")
        elif not self._waits:
            self._encoded({"validate": "validation", "test": "test", "predict": "predict"}[stage])

    @property
    def _waits(self) -> bool:
        """Whether the vocabulary is that of a checkpoint, which Lightning loads after `setup`."""
        if self._trainer_function == "fit" or self._processor is not None or self.of_checkpoint is not None:
            return False
        return getattr(cast(Any, self.trainer).lightning_module, "attached", None) is False

    def _expect_the_same_everywhere(self) -> None:
        """Compare with process 0: with other rows they would wait for each other, with other symbols learn nonsense."""
        assert self.trainer is not None
        mine = {"vocabulary": Hasher.hash(self.processor.identity())}
        for split, examples in self._examples.items():
            mine[f"{split} rows"] = Hasher.hash((examples.kept, examples.source_lengths, examples.target_lengths))
        first = self.trainer.strategy.broadcast(mine)
        if other := [name for name, value in mine.items() if first.get(name) != value]:
            raise UserError(
                f"expected the same data everywhere, but the {' and the '.join(other)} of this process are not those "
                "of process 0: give all machines the same files and settings"
            )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches of the training split; those that an interrupted run has not seen, if it is resumed."""
        streamed = self._stream() if self.streaming and not self._overfits else None
        asked = getattr(self.trainer and self.trainer.lightning_module, "needs_references", False)
        (self._encoded("train") if streamed is None else streamed).with_texts = asked
        if self._overfits:
            return self._loader("train")
        dataset, sampler = self._batches("train") if streamed is None else (streamed, None)
        loader = make_loader(dataset, sampler, self.batches.num_workers, TrainingLoader)
        assert isinstance(loader, TrainingLoader)
        loader.trainer, loader.start = self.trainer, self._start
        assert self._rows  # before training, as a stream may fail
        self._training = loader
        return loader

    @property
    def batches_per_epoch(self) -> int | None:
        """Number of training batches of this process in an epoch; `None` when streaming."""
        return None if self.streaming else len(self._batches("train")[1])

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Batches of the validation split, with texts and references; none where there is no such split."""
        if "validation" not in self._examples and "validation" not in self._opened():
            return []
        return self._loader("validation")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Batches of the test split, with texts and references."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Batches of `predict_dataset`, or of the test split, with texts; every row is there."""
        return self._loader("predict")

    def first_rows(self, split: str, count: int) -> list[tuple[Any, str]]:
        """Return the raw source and the first reference of each of the first rows of `split` that are used."""
        return self._encoded(split).first(count)

    def in_order(self, split: str, size: int) -> Iterator[Batch]:
        """Make batches of similar length of a split, the same in each call, whatever the trainer has taken."""
        examples = self._encoded(split)
        order = np.argsort(examples.source_lengths, kind="stable")
        for start in range(0, len(order), size):
            with seeded(self.seed):
                yield examples[examples.kept[order[start : start + size]].tolist()]

    def references(self, split: str) -> Iterator[tuple[str, ...]]:
        """Read the references of each row of a split."""
        raw = on_disk(self._split(split))
        mapper = self._encoder(raw, split).mapper
        texts = raw.select_columns([name for name in mapper.text_roots if name in raw.column_names])
        for part in texts.iter(1000):
            yield from mapper.all_references(part)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: the seed, and how far the training data has been used."""
        position = Position() if self._training is None else self._training.position()
        return {"seed": self.seed, "position": asdict(position), **self._divided_by()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the seed of the interrupted run, at the next batch.

        Raises:
            UserError: it was interrupted within an epoch, and the data or its batches are others now.
        """
        self.seed = state_dict["seed"]
        self._start = Position(**state_dict.get("position", {}))
        if self._trainer_function != "fit":
            return
        now = self._divided_by()
        changed = {name: state_dict[name] for name in now if state_dict.get(name, now[name]) != now[name]}
        if changed.keys() <= set(_LIMITS):  # limits that no row reaches
            return
        settings = [f"{name} {before}, but it is {now[name]}" for name, before in changed.items() if name != "rows"]
        what = " and ".join(settings) if settings else "other rows than those of now"
        if self._start.batches:
            raise UserError(
                f"the run was interrupted within an epoch with {what}: give the same, or resume from a checkpoint of "
                "the end of an epoch"
            )
        rank_zero_warn(f"the run was interrupted with {what}: the next epoch begins with what is given now")

    def _divided_by(self) -> dict[str, Any]:
        """What, beside the seed, decides the batches of an epoch."""
        return {
            **self.batches.training,
            "longest_first": self.batches.longest_first,
            "bptt": self.batches.bptt,
            "keep_targets_together": self.batches.keep_targets_together,
            "streaming": self.streaming,
            "examples": None if self.streaming else len(self._encoded("train").kept),
            **{name: getattr(self.limits, name) for name in _LIMITS},
            "rows": self._rows,
        }

    @cached_property
    def _rows(self) -> str:
        """What tells the training data from other data, or from the same in another order."""
        if self.streaming:
            return self._stream().fingerprint((self.batches.num_workers, self.limits))
        return self._encoded("train").fingerprint

    def batches_done(self, complete: bool) -> int:
        """Count the batches of the epoch that a resumed run goes on with which it need not take.

        Args:
            complete: whether all of them are taken, so that the run goes on with the next epoch.
        """
        assert self.trainer is not None
        sampler = None if self._training is None else self._training.sampler
        if isinstance(sampler, EpochSampler):
            most = int(min(1e18, self.trainer.num_training_batches))
            return min(len(sampler), most) if complete else sampler.batches_done
        return self._start.batches if self._start.world_size == self.trainer.world_size else 0

    @property
    def _columns(self) -> tuple[str, ...]:
        """Names of the lines of text files, source and target, and of all columns that sources are looked for in."""
        source, target = self.mapper.source, self.mapper.target
        sides = () if source is None else (source if isinstance(source, str) else "source",)
        return (*sides, target if isinstance(target, str) else "target", *self.mapper.source_columns)

    def _open(self, dataset: Source) -> Splits:
        named: dict[str, Any] = {"columns": self._columns, "train_split": self.split_settings.names["train"]}
        opened = open_dataset(dataset, self.name, self.revision, streaming=self.streaming, **named)
        return {split: undecoded(rows, self.mapper.source_columns) for split, rows in opened.items()}

    def _opened(self) -> Splits:
        if self._splits is None:
            opened = self._open(self.dataset)
            running = self.batches.bptt is not None
            self._splits = carve(opened, self.split_settings, self.seed, self.mapper, running=running)
            self._carved = {role for role in self._splits if self.split_settings.names[role] not in opened}
        return self._splits

    def _report_overlaps(self) -> None:
        """Say once how many rows to evaluate have a source that the model has learned from."""
        splits = self._opened()
        if len(splits) == 1 + len(self._carved):
            return
        first = 10 * self.processor.source_feature.rows_at_once if self.streaming else 0
        if found := overlaps(splits, self.mapper, first):
            rank_zero_info(f"the splits overlap: {found}")

    def _groups(self, split: str) -> bool:
        """Whether rows of a split with the same source are to be one example."""
        if split not in ("validation", "test") or self.mapper.source is None:
            return False
        asked = self.split_settings.group_references
        return split in self._carved if asked is None else asked

    def _split(self, split: str) -> Split:
        if split == "predict" and self.predict_dataset is not None:
            opened = open_dataset(self.predict_dataset, columns=self._columns, train_split="test")
            return undecoded(only_split(opened, self.split_settings.names["test"]), self.mapper.source_columns)
        role = "test" if split == "predict" else split
        if self._splits is None and role in self._named_alone:
            assert isinstance(self.dataset, dict)
            name = self.split_settings.names[role]
            return self._open({name: self.dataset[name]})[name]
        if role not in self._opened():
            raise UserError(
                f"expected a {role} split, but the splits are {', '.join(self._opened())}: set splits.{role} or dataset"
            )
        return self._opened()[role]

    def _encoded(self, split: str) -> Examples:
        if split not in self._examples:
            raw = on_disk(self._split(split))
            encoder = self._encoder(raw, split)
            if self._groups(split):
                at_once = self.processor.source_feature.rows_at_once
                raw, mapper = group_references(raw, encoder.mapper, split, at_once)
                encoder = replace(encoder, mapper=mapper)
            encoder = encoder.adapt(raw)
            encoded = encoder.encode_all(raw, self.num_proc, f"encoding {split}")
            training, limits = split == "train", self.limits
            if not training:
                limits = replace(limits, overlong="truncate", empty="keep" if split == "predict" else limits.empty)
                if self.mapper.source is None:  # a perplexity is that of all there is
                    limits = replace(limits, max_target_length=None)
            examples = Examples(raw, encoder, encoded, limits, training=training)
            rank_zero_info(f"{split}: {examples.report}")
            for warning in examples.warnings:
                rank_zero_warn(f"{split}: {warning}")
            self._examples[split] = examples
            if self.batches.bptt is not None and self.processor.target.augments:
                raise UserError("expected no dropout of the target tokenizer beside batches.bptt: set it to 0")
        return self._examples[split]

    def _encoder(self, rows: Split, split: str) -> RowEncoder:
        targets = split != "predict"
        source, target = self.processor.source_feature, self.processor.target
        mapper = replace(self.mapper, ends=None) if split == "train" else replace(self.mapper, alignment=None)
        if mapper.alignment and (source.augments or target.augments):
            raise UserError("columns.alignment needs symbols that stay the same: set dropout of the tokenizers to 0")
        mapper = mapper.resolve(columns_of(rows), targets, source)
        return RowEncoder(mapper, self.processor, targets, alternatives=split == "train")

    def _batches(self, split: str) -> tuple[Examples | RunningText, EpochSampler[Any]]:
        """Return what makes batches of a split, and what says which."""
        if self.batches.bptt is None or split == "predict":
            return self._encoded(split), self._sampler(split)
        training, ranks = split == "train", self._ranks()
        streams = self.batches.size if training else self.batches.eval_size or self.batches.size
        assert streams is not None
        processes = ranks.get("world_size", 1)
        streams = streams * processes if training else -(-streams // processes) * processes
        text = RunningText(self._encoded(split), streams, self.batches.bptt, **ranks)
        return text, PieceSampler(len(text), self._start if training else Position(), processes)

    def _sampler(self, split: str) -> BucketBatchSampler:
        examples, training = self._encoded(split), split == "train"
        return BucketBatchSampler(
            examples.source_lengths,
            examples.target_lengths,
            **(self.batches.training if training else self.batches.evaluation),
            indices=examples.kept,
            shuffle=training and not self._overfits,
            longest_first=training and self.batches.longest_first,
            seed=self.seed,
            groups=examples.row_numbers if training and self.batches.keep_targets_together else None,
            by_length=not self.processor.source_feature.one_size,
            start=self._start if training else Position(),
            **self._ranks(),
        )

    def _ranks(self) -> dict[str, int]:
        if self.trainer is None:
            return {}
        if self.trainer.world_size > 1 and self.trainer._accelerator_connector.use_distributed_sampler:
            raise UserError("the data is shared out by the data module: give Trainer(use_distributed_sampler=False)")
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def _stream(self) -> BatchStream:
        rows = self._split("train")
        encoder = self._encoder(rows, "train")
        if encoder.mapper.speaker is not None:
            raise UserError(
                "expected no columns.speaker when streaming: set streaming to false, or normalize: utterance"
            )
        return BatchStream(
            rows,
            encoder,
            self.limits,
            **self.batches.training,
            seed=self.seed,
            keep_targets_together=self.batches.keep_targets_together,
            **self._ranks(),
        )

    @property
    def _overfits(self) -> bool:
        """Whether the trainer wants the same few batches in each epoch."""
        trainer = cast(Any, self.trainer)
        return trainer is not None and trainer.state.fn == "fit" and trainer.overfit_batches > 0

    def _loader(self, split: str) -> DataLoader[Batch]:
        if self._overfits:  # Lightning takes only what it knows to be in one order
            return make_loader(FixedBatches(*self._batches(split)), None, self.batches.num_workers)
        return make_loader(*self._batches(split), self.batches.num_workers)


def _tokenizer(given: Tokenizer | Units | None) -> Tokenizer | None:
    return Tokenizer(given) if isinstance(given, str) else given
