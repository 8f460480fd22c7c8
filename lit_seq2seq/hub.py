"""Model folders: `config.json`, `model.safetensors`, the processor's files and a model card; local or on the hub."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import safetensors.torch
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError
from torch import Tensor, nn

from lit_seq2seq.features import Processor
from lit_seq2seq.types import UserError

FORMAT = 1
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"


@dataclass(frozen=True)
class ModelFolder:
    """What a model folder holds.

    Attributes:
        config: description of the model; see `lit_seq2seq.spec`.
        processor: source feature and target tokenizer.
        path: where the folder is.
    """

    config: dict[str, object]
    processor: Processor
    path: Path

    def load_weights(self, network: nn.Module) -> None:
        """Read the weights into `network`.

        Raises:
            UserError: the file is missing or damaged, or does not fit the network.
        """
        file = self.path / WEIGHTS
        if not file.is_file():
            raise UserError(f"{self.path} has no {WEIGHTS}: save the model again with save_pretrained")
        try:
            safetensors.torch.load_model(network, file)
        except SafetensorError as error:
            raise UserError(f"{file} is damaged ({error}): copy or save the model again") from error
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{file} does not fit the model that {CONFIG} describes: {reason:.300}") from error


def save_folder(
    path: str | os.PathLike[str],
    config: Mapping[str, object],
    network: nn.Module,
    processor: Processor,
    card: str,
) -> Path:
    """Write a model folder; its files take their place when all are written, so that no half-written one is left.

    Args:
        path: the folder, made if needed.
        config: description of the model; plain values.
        network: whose weights are saved.
        processor: saved beside it.
        card: text of the model card.

    Returns:
        The folder.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".saving-", dir=folder) as name:
            part = Path(name)
            text = json.dumps({"format": FORMAT, **config}, indent=2, ensure_ascii=False) + "\n"
            (part / CONFIG).write_text(text, encoding="utf-8")
            (part / CARD).write_text(card, encoding="utf-8")
            processor.save(part)
            safetensors.torch.save_model(network, str(part / WEIGHTS), metadata={"format": "pt"})
            for file in part.iterdir():
                file.replace(folder / file.name)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot save the model to {folder}: {error}: free space or choose another folder") from error
    return folder


def load_folder(
    name: str | os.PathLike[str], revision: str | None = None, token: str | None = None, trust: tuple[str, ...] = ()
) -> ModelFolder:
    """Read a model folder, from disk or from the hub (through its cache).

    Args:
        name: a folder, or the id of a hub repository.
        revision: branch, tag or commit on the hub.
        token: access token for private repositories.
        trust: packages, beyond this one and torch, whose classes the processor may name.

    Raises:
        UserError: nothing is there, or it is not a model folder.
    """
    path = Path(name) if Path(name).is_dir() else _download(str(name), revision, token)
    file = path / CONFIG
    if not file.is_file():
        raise UserError(f"{path} is not a model folder, it has no {CONFIG}: give the folder that training or push made")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is damaged ({error}): copy or save the model again") from error
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise UserError(f"{file} does not describe a lit_seq2seq model: its 'model' entry is missing")
    if config.get("format") != FORMAT:
        raise UserError(f"{file} has format {config.get('format')}, this version reads {FORMAT}: upgrade lit_seq2seq")
    try:
        processor = Processor.load(path, trust)
    except UserError:
        raise
    except Exception as error:  # the tokenizers library raises nothing more special
        raise UserError(f"a tokenizer in {path} is damaged ({error}): copy or save the model again") from error
    return ModelFolder(config, processor, path)


def _download(name: str, revision: str | None, token: str | None) -> Path:
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(f"there is no folder {name}: check the path, or give a hub id such as user/model")
    patterns = ["*.json", "*.safetensors", "*.md"]
    try:
        return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=patterns))
    except RepositoryNotFoundError as error:
        raise UserError(f"the hub has no model {name}, or it is private: check the id, or log in") from error
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"there is no folder {name}, and the hub could not give it: {reason}") from error


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, object]:
    """Read a Lightning checkpoint without running code from it.

    Raises:
        UserError: there is no such file, or it is damaged or not a checkpoint.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"there is no checkpoint {file}: give the path of a .ckpt file")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{file} is damaged or not a checkpoint ({type(error).__name__}): use another one of the same run"
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"{file} is not a checkpoint of lit_seq2seq: it has no state_dict")
    return checkpoint


def tensors_of(checkpoint: Mapping[str, object]) -> dict[str, Tensor]:
    """Return the weights that a checkpoint of `load_checkpoint` holds."""
    state = checkpoint["state_dict"]
    assert isinstance(state, dict)
    return {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
