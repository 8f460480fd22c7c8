"""A second decoder that rates the outputs of the first, when the source has ended."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_seq2seq import LitSeq2Seq, Seq2SeqModel, load_recipe, pipeline
from lit_seq2seq.export import export_model, left_out
from lit_seq2seq.inference.live import LiveStreams
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.inference.roads import TransducerRoad
from lit_seq2seq.nn import (
    CTC,
    AdditiveAttention,
    EncoderShape,
    HardMonotonicDecoder,
    InputFeedingDecoder,
    ParallelDecoder,
    SecondPass,
    TextEncoder,
    TransducerDecoder,
)
from lit_seq2seq.nn.kernels.packed import prepare
from lit_seq2seq.reranking import Rescoring
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.types import Encoded, Hypothesis, Padded, UserError
from tests.nn.cases import assert_close, cross_entropy, disturb, row, widen
from tests.tiny import SIZES, make_data, make_model, make_trainer, write_recipe

TEXTS = ["eins zwei drei", "fünf", "vier drei eins zwei fünf fünf eins"]
SECOND = partial(SecondPass, decoder=partial(InputFeedingDecoder, **SIZES, attention=AdditiveAttention), weight=0.4)
DECODERS = {
    "feeding": partial(InputFeedingDecoder, **SIZES, attention=AdditiveAttention),
    "parallel": partial(ParallelDecoder, **SIZES, attention=AdditiveAttention),
    "hard": partial(HardMonotonicDecoder, **SIZES),
}


def make(second: Any = SECOND, **options: Any) -> LitSeq2Seq:
    encoder = partial(TextEncoder, **SIZES, bidirectional=False)
    decoder = partial(TransducerDecoder, **SIZES)
    made = make_model(encoder=encoder, decoder=decoder, auxiliary=CTC, second_pass=second, **options)
    made.attach(make_data().processor)
    disturb(made.net, 1.0)
    return made.eval()


def paired(made: LitSeq2Seq, text: str, tokens: list[int]) -> tuple[Encoded, Padded]:
    return made.encode([text]), Padded(torch.tensor([[*tokens, 3]]), torch.tensor([len(tokens) + 1]))


@torch.no_grad()
def second_by_steps(made: LitSeq2Seq, text: str, tokens: list[int]) -> float:
    second = made.net.second_pass
    assert second is not None
    encoded, target = paired(made, text, tokens)
    state, total, before = second.decoder.start(encoded), 0.0, torch.tensor([made.net.specials.bos])
    for token in target.values[0]:
        output, state = second.decoder.step(before, state)
        total += float(second.output.log_probs(output, None)[0, token])
        before = token[None]
    return total


@pytest.mark.parametrize("normalization", ["none", "average"])
@pytest.mark.parametrize(("weight", "ctc"), [(0.5, 0.0), (0.3, 0.2), (0.0, 0.4), (1.0, 0.0)])
def test_scores_are_those_of_all_parts(weight: float, ctc: float, normalization: Any) -> None:
    made = make()
    plain = GenerationConfig(num_beams=5, num_return_sequences=5, max_new_tokens=5, length_normalization=normalization)
    config = GenerationConfig(
        num_beams=5,
        num_return_sequences=5,
        max_new_tokens=5,
        length_normalization=normalization,
        reranker=Rescoring(weight, ctc),
    )
    source = made.processor.source(TEXTS)
    first, ranked = (made.model.write(source, TEXTS, one) for one in (plain, config))
    changed = False
    for text, before, after in zip(TEXTS, first, ranked, strict=True):
        expected = {}
        for one in before:
            tokens = one.tokens.tolist()
            encoded, target = paired(made, text, tokens)
            total = (1 - weight - ctc) * one.log_prob + weight * second_by_steps(made, text, tokens)
            if ctc:
                assert made.net.auxiliary is not None
                total += ctc * max(float(made.net.auxiliary.log_probs(encoded, target)), -1e4)
            length = len(one.token_scores) if normalization == "average" else 1
            expected[tuple(tokens)] = total / length
        found = {tuple(one.tokens.tolist()): one.score for one in after}
        assert found == pytest.approx(expected, rel=1e-4)
        assert list(found) == sorted(expected, key=lambda tokens: -expected[tokens])
        changed = changed or list(found) != [tuple(one.tokens.tolist()) for one in before]
    assert changed


def test_a_weight_of_zero_changes_nothing() -> None:
    made = make()
    source = made.processor.source(TEXTS)
    configs = [GenerationConfig(num_beams=4, reranker=one) for one in (None, Rescoring(0.0))]
    first, second = (
        [[(o.tokens.tolist(), o.score) for o in row] for row in made.model.write(source, TEXTS, c)] for c in configs
    )
    assert first == second
    greedy = [GenerationConfig(reranker=one) for one in (None, Rescoring())]
    first, second = (
        [[(o.tokens.tolist(), o.score) for o in row] for row in made.model.write(source, TEXTS, c)] for c in greedy
    )
    assert first == second


@pytest.mark.parametrize("decoder", DECODERS)
def test_padding_batch_mates_and_fast_kernels_change_nothing(decoder: str) -> None:
    made = make(partial(SecondPass, decoder=DECODERS[decoder]))
    target = Padded(torch.tensor([[4, 5, 6, 3], [7, 3, 0, 0], [3, 0, 0, 0]]), torch.tensor([4, 2, 1]))
    source = made.processor.source(TEXTS).to("cpu")
    names = ["second_pass", "auxiliary"]
    found = made.net.passes(made.net.encode(source), target, names)
    wide = made.net.passes(made.net.encode(widen(source, 3, fill=5)), widen(target, 2, fill=4), names)
    fast = prepare(made.net)
    packed = fast.passes(fast.encode(source), target, names)
    for name in names:
        assert_close(wide[name], found[name])
        assert_close(packed[name], found[name])
        for place in range(3):
            alone = made.net.passes(made.net.encode(row(source, place)), row(target, place), names)
            assert_close(alone[name][0], found[name][place])


def test_its_loss_joins_the_first_by_its_weight() -> None:
    made = make()
    net, source = made.net, made.processor.source(TEXTS).to("cpu")
    target = Padded(torch.tensor([[4, 5, 6, 3], [7, 3, 0, 0], [3, 0, 0, 0]]), torch.tensor([4, 2, 1]))
    loss, nll = cross_entropy(net, source, target, 0.1)
    second = net.second_pass
    assert second is not None
    encoded = net.encode(source)
    own = second.loss(encoded, target, 0.1)
    assert_close(second.loss(encoded, target), -second.log_probs(encoded, target).sum())
    net.second_pass = None
    first, alone = cross_entropy(net, source, target, 0.1)
    assert_close(loss, 0.6 * first + 0.4 * own)
    assert_close(nll, alone)
    net.second_pass = second
    loss.backward()
    assert not [name for name, one in net.named_parameters() if one.grad is None or not one.grad.any()]


def test_a_recipe_trains_it_and_its_model_is_loaded_again(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    recipe = yaml.safe_load(path.read_text())
    decoder = {"class_path": "lit_seq2seq.nn.TransducerDecoder", "init_args": {"embedding_dim": 4, "hidden_size": 12}}
    attention = {"class_path": "lit_seq2seq.nn.ParallelDecoder", "init_args": {"hidden_size": 12}}
    attention["init_args"]["attention"] = "lit_seq2seq.nn.GeneralAttention"
    second = {"class_path": "lit_seq2seq.nn.SecondPass", "init_args": {"decoder": attention, "weight": 0.2}}
    recipe["model"] |= {"decoder": decoder, "second_pass": second, "auxiliary": "lit_seq2seq.nn.CTC"}
    rescoring = {"class_path": "Rescoring", "init_args": {"weight": 0.4, "ctc_weight": 0.1}}
    recipe["model"]["generation"] |= {"num_beams": 3, "reranker": rescoring}
    recipe["trainer"]["max_epochs"] = 1
    path.write_text(yaml.safe_dump(recipe))
    built = load_recipe(path)
    built.trainer.fit(built.model, datamodule=built.datamodule)
    built.model.save_pretrained(tmp_path / "model")
    loaded = Seq2SeqModel.from_pretrained(tmp_path / "model")
    assert loaded.net.second_pass is not None
    assert (loaded.net.second_pass.weight, loaded.generation.reranker) == (0.2, Rescoring(0.4, 0.1))
    made = built.model.model.eval()
    found = [[next(Predictor(one).stream([text]))[0] for text in TEXTS] for one in (made, loaded)]
    assert found[0] == found[1]
    assert next(Predictor(loaded).stream(TEXTS[:1], GenerationConfig(num_beams=3)))[0].score != found[0][0].score
    checkpoint = tmp_path / "last.ckpt"
    built.trainer.save_checkpoint(checkpoint)
    again = LitSeq2Seq.load_from_checkpoint(checkpoint).model.eval()
    assert [next(Predictor(again).stream([text]))[0] for text in TEXTS] == found[0]
    make_trainer(tmp_path).validate(again_lit := LitSeq2Seq.load_from_checkpoint(checkpoint), built.datamodule)
    assert again_lit.net.second_pass is not None


@pytest.mark.parametrize("size", [1, 4, 100])
def test_a_live_transducer_is_rescored_when_its_source_has_ended(size: int) -> None:
    made = make()
    config = GenerationConfig(num_beams=8, reranker=Rescoring(1.0), length_normalization="none")
    streams = LiveStreams(Predictor(made), config)
    opened = [streams.open() for _ in TEXTS]
    for start in range(0, 40, size):
        for stream, text in zip(opened, TEXTS, strict=True):
            stream.feed(text[start : start + size])
        streams.compute(opened)
    for stream in opened:
        stream.finish()
    streams.compute(opened)
    plain = TransducerRoad(
        made.model, GenerationConfig(num_beams=8, num_return_sequences=8, length_normalization="none")
    )
    changed = False
    for stream, text in zip(opened, TEXTS, strict=True):
        encoded = made.encode([text])
        with torch.no_grad():
            frames = plain.decoder.frames(encoded.memory)
            [beam] = plain.search.outputs(plain.search.advance(plain.search.begin(1), frames, torch.tensor([True])))
        scores = [second_by_steps(made, text, one.tokens.tolist()) for one in beam]
        best = beam[max(range(len(beam)), key=scores.__getitem__)]
        changed = changed or best is not beam[0]
        assert stream.ids == best.tokens.tolist()
        assert stream.done
    assert changed


def test_what_ctc_finds_impossible_comes_last() -> None:
    made = make()
    [ranked] = made.model.write(  # five symbols for two positions
        made.processor.source(["fünf"]),
        ["fünf"],
        GenerationConfig(num_beams=9, num_return_sequences=9, min_new_tokens=1, length_normalization="none"),
    )
    longest = max(ranked, key=lambda one: len(one.tokens))
    assert len(longest.tokens) > 2
    [[rated]] = made.model.rated(made.encode(["fünf"]), [[longest]], ["auxiliary"])
    assert rated.passes["auxiliary"] == -torch.inf
    [scored] = Rescoring(0.0, 0.5).order([rated], "", GenerationConfig(num_beams=2, length_normalization="none"))
    assert scored.score == pytest.approx(0.5 * longest.log_prob - 5000)


def test_live_outputs_without_it_are_as_before() -> None:
    made = make()
    whole = []
    for reranker in (None, Rescoring(0.0)):
        streams = LiveStreams(Predictor(made), GenerationConfig(num_beams=3, reranker=reranker))
        stream = streams.open()
        stream.feed(TEXTS[2])
        stream.finish()
        streams.compute([stream])
        whole.append(stream.ids)
        assert not streams.road.grows
    assert whole[0] == whole[1]


def test_what_is_missing_is_said_in_one_line(tmp_path: Path) -> None:
    lacks = make(None)
    rescored = {"num_beams": 2, "reranker": Rescoring()}
    with pytest.raises(UserError, match=r"Rescoring needs model\.second_pass.*train with model\.second_pass="):
        pipeline("translation", lacks)("eins", **rescored)
    lacks.net.auxiliary = None
    with pytest.raises(UserError, match=r"Rescoring needs model\.auxiliary"):
        pipeline("translation", lacks)("eins", num_beams=2, reranker=Rescoring(0.0, 0.5))
    with pytest.raises(UserError, match="several models together have no second pass"):
        LitSeq2Seq.ensemble([make(), make()]).model.write(
            make().processor.source(["eins"]), ["eins"], GenerationConfig(**rescored)
        )
    with pytest.raises(UserError, match="are above 1 together"):
        Rescoring(0.7, 0.4)
    one = Hypothesis(torch.tensor([4]), 0.0, 0.0, torch.zeros(2))
    with pytest.raises(UserError, match="needs the second_pass of a model, which exported ones lack"):
        Rescoring().order([one], "", GenerationConfig(num_beams=2))
    with pytest.raises(ValueError, match="weight of SecondPass must be above 0 and at most 1, got 0"):
        SecondPass(8, EncoderShape(4, 1, 4), weight=0)


def test_an_exported_model_has_the_first_pass_alone(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from lit_seq2seq.runtime.model import Model

    made = make(generation=GenerationConfig(num_beams=3, max_new_tokens=5, reranker=Rescoring()))
    export_model(made.model, tmp_path, ["fp32"])
    assert left_out(made.model) == "The runtime has the first pass alone: outputs are not rescored."
    found = [rows[0].text for rows in Model(tmp_path)(TEXTS)]
    plain = pipeline("translation", made)(TEXTS, reranker=None)
    assert found == [one["translation_text"] for one in plain]
