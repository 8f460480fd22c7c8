import copy
import pickle
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import dill
import pytest
import torch
from datasets.fingerprint import Hasher

from lit_seq2seq import LitSeq2Seq, pipeline
from lit_seq2seq.features import Processor, Tokenizer
from lit_seq2seq.inference.predictor import FIRST_CHUNK, SCORES, Predictor
from lit_seq2seq.nn import CTC
from lit_seq2seq.nn.ops import computes_in
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.types import Generated, UserError
from tests.nn.cases import disturb
from tests.tiny import make_data, make_model, make_trainer, pairs, rows

SENTENCES = ["vier fünf drei", "", "eins", "zwei drei eins vier"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LitSeq2Seq:
    found = make_model(optimizer=partial(torch.optim.Adam, lr=0.03))
    folder = tmp_path_factory.mktemp("model")
    make_trainer(folder, max_epochs=3).fit(found, datamodule=make_data(rows(120), batch_size=16))
    return found.eval()


def texts(outputs: list[list[Generated]]) -> list[list[str]]:
    return [[output.text for output in row] for row in outputs]


def test_outputs_keep_the_order_and_do_not_depend_on_company(model: LitSeq2Seq) -> None:
    inputs = pairs(2 * FIRST_CHUNK + 10, seed=9)["source"]
    inputs[3] = inputs[FIRST_CHUNK] = ""
    inputs[5] = "  \t"
    config = GenerationConfig(num_beams=2, num_return_sequences=2, max_new_tokens=6)
    together = list(Predictor(model, max_tokens=40).stream(inputs, config))
    single = Predictor(model)
    alone = [next(single.stream([text], config)) for text in inputs]
    assert len({row[0].text for row in together}) > 3
    assert texts(together) == texts(alone)
    for row, other in zip(together, alone, strict=True):
        assert [output.score for output in row] == pytest.approx([output.score for output in other], abs=1e-4)
    for empty in (3, 5, FIRST_CHUNK):
        assert together[empty] == [Generated(""), Generated("")]


def test_the_first_output_does_not_wait_for_all_inputs(model: LitSeq2Seq) -> None:
    read = 0

    def inputs() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield "eins zwei"

    stream = Predictor(model).stream(inputs())
    next(stream)
    assert read == FIRST_CHUNK


def test_an_output_tells_its_tokens_scores_and_attention(model: LitSeq2Seq) -> None:
    config = GenerationConfig(max_new_tokens=6, length_normalization="none")
    (output,) = next(Predictor(model).stream(["vier fünf drei"], config, return_attention=True))
    assert output.source_tokens == ("vier", "fünf", "drei", "<eos>")
    assert output.tokens[-1] == "<eos>"
    assert output.text == " ".join(output.tokens[:-1])
    assert output.attention is not None
    assert output.attention.shape == (len(output.tokens), 4)
    torch.testing.assert_close(output.attention.sum(-1), torch.ones(len(output.tokens)))
    assert sum(output.token_scores) == pytest.approx(output.score, abs=1e-4)
    (cut,) = next(Predictor(model).stream(["vier fünf drei"], GenerationConfig(max_new_tokens=1)))
    assert len(cut.tokens) == len(cut.token_scores) == 1


def test_long_inputs_are_cut_and_counted(model: LitSeq2Seq) -> None:
    predictor = Predictor(model, max_source_length=3)
    long, short = predictor.stream(["eins zwei drei vier fünf", "eins zwei"])
    assert predictor.truncated == 1
    assert long[0].text == short[0].text
    assert long[0].source_tokens == ("eins", "zwei", "<eos>")


def test_bfloat16_gives_outputs_or_says_that_it_cannot(model: LitSeq2Seq) -> None:
    if computes_in(torch.bfloat16, "cpu"):
        assert len(list(Predictor(model, dtype=torch.bfloat16).stream(["eins", "zwei drei"]))) == 2
    else:
        with pytest.raises(UserError, match=r"device cpu cannot compute in torch\.bfloat16"):
            Predictor(model, dtype=torch.bfloat16)


def test_integers_give_outputs_and_other_types_are_refused(model: LitSeq2Seq) -> None:
    inputs = ["eins", "zwei drei", "eins zwei drei vier"]
    plain = list(Predictor(model).stream(inputs))
    for (one,), (other,) in zip(Predictor(model, dtype=torch.int8).stream(inputs), plain, strict=True):
        assert one.score == pytest.approx(other.score, abs=0.1)
    with pytest.raises(UserError, match=r"device cpu cannot compute in torch\.float64 here: leave dtype out"):
        Predictor(model, dtype=torch.float64)


def test_batches_are_small_where_there_are_many_hypotheses(model: LitSeq2Seq) -> None:
    predictor, config = Predictor(model), GenerationConfig(num_beams=4)
    most = predictor.most(config)
    assert most * 4 * model.processor.target.size <= SCORES < (most + 1) * 4 * model.processor.target.size


def test_a_device_that_is_not_there_is_explained(model: LitSeq2Seq) -> None:
    missing = "mps" if torch.cuda.is_available() else "cuda"
    with pytest.raises(UserError, match=f"device {missing} cannot be used here"):
        Predictor(model, missing)
    with pytest.raises(UserError, match="device tpuu cannot be used here"):
        Predictor(model, "tpuu")
    model.to("cpu")


# streaming


def test_pieces_join_to_the_text_and_come_one_by_one(model: LitSeq2Seq) -> None:
    translate = pipeline("translation", model)
    for text in ("vier fünf drei", "eins", ""):
        pieces = list(translate.stream(text))
        assert "".join(pieces) == translate(text, num_beams=1)[0]["translation_text"]
        assert all(pieces)
    assert len(list(translate.stream("vier fünf drei", min_new_tokens=4))) > 1
    sampled = {"do_sample": True, "seed": 3, "temperature": 2.0}
    assert "".join(translate.stream("eins zwei", **sampled)) == translate("eins zwei", **sampled)[0]["translation_text"]


def test_a_piece_is_given_before_the_output_ends(model: LitSeq2Seq, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    step = model.net.step

    def counted(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        return step(*arguments)

    monkeypatch.setattr(model.net, "step", counted)
    pieces = pipeline("translation", model).stream("vier fünf drei eins", min_new_tokens=5)
    next(pieces)
    assert steps == 2
    list(pieces)
    assert steps > 4


def test_a_model_streams_what_it_generates(model: LitSeq2Seq) -> None:
    greedy = replace(model.model.generation, num_beams=1)
    for text in ("vier fünf drei", "eins"):
        [[expected]] = model.model.generate([text], greedy)
        assert "".join(model.model.stream(text, greedy)) == "".join(model.stream(text, greedy)) == expected.text
    assert list(model.model.stream("")) == []
    with pytest.raises(UserError, match="expected a text, but input 1 is 3"):
        model.model.stream(3)
    model = copy.deepcopy(model)
    model.model.generation = replace(greedy, num_beams=3)
    assert "".join(model.stream("eins")) == "".join(model.stream("eins", {"num_beams": 1})) == expected.text
    with torch.no_grad():
        next(model.net.decoder.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="NaN"):
        list(model.stream("eins"))


def test_a_stream_leaves_the_precision_of_its_reader_alone(model: LitSeq2Seq) -> None:
    predictor = Predictor(model)
    pieces = predictor.stream_text("vier fünf drei", GenerationConfig(min_new_tokens=4))
    with torch.autocast("cpu", torch.bfloat16):
        next(pieces)
        assert torch.is_autocast_enabled("cpu")
    list(pieces)
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("kind", ["byte", "bpe", "char"])
def test_no_piece_is_taken_back(kind: str) -> None:
    texts = ["größer als “Ω”", "日本 (語)"]
    tokenizer = Tokenizer(kind, vocab_size=300)
    tokenizer.train(texts)
    found = make_model()
    found.attach(Processor(tokenizer, tokenizer))
    predictor = Predictor(disturb(found))
    for seed in range(6):
        config = GenerationConfig(do_sample=True, seed=seed, max_new_tokens=30, temperature=3.0)
        (output,) = next(predictor.stream([texts[0]], config))
        assert "".join(predictor.stream_text(texts[0], config)) == output.text


def test_what_cannot_be_streamed_is_explained(model: LitSeq2Seq) -> None:
    translate = pipeline("translation", model)
    with pytest.raises(UserError, match="num_beams=3: must be 1 to stream tokens"):
        list(translate.stream("eins", num_beams=3))
    with pytest.raises(UserError, match="the input is of type list, expected a text"):
        translate.stream(["eins"])


# pipeline


def test_a_pipeline_has_the_shapes_of_transformers(model: LitSeq2Seq) -> None:
    translate = pipeline("translation", model)
    (one,) = translate("eins zwei")
    assert list(one) == ["translation_text"]
    assert translate(["eins zwei", ""]) == [one, {"translation_text": ""}]
    assert translate([]) == []
    assert list(translate(text for text in ["eins zwei"])) == [one]
    several = translate(["eins", "zwei"], num_beams=3, num_return_sequences=2)
    assert [len(row) for row in several] == [2, 2]
    assert len(translate("eins", num_beams=2, num_return_sequences=2)) == 2


@pytest.mark.parametrize(
    ("task", "key"), [("summarization", "summary_text"), ("text2text-generation", "generated_text")]
)
def test_every_task_has_its_key(model: LitSeq2Seq, task: str, key: str) -> None:
    assert list(pipeline(task, model)("eins")[0]) == [key]


def test_a_pipeline_loads_a_folder(model: LitSeq2Seq, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    inputs = pairs(8, seed=3)["source"]
    assert pipeline("translation", tmp_path / "model")(inputs) == pipeline("translation", model)(inputs)


def test_mistakes_are_explained(model: LitSeq2Seq) -> None:
    with pytest.raises(UserError, match=r"there is no task 'translate': choose one of translation, summarization"):
        pipeline("translate", model)
    with pytest.raises(UserError, match=r"there is no generation option 'beams': choose among num_beams"):
        pipeline("translation", model)("eins", beams=3)
    with pytest.raises(UserError, match=r"num_beams=0: must be an integer of at least 1"):
        pipeline("translation", model)("eins", num_beams=0)
    with pytest.raises(UserError, match="input 1 is of type int, expected a text"):
        pipeline("translation", model)(["eins", 2])


# ensembles


def test_models_decide_together(model: LitSeq2Seq, tmp_path: Path) -> None:
    other = make_model(optimizer=partial(torch.optim.Adam, lr=0.03))
    make_trainer(tmp_path, max_epochs=1).fit(other, datamodule=make_data(rows(120), batch_size=16))
    inputs, config = pairs(20, seed=4)["source"], GenerationConfig(num_beams=3, max_new_tokens=6)
    folders = [tmp_path / name for name in ("first", "second", "third")]
    for folder, found in zip(folders, [model, other, model], strict=True):
        found.save_pretrained(folder)
    same = pipeline("translation", [folders[0], folders[2]])
    assert same(inputs, num_beams=3) == pipeline("translation", model)(inputs, num_beams=3)
    joined = LitSeq2Seq.ensemble([model, other.eval()])
    source = model.processor.source(inputs)
    batch = model.processor.target.collate(model.processor.target.encode(pairs(20, seed=4)["target"])).to("cpu")
    parts = torch.stack([found.net.score(source, batch) for found in (model, other)])
    torch.testing.assert_close(joined.model.searched.score(source, batch).exp(), parts.exp().mean(dim=0))
    mixed = pipeline("translation", folders[:2])(inputs, num_beams=3)
    assert [row[0].text for row in Predictor(joined).stream(inputs, config)] == [
        row["translation_text"] for row in mixed
    ]
    data = make_data(rows(120), batch_size=16)
    (scores,) = make_trainer(tmp_path).test(joined, datamodule=data, verbose=False)
    assert 0 < scores["test_loss"] < 5


def test_an_ensemble_of_what_does_not_fit_is_explained(model: LitSeq2Seq, tmp_path: Path) -> None:
    stranger = make_model()
    stranger.attach(make_data(rows(12), source_tokenizer=Tokenizer("char")).processor)
    with pytest.raises(UserError, match="expected models of one vocabulary, but model 2 has another than the first"):
        pipeline("translation", [model, stranger])
    with pytest.raises(UserError, match="expected models to join, but there are none"):
        pipeline("translation", [])
    joined = LitSeq2Seq.ensemble([model, model])
    with pytest.raises(UserError, match="an ensemble is not saved as one: save its models"):
        joined.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="an ensemble is not trained"):
        make_trainer(tmp_path).fit(joined, datamodule=make_data(rows(120), batch_size=16))


@pytest.mark.parametrize("weight", [0.0, 1e-12, 0.5, 1.0])
def test_pieces_of_a_model_with_ctc_join_to_the_text(weight: float) -> None:
    data = make_data(source_tokenizer=Tokenizer("char"))
    found = make_model(auxiliary=CTC)
    found.attach(data.processor)
    predictor = Predictor(disturb(found))
    config = GenerationConfig(ctc_weight=weight, max_new_tokens=12)
    for text, (output,) in zip(SENTENCES, predictor.stream(SENTENCES, config), strict=True):
        assert "".join(predictor.stream_text(text, config)) == output.text
        assert not {"<bos>", "<eos>"} & set(output.tokens[:-1])


# several processes


@pytest.mark.parametrize("dtype", [None, torch.int8])
def test_a_pipeline_can_be_pickled_copied_and_hashed(model: LitSeq2Seq, dtype: torch.dtype | None) -> None:
    translate = pipeline("translation", model, dtype=dtype)
    expected = translate(SENTENCES)
    for again in (
        pickle.loads(pickle.dumps(translate)),
        dill.loads(dill.dumps(translate)),
        copy.deepcopy(translate),
        copy.copy(translate),
    ):
        assert again(SENTENCES) == expected
        assert again.model.training is False
    assert Hasher.hash(translate) == Hasher.hash(translate)
    limited = Predictor(model, dtype=dtype, max_tokens=99, max_source_length=7)
    assert [
        vars(pickle.loads(pickle.dumps(limited)))[name] for name in ("max_tokens", "max_source_length", "dtype")
    ] == [*(99, 7, dtype)]


def test_an_ensemble_can_be_pickled(model: LitSeq2Seq) -> None:
    together = pipeline("translation", [model, model])
    assert pickle.loads(pickle.dumps(together))(SENTENCES) == together(SENTENCES)


def test_a_pipeline_works_in_the_processes_of_a_data_set(model: LitSeq2Seq) -> None:
    translate = pipeline("translation", model)
    expected = [found["translation_text"] for found in translate(SENTENCES)]
    rows = datasets.Dataset.from_dict({"text": SENTENCES})

    def single(row: dict[str, str]) -> dict[str, str]:
        return {"out": translate(row["text"])[0]["translation_text"]}

    def batch(rows: dict[str, list[str]]) -> dict[str, list[str]]:
        return {"out": [found["translation_text"] for found in translate(rows["text"])]}

    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # threads that a fork does not have
    try:
        translate(SENTENCES)
        assert rows.map(single, num_proc=2)["out"][:] == expected
        assert rows.map(batch, batched=True, num_proc=2)["out"][:] == expected
    finally:
        torch.set_num_threads(threads)
