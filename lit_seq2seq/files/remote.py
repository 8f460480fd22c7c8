"""Repositories of the Hugging Face hub: to a folder and back, with errors that say what to do."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack, cast

from huggingface_hub import CommitOperationAdd, HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lit_seq2seq.files.paths import Loading
from lit_seq2seq.types import UserError

HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]
"""What the HTTP library that `huggingface_hub` uses raises: `requests` before its version 1, `httpx` since."""


def download(name: str, patterns: list[str], **options: Unpack[Loading]) -> Path:
    """Bring the files of a model repository into the cache, and return their folder.

    Raises:
        UserError: it is not to be had.
    """
    options.pop("trust", None)
    with explained(f"the model {name}", options.get("revision"), options.get("cache_dir")):
        return Path(snapshot_download(name, allow_patterns=patterns, **cast("dict[str, Any]", options)))


def upload(
    files: Iterable[tuple[str, Path | bytes]],
    name: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = "Upload model",
) -> str:
    """Put files into a model repository in one commit; it and its branch are made if needed.

    Returns the address of the commit. A name alone goes to the token's owner; for the options see `Pushing`.

    Raises:
        UserError: the hub does not take them.
    """
    api = HfApi(token=token, library_name="lit_seq2seq")
    operations = [CommitOperationAdd(path, content) for path, content in files]
    with explained(f"the model {name}", revision, writing=True):
        repository = api.create_repo(name, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.create_commit(repository, operations, commit_message=commit_message, revision=revision)
    return str(commit.commit_url)


@contextmanager
def explained(
    what: str, revision: str | None = None, cache_dir: str | os.PathLike[str] | None = None, writing: bool = False
) -> Iterator[None]:
    """Raise a `UserError` of one line in place of what the hub's client raises; see `reason_of`."""
    try:
        yield
    except (HTTPError, HFValidationError, OSError, RuntimeError) as error:
        reason = reason_of(error, what, revision, cache_dir, writing=writing)
        raise UserError(
            reason or f"{what} cannot be {'written' if writing else 'read'}: {_first_line(error)}"
        ) from error


def reason_of(
    error: BaseException,
    what: str,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    writing: bool = False,
) -> str | None:
    """Say what an error of the hub's client, or one that it caused, means for a user; `None` if it is not known.

    Args:
        error: what was raised.
        what: name of the repository in the message, such as `the model user/name`.
        revision: the one asked for.
        cache_dir: the cache that was looked in.
        writing: whether something is to be written there.
    """
    causes = list(causes_of(error))
    statuses = [cause.response.status_code for cause in causes if isinstance(cause, HfHubHTTPError)]
    text = " ".join(str(cause) for cause in causes)

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if "Invalid credentials" in text:
        return f"the hub does not know the token that was given for {what}: log in with hf auth login, or set HF_TOKEN"
    if caused_by(GatedRepoError) or "is a gated dataset" in text:  # datasets may drop the cause
        return f"{what} is gated: ask for access on its page at {constants.ENDPOINT}, then log in with hf auth login"
    if writing and (403 in statuses or 401 in statuses):
        return f"you may not write {what}: log in with hf auth login and a token that may write there"
    if caused_by(RepositoryNotFoundError) or "doesn't exist on the Hub or cannot be accessed" in text:
        return f"the hub has no such thing as {what}, or it is private: check the id, or log in with hf auth login"
    if caused_by(RevisionNotFoundError):
        return f"{what} has no revision {revision}: name a branch, tag or commit of it"
    if writing and caused_by(OfflineModeIsEnabled):
        return f"{what} cannot be written while HF_HUB_OFFLINE is set: unset it"
    if caused_by(OfflineModeIsEnabled) or (caused_by(LocalEntryNotFoundError) and not caused_by(HTTPError)):
        where = cache_dir or constants.HF_HUB_CACHE
        return f"{what} is not (wholly) in the cache {where}, and the hub may not be asked: load it once with network"
    if caused_by(HFValidationError):
        return f"{what} has no valid id: expected user/name, with letters, digits, '-', '_' and '.'"
    if statuses and statuses[0] < 500:
        return None
    if caused_by(HTTPError) or "Consistency check failed" in text:
        return (
            f"the connection for {what} was lost or not made ({_first_line(causes[-1])}): check network and "
            "HF_ENDPOINT, and run again; files that are whole are kept"
        )
    return None


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, what caused it, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
