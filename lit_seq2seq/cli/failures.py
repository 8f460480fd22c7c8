"""What a run that fails tells its user: one line, and which of several processes it was."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import sys
import time
import traceback
from pathlib import Path

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.multiprocessing.spawn import ProcessException, ProcessExitedException, ProcessRaisedException

from lit_seq2seq.inference.out_of_memory import lacks_memory
from lit_seq2seq.types import UserError

_REPORTED = "(reported above, with the number of the process)"
_MORE_TIME = "for more time give --trainer.strategy=DDPStrategy --trainer.strategy.timeout=1:00:00"
_LONGEST = 1200


def explain(error: BaseException) -> str | None:
    """Say in one line what a user can do about `error`; `None` if it is not a user's to mend."""
    text = _one_line(error)
    if isinstance(error, MisconfigurationException) and "No supported gpu backend" in text:
        return "there is no GPU here that torch can use: leave trainer.accelerator out, or set it to cpu"
    if isinstance(error, ValueError) and "numpy accepts from" in text:  # of seed_everything
        return f"seed_everything: {text}"
    if isinstance(error, UserError | MisconfigurationException) or _refused_by_lightning(error):
        return text
    if isinstance(error, UnicodeDecodeError):
        return f"a file is not UTF-8 ({text}): convert it, for example with iconv -f LATIN1 -t UTF-8"
    if isinstance(error, UnicodeEncodeError) and "surrogates" in text:
        return f"the name of a file or folder is not UTF-8 ({text}): rename it, or write elsewhere"
    if lacks_memory(error):
        return (
            "out of memory: lower data.batches.max_tokens (or data.batches.size) and accumulate with "
            "trainer.accumulate_grad_batches, or set model.split_on_oom to true; if one row is too long, set "
            "data.limits.max_source_length"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"the disk is full ({text}): free space and run again; a training run goes on with --ckpt_path LAST_CKPT"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"the name of a file is too long: {text}"
    if isinstance(error, PermissionError | NotADirectoryError | FileExistsError) or (
        isinstance(error, OSError) and error.errno == errno.EROFS
    ):
        return f"cannot write here ({text}): choose another trainer.default_root_dir or --output"
    if isinstance(error, ProcessRaisedException):  # of a strategy that spawns its processes
        kind, _, message = _last_line(error).partition(": ")
        return message if kind.endswith(".UserError") else None
    if isinstance(error, ProcessExitedException):
        return text
    if _lost_another(error):
        return "another process has ended: the reason is in its own output"
    return _missed_another(error)


def _refused_by_lightning(error: BaseException) -> bool:
    """Whether a line of Lightning raises it, in words for whoever set the trainer up."""
    if not isinstance(error, ValueError | TypeError | RuntimeError | KeyError) or error.__traceback__ is None:
        return False
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(lightning.__file__).parent in Path(last.filename).parents and (last.line or "").startswith("raise ")


def _last_line(error: ProcessException) -> str:
    return str(error).strip().splitlines()[-1]


def _one_line(error: BaseException) -> str:
    """Return what `error` says, without line breaks, and not the whole of a value that goes on and on."""
    sentence = isinstance(error, KeyError) and " " in str(error)  # which KeyError would put in quotes
    text = str(error.args[0] if sentence else error)
    if text.startswith("Caught ") and "Original Traceback" in text:  # of a process that loads data
        text = text.rpartition(f"{type(error).__qualname__}: ")[2]
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _lost_another(error: BaseException) -> bool:
    """Whether communication ended because another process did; gloo and NCCL say so in words only."""
    signs = ("connection closed by peer", "connection reset by peer", "remote process exited")
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in signs)


def _missed_another(error: BaseException) -> str | None:
    """Say why processes did not come together, or which wait was too long; torch says so in words only."""
    text = str(error)
    if not isinstance(error, RuntimeError):
        return None
    if "EADDRINUSE" in text and (port := re.search(r"port: (\d+)", text)):
        return f"port {port[1]} is taken: set another MASTER_PORT (torchrun's --master-port), the same on all machines"
    if place := re.search(r"timed out after (\d+)ms while trying to connect to \((.*), (\d+)\)", text):
        return _no_answer(int(place[1]), place[2], int(place[3]))
    if joined := re.search(r"Timed out after (\d+) seconds waiting for clients. (\d+)/(\d+) clients joined", text):
        who, seconds = f"{joined[2]} of {joined[3]} processes came", int(joined[1])
    elif waited := re.search(r"wait timeout after (\d+)ms|Timed out waiting (\d+)ms for \w+ operation", text):
        who, seconds = "another process did not answer", int(waited[1] or waited[2]) // 1000
    else:
        return None
    return (
        f"{who} within {seconds} s: see the output of the others; all machines need the same command, with the same "
        f"trainer.num_nodes and trainer.devices; {_MORE_TIME}"
    )


def _no_answer(milliseconds: int, host: str, port: int) -> str:
    """Say that the first machine was not reached, and whether it is its name that leads nowhere."""
    try:
        socket.getaddrinfo(host, port)
    except socket.gaierror:
        return f"this machine knows no {host!r}: set MASTER_ADDR (torchrun's --master-addr) to the first machine"
    return (
        f"no answer from {host}, port {port}, within {milliseconds // 1000} s: start the first machine too, check "
        f"MASTER_ADDR, MASTER_PORT and firewalls; {_MORE_TIME}"
    )


class FailureReport(Callback):
    """Says which of several processes failed and why, at once: before its end makes the others fail.

    Torchrun is told too, for its summary.
    """

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Print the line, unless the process is the only one or a signal has stopped it."""
        if trainer.world_size == 1 or not isinstance(exception, Exception):
            return
        rank, what = trainer.global_rank, f"{type(exception).__name__}: {_one_line(exception)}"
        if isinstance(exception, ProcessException):
            rank, what = exception.error_index, _last_line(exception)
        reason = explain(exception) or what
        line = f"process {rank} of {trainer.world_size}: {reason}"
        print(f"error: {line}", file=sys.stderr, flush=True)
        exception.add_note(_REPORTED)
        path = os.environ.get("TORCHELASTIC_ERROR_FILE")
        if path and not _lost_another(exception):
            more = {"py_callstack": line, "timestamp": str(int(time.time()))}
            Path(path).write_text(json.dumps({"message": {"message": line, "extraInfo": more}}), encoding="utf-8")


def is_reported(error: BaseException) -> bool:
    """Whether `FailureReport` has told the user of it."""
    return _REPORTED in getattr(error, "__notes__", ())
