"""Model folders: `config.json`, `model.safetensors`, the processor's files and a model card; local or on the hub."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, TypeGuard, Unpack

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lit_seq2seq.features import Processor
from lit_seq2seq.files.paths import Loading, Pushing, expect_own, is_file, local_copy, local_path
from lit_seq2seq.files.untrusted import check_archive, checked, is_number, read_json
from lit_seq2seq.files.weights import Weights
from lit_seq2seq.hub.card import Provenance, published
from lit_seq2seq.search.carried import CARRIED, carried_in, settle
from lit_seq2seq.search.config import check_generation
from lit_seq2seq.shortlist import Shortlist
from lit_seq2seq.types import UserError

FORMAT = 1
_TOKEN = re.compile(
    r"\b(hf_|gh[oprsu]_|github_pat_|sk-|xox[abprs]-)[\w-]{30,}|\bAKIA[0-9A-Z]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY"
)
CONFIG, WEIGHTS, CARD, SHORTLIST = "config.json", "model.safetensors", "README.md", "shortlist.safetensors"


@dataclass(frozen=True)
class ModelFolder:
    """What a model folder holds.

    Attributes:
        config: description of the model; see `lit_seq2seq.settings.spec`.
        processor: source feature and target tokenizer.
        path: where the folder is.
        trust: packages whose classes it may name.
    """

    config: dict[str, Any]
    processor: Processor
    path: Path
    trust: tuple[str, ...] = ()

    @property
    def provenance(self) -> Provenance:
        """Where the model comes from; what is not of the right form is left out."""
        scores, origin = self.config.get("scores"), self.config.get("provenance")
        origin = origin if isinstance(origin, dict) else {}
        known = {name: origin[name] for name in ("data", "command", "license") if isinstance(origin.get(name), str)}
        languages, rows = origin.get("languages"), origin.get("rows")
        return Provenance(
            **known,
            on_hub=origin.get("on_hub") is True,
            languages=[str(code) for code in languages] if isinstance(languages, list) else [],
            rows={name: n for name, n in rows.items() if isinstance(n, int) and is_number(n)}
            if isinstance(rows, dict)
            else {},
            scores={name: float(value) for name, value in scores.items() if is_number(value)}
            if isinstance(scores, dict)
            else {},
        )

    @property
    def signatures(self) -> Mapping[str, str]:
        """How each score is computed, by its name; what is not of the right form is left out."""
        found = self.config.get("signatures")
        known = found.items() if isinstance(found, dict) else ()
        return {name: text for name, text in known if isinstance(text, str)}

    @cached_property
    def shortlist(self) -> Shortlist | None:
        """The shortlist, if there is one.

        Raises:
            UserError: it is damaged, or of another model.
        """
        return read_shortlist(self.path / SHORTLIST, self.processor) if (self.path / SHORTLIST).exists() else None

    @cached_property
    def weights(self) -> Weights:
        """The file of weights.

        Raises:
            UserError: it is missing or damaged.
        """
        if not (self.path / WEIGHTS).is_file():
            raise UserError(f"{self.path} has no {WEIGHTS}: save the model again with save_pretrained")
        return Weights(self.path / WEIGHTS)


def save_folder(
    path: str | os.PathLike[str],
    config: Mapping[str, object],
    network: nn.Module,
    processor: Processor,
    *,
    card: str,
    shortlist: Shortlist | None = None,
    carried: Mapping[str, Callable[[Path], object]] = MappingProxyType({}),
) -> Path:
    """Write a model folder; its files take their place when all are written, so that no half-written one is left.

    Args:
        path: the folder, made if needed.
        config: description of the model; plain values.
        network: whose weights are saved.
        processor: saved beside it.
        card: text of the model card.
        shortlist: saved beside it; one that is there goes if `None`, as it may be of another model.
        carried: what writes each file or model that the options of search name, by its place in the folder.

    Returns:
        The folder.
    """
    folder = local_path(path, "the model folder")
    expect_own(folder, (CONFIG, CARD), lambda: _is_config(read_json(folder / CONFIG)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".saving-", dir=folder) as name:
            part = Path(name)
            text = json.dumps({"format": FORMAT, **config}, indent=2, ensure_ascii=False) + "\n"
            (part / CONFIG).write_text(text, encoding="utf-8")
            (part / CARD).write_text(card, encoding="utf-8")
            processor.save(part)
            safetensors.torch.save_model(network, str(part / WEIGHTS), metadata={"format": "pt"})
            _follow_umask(part / WEIGHTS)
            if shortlist is None:
                (folder / SHORTLIST).unlink(missing_ok=True)
            else:
                write_shortlist(part / SHORTLIST, shortlist, processor)
            for place, write in carried.items():
                (part / place).parent.mkdir(exist_ok=True)
                write(part / place)
            shutil.rmtree(folder / CARRIED, ignore_errors=True)
            for file in part.iterdir():
                file.replace(folder / file.name)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot save the model to {folder}: {error}: free space or choose another folder") from error
    return folder


def write_shortlist(path: Path, shortlist: Shortlist, processor: Processor) -> None:
    """Write the tables of a shortlist, and which vocabularies they are for."""
    tables = {"frequent": shortlist.frequent, "translations": shortlist.translations}
    arrays = {name: table.astype(np.int32) for name, table in tables.items()}
    safetensors.numpy.save_file(arrays, path, {"vocabularies": _digest(processor)})
    _follow_umask(path)


def _digest(processor: Processor) -> str:
    symbols = json.dumps([processor.source_feature.symbols, processor.target.symbols])
    return blake2b(symbols.encode(), digest_size=16).hexdigest()


def _follow_umask(path: Path) -> None:
    """Give a file the permissions of any new one: safetensors lets only the owner read what it writes."""
    new = path.with_name(f"{path.name}.new")
    new.touch()
    shutil.copymode(new, path)
    new.unlink()


def add_shortlist(path: str | os.PathLike[str], shortlist: Shortlist, processor: Processor) -> None:
    """Put a shortlist into a model folder, in place of one that is there.

    Args:
        path: the folder.
        shortlist: what to put there.
        processor: that of the model.

    Raises:
        UserError: it cannot be written.
    """
    part = Path(path) / f".{SHORTLIST}.part"
    try:
        write_shortlist(part, shortlist, processor)
        part.replace(Path(path) / SHORTLIST)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write to {path}: {error}: free space or choose another folder") from error


def read_shortlist(path: Path, processor: Processor) -> Shortlist:
    """Read what `write_shortlist` wrote.

    Raises:
        UserError: it is damaged, or of another model.
    """
    file, size = Weights(path), processor.target.size
    rows = {"frequent": None, "translations": processor.source_feature.size}
    fits = file.shapes.keys() == rows.keys() and all(
        file.types[name] == "I32" and len(shape) == 1 + (name == "translations") and rows[name] in (None, shape[0])
        for name, shape in file.shapes.items()
    )
    if fits and file.metadata.get("vocabularies", known := _digest(processor)) == known:  # 0.1 noted none
        tables = safetensors.numpy.load_file(path)
        if all(((table >= -(name == "translations")) & (table < size)).all() for name, table in tables.items()):
            return Shortlist(tables["frequent"], tables["translations"], size, processor.target.specials)
    raise UserError(f"{path} does not fit the vocabularies beside it: learn it again with lit-seq2seq shortlist")


def load_folder(name: str | os.PathLike[str], **options: Unpack[Loading]) -> ModelFolder:
    """Read a model folder, from disk or from the hub (through its cache).

    Args:
        name: a folder, or the id of a hub repository.
        **options: see `Loading`.

    Raises:
        UserError: nothing is there, or it is not a model folder.
    """
    trust = trusted(options.pop("trust", ()))
    path = find_folder(name, **options)
    config = _read_config(path)
    settle(config["model"].get("generation", {}), path, trust)
    return ModelFolder(config, Processor.load(path, trust), path, trust)


def trusted(packages: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of packages as a tuple."""
    names = (packages,) if isinstance(packages, str) else packages or ()
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UserError(f"trust: expected names of packages, such as ['my_parts'], got {packages!r:.60}")
    return tuple(names)


def _read_config(path: Path) -> dict[str, Any]:
    file = path / CONFIG
    if not file.is_file():
        within = [*path.glob(f"model/{CONFIG}"), *path.glob(f"version_*/model/{CONFIG}")]
        made = f" {max(within, key=os.path.getmtime).parent}" if within else " that training or push made"
        raise UserError(f"{path} is not a model folder, it has no {CONFIG}: give the folder{made}")
    config = read_json(file)
    if not _is_config(config):
        raise UserError(f"{file} does not describe a lit_seq2seq model: its 'model' entry is missing")
    if config.get("format") != FORMAT:
        raise UserError(f"{file} has format {config.get('format')}, this version reads {FORMAT}: upgrade lit_seq2seq")
    check_generation(config["model"].get("generation", {}), file)
    return config


def _is_config(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict) and isinstance(value.get("model"), dict)


def find_folder(name: str | os.PathLike[str], **options: Unpack[Loading]) -> Path:
    """Return a folder on disk, or that of a hub repository in the cache; see `load_folder`."""
    return Path(name) if Path(name).is_dir() else _download(str(name), **options)


def _download(name: str, **options: Unpack[Loading]) -> Path:
    if Path(name).is_file():
        raise UserError(f"{name} is a file: give a model folder, such as the folder model of its run")
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(f"there is no folder {name}: check the path, or give a hub id such as user/model")
    try:
        from lit_seq2seq.files import remote

        return remote.download(name, ["*.json", "*.safetensors", CARD, f"{CARRIED}/*"], **options)
    except UserError as error:
        raise UserError(f"there is no folder {name}, and {error}") from error


def push_folder(
    path: str | os.PathLike[str],
    repo_id: str,
    *,
    license: str | None = None,
    languages: Sequence[str] = (),
    **options: Unpack[Pushing],
) -> str:
    """Put a model folder on the hub, in one commit: its own files, and nothing else that lies there.

    Args:
        path: the folder.
        repo_id: `user/name`; the repository is made if needed.
        license: for the model card: the hub's name of a license, such as `apache-2.0`.
        languages: for the model card: ISO codes, such as `de`.
        **options: see `Pushing`.

    Returns:
        Address of the commit.

    Raises:
        UserError: it is not a model folder, a file is a link that leads out of it or to a hidden one, an access token
            is in its description or card, or the hub does not take it.
    """
    folder = Path(path)
    _read_config(folder)
    Weights(folder / WEIGHTS)
    names = _own_files(folder)
    files: dict[str, Path | bytes] = {name: checked(folder / name, hidden=False) for name in names}
    for name in names:
        if name.endswith((CONFIG, CARD)) and _TOKEN.search((folder / name).read_text("utf-8", errors="replace")):
            raise UserError(f"{folder / name} holds what looks like an access token: take it out before you push")
    if CARD in names:
        files[CARD] = published((folder / CARD).read_text("utf-8"), repo_id, license, languages).encode()
    from lit_seq2seq.files import remote

    return remote.upload(files.items(), repo_id, **options)


def _own_files(folder: Path) -> list[str]:
    """List the files of a model folder, and of the files and models that it carries; not what else lies there."""
    names = [name for name in (CONFIG, WEIGHTS, SHORTLIST, *Processor.FILES, CARD) if (folder / name).exists()]
    for one in carried_in(folder):
        place = one.relative_to(folder).as_posix()
        names += [f"{place}/{name}" for name in _own_files(one)] if one.is_dir() else [place]
    return names


def read_archive(path: str | os.PathLike[str], mmap: bool = False) -> object:
    """Read what torch has saved, without running code from it.

    Args:
        path: the file.
        mmap: read tensors only when they are used.

    Raises:
        UserError: there is no such file, or it is damaged or not a checkpoint.
    """
    if not is_file(path):
        raise UserError(f"there is no checkpoint {path}: give the path of a .ckpt file")
    try:
        with local_copy(path) as file:
            check_archive(file)
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{path} is damaged or not a checkpoint ({type(error).__name__}): use another one of the same run"
        ) from error


def load_checkpoint(path: str | os.PathLike[str], mmap: bool = False) -> dict[str, object]:
    """Read a checkpoint of Lightning; see `read_archive`."""
    checkpoint = read_archive(path, mmap)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"{path} is not a checkpoint of lit_seq2seq: it has no state_dict")
    return checkpoint


def tensors_of(checkpoint: Mapping[str, object]) -> dict[str, Tensor]:
    """Return the weights that a checkpoint of `load_checkpoint` holds."""
    state = checkpoint["state_dict"]
    assert isinstance(state, dict)
    return {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
