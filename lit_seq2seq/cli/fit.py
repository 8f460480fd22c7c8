"""Lightning's subcommands over one YAML: `lit-seq2seq fit | validate | test | predict`."""

from __future__ import annotations

import re
import shlex
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import datasets
import yaml
from jsonargparse import Namespace
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, RichModelSummary
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_warn

from lit_seq2seq.callbacks import Checkpoint, NonFiniteLoss, PredictionWriter, SampleOutputs, Seq2SeqProgressBar
from lit_seq2seq.cli import find_own_files
from lit_seq2seq.cli.commands import save_best
from lit_seq2seq.cli.failures import FailureReport
from lit_seq2seq.cli.summary import typed, write_summary
from lit_seq2seq.data import Seq2SeqDataModule
from lit_seq2seq.features import Processor
from lit_seq2seq.files.paths import local_path
from lit_seq2seq.hub.folder import load_checkpoint, load_folder, trusted
from lit_seq2seq.search.config import check_generation
from lit_seq2seq.settings.options import load_yaml, reason_of
from lit_seq2seq.settings.parsing import Parser
from lit_seq2seq.settings.spec import DAMAGED, build_arguments, import_class, trust_of
from lit_seq2seq.training.logs import (
    EventsLog,
    MetricsLog,
    RunFolder,
    RunTrainer,
    keep_rows,
    last_checkpoint,
    record_scores,
    run_of,
)
from lit_seq2seq.training.module import LitSeq2Seq
from lit_seq2seq.training.precision import precision_fits
from lit_seq2seq.types import UserError

_NOT_BARE = (
    *("enable_checkpointing", "enable_model_summary", "enable_progress_bar", "log_every_n_steps", "logger"),
    "num_sanity_val_steps",
)
"""Settings of a recipe that Lightning does not take beside `trainer.barebones`."""


class _SaveSettings(SaveConfigCallback):
    """Writes `config.yaml` into the folder of a run that trains, and tells its checkpoints of the folder."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it; what is scored later leaves it as it is."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note the folder, as the checkpoint may lie elsewhere."""
        checkpoint["run"] = cast(RunTrainer, trainer).run.mark


class Seq2SeqCLI(LightningCLI):
    """Lightning's command line for `LitSeq2Seq` and `Seq2SeqDataModule`, with this package's callbacks and loggers.

    Args:
        args: arguments; the process' own if `None`.
        run: whether a subcommand is expected and run; else everything is built and nothing runs.
    """

    processor: Processor | None = None
    evaluated: Processor | None = None

    def __init__(self, args: list[str] | None = None, run: bool = True) -> None:
        given = sys.argv[1:] if args is None else args
        find_own_files(given)
        self.named = given[0] if given else None
        self.command = shlex.join(["lit-seq2seq", *([] if run else ["fit"]), *_without_secrets(map(_from_here, given))])
        super().__init__(
            LitSeq2Seq,
            Seq2SeqDataModule,
            save_config_callback=_SaveSettings,
            trainer_class=RunTrainer,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"use_distributed_sampler": False},
            seed_everything_default=1,
            parser_class=Parser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
            run=run,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks that every run has, each with a section of its own in the YAML."""
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.add_lightning_class_args(SampleOutputs, "samples")
        parser.add_lightning_class_args(Seq2SeqProgressBar, "progress")
        parser.add_lightning_class_args(NonFiniteLoss, "guard")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.link_arguments("model.output", "data.copy", compute_fn=_copies)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return what each leaves out of the arguments: of the one that is called, as every parser costs time."""
        known = super().subcommands()
        return {self.named: known[self.named]} if self.named in known else known

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Without subcommands take what `fit` takes: the `config.yaml` of a run has it."""
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        if not add_subcommands:
            self.parser.add_method_arguments(Trainer, "fit", skip=set(self.subcommands()["fit"]))

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments, without Lightning's warning that those of the process are not looked at."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LightningCLI's args parameter is intended to run from within Python.*")
            super().parse_arguments(parser, args)
            config = self._chosen
            if (start := config.model.get("init_from")) is not None:
                trust = _trust(config)
                settings = self._saved_settings(start, config, trust)
                defaults = {**settings, "data.processor": start, "data.trust": list(trust)}
                self._parser(self.config.get("subcommand")).set_defaults(defaults)
                super().parse_arguments(parser, args)
                kept = {key: _kept(value, self._chosen.get(key), trust) for key, value in settings.items()}
                if kept != settings:
                    self._parser(self.config.get("subcommand")).set_defaults(kept)
                    super().parse_arguments(parser, args)

    @property
    def _chosen(self) -> Namespace:
        """The settings of the subcommand, or all of them."""
        subcommand = self.config.get("subcommand")
        chosen: Namespace = self.config[subcommand] if subcommand else self.config
        return chosen

    def _saved_settings(self, start: str, config: Namespace, trust: tuple[str, ...]) -> dict[str, Any]:
        """Return what a trained model says of itself, as defaults; a checkpoint of the run knows it, too."""
        path = _checkpoint_of(config)
        if path is None:
            described: Any = load_folder(start, trust=trust).config["model"]
        else:
            checkpoint = load_checkpoint(path)
            described, processor = checkpoint.get("hyper_parameters"), checkpoint.get("processor")
            if not isinstance(described, dict) or not isinstance(processor, dict):
                raise UserError(f"{path} was not written by lit_seq2seq: it does not describe its model")
            self.processor = Processor.from_dict(processor, trust)
        build_arguments(LitSeq2Seq, described, trust, saved=True)  # checks that nothing runs that is not trusted
        _refuse_hidden_classes(described)
        own = ("objective", "optimizer", "lr_scheduler", "lr_factors", "source_vectors", "target_vectors", "init_from")
        found = {f"model.{key}": value for key, value in described.items() if key not in own}
        generation = check_generation(found.pop("model.generation", {}), start)
        return found | {f"model.generation.{key}": value for key, value in generation.items()}

    def instantiate_classes(self) -> None:
        """Build everything; what does not fit together is the user's to mend."""
        try:
            super().instantiate_classes()
        except (TypeError, ValueError, ModuleNotFoundError) as error:
            raise UserError(f"these settings do not fit: {reason_of(error) or ' '.join(str(error).split())}") from error
        model = self.model.model
        model.generation.moved(_there)
        model.provenance = replace(model.provenance, command=self.command)
        if self.processor is not None:
            self.datamodule.processor, self.model.init_from = self.processor, None  # the checkpoint has it all
        self.datamodule.of_checkpoint = self.evaluated

    def instantiate_trainer(self, **kwargs: Any) -> RunTrainer:
        """Build the trainer, with CSV and TensorBoard logs in the run's folder unless the YAML names loggers.

        Where the device has no kernels for the precision that the YAML asks for, it computes in another and says so.
        """
        config = self._get(self.config_init, "trainer", default={})
        run = RunFolder(config.get("default_root_dir") or "runs")
        kwargs["default_root_dir"] = str(run.root)
        scoring, bare = self.subcommand not in (None, "fit"), config.get("barebones")
        if scoring:
            run.path = run_of(self._chosen.ckpt_path, run.root)
        if bare:
            kwargs |= dict.fromkeys(_NOT_BARE)
        if config.get("logger") in (None, True) and not config.get("fast_dev_run") and not bare:
            kwargs.setdefault("logger", [] if scoring else [MetricsLog(run), EventsLog(run)])
        self.trainer_defaults["callbacks"] = [FailureReport()]
        if config.get("enable_model_summary") is not False and not bare:
            self.trainer_defaults["callbacks"] += [RichModelSummary(max_depth=3)]
        named = config.get("callbacks") or []
        named = named if isinstance(named, list) else [named]
        unwanted = {
            "progress": bare
            or config.get("enable_progress_bar") is False
            or any(isinstance(callback, ProgressBar) for callback in named),
            "checkpoint": bare or config.get("enable_checkpointing") is False,
        }
        parser = self._parser(self.subcommand)
        parser.callback_keys = [key for key in parser.callback_keys if not unwanted.get(key)]
        kwargs.setdefault("callbacks", [*named])  # Lightning adds to the list that it gets
        trainer = super().instantiate_trainer(**kwargs)
        asked = config.get("precision") or trainer.precision
        if not precision_fits(trainer):
            trainer = super().instantiate_trainer(**{**kwargs, "callbacks": [*named], "precision": "32-true"})
        if str(asked).split("-")[0] != str(trainer.precision).split("-")[0]:
            rank_zero_warn(f"this device has no kernels for precision {asked}: computing in {trainer.precision}")
        first = self._get(self.config_init, "checkpoint", default=None)  # what it finds the best becomes the model
        trainer.callbacks.sort(key=lambda one: isinstance(one, ModelCheckpoint) and one is not first)  # type: ignore[attr-defined]
        if scoring and trainer.is_global_zero:
            keep_rows(trainer.loggers)
        cast(RunTrainer, trainer).run = run
        return cast(RunTrainer, trainer)

    def _parse_ckpt_path(self) -> None:
        """Find and check a checkpoint before all is built; Lightning would merge its settings with the recipe's."""
        subcommand, config = self.config.get("subcommand"), self._chosen
        path = _checkpoint_of(config)
        if path:
            config["ckpt_path"] = path
            processor = load_checkpoint(path).get("processor")
            if subcommand not in ("fit", None) and isinstance(processor, dict):
                self.evaluated = Processor.from_dict(processor, _trust(config))
        elif subcommand in ("validate", "test", "predict"):
            raise UserError(f"{subcommand} needs a trained model: give --ckpt_path FILE, such as checkpoints/last.ckpt")

    def after_validate(self) -> None:
        """Keep the scores with the run."""
        folder = self.trainer.log_dir
        if self.trainer.is_global_zero and folder is not None:
            scores = {name: float(score) for name, score in self.trainer.callback_metrics.items()}
            record_scores(Path(folder), self._chosen.ckpt_path, scores, self.datamodule.origin[0])

    after_test = after_validate

    def after_fit(self) -> None:
        """Leave a folder that `from_pretrained` takes, and say where it is."""
        folder, next_commands = save_best(self.trainer, self.model), self.next_commands()
        if folder is not None:
            write_summary(self.model.model, self.datamodule, folder, commands=next_commands)

    def next_commands(self) -> list[str]:
        """Return how the best checkpoint is scored on the test split, where there is one."""
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        if not best or "test" not in self.datamodule.splits:
            return []
        settings = Path(self.trainer.log_dir or "") / "config.yaml"
        paths = f"--config {shlex.quote(str(settings))} --ckpt_path {shlex.quote(_from_here(best))}"
        parts = (*self.trainer.callbacks, *self.trainer.loggers)  # type: ignore[attr-defined]
        modules = {*self.model.model.others(), *(type(part).__module__ for part in parts)}
        return [f"{typed('lit-seq2seq', modules)} test {paths}"]


def spare_log_files() -> None:
    """Show no bars of `datasets` where there is no terminal: they would fill a log file."""
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


def _there(name: str, kind: str) -> str:
    """Refuse a file that is not there before any data are read."""
    if kind == "file" and not Path(name).is_file():
        raise UserError(f"there is no file {name}, which model.generation names: check its path")
    return name


def _from_here(argument: str) -> str:
    """Name a file below the working directory from there: a card is read elsewhere."""
    path = Path(argument)
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else argument


def _trust(config: Namespace) -> tuple[str, ...]:
    """Name what may run of a saved model: what the user's own settings name, and what `data.trust` adds."""
    return tuple(sorted({*trust_of(config.model.as_dict()), *trusted(config.data.get("trust"))}))


def _without_secrets(arguments: Iterable[str]) -> Iterator[str]:
    """Leave out access tokens, passwords and keys: a card is read by others."""
    hidden = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        secret = re.search(r"(^--|[._])(token|password|secret|api_key|access_key)$", name) is not None
        told = re.sub(r"//[^/@\s]+@", "//...@", argument)
        yield "..." if hidden else f"{name}=..." if secret and equals else told
        hidden = secret and not equals


def _checkpoint_of(config: Namespace) -> str | None:
    """Return the checkpoint that is asked for; of `last`, the newest one of the runs, if there is one."""
    path: str | None = config.get("ckpt_path")
    if path == "last":
        root = local_path(config.trainer.default_root_dir or "runs", "trainer.default_root_dir")
        return last_checkpoint(root, config.checkpoint.dirpath)
    return path


def _kept(saved: Any, chosen: Any, trust: tuple[str, ...]) -> Any:
    """Take from saved settings the arguments of classes in whose place another is chosen."""
    if not isinstance(saved, dict) or not isinstance(chosen, dict | Namespace):
        return saved
    classes = [import_class(one["class_path"], trust) for one in (saved, chosen) if "class_path" in one]
    if len(set(classes)) > 1:
        return {"class_path": chosen["class_path"]}
    return {key: _kept(value, chosen.get(key), trust) for key, value in saved.items()}


def _refuse_hidden_classes(described: object, parsed: bool = False) -> None:
    """Refuse texts of a saved model in which the parser of settings would find the name of a class."""
    if isinstance(described, str) and ":" in described:
        with suppress(yaml.YAMLError):
            found = load_yaml(described)
            if not isinstance(found, str):
                _refuse_hidden_classes(found, parsed=True)
    if isinstance(described, Mapping) and parsed and "class_path" in described:
        raise UserError(f"a text of the saved model names the class {described['class_path']}: it is {DAMAGED}")
    if isinstance(described, Mapping | list):
        for value in described.values() if isinstance(described, Mapping) else described:
            _refuse_hidden_classes(value, parsed)


def _copies(output: Any) -> bool:
    """Whether the output layer that a recipe describes copies from the source."""
    described = output if isinstance(output, str) else output["class_path"]
    cls = import_class(described, trust=(described.split(".")[0],))
    return bool(getattr(cls, "copies", False))
