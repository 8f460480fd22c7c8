"""`lit-seq2seq stream`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveFloat, PositiveInt

from lit_seq2seq.cli.prediction import add_search, check_readable, searched, written
from lit_seq2seq.files.lines import json_line
from lit_seq2seq.files.untrusted import read_json
from lit_seq2seq.live.inputs import frames, samples, texts
from lit_seq2seq.search.config import SearchOption, search_options
from lit_seq2seq.settings.options import add_running, loading_of
from lit_seq2seq.types import UserError

if TYPE_CHECKING:
    from lit_seq2seq.features import Feature, Processor
    from lit_seq2seq.live.streams import Live, Streams

MICROPHONE = "microphone"


def stream(parser: ArgumentParser, arguments: list[str]) -> None:
    """Write the output of an input while it is still coming: `lit-seq2seq stream`.

    Text comes as it is typed or piped, a line an input. Sound comes from a file, from the microphone until you press
    Ctrl-C, or from standard input as raw samples (mono, 16 bits, little-endian). Frames come as JSON, a list of numbers
    a line; an empty line ends an input. What has been written stays. Options of search that are left out are those that
    the model comes with.
    """
    add_running(parser)
    parser.add_argument("--input", type=str, default="-", help="file, microphone, or - for standard input")
    about = "of raw samples, in hertz; of the microphone that of the model, unless it cannot record so"
    parser.add_argument("--sampling_rate", type=PositiveInt | None, default=None, help=about)
    parser.add_argument("--piece", type=PositiveFloat, default=0.1, help="seconds of sound that are read at once")
    parser.add_argument("--pace", type=bool, default=False, help="read a file of sound no faster than it sounds")
    about = "file for a line of JSON for each output, as OmniSTEval reads them: the delays of its words in milliseconds"
    parser.add_argument("--log", type=str | None, default=None, help=f"{about} of sound or in source symbols")
    about = "SVG file for a picture that moves: the last output as it appeared beside its input"
    parser.add_argument("--picture", type=str | None, default=None, help=about)
    about = "for models that need the whole input: how many outputs in a row have to agree on what is written"
    parser.add_argument("--agreement", type=PositiveInt, default=2, help=about)
    found = search_options()
    add_search(parser, found)
    options = parser.instantiate_classes(parser.parse_args(arguments))
    if options.input not in ("-", MICROPHONE):
        check_readable(options.input, "input")
    if options.picture and Path(options.picture).suffix != ".svg":
        raise UserError(f"--picture draws SVG: give it a name such as {Path(options.picture).stem}.svg")
    from lit_seq2seq.live.streams import Live

    streams = (_exported if (Path(options.model[0]) / "export.json").is_file() else _trained)(options, found)
    processor = streams.road.processor
    feature = processor.source_feature
    if options.picture and feature.medium == "frames":
        raise UserError("--picture shows text and sound, not frames: leave it out")
    reader, rate = _reader(feature, options)
    live, pieces = None, []
    with written(options.log) if options.log else nullcontext() as log:
        for piece in reader:
            live = live or Live(streams, rate)
            if piece is not None:
                live.feed(piece)
                print(live.read(), end="", flush=True)
                pieces += [piece] if options.picture else []
                continue
            print(live.finish(), flush=True)
            if log is not None:
                log.write(json_line(live.row()) + "\n")
            if options.picture:
                _draw(live, pieces, processor, options.picture)
            live, pieces = None, []


def _trained(options: Namespace, found: Sequence[SearchOption]) -> Streams:
    """Open models that are trained."""
    import torch

    from lit_seq2seq.inference.live import LiveStreams
    from lit_seq2seq.inference.pipelines import load_model
    from lit_seq2seq.inference.predictor import Predictor

    model = load_model(options.model, **loading_of(options))
    predictor = Predictor(model, options.device, getattr(torch, options.dtype))
    return LiveStreams(predictor, searched(model.generation, options, found), options.agreement)


def _exported(options: Namespace, found: Sequence[SearchOption]) -> Streams:
    """Open models that `lit-seq2seq export` has written, in the first of their variants."""
    from lit_seq2seq.runtime.model import Model

    variant = str(read_json(Path(options.model[0]) / "export.json")["variants"][0])
    model = Model(options.model, variant, trust=options.trust)
    return model.streams(searched(model.network.config, options, found), options.agreement)


def _draw(live: Live, pieces: Sequence[Any], processor: Processor, path: str) -> None:
    """Draw an output as it appeared: its words, or its characters where there is only one word."""
    import numpy as np

    from lit_seq2seq.plots import plot_live

    feature, row = processor.source_feature, live.row(str.split if " " in live.text else list)
    if feature.medium == "audio":
        plot_live(row, path, samples=np.concatenate(pieces))
        return
    text = processor.source_prefix + "".join(pieces)
    read = {number: place for place, number in enumerate(feature.word_numbers(text), start=1)}
    plot_live(row, path, words=[(word, read[number]) for number, word in enumerate(text.split()) if number in read])


def _reader(feature: Feature, options: Namespace) -> tuple[Iterator[Any], int | None]:
    """Return what reads pieces of inputs, each of which ends with `None`, and the sampling rate of sound."""
    medium, rate = feature.medium, options.sampling_rate
    if options.input == MICROPHONE:
        if medium != "audio":
            raise UserError(f"this model reads {feature.input_kind}, no sound: leave --input microphone out")
        from lit_seq2seq.cli.microphone import microphone

        rate = rate or feature.config["sampling_rate"]
        print("speak; Ctrl-C ends", file=sys.stderr, flush=True)
        return chain(microphone(rate, _size(options, rate)), [None]), rate
    if medium in ("text", "frames"):
        pieces = (texts if medium == "text" else frames)(options.input)
        return (_piped(pieces) if options.input == "-" and not sys.stdin.isatty() else pieces), None
    if medium != "audio":
        raise UserError("this model reads no text, sound or frames in pieces: use lit-seq2seq generate")
    if options.input != "-":
        return _recording(options)
    if rate is None:
        raise UserError("standard input has samples of sound, which do not tell their rate: set --sampling_rate")
    return _piped(samples(_size(options, rate))), rate


def _piped(pieces: Iterator[Any]) -> Iterator[Any]:
    """Read until the pipe is closed, as Ctrl-C makes the program at its other end do; a second one ends this."""
    from lit_seq2seq.cli.microphone import on_interrupt

    with on_interrupt():
        yield from pieces


def _size(options: Namespace, rate: int) -> int:
    """Return the number of samples of a piece."""
    return max(1, round(float(options.piece) * rate))


def _recording(options: Namespace) -> tuple[Iterator[Any], int]:
    """Return what reads a file of sound, and its sampling rate."""
    from lit_seq2seq.features.recordings import open_audio

    sound = open_audio(options.input)
    if options.sampling_rate not in (None, sound.samplerate):
        raise UserError(f"{options.input} says its own sampling rate, {sound.samplerate}: leave --sampling_rate out")

    def pieces() -> Iterator[Any]:
        with sound:
            started, size = time.monotonic(), _size(options, sound.samplerate)
            while len(block := sound.read(size, "float32", always_2d=True)):
                if options.pace:
                    time.sleep(max(0.0, started + sound.tell() / sound.samplerate - time.monotonic()))
                yield block.mean(axis=1)
        yield None

    return pieces(), int(sound.samplerate)
