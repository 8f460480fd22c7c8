"""Files and models that the options of search name, and that model folders carry."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

from lit_seq2seq.files.untrusted import checked, undamaged
from lit_seq2seq.search.config import search_options
from lit_seq2seq.settings import spec
from lit_seq2seq.types import UserError

CARRIED = "search"
"""Where they lie in a folder."""


def place_of(name: str, number: int) -> str:
    """Return where a folder carries a file or model, the `number`th of them, by its path."""
    return f"{CARRIED}/{number}-{re.sub(r'^[0-9]+-', '', Path(name).name)}"


def carried_in(folder: Path) -> list[Path]:
    """List the files and models that a folder carries, in their order; not what else lies beside them."""
    found = [one for one in (folder / CARRIED).glob("*-*") if one.name.partition("-")[0].isdecimal()]
    return sorted(found, key=lambda one: int(one.name.partition("-")[0]))


def settle(options: Any, folder: Path, trust: tuple[str, ...]) -> None:
    """Resolve the files and models that saved options of search name, if the folder carries them.

    Args:
        options: plain values; changed.
        folder: where they come from.
        trust: packages whose classes they may name.

    Raises:
        UserError: they name others, such as a file of this machine.
    """
    with undamaged(f"the options of generation in {folder}"):
        for one in search_options():
            if one.part and one.name in options:
                options[one.name] = _settled(options[one.name], folder, trust)


def _settled(value: Any, folder: Path, trust: tuple[str, ...]) -> Any:
    """Settle a path, a described part, or a list of these."""
    if isinstance(value, list):
        return [_settled(one, folder, trust) for one in value]
    if isinstance(value, dict):
        found, arguments = spec.import_class(str(value["class_path"]), trust), value.get("init_args") or {}
        for name in set(getattr(found, "outside", {})) & arguments.keys():
            arguments[name] = _settled(arguments[name], folder, trust)
        return value
    return value if value is None else _carried(value, folder)


def _carried(place: object, folder: Path) -> str:
    path = PurePosixPath(str(place))
    inside = path.parts[:1] == (CARRIED,) and len(path.parts) == 2 and path.parts[1] != ".."
    linked = (folder / CARRIED).is_symlink() or ((folder / path).is_symlink() and (folder / path).is_dir())
    if not inside or linked or not (folder / path).exists():
        raise UserError(
            f"{folder} names {place!r:.80} for its search, which it does not carry: load it with other options of "
            "generation"
        )
    if (folder / path).is_file():
        checked(folder / path)
    return str(folder / path)
