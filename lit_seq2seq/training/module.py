"""`LitSeq2Seq`: the one Lightning module that trains, evaluates and uses every model of the package."""

from __future__ import annotations

import difflib
import inspect
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial, update_wrapper
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypedDict, TypeVar, Unpack, cast

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lit_seq2seq.data.loading import counts
from lit_seq2seq.features import Processor, Records, Tokenizer
from lit_seq2seq.features.feature import describe_feature
from lit_seq2seq.features.text import UNKNOWN
from lit_seq2seq.files.paths import Loading
from lit_seq2seq.files.weights import check_finite
from lit_seq2seq.hub.card import Provenance
from lit_seq2seq.hub.folder import load_checkpoint, load_folder, trusted
from lit_seq2seq.inference.model import EnsembleModel, Seq2SeqModel, describe, explained, factory
from lit_seq2seq.metrics import Scores, TextMetric
from lit_seq2seq.metrics.emission import emission_lags
from lit_seq2seq.nn import EncoderDecoder, ParallelDecoder, TextEncoder
from lit_seq2seq.nn.network import DecoderFactory, EncoderFactory
from lit_seq2seq.nn.parts import parameter_groups
from lit_seq2seq.schedules import OneCycle, check_factors, on_plateau, total_steps, validates
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.settings import spec
from lit_seq2seq.settings.arguments import checked, extends
from lit_seq2seq.training.objectives import CrossEntropy, Loss, Objective
from lit_seq2seq.training.precision import accept_records, precision_fits, warn_of_16_bits
from lit_seq2seq.training.resuming import (
    RandomState,
    begin_next_epoch_if_finished,
    random_states,
    restore_random_state,
    tell_changes,
    tell_length,
    tell_other_network,
)
from lit_seq2seq.training.running import Reading
from lit_seq2seq.training.split_batches import SplitBatches
from lit_seq2seq.training.vectors import load_vectors
from lit_seq2seq.types import Batch, Generated, Hypothesis, PredictedText, Prediction, UserError

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

    from lit_seq2seq.data.module import Seq2SeqDataModule

P = ParamSpec("P")
R = TypeVar("R")
OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]
MetricFactory = Callable[[], TextMetric]
ObjectiveFactory = Callable[[float], Objective]  # from the label smoothing
_LEARNED = "learned"
_RESUMED = ("hyper_parameters", "optimizer_states", "lr_schedulers", "steps")


class EvaluationOutput(TypedDict):
    """What a validation or test step returns for callbacks: per example of the batch, in its order."""

    loss: Tensor
    hypotheses: list[str]
    references: tuple[tuple[str, ...], ...]
    sources: tuple[str, ...]
    rows: Tensor


def _of_model(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Make a method that hands over to the model, with the signature and the words of the model's own."""

    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return cast(R, getattr(self.model, method.__name__)(*args, **kwargs))

    update_wrapper(call, method)
    return call


class LitSeq2Seq(lightning.LightningModule):
    """An encoder-decoder with its loss, search, metrics and optimizer.

    Sizes come from the data: the network is built when the trainer has set up the data module, or from the saved
    processor. The arguments of `Seq2SeqModel` come before these.

    Args:
        objective: makes what training minimises.
        label_smoothing: probability mass spread over the vocabulary (Szegedy et al. 2016), from 0 to below 1.
        split_on_oom: take the gradient of a batch in parts where the memory does not suffice for all of it; see
            `lit_seq2seq.training.split_batches`.
        optimizer: makes the optimizer from the parameters.
        lr_scheduler: makes the schedule from the optimizer, stepped with the optimizer; `None` for a constant rate.
        lr_factors: what the learning rate of parts is multiplied by, such as `{"encoder": 0.1}`, or a number below 1,
            by which it falls from each block of the encoder to the one under it; see `parameter_groups`.
        fit_num_beams: beams of the search that runs after each training epoch.
        metrics: makes each of the corpus metrics.
        source_vectors: file of pretrained word vectors for the source embedding; see `load_vectors`.
        target_vectors: the same for the target embedding.
        init_from: folder or hub id of a trained model whose weights `fit` starts from; see `adapt`. Recipes take its
            network, metrics and search from there, too, and its processor, unless they have their own.
    """

    @extends(Seq2SeqModel)
    def __init__(
        self,
        encoder: EncoderFactory = TextEncoder,
        decoder: DecoderFactory = ParallelDecoder,
        *,
        objective: ObjectiveFactory = CrossEntropy,
        label_smoothing: float = 0.0,
        split_on_oom: bool = False,
        optimizer: OptimizerFactory = torch.optim.Adam,
        lr_scheduler: SchedulerFactory | None = None,
        lr_factors: dict[str, float] | float | None = None,
        fit_num_beams: int = 1,
        metrics: Sequence[MetricFactory] = (),
        source_vectors: str | None = None,
        target_vectors: str | None = None,
        init_from: str | None = None,
        **model: Any,
    ) -> None:
        given = dict(locals())
        super().__init__()
        self.model = Seq2SeqModel(encoder, decoder, **model)
        self._set_hparams({**self.model.description, **describe(LitSeq2Seq, given)})
        self._hparams_initial = dict(self.hparams)
        self._log_hyperparams = True
        self.model.description = self.hparams
        self.register_load_state_dict_pre_hook(_rename)  # type: ignore[no-untyped-call]
        self.objective: Objective = factory(objective, ObjectiveFactory)(label_smoothing)
        self.split_batches = SplitBatches() if split_on_oom else None
        self.make_optimizer: OptimizerFactory = factory(optimizer, OptimizerFactory)
        self.make_scheduler: SchedulerFactory | None = factory(lr_scheduler, SchedulerFactory | None)
        self.lr_factors = lr_factors
        self.fit_generation = replace(self.model.generation, do_sample=False).quick(fit_num_beams)
        self.scores = Scores(factory(metric, MetricFactory)() for metric in metrics)
        self.model.signatures = self.scores.signatures
        self.vectors = (source_vectors, target_vectors)
        self.init_from = init_from
        self._reading, self._evaluating = Reading(), Reading()
        self._window_units: Tensor | None = None
        self._random_states: list[RandomState] = []
        self._carried: list[list[Tensor]] = []
        self._resumed: dict[str, Any] | None = None
        self._steps: int | None = None
        self._goes_home = False

    # ---------------------------------------------------------------------------------------------- the model

    @property
    def net(self) -> EncoderDecoder:
        """The network; see `Seq2SeqModel`."""
        return self.model.net

    @property
    def attached(self) -> bool:
        """Whether the vocabulary is known; see `Seq2SeqModel`."""
        return self.model.attached

    @property
    def needs_references(self) -> bool:
        """Whether training batches have to come with references and texts; the data module asks."""
        return self.objective.needs_references

    @property
    def processor(self) -> Processor:
        """Source feature and target tokenizer; see `Seq2SeqModel`."""
        return self.model.processor

    @property
    def _without_source(self) -> bool:
        """Whether this is a language model: it has nothing to write an output for."""
        return self.processor.source_feature.begins_output

    attach = _of_model(Seq2SeqModel.attach)
    adapt = _of_model(Seq2SeqModel.adapt)
    encode = _of_model(Seq2SeqModel.encode)
    decode = _of_model(Seq2SeqModel.decode)
    generate = _of_model(Seq2SeqModel.generate)
    stream = _of_model(Seq2SeqModel.stream)
    forward = _of_model(Seq2SeqModel.forward)
    save_pretrained = _of_model(Seq2SeqModel.save_pretrained)
    push_to_hub = _of_model(Seq2SeqModel.push_to_hub)

    @classmethod
    @checked
    def from_pretrained(
        cls, name: str | os.PathLike[str], changes: Mapping[str, Any] | None = None, **options: Unpack[Loading]
    ) -> Self:
        """Load a model from a folder or a hub repository, to be used, scored or trained further.

        The arguments are those of `Seq2SeqModel.from_pretrained`; `changes` may also be in how it is trained, such as
        `{"lr_factors": {"encoder": 0.1}}`.
        """
        folder = load_folder(name, **options)
        if unknown := folder.config["model"].keys() - inspect.signature(cls).parameters.keys():
            raise UserError(
                f"{folder.path} describes a model that this version cannot build: there is no setting {min(unknown)}"
            )
        with explained(folder.path):
            given = spec.build_arguments(cls, {**folder.config["model"], "init_from": None}, folder.trust, saved=True)
            loaded = cls(**{**given, **(changes or {})})
        loaded.model.restore(folder)
        loaded.model.signatures = loaded.scores.signatures
        return loaded.eval()

    @classmethod
    def ensemble(cls, models: Sequence[Self]) -> Self:
        """Join trained models into one that can be scored; see `EnsembleModel`. The metrics are those of the first."""
        joined = EnsembleModel([one.model for one in models])
        described = dict(models[0].hparams)
        together = cls(**spec.build_arguments(cls, described, spec.trust_of(described)))
        together.model = joined
        return together.eval()

    # ---------------------------------------------------------------------------------------------- building

    def configure_model(self) -> None:
        """Build the network from the trainer's data module (Lightning calls this after `setup`)."""
        if self._trainer is None or getattr(self.trainer, "datamodule", None) is None:
            return
        if not precision_fits(self.trainer):
            raise UserError(
                f"this device has no kernels for precision {self.trainer.precision}: use Trainer(precision=32)"
            )
        accept_records(self.trainer)
        fresh, fitting = self.model.network is None, self.trainer.state.fn == "fit"
        if fresh and not fitting:  # its vocabulary and weights are those of a checkpoint, which is loaded next
            return
        if fitting and isinstance(self.model, EnsembleModel):
            raise UserError("an ensemble is not trained: fit its models one by one")
        if not isinstance(self.trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            name = type(self.trainer.strategy).__name__
            raise UserError(
                f"{name} cuts up models that do not fit a device, which these do: use trainer.strategy: ddp"
            )
        processor = getattr(self.trainer.datamodule, "processor", None)  # type: ignore[attr-defined]
        if processor is None:  # a data module of the user's, for a model that is attached
            return
        if fitting and not fresh and self.processor.grows_into(processor):
            self.adapt(processor)
        self.attach(processor)
        if fresh and fitting:
            if self.init_from is not None:
                start = self._start(self.init_from)
                self.model.take(start)
            self._load_vectors()

    def _start(self, name: str) -> Seq2SeqModel:
        try:
            return Seq2SeqModel.from_pretrained(name, trust=spec.trust_of(dict(self.hparams)))
        except UserError as error:
            raise UserError(
                f"init_from: {error}; to go on with a run from ckpt_path, which needs it no more, fit "
                "LitSeq2Seq.load_from_checkpoint(PATH)"
            ) from error

    def _load_vectors(self) -> None:
        source, target = self.vectors
        tokenizer = self.processor.source_feature
        for path, feature, embedding in (
            (source, tokenizer, self.net.encoder.token_embedding),
            (target, self.processor.target, self.net.decoder.embedding),
        ):
            if path is not None:
                if embedding is None:
                    raise UserError("source_vectors needs an encoder with a token embedding")
                names = cast("Tokenizer | Records", feature).words()
                found = load_vectors(path, names, embedding.weight)
                lightning.pytorch.utilities.rank_zero_info(f"{path}: vectors for {found:,} of {len(names):,} symbols")

    # ---------------------------------------------------------------------------------------------- training

    def on_fit_start(self) -> None:
        """Turn dropout on: a loaded model comes in evaluation mode, which Lightning would leave it in."""
        self.train()
        self._check_running()
        self._check_watching(*self.trainer.callbacks)  # type: ignore[attr-defined]
        warn_of_16_bits(self.trainer)
        if self.split_batches is not None and getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            raise UserError("split_on_oom takes gradients that are not scaled: use bf16-mixed instead of 16-mixed")
        datamodule = getattr(self.trainer, "datamodule", None)
        data, on_hub = getattr(datamodule, "origin", (None, False))
        self.model.provenance = replace(self.model.provenance, data=data, on_hub=on_hub, scores={}, rows={})
        self._try_metrics("validation")
        self.model.check_generation()
        self.objective.begin(self.model, datamodule)
        for term in self.net.attention_losses:
            term.begin(self.model, datamodule)

    def _check_running(self) -> None:
        """Refuse what would take batches of running text apart, or read their targets twice."""
        batches = getattr(getattr(self.trainer, "datamodule", None), "batches", None)
        if batches is None or batches.bptt is None:
            return
        if not self.objective.reads_on:
            name = type(self.objective).__name__
            raise UserError(f"{name} reads each target by itself: leave data.batches.bptt out, or model.objective")
        if self.split_batches is not None:
            raise UserError("split_on_oom takes batches apart that the next one goes on with: leave batches.bptt out")

    def _check_watching(self, *watching: object) -> None:
        """Warn of what takes a worse score for a better one, and refuse what watches none."""
        for one in watching:
            monitor, mode = getattr(one, "monitor", None), getattr(one, "mode", None)
            best = self.scores.modes.get(str(monitor).removeprefix("val_"))
            if best is not None and mode in {"min", "max"} - {best}:
                lightning.pytorch.utilities.rank_zero_warn(
                    f"{type(one).__name__} takes the {'lowest' if mode == 'min' else 'highest'} {monitor} for the "
                    f"best, though it is the worst: set its mode to {best}"
                )
        self._expect_logged(*watching)

    def _expect_logged(self, *watching: object) -> None:
        """Find what watches a score that there will not be before an epoch is spent on it.

        Only of this package and Lightning is it known that they log nothing else.
        """
        parts = (self, *self.trainer.callbacks, *watching)  # type: ignore[attr-defined]
        if not all(type(part).__module__.split(".")[0] in ("lit_seq2seq", "lightning", "torch") for part in parts):
            return
        scores = ["loss", "ppl", *self.scores.names, *(f"{name}_raw" for name in self.scores.names)]
        scores += ["bpc"] if self._without_source else []
        scores += [] if self.model.generation.policy is None else self.scores.lag.names
        logged = ["train_loss", "train_ppl", "grad_norm", *(f"val_{name}" for name in scores), "epoch", "step"]
        for one in watching:
            monitor = getattr(one, "monitor", None)
            if str(monitor).startswith("val_") and getattr(one, "strict", False) and not validates(self.trainer):
                raise UserError(
                    f"{type(one).__name__} watches {monitor}, but this run does not validate: give a validation split, "
                    "or watch train_loss"
                )
            if monitor is not None and monitor not in logged:
                close, shown = difflib.get_close_matches(monitor, logged, n=1), [n for n in logged if "_raw" not in n]
                raise UserError(
                    f"{type(one).__name__} watches {monitor}, which is not logged: choose among {', '.join(shown)}"
                    + (f" - did you mean {close[0]}?" if close else "")
                )

    def on_train_start(self) -> None:
        """Go on exactly where a checkpoint was written: with its random numbers, at the next batch."""
        if self._random_states:
            restore_random_state(self._random_states, self.trainer.global_rank)
            self._reading.restore(self._carried, self.trainer.global_rank)
            self._random_states = []
        self._measure_run()
        loop, data = self.trainer.fit_loop, getattr(self.trainer, "datamodule", None)
        begin_next_epoch_if_finished(loop)
        progress, done = loop.epoch_loop.batch_progress, counts(loop.epoch_loop.batch_progress.current)
        if done.ready and hasattr(data, "batches_done"):
            shift = cast("Seq2SeqDataModule", data).batches_done(progress.is_last_batch) - done.processed
            for name in ("ready", "started", "processed", "completed"):
                setattr(done, name, getattr(done, name) + shift)

    def _measure_run(self) -> None:
        """Count the steps of the run, and compare them with the schedule's and with those before it was interrupted."""
        steps, checkpoint = self.trainer.estimated_stepping_batches, self._resumed or {}
        self._resumed, self._steps = None, int(steps) if 0 < steps < math.inf else None
        if self._steps is None or not self.trainer.lr_scheduler_configs:
            return
        before = checkpoint.get("steps")
        if checkpoint and before is None:  # of version 0.1
            before = checkpoint["lr_schedulers"][0].get("total_steps")
        (config,), (optimizer,) = self.trainer.lr_scheduler_configs, self.trainer.optimizers
        steps, done = self._steps, self.trainer.global_step
        tell_length(optimizer, config.scheduler, steps=steps, before=before, done=done)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the loss of a batch, to be averaged over all target tokens, or sentences, of the optimizer step."""
        _check_batch(batch)
        self.objective.step = self.trainer.global_step
        for term in self.net.attention_losses:
            term.step = self.trainer.global_step
            batch = term.prepare(batch)
        assert batch.target is not None
        total, nll, units = self._loss(batch)
        self.log("train_loss", total.detach() / units, prog_bar=True, batch_size=len(batch))
        self.log("train_ppl", (nll.detach() / batch.target.total).exp(), batch_size=len(batch))
        self.log("lr", max(group["lr"] for group in self.trainer.optimizers[0].param_groups), batch_size=len(batch))
        if not self._normalise_gradients:
            return total / units
        self._window_units = units if self._window_units is None else self._window_units + units
        return total

    def _loss(self, batch: Batch) -> Loss:
        if batch.piece is not None:
            return self._reading.loss(self.net, batch, self.objective.label_smoothing)
        function = partial(self.objective, self.model)
        if self.split_batches is None:
            return cast(Loss, function(batch))
        return self.split_batches.loss(function, batch, self.parameters())

    @property
    def _normalise_gradients(self) -> bool:
        """Whether an optimizer step spans several batches, so that only then it is known what to divide by."""
        return self.trainer.accumulate_grad_batches > 1 or self.trainer.world_size > 1

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide the summed gradients by the target tokens, or sentences, of the whole step: all batches and processes.

        Lightning has averaged them over `accumulate_grad_batches` and processes, which this undoes: a mean of batch
        means would weight the tokens of small batches more (lightning #20350).
        """
        if not self._normalise_gradients or self._window_units is None:
            return
        world = self.trainer.world_size
        total = self.trainer.strategy.reduce(self._window_units.float(), reduce_op="sum")
        self._window_units = None
        scale = self.trainer.accumulate_grad_batches * world / total
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, scale)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm of all gradients (Pascanu et al. 2013) and log the norm before.

        Lightning refuses to clip for fused optimizers under mixed precision; that holds for float16, which needs scaled
        gradients, and is left to it there.
        """
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if not gradient_clip_val or scaled or gradient_clip_algorithm not in (None, "norm"):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            every = cast(Any, self.trainer).log_every_n_steps  # 0 where nothing is logged
            if not scaled and every and (self.trainer.global_step + 1) % every == 0:
                gradients = [p.grad for p in self.parameters() if p.grad is not None]
                self.log("grad_norm", nn.utils.get_total_norm(gradients), batch_size=1)
            return
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        # Scaling is a pass over all gradients, often for nothing; on a GPU, to look at the norm would be to wait.
        if norm.device.type != "cpu" or not norm <= gradient_clip_val:
            nn.utils.clip_grads_with_norm_(self.parameters(), gradient_clip_val, norm)
        self.log("grad_norm", norm, batch_size=1)

    @property
    def learning_rate(self) -> float | None:
        """The optimizer's `lr`, `None` if it is left at its default; Lightning's learning-rate finder sets it."""
        description: dict[str, dict[str, float]] = self.hparams["optimizer"]
        return description["init_args"].get("lr")

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.make_optimizer = cast(OptimizerFactory, partial(cast(Any, self.make_optimizer), lr=value))
        self.hparams["optimizer"] = spec.describe(self.make_optimizer)
        for config in [] if self._trainer is None else self.trainer.lr_scheduler_configs:
            groups = config.scheduler.optimizer.param_groups
            config.scheduler.base_lrs = [value * group.get("factor", 1.0) for group in groups]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the optimizer and, if any, the schedule, stepped with it, or after validations to wait for a plateau."""
        _ = self.net  # or say that there is none
        try:
            optimizer = self._optimizer()
            scheduler = None if self.make_scheduler is None else self.make_scheduler(optimizer)
        except (TypeError, ValueError, NotImplementedError) as error:
            reason = error if str(error) else "a class is abstract"
            raise UserError(f"the optimizer or its schedule cannot be made: {reason}: check their settings") from error
        if self._resumed is not None:
            tell_changes(optimizer, scheduler, self._resumed)
        if scheduler is None:
            return optimizer
        check_factors(optimizer)
        if isinstance(scheduler, OneCycle) and scheduler.total_steps is None:
            scheduler.total_steps = total_steps(self.trainer)
        if isinstance(scheduler, ReduceLROnPlateau):
            self._check_watching(scheduler)
            return {"optimizer": optimizer, "lr_scheduler": on_plateau(scheduler, self.trainer)}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _optimizer(self) -> Optimizer:
        """Give the optimizer every parameter, also those that do not learn yet."""
        groups: Any = self.parameters()
        if self.lr_factors is not None:
            own = list(self.objective.parameters())
            groups = [*parameter_groups(self.net, self.lr_factors), *([{"params": own}] if own else [])]
        optimizer = cast("Callable[[Any], Optimizer]", self.make_optimizer)(groups)
        for group in optimizer.param_groups:
            group["lr"] *= group.get("factor", 1.0)
            group["initial_lr"] = group["lr"]
        return optimizer

    # ---------------------------------------------------------------------------------------------- evaluation

    def validation_step(self, batch: Batch, batch_idx: int) -> EvaluationOutput:
        """Score and decode a batch."""
        fitting = self.trainer.state.fn == "fit"
        return self._evaluate(batch, self.fit_generation if fitting else self.model.generation)

    def test_step(self, batch: Batch, batch_idx: int) -> EvaluationOutput:
        """Score and decode a batch."""
        return self._evaluate(batch, self.model.generation)

    def _evaluate(self, batch: Batch, config: GenerationConfig) -> EvaluationOutput:
        _check_batch(batch)
        assert batch.target is not None
        if batch.piece is None:
            times = torch.arange(batch.target.values.shape[1], device=batch.target.values.device)
            reach = None if config.policy is None or config.policy.attends else config.policy.reach(times)
            nll = self.model.searched.nll(batch.source, batch.target, reach)
        else:
            nll = self._evaluating.loss(self.net, batch).nll
        if self._without_source:
            texts = [text for row in batch.references for text in row]
            way = "new" if batch.piece is None else f"carried|streams:{len(batch) * self.trainer.world_size}"
            way = f"eos:yes|vocabulary:{self.processor.target.size}|state:{way}"
            self.scores.measure(nll, batch.target.total, texts, signature=way)
            loss = nll / batch.target.total
            return EvaluationOutput(loss=loss, hypotheses=[], references=(), sources=(), rows=batch.rows[:0])
        scoring = self.trainer.state.fn != "fit"
        if scoring and (self.model.searched.transducer is not None or batch.ends):
            config = replace(config, details=(*config.details, "times"))
        found = self.model.write(batch.source, batch.texts, config, check=scoring)
        outputs = [hypotheses[0] for hypotheses in found]
        best = [one.text for one in outputs]
        self.scores.update(
            nll,
            batch.target.total,
            best,
            batch,
            form=self.processor.target.form,
            lag=self._lag(outputs, batch),
            emissions=[one.emission for one in outputs if one.emission],
            emission_lags=self._emission_lags(outputs, batch) if scoring else (),
        )
        return EvaluationOutput(
            loss=nll / batch.target.total,
            hypotheses=best,
            references=batch.references,
            sources=batch.texts,
            rows=batch.rows,
        )

    def _lag(self, outputs: Sequence[Hypothesis], batch: Batch) -> tuple[list[list[int]], list[int], list[int]]:
        """Return how much of its source each symbol waited for, and the lengths of both sides, EOS left out."""
        assert batch.target is not None
        if outputs[0].delays is None:
            return [], [], []
        sources = (batch.source.lengths - len(self.processor.source_feature.marks[:1])).tolist()
        delays = [one.delays[: len(one.tokens)].tolist() for one in outputs if one.delays is not None]
        rows = [[min(delay, length) for delay in row] for row, length in zip(delays, sources, strict=True)]
        return rows, sources, (batch.target.lengths - 1).tolist()

    def _emission_lags(self, outputs: Sequence[Hypothesis], batch: Batch) -> list[list[float]]:
        """Return by how much each symbol of each target is written after its end, where that is known."""
        assert batch.target is not None
        found = []
        for one, ids, ends, length in zip(
            outputs, batch.target.values.tolist(), batch.ends, batch.source.lengths.tolist(), strict=False
        ):
            if one.written is not None:
                ends = ends[: len(ids)]
                found.append(
                    emission_lags(one.tokens.tolist(), self.processor.times(one, length), ids[: len(ends)], ends)
                )
        return found

    def _try_metrics(self, split: str) -> None:
        """Warn at the start of metrics that cannot measure the texts of a split."""
        data = getattr(self.trainer, "datamodule", None)
        if self._without_source:
            if self.scores.names:
                raise UserError(
                    "metrics compare outputs with references, but without a source there are none: unset them"
                )
        elif split in getattr(data, "splits", ()):
            rows = cast("Seq2SeqDataModule", data).first_rows(split, 100)
            form, show = self.processor.target.form, self.processor.source_feature.show
            self.scores.try_on([form(text) for _, text in rows], [show(source) for source, _ in rows])

    def on_validation_epoch_start(self) -> None:
        """Forget the scores of the validation before, which may have been interrupted."""
        if self.trainer.state.fn == "validate":
            self._try_metrics("validation")
        self.scores.reset()
        if self.trainer.state.fn != "fit":
            self._check_weights()

    def on_test_epoch_start(self) -> None:
        """Forget the scores of the test before."""
        self._try_metrics("test")
        self.scores.reset()
        self._check_weights()

    def on_predict_epoch_start(self) -> None:
        """Check that there is something to predict with."""
        self._check_weights()

    def _check_weights(self) -> None:
        self.model.warn_if_untrained()
        check_finite(self.model.searched.state_dict(), "the model")

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the whole validation split."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the scores of the whole test split."""
        self._log_scores("test")

    def _log_scores(self, split: str) -> None:
        found = self.scores.compute()
        if self.trainer.state.fn != "fit" and bool(torch.as_tensor(found.get("loss", 0.0)).isnan()):
            raise UserError(f"the {split}_loss is NaN in precision {self.trainer.precision}: compute in 32-true")
        for name in self.scores.names:  # once logged, a raw score would stay as it was among the trainer's
            if f"{split}_{name}_raw" in self.trainer.callback_metrics:
                found.setdefault(f"{name}_raw", found[name])
        for name, score in found.items():
            # Equal on all processes; `sync_dist` only tells Lightning so.
            self.log(f"{split}_{name}", score, prog_bar=not name.endswith("_raw"), sync_dist=True)
        provenance = self.model.provenance
        self.model.provenance = replace(provenance, rows={**provenance.rows, split: self.scores.rows})
        if self.trainer.sanity_checking:
            self.scores.worst.clear()
        elif self.trainer.state.fn == "fit":
            self._warn_of_stuck_monitors()
        elif share := self.scores.unknown_share:
            lightning.pytorch.utilities.rank_zero_warn(
                f"{100 * share:.2g} % of the outputs hold unknown symbols, each of which scores as one wrong symbol "
                f"({UNKNOWN}); {split}_NAME_raw are the scores of the texts as they are"
            )

    def _warn_of_stuck_monitors(self) -> None:
        """Say once that a score by which checkpoints are chosen, or training is stopped, does not move."""
        monitored = {getattr(callback, "monitor", None) for callback in cast(Any, self.trainer).callbacks}
        for name, times in self.scores.worst.items():
            if times == 3 and f"val_{name}" in monitored:
                lightning.pytorch.utilities.rank_zero_warn(
                    f"val_{name} was as bad as it can be in {times} validations in a row: while it does not move, only "
                    "val_loss tells checkpoints apart; if it stays so, monitor another score"
                )

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Prediction]:
        """Decode a batch; `row` tells where each prediction belongs. Where there is no source, there is no text."""
        _check_batch(batch)
        missing, written = self.processor.source_feature.is_missing, self.model.write(batch.source, batch.texts)
        found = [
            [Generated("")] * len(outputs) if missing(source) else outputs
            for source, outputs in zip(batch.texts, self.processor.outputs(written, batch.source), strict=True)
        ]
        details = ("score", *self.model.generation.details)
        references = batch.references or ((),) * len(found)
        return [
            Prediction(
                row=row,
                source=source,
                references=[text for text in texts if text],
                hypotheses=[cast(PredictedText, one.told(details)) for one in outputs],
            )
            for row, source, texts, outputs in zip(batch.rows.tolist(), batch.texts, references, found, strict=True)
        ]

    # ---------------------------------------------------------------------------------------------- saving

    @classmethod
    def load_from_checkpoint(
        cls, checkpoint_path: Any, *args: Any, trust: str | Sequence[str] | None = (), **options: Any
    ) -> Self:
        """Load a model from a checkpoint, as Lightning does; of what it names nothing runs that is not trusted.

        `trust` names packages, beyond this one and torch, whose classes it may name, so that their code runs. The
        options are Lightning's, and arguments of `LitSeq2Seq` in place of the saved ones.

        Raises:
            UserError: the file is missing, damaged or not trusted.
        """
        described = load_checkpoint(checkpoint_path, mmap=True).get(cls.CHECKPOINT_HYPER_PARAMS_KEY)
        if not isinstance(described, dict):
            raise UserError(f"{checkpoint_path} was not written by lit_seq2seq: it does not describe its model")
        given = spec.build_arguments(cls, described, trusted(trust), saved=True)
        options = {**given, "weights_only": True, **options, "_instantiator": None}
        return super().load_from_checkpoint(checkpoint_path, *args, **options)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the processor, so that no data is needed to use the checkpoint, and the random state of each process."""
        checkpoint["processor"] = self.processor.to_dict()
        checkpoint["random_states"] = random_states()
        checkpoint["carried"] = self._reading.states()
        checkpoint["steps"] = self._steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the network for the processor of the checkpoint, or check that both are the same."""
        if "processor" not in checkpoint:
            raise UserError("the checkpoint has no vocabulary: it was not written by lit_seq2seq")
        self._random_states, self._carried = checkpoint.get("random_states", []), checkpoint.get("carried", [])
        if self._trainer is not None and self.trainer.state.fn == "fit" and "optimizer_states" in checkpoint:
            self._resumed = {name: checkpoint.get(name) for name in _RESUMED}
        data = None if self._trainer is None else getattr(self.trainer, "datamodule", None)
        trust = getattr(data, "trusted", ())
        if self.attached:
            trust += spec.trust_of(describe_feature(self.processor.source_feature))
        self.attach(Processor.from_dict(checkpoint["processor"], trust))
        _rename(self, checkpoint["state_dict"], "")
        mine, theirs = self.state_dict(), checkpoint["state_dict"]
        for name in sorted(mine.keys() | theirs.keys()):
            own, other = (tuple(state[name].shape) if name in state else "missing" for state in (mine, theirs))
            if own != other:
                raise UserError(
                    f"the checkpoint is of another model: its {name} is {other}, this model's is {own}: give the "
                    "settings it was trained with"
                )
        tell_other_network(self.hparams, checkpoint.get("hyper_parameters") or {})
        check_finite({name: tensor.to(mine[name].dtype) for name, tensor in theirs.items()}, "the checkpoint")
        if self._trainer is not None and self.trainer.state.fn != "fit":
            self.configure_model()  # compares it with the vocabulary of the data, if that has its own

    # ---------------------------------------------------------------------------------------------- processes

    def teardown(self, stage: str) -> None:
        """Note in a process that the trainer has started, such as by `ddp_fork`, that its weights go home now."""
        self._goes_home = stage == "fit" and isinstance(self.trainer.strategy.launcher, _MultiProcessingLauncher)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the weights; for the process at home, which has seen no data, also what they are weights of."""
        state = cast("dict[str, Any]", super().state_dict(*args, **kwargs))
        if self._goes_home:
            state[_LEARNED] = {"processor": self.processor.to_dict(), "provenance": asdict(self.model.provenance)}
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights; from a process that the trainer has started, also what they are weights of."""
        state = dict(state_dict)
        if (learned := state.pop(_LEARNED, None)) is not None:
            processor = Processor.from_dict(learned["processor"], trust=spec.trust_of(learned["processor"]))
            if self.attached and self.processor.identity() != processor.identity():
                self.model.detach()
            self.attach(processor)
            self.model.provenance = Provenance(**learned["provenance"])
        return super().load_state_dict(state, strict, assign)


def _rename(module: nn.Module, state: dict[str, Any], prefix: str, *args: Any) -> None:
    """Find the weights of checkpoints of 0.1, whose network was the module's own."""
    old, new = f"{prefix}network.", f"{prefix}model.network."
    for name in [name for name in state if name.startswith(old)]:
        state[new + name.removeprefix(old)] = state.pop(name)


def _check_batch(batch: object) -> None:
    """Refuse what a loader of the user's own makes, if it is something else."""
    if not isinstance(batch, Batch):
        raise UserError(
            f"expected batches of a Seq2SeqDataModule, got a {type(batch).__name__}: give the trainer "
            "datamodule=Seq2SeqDataModule(rows); for a few inputs, use pipeline"
        )
