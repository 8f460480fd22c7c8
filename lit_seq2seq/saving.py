"""`SavedModel`: a model as a folder, here or on the hub."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, TypeVar, Unpack, cast

from torch import nn

from lit_seq2seq import spec
from lit_seq2seq.arguments import checked
from lit_seq2seq.card import Provenance, model_card
from lit_seq2seq.hub import Loading, load_folder, push_folder, save_folder
from lit_seq2seq.model import Seq2SeqModel
from lit_seq2seq.nn import Ensemble
from lit_seq2seq.types import UserError
from lit_seq2seq.untrusted import check_finite

M = TypeVar("M", bound="SavedModel")


class SavedModel(Seq2SeqModel):
    """A model that is written with what is known of it, and read.

    Attributes:
        task: the hub's name of the task.
        provenance: what it was trained on, and its scores.
        signatures: how each score is computed, by its name without the split.
    """

    task = "text2text-generation"
    provenance = Provenance()
    signatures: Mapping[str, str] = {}

    def others(self) -> tuple[str, ...]:
        """Name what of the model is neither this package's nor torch's: whoever loads its folder has to trust it."""
        return spec.trust_of([dict(self.hparams), *([self._processor.to_dict()] if self._processor else [])])

    @checked
    def save_pretrained(self, folder: str | os.PathLike[str], scores: Mapping[str, float] | None = None) -> None:
        """Write `config.json`, `model.safetensors`, the tokenizers and a model card to `folder`.

        Args:
            folder: made if needed.
            scores: measured figures for the model card, such as `{"test_bleu": 41.4}`; those known before if `None`.

        Raises:
            UserError: it is an ensemble, or the folder cannot be written.
        """
        if isinstance(cast(nn.Module, self.net), Ensemble):
            raise UserError("an ensemble is not saved as one: save its models, and name all their folders to use it")
        self.warn_if_untrained()
        check_finite(self.net.state_dict(), "the model")
        if scores:
            self.provenance = replace(self.provenance, scores=dict(scores))
        origin = {name: value for name, value in vars(self.provenance).items() if name != "scores"}
        config = {
            "model": {**self.hparams, "init_from": None},
            "task": self.task,
            "scores": dict(self.provenance.scores),
            "provenance": origin,
        }
        parameters = sum(p.numel() for p in self.net.parameters())
        card = model_card(self.task, self.provenance, self.signatures, parameters, trust=self.others())
        save_folder(folder, config, self.net, self.processor, card, self.shortlist)

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        commit_message: str = "Upload model",
        scores: Mapping[str, float] | None = None,
        license: str | None = None,
        languages: Sequence[str] = (),
    ) -> str:
        """Put the model on the Hugging Face hub, as `save_pretrained` writes it, in one commit.

        Args:
            repo_id: `user/name`; the repository is made if needed.
            private: whether a new repository is; `None` for what the account has as its default.
            revision: branch, made if needed; `None` for `main`.
            token: access token that may write; that of `hf auth login` or `HF_TOKEN` if `None`.
            commit_message: what the commit is called.
            scores: measured figures for the model card; those known before if `None`.
            license: for the model card: the hub's name of a license, such as `apache-2.0`.
            languages: for the model card: ISO codes, such as `de`.

        Returns:
            Address of the commit.

        Raises:
            UserError: the hub does not take it.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, scores)
            return push_folder(folder, repo_id, private, revision, token, commit_message, license, languages)

    @classmethod
    @checked
    def from_pretrained(
        cls, name: str | os.PathLike[str], changes: Mapping[str, Any] | None = None, **options: Unpack[Loading]
    ) -> Self:
        """Load a model from a folder or a hub repository, ready to use, or to be trained further.

        Args:
            name: folder or hub id.
            changes: arguments of `LitSeq2Seq` in place of the saved ones, such as `{"lr_factors": {"encoder": 0.1}}`.
            **options: `revision`, `token`, `cache_dir`, `local_files_only` and `trust`; see `lit_seq2seq.hub.Loading`.

        Raises:
            UserError: the folder is missing, damaged or not trusted, or its weights do not fit the changes.
        """
        folder = load_folder(name, **options)
        try:
            arguments = cast("dict[str, Any]", folder.config["model"])
            network = [
                arguments.get(part) for part in ("encoder", "decoder", "output", "attention_losses", "auxiliary")
            ]
            with folder.weights.bound(network):
                given = spec.build_arguments(cls, arguments, folder.trust, saved=True)
                model = _built(cls, given, changes or {}, folder.path)
                model.attach(folder.processor)
        except UserError:
            raise
        except Exception as error:  # whatever the classes that it names do with what it gives them
            raise _unknown(folder.path, f"{type(error).__name__}: {error}") from error
        folder.weights.load(model.net)
        model.shortlist, model.provenance = folder.shortlist, folder.provenance
        return model.eval()


def _built(cls: type[M], given: Mapping[str, Any], changes: Mapping[str, Any], path: Path) -> M:
    """Make the model, and say which folder it is whose settings do not fit."""
    try:
        return cls(**{**given, **changes})
    except UserError as error:
        if changes:
            raise
        raise _unknown(path, str(error)) from error


def _unknown(path: Path, reason: str) -> UserError:
    return UserError(f"{path} describes a model that this version cannot build: {' '.join(reason.split()):.300}")
