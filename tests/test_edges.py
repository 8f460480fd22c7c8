"""A batch of one, and a batch in which every source is empty: training, evaluation, search and streams."""

import io
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageColumn

from lit_seq2seq import LitSeq2Seq
from lit_seq2seq.features import Frames, Image, Tokenizer
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.nn import (
    CTC,
    AdditiveAttention,
    ConvEncoder,
    CopyOutput,
    GeneralAttention,
    InputFeedingDecoder,
    MeanBridge,
    ParallelDecoder,
    PyramidalEncoder,
)
from lit_seq2seq.search import GenerationConfig
from tests.nn.cases import cross_entropy
from tests.tiny import SIZES, make_data, make_model, make_trainer

TARGETS = ["one", "two three", "four"]
SPLITS = ("train", "validation", "test")


def png() -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (20, 20), (200, 0, 0)).save(file, "PNG")
    return file.getvalue()


TEXT = (Features(source=Value("string"), target=Value("string")), "eins zwei", {})
VECTORS = (
    Features(source=List(List(Value("float32"))), target=Value("string")),
    np.arange(12, dtype=np.float32).reshape(4, 3).tolist(),
    {"source_feature": Frames(3), "source_tokenizer": None, "target_tokenizer": Tokenizer("word")},
)
PICTURE = (
    Features(source=ImageColumn(), target=Value("string")),
    {"bytes": png(), "path": None},
    {"source_feature": Image(16), "source_tokenizer": None, "target_tokenizer": Tokenizer("word")},
)
convolved = partial(ConvEncoder, hidden_size=12, widths=[16, 16], blocks=1)
CASES = {
    "attention": (TEXT, {}),
    "no attention": (TEXT, {"decoder": partial(ParallelDecoder, **SIZES)}),
    "input feeding": (TEXT, {"decoder": partial(InputFeedingDecoder, **SIZES, attention=AdditiveAttention)}),
    "copying": (TEXT, {"output": CopyOutput}),
    "ctc": (TEXT, {"auxiliary": CTC}),
    "speech": (VECTORS, {"encoder": partial(PyramidalEncoder, hidden_size=12, convolutions=1), "auxiliary": CTC}),
    "image": (
        PICTURE,
        {
            "encoder": convolved,
            "decoder": partial(ParallelDecoder, **SIZES, attention=GeneralAttention, bridge=MeanBridge),
        },
    ),
}
SEARCHES = [
    GenerationConfig(max_new_tokens=4),
    GenerationConfig(num_beams=3, num_return_sequences=2, max_new_tokens=4),
    GenerationConfig(do_sample=True, max_new_tokens=4),
]


def module(case: str, empty: bool, batch_size: int) -> object:
    (features, present, settings), options = CASES[case]
    missing = "" if isinstance(present, str) else None
    rows = {"source": [missing if empty else present] * len(TARGETS), "target": TARGETS}
    splits = DatasetDict({name: Dataset.from_dict(rows, features) for name in SPLITS})
    if empty:  # one row to learn from
        learned = {"source": [present, *rows["source"]], "target": ["one", *TARGETS]}
        splits["train"] = Dataset.from_dict(learned, features)
    copy = options.get("output") is CopyOutput
    return make_data(splits, batch_size=batch_size, empty="keep", copy=copy, **settings)


def finite(model: LitSeq2Seq) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


@pytest.mark.filterwarnings("ignore:CTC leaves out")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("empty", "batch_size"), [(False, 1), (True, 3)], ids=["one", "all empty"])
def test_odd_batches_are_trained_scored_and_written(tmp_path: Path, case: str, empty: bool, batch_size: int) -> None:
    data, model = module(case, empty, batch_size), make_model(**CASES[case][1])
    trainer = make_trainer(tmp_path, limit_train_batches=4)
    trainer.fit(model, datamodule=data)
    assert finite(model)
    for evaluate in (trainer.validate, trainer.test):
        scores = evaluate(model, datamodule=data, verbose=False)[0]
        assert np.isfinite(list(scores.values())).all(), scores
    predicted = [one["row"] for batch in trainer.predict(model, datamodule=data) for one in batch]
    assert sorted(predicted) == [0, 1, 2]
    (batch, *_) = data.test_dataloader()
    sources = [batch.source]
    if empty and case != "image":  # not even the EOS or the frame of zeros that stands for nothing
        sources.append(replace(batch.source, lengths=torch.zeros_like(batch.source.lengths)))
    searches = [*SEARCHES, *([GenerationConfig(ctc_weight=1.0)] if model.net.auxiliary else [])]
    for source, config in product(sources, searches):
        for found in model.eval().generate(source, config):
            assert len(found) == config.num_return_sequences
            assert all(np.isfinite(hypothesis.score) for hypothesis in found)
    model.zero_grad()
    cross_entropy(model.net, sources[-1], batch.target)[0].backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.net.parameters() if p.grad is not None)
    raw = CASES[case][0][1]
    raw = raw["bytes"] if case == "image" else raw
    predictor, missing = Predictor(model), "" if isinstance(raw, str) else None
    (alone,), (nothing,) = predictor.stream([raw]), predictor.stream([missing])
    assert "".join(predictor.stream_text(raw)) == alone[0].text
    assert nothing[0].text == "" == "".join(predictor.stream_text(missing))
