import copy
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
import torch
from datasets import Dataset, DatasetDict

import lit_seq2seq
from lit_seq2seq import LitSeq2Seq, load_recipe, shortlist
from lit_seq2seq.cli import main
from lit_seq2seq.export import describe_reranker, export_model, left_out, write_graphs
from lit_seq2seq.export.report import greatest_error, measure, named, random_source, same_outputs
from lit_seq2seq.features import Image, MultiSource, Processor, Records, Tokenizer, Waveform
from lit_seq2seq.inference.lexicon import learn_shortlist
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.nn import (
    CTC,
    AdditiveAttention,
    ConvEncoder,
    CopyOutput,
    EncoderDecoder,
    InputFeedingDecoder,
    LocationAwareAttention,
    MeanBridge,
    MultiSourceEncoder,
    OutputLayer,
    ParallelDecoder,
    PyramidalEncoder,
    SpeechBackbone,
    TextEncoder,
    VisionBackbone,
)
from lit_seq2seq.nn.decoders.base import DecoderOutput
from lit_seq2seq.reranking import Reranker, SlotCoverage
from lit_seq2seq.runtime.model import Model
from lit_seq2seq.runtime.network import FORMAT, PARTS, SHORTLIST, Network
from lit_seq2seq.search import GenerationConfig
from lit_seq2seq.types import Encoded, Hypothesis, Padded, Sources, UserError
from tests import tiny
from tests.backbones import write_backbone
from tests.nn.cases import (
    COPY_SOURCE,
    DECODERS,
    ENCODERS,
    IMAGES,
    KINDS_OF_CELLS,
    NETWORKS,
    SIZES,
    SOURCE,
    SOURCE_SIZE,
    TARGET_SIZE,
    disturb,
    network,
)
from tests.nn.test_multi_source import SOURCES, TAGS
from tests.nn.test_multi_source import build as of_several
from tests.test_recipes import RECIPES, png, small
from tests.test_recipes import named as named_recipe
from tests.tiny import make_data, make_model, pairs

VECTORS = Padded(torch.randn(3, 9, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([9, 4, 7]))

OTHER_VERSION = "import importlib.metadata\nimportlib.metadata.version = lambda name: '0.0'\n"

FOODS = ["Thai", "French", "Lao", "Greek"]


def built(encoder: object, size: int, decoder: str = "feeding location", **options: object) -> EncoderDecoder:
    torch.manual_seed(0)
    return disturb(EncoderDecoder(size, TARGET_SIZE, encoder, DECODERS[decoder], **options)).eval()


OTHERS = {
    "convolutions": (partial(built, partial(ConvEncoder, hidden_size=6, widths=[16, 32], blocks=1), 3), IMAGES),
    "pyramid": (partial(built, partial(PyramidalEncoder, hidden_size=6, factors=[1, 2, 3], cell="gru"), 5), VECTORS),
    "pyramid with convolutions": (
        partial(built, partial(PyramidalEncoder, hidden_size=6, factors=[2], convolutions=2, layer_norm=True), 5),
        VECTORS,
    ),
    "copying, parallel": (
        partial(built, ENCODERS["two layers"], SOURCE_SIZE, "parallel general", output=CopyOutput),
        COPY_SOURCE,
    ),
    "copying, feeding": (
        partial(built, ENCODERS["forward gru"], SOURCE_SIZE, "feeding additive coverage", output=CopyOutput),
        COPY_SOURCE,
    ),
}
SEVERAL = Sources({**SOURCES.parts, "tags": Padded(TAGS.values, TAGS.lengths.clamp(min=1))})
OTHERS |= {
    f"several sources, {combination}, {kind}": (partial(of_several, kind, combination), SEVERAL)
    for kind, combination in [
        ("parallel", "flat general"),
        ("feeding", "flat location"),
        ("conditional", "hierarchical mixed"),
        ("parallel first", "hierarchical"),
    ]
}
UNFUSED = [name for name, cell in KINDS_OF_CELLS.items() if not isinstance(cell, str)]


def exported(made: EncoderDecoder, source: Padded | Sources, folder: Path, programs: bool = False) -> Network:
    write_graphs(made, source, folder, programs=programs)
    sizes = {"format": FORMAT, "variants": ["fp32"], "target_size": TARGET_SIZE, "generation": {}, "alone": False}
    specials = {"target": asdict(made.specials)}
    (folder / "export.json").write_text(json.dumps({**sizes, "specials": specials}))
    return Network(folder, threads=1)


def more(source: Padded | Sources) -> Padded | Sources:
    """Other numbers of sources and positions than those of the example."""
    return source.select(torch.tensor([0, 1, 2, 0, 1, 2, 0]))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_graphs_compute_what_the_network_does(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = network(name)
    runner = exported(made, SOURCE, tmp_path)
    for source in (SOURCE, more(SOURCE), Padded(torch.tensor([[3]]), torch.tensor([1]))):
        assert greatest_error(made, runner, source, steps=4) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["parallel general", "parallel multi-head", "feeding MoChA", "conditional additive coverage", "hard monotonic"],
)
def test_graphs_see_what_they_are_shown(name: str, tmp_path: Path) -> None:
    made = network(name)
    runner = exported(made, SOURCE, tmp_path)
    state, other = made.start(made.encode(SOURCE)), runner.start(named(SOURCE)).state
    tokens = torch.full((4,), made.specials.bos)
    for reach in (1, 2, 2, 4):
        output = made.step(tokens, state.narrowed(torch.tensor([reach])))
        step = runner.step(tokens.numpy(), other.narrowed(np.array([reach])))
        np.testing.assert_allclose(step.log_probs, output.log_probs.detach().numpy(), atol=1e-4)
        state, other, tokens = output.state, step.state, torch.randint(4, 8, (4,))


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_graphs_of_other_sources_compute_what_the_network_does(name: str, tmp_path: Path) -> None:
    make, source = OTHERS[name]
    made = make()
    runner = exported(made, source, tmp_path)
    for one in (source, more(source), source.select(torch.tensor([1]))):
        assert greatest_error(made, runner, one, steps=4) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", UNFUSED)
def test_cells_without_kernels_become_scans_and_any_variant_writes_nearly_the_same(name: str, tmp_path: Path) -> None:
    cell = KINDS_OF_CELLS[name]
    encoder, decoder = (partial(part, cell=cell, **tiny.SIZES) for part in (TextEncoder, ParallelDecoder))
    made = make_model(encoder=encoder, decoder=decoder)
    made.attach(make_data().processor)
    disturb(made.net).eval()
    export_model(made, tmp_path)
    texts = pairs(30, seed=5)["source"]
    expected = [row[0] for row in Predictor(made).stream(texts, made.model.generation)]
    for variant, close in (("fp32", 1e-4), ("fp16", 1e-2), ("int8", 0.5)):
        found = [row[0] for row in Model(tmp_path, variant=variant)(texts)]
        if variant == "fp32":
            assert [one.text for one in found] == [one.text for one in expected]
        assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=close)
    assert "Scan" in {node.op_type for node in onnx.load(tmp_path / "encoder.fp32.onnx").graph.node}


@pytest.mark.slow
def test_a_program_for_torch_computes_what_the_network_does(tmp_path: Path) -> None:
    made = network("feeding general")
    exported(made, SOURCE, tmp_path, programs=True)
    source = more(SOURCE)
    encode, step, score = (torch.export.load(tmp_path / f"{part}.pt2").module() for part in PARTS)
    state = encode(source.values, source.lengths)
    tokens = torch.full((len(source.lengths), 2), made.specials.bos)
    twice = [v if n.startswith("memory") else v.expand(-1, 2, *v.shape[2:]) for n, v in state.items() if n != "mask"]
    handed = step(tokens, *twice)
    found = score(*(handed[name] for name in DecoderOutput._fields))["log_probs"][:, 1]
    expected = made.step(tokens[:, 0], made.start(made.encode(source))).log_probs
    torch.testing.assert_close(found, expected)


# a whole model


@pytest.fixture(scope="module")
def model() -> LitSeq2Seq:
    found, data = make_model(tie_embeddings="target"), make_data()
    found.attach(data.processor)
    found.model.shortlist = learn_shortlist(data, frequent=1, translations=1)
    disturb(found.net)
    return found.eval()


@pytest.fixture(scope="module")
def folder(model: LitSeq2Seq, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export")
    model.save_pretrained(path / "model")
    assert main(["export", "--model", str(path / "model"), "--output", str(path / "onnx")]) == 0
    return path / "onnx"


@pytest.mark.parametrize("options", [{"replace_unknown": True}, {"num_beams": 4, "num_beam_groups": 2}], ids=str)
def test_models_are_measured_whatever_their_options(model: LitSeq2Seq, folder: Path, options: dict[str, Any]) -> None:
    plain = model.model.generation
    model.model.generation = plain.changed({**options, "details": "attention", "force_words": ()})
    try:
        [_, exported] = measure(model.model, folder, ["fp32"])
    finally:
        model.model.generation = plain
    assert exported.same == 1


def searched(found: list[list[Hypothesis]]) -> list[list[tuple[list[int], float]]]:
    return [[(one.tokens.tolist(), one.score) for one in row] for row in found]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 4, "num_return_sequences": 3},
        {"num_beams": 3, "length_normalization": "wu", "length_penalty": 0.7, "coverage_penalty": 0.3},
        {"num_beams": 5, "early_stopping": True, "no_repeat_ngram_size": 2, "min_new_tokens": 2},
        {"shortlist": True},
        {"shortlist": True, "num_beams": 4, "num_return_sequences": 3, "coverage_penalty": 0.3, "min_new_tokens": 2},
        {"shortlist": True, "num_beams": 3, "no_repeat_ngram_size": 1},
    ],
)
def test_search_finds_the_same_hypotheses_and_scores(model: LitSeq2Seq, folder: Path, options: dict) -> None:
    config = GenerationConfig(**{"max_new_tokens": 9, **options})
    source = random_source(model.processor, 24, 10, seed=3)
    found = Network(folder).generate(named(source), config)
    expected = searched(model.generate(source, config))
    for row, other in zip(found, expected, strict=True):
        assert [one.tokens.tolist() for one in row] == [tokens for tokens, _ in other]
        assert [one.score for one in row] == pytest.approx([score for _, score in other], abs=1e-4)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 1}])
def test_a_shortlist_is_that_of_the_model(
    model: LitSeq2Seq, folder: Path, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = pairs(30, seed=5)["source"]
    config = GenerationConfig(max_new_tokens=6, shortlist=True, **options)
    whole = [row[0].text for row in Model(folder)(texts, max_new_tokens=6, **options)]
    for sample in (2, 128):  # some of the symbols, and all
        monkeypatch.setattr(shortlist, "SAMPLE", sample)
        expected = [row[0] for row in Predictor(model).stream(texts, config)]
        found = [row[0] for row in Model(folder)(texts, max_new_tokens=6, shortlist=True, **options)]
        assert [one.text for one in found] == [one.text for one in expected] != whole
        assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-4)


def test_copied_symbols_are_the_same(tmp_path: Path) -> None:
    decoder = partial(InputFeedingDecoder, **tiny.SIZES, attention=AdditiveAttention)
    made = make_model(decoder=decoder, output=CopyOutput)
    tokenizer = Tokenizer("word", vocab_size=8)
    tokenizer.train(pairs(30)["source"])
    made.attach(Processor(tokenizer, tokenizer, copy=True))
    disturb(made.net).eval()
    export_model(made, tmp_path, ["fp32"])
    texts = ["Anna eins Berta eins", "zwei", "", "Cäsar Cäsar drei Dora"]
    config = replace(made.model.generation, num_beams=3)
    expected = [made.model.write(made.processor.source([text]), [text], config) for text in texts if text]
    found = Model(tmp_path)(texts, num_beams=3)
    assert [(one.text, one.score) for one in found[2]] == [("", 0.0)]
    written, others = [row[0] for row in found if row[0].text], [row[0][0] for row in expected if row[0][0].text]
    assert [one.text for one in written] == [one.text for one in others]
    assert [one.score for one in written] == pytest.approx([one.score for one in others], abs=1e-4)
    assert any(word in row[0].text for row in found for word in ("Anna", "Berta", "Cäsar", "Dora"))


def of_records(**options: Any) -> LitSeq2Seq:
    """Beams of this model hold any word, as it has learned nothing."""
    records = Dataset.from_dict({"source": [f"food[{food}]" for food in FOODS], "target": FOODS})
    data = make_data(DatasetDict(train=records), source_tokenizer=None, source_feature=Records(), validation_size=0)
    made = make_model(generation=GenerationConfig(num_beams=4, max_new_tokens=3), **options)
    made.attach(data.processor)
    disturb(made.net)
    return made.eval()


def test_outputs_are_reranked_as_by_the_model(
    model: LitSeq2Seq, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beams of this model hold any word, as it has learned nothing; its source is text, which says a record, too."""
    values = {"digit": list(tiny.DIGITS.values()), "kids": {"yes": ["one two"]}}
    inputs = [f"digit[{word}]" for word in tiny.DIGITS.values()] + ["digit[one], digit[four], kids[yes]"]
    plain = [row[0].text for row in Predictor(model).stream(inputs, GenerationConfig(num_beams=4, max_new_tokens=3))]
    settings = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    runner = Model(copied)
    for weight, options in ((100, {}), (100, {"num_return_sequences": 3}), (0.3, {}), (100, {"num_beams": 1})):
        reranker = SlotCoverage(weight, values=values)
        monkeypatch.setattr(model.model, "reranker", reranker)
        monkeypatch.setattr(runner, "reranker", reranker)
        config = {"num_beams": 4, "max_new_tokens": 3, **options}
        expected = list(Predictor(model).stream(inputs, GenerationConfig(**config)))
        found = runner(inputs, **config)
        assert [[one.text for one in row] for row in found] == [[one.text for one in row] for row in expected]
        for row, other in zip(found, expected, strict=True):
            assert [one.score for one in row] == pytest.approx([one.score for one in other], abs=1e-4)
        if weight == 100 and not options:
            assert [row[0].text for row in found] != plain
    of_old = {"weight": weight, "slots": None, "values": values}  # exported by earlier versions
    for described in (describe_reranker(model.model), of_old):
        (copied / "export.json").write_text(json.dumps({**settings, "reranker": described}))
        assert Model(copied).reranker == reranker


class Shortest(Reranker):
    """Orders texts by their length."""

    def judge(self, text: str, source: Any) -> float:
        return -len(text)


def test_a_reranker_of_ones_own_orders_outputs_where_it_is_trusted(
    model: LitSeq2Seq, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    described = describe_reranker(make_model(reranker=Shortest).model)
    assert described == {"class_path": "tests.test_export.Shortest", "init_args": {}}
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    (copied / "export.json").write_text(json.dumps({**settings, "reranker": described}))
    with pytest.raises(UserError, match=r"names tests.test_export.Shortest, .* pass trust=\('tests',\)"):
        Model(copied)
    monkeypatch.setattr(model.model, "reranker", Shortest())
    expected = Predictor(model).stream(["eins zwei", "drei"], GenerationConfig(num_beams=4, max_new_tokens=3))
    found = Model(copied, trust="tests")(["eins zwei", "drei"], num_beams=4, max_new_tokens=3)
    assert [row[0].text for row in found] == [row[0].text for row in expected]
    assert found[0][0].score < -1


def test_what_the_runtime_leaves_out_is_named() -> None:
    made = make_model(reranker=Shortest).model
    assert left_out(made) == left_out(make_model().model) == left_out(make_model(reranker=SlotCoverage).model) == ""
    made.reranker = type("Longest", (Shortest,), {})()
    assert left_out(made).startswith("Longest is not the reranker of the model's recipe: the runtime leaves outputs in")


class Doubled(OutputLayer):
    """Scores symbols in another way."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(features)


def test_a_shortlist_needs_the_usual_output_layer(model: LitSeq2Seq) -> None:
    assert left_out(model.model) == ""
    made = make_model(output=Doubled)
    made.attach(model.processor)
    made.model.shortlist = model.model.shortlist
    assert left_out(made.model) == "The runtime has no shortlist for Doubled: it scores all symbols."


@pytest.mark.slow
def test_the_command_and_the_folder_say_what_the_runtime_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = of_records(output=Doubled)
    source, target = made.model.processor.source_feature, made.model.processor.target
    none = np.full((source.size, 1), -1)
    made.model.shortlist = shortlist.Shortlist(np.array([4]), none, target.size, target.specials)
    made.save_pretrained(tmp_path / "model")
    command = ["export", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "onnx")]
    assert main([*command, "--variants", "[fp32]", "--trust", "tests"]) == 0
    assert f"\nnote: {left_out(made.model)}\n" in capsys.readouterr().out
    assert left_out(made.model) in (tmp_path / "onnx" / "README.md").read_text()


def test_variants_are_smaller_and_near(model: LitSeq2Seq, folder: Path) -> None:
    sizes = {name: (folder / f"decoder.{name}.onnx").stat().st_size for name in ("fp32", "fp16")}
    assert sizes["fp16"] < 0.9 * sizes["fp32"]
    source = random_source(model.processor, 16, 8)
    errors = {name: greatest_error(model.net, Network(folder, name), source) for name in ("fp32", "fp16", "int8")}
    assert errors["fp32"] < 1e-4 < errors["fp16"] < 0.1
    assert errors["fp16"] < errors["int8"] < 3
    assert same_outputs(model.model, Network(folder), source) == 1


def test_recurrent_layers_are_single_nodes(folder: Path) -> None:
    nodes = Counter(node.op_type for node in onnx.load(folder / "encoder.fp32.onnx").graph.node)
    assert nodes["LSTM"] == 1
    assert nodes["Loop"] == nodes["Scan"] == 0
    assert str(Path(__file__).parent.parent).encode() not in (folder / "encoder.fp32.onnx").read_bytes()


def test_the_folder_says_what_it_holds(folder: Path) -> None:
    rows = re.findall(r"^\| (eager|fp32|fp16|int8) \| ([\d.]+) \|.*%.*\|$", (folder / "README.md").read_text(), re.M)
    assert [name for name, _ in rows] == ["eager", "fp32", "fp16", "int8"]
    program = "from runtime.model import Model\nprint(Model('.')(['eins zwei'])[0][0].text, 'torch' in sys.modules)\n"
    program += "print(sys.modules['lit_seq2seq'].__file__)"
    for start, home in (("", Path(lit_seq2seq.__file__).parent), (OTHER_VERSION, folder / "runtime" / "lit_seq2seq")):
        command = [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, '.')\n{start}{program}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        assert done.stdout == f"{Model(folder)(['eins zwei'])[0][0].text} False\n{home / '__init__.py'}\n"


def test_the_command_beside_the_model_reads_lines(folder: Path) -> None:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "runtime", *options]
        return subprocess.run(
            command, cwd=folder, input="eins\n\nzwei drei\n", capture_output=True, text=True, check=False
        )

    options = {"num_beams": 2, "num_return_sequences": 2}
    expected = [output.text for row in Model(folder, "int8")(["eins", "", "zwei drei"], **options) for output in row]
    arguments = [f"--{name}={value}" for name, value in options.items()]
    marked = subprocess.run(
        [sys.executable, "-m", "runtime", "--variant", "int8", *arguments],
        cwd=folder,
        input="\ufeffeins\r\n\r\nzwei drei\r\n".encode(),
        capture_output=True,
        check=True,
    )
    lines = "".join(f"{one}\n{other}\n\n" for one, other in zip(expected[::2], expected[1::2], strict=True))
    assert marked.stdout.decode() == lines
    assert run("--variant", "int8", *arguments).stdout == lines
    assert run("--num_beams", "2", "--seed", "-1").stderr == "warning: seed=-1 has no effect without do_sample=True\n"
    assert run("--top_p", "2").stderr == "error: top_p=2: must be a number above 0 and at most 1\n"
    command = [sys.executable, "-m", "runtime"]
    latin = subprocess.run(command, cwd=folder, input="fünf\n".encode("latin-1"), capture_output=True, check=False)
    assert latin.stderr.startswith(b"error: expected UTF-8 text in standard input, but line 1 is not ")
    assert latin.stderr.count(b"\n") == 1
    assert "unrecognized arguments: --num_beam" in run("--num_beam", "2").stderr
    wrong = run("--variant", "int4")
    assert wrong.returncode == 1
    assert "there is no variant 'int4' of the model" in wrong.stderr
    assert wrong.stderr.endswith("choose one of fp32, fp16, int8\n")


def test_texts_are_those_of_the_model(model: LitSeq2Seq, folder: Path) -> None:
    texts = [*pairs(40, seed=5)["source"], "", "etwas Fremdes <eos>"]
    expected = [
        [output.text for output in row] for row in Predictor(model).stream(texts, GenerationConfig(num_beams=3))
    ]
    found = Model(folder)(texts, num_beams=3, max_new_tokens=128)
    assert [[output.text for output in row] for row in found] == expected


def test_inputs_may_come_one_by_one_and_long_ones_are_cut_with_a_warning(folder: Path) -> None:
    runner, texts = Model(folder), ["eins zwei", "", "drei"]
    assert runner(text for text in texts) == runner(texts)
    with pytest.warns(UserWarning, match="1 input cut to 1024 positions"):
        assert runner(["eins", "zwei " * 2000])[0] == runner(["eins"])[0]
    with pytest.raises(ZeroDivisionError):  # the caller's own
        runner(str(1 // number) for number in (1, 0))
    with mock.patch.object(runner.network, "generate", side_effect=MemoryError), pytest.raises(MemoryError):
        runner(texts)
    singles: list[Any] = ["eins zwei", b"eins", {"text": "eins"}]
    for single in singles:
        with pytest.raises(UserError, match=r"expected a list of inputs, .* put a single input in a list"):
            runner(single)
    for wrong in ({"batch_size": 0}, {"batch_size": -1}):
        with pytest.raises(UserError, match="a batch_size of at least 1"):
            runner(texts, **wrong)
    for folders, threads in (([], 0), ([folder], -1)):
        with pytest.raises(UserError, match="expected a folder, and threads of at least 0"):
            Model(folders, "fp32", threads)


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("export.json", {"max_source_length": "much"}),
        ("export.json", {"max_source_length": 0.5}),
        ("export.json", {"copy": True}),
        ("export.json", {"reranker": 3}),
        ("export.json", {"reranker": {"weight": "1", "slots": None, "values": {}}}),
        ("export.json", {"variants": ["fp32"] * 9999 + ["int8"]}),
        ("processor.json", {"source_prefix": 3}),
        ("processor.json", {"source": {"class_path": "Image", "config": {}}}),
        ("processor.json", {"source": {"class_path": "y" * 9999, "config": {}}}),
        ("processor.json", {"source": {"class_path": "Frames", "config": {"channels": 3, "normalize": "none"}}}),
    ],
)
def test_a_damaged_folder_is_told_in_one_line(folder: Path, tmp_path: Path, file: str, settings: dict) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in folder.iterdir():
        (damaged / path.name).symlink_to(path) if path.name != file else None
    known = json.loads((folder / file).read_text(encoding="utf-8"))
    (damaged / file).write_text(json.dumps({**known, **settings}), encoding="utf-8")
    with pytest.raises(UserError, match=r"damaged|cannot read the inputs|there is no variant") as told:
        Model(damaged, "fp16")([[[1.0, 2.0, 3.0]] if "Frames" in str(settings) else "eins"], num_beams=2)
    assert len(str(told.value)) < 1000


def test_outputs_are_drawn_by_a_seed(folder: Path) -> None:
    drawing = partial(Model(folder), ["eins zwei", "drei"] * 3, do_sample=True, num_return_sequences=5, batch_size=2)
    assert drawing(seed=1) == drawing(seed=1) != drawing(seed=2)
    assert drawing(seed=-1) == drawing(seed=-1) != drawing(seed=1)
    first, _, third, *_ = drawing(seed=1)
    assert first != third  # not the same numbers in every batch
    assert {output.text for output in drawing(top_k=1)[0]} == {Model(folder)(["eins zwei"])[0][0].text}


@pytest.mark.parametrize("options", [{}, {"shortlist": True}])
def test_a_model_twice_is_the_model(folder: Path, options: dict) -> None:
    texts = ["eins zwei", "", "drei"]
    [found, expected] = [Model(one)(texts, num_beams=3, **options) for one in ([folder, str(folder)], folder)]
    for row, other in zip(found, expected, strict=True):
        assert row[0].text == other[0].text
        assert row[0].score == pytest.approx(other[0].score, abs=1e-5)


@pytest.mark.slow
def test_an_exported_ensemble_is_that_of_the_models(tmp_path: Path) -> None:
    tokenizer = Tokenizer("word", vocab_size=8)
    tokenizer.train(pairs(30)["source"])
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        made = make_model(
            decoder=partial(InputFeedingDecoder, **tiny.SIZES, attention=AdditiveAttention), output=CopyOutput
        )
        made.attach(Processor(tokenizer, tokenizer, copy=True))
        disturb(made.net).eval()
        export_model(made, tmp_path / str(seed), ["fp32"])
        models.append(made)
    texts = [*pairs(20, seed=5)["source"], "Anna eins Berta"]
    config = GenerationConfig(num_beams=3, max_new_tokens=9)
    expected = [row[0] for row in Predictor(LitSeq2Seq.ensemble(models)).stream(texts, config)]
    found = [row[0] for row in Model([tmp_path / "0", tmp_path / "1"])(texts, num_beams=3, max_new_tokens=9)]
    assert [one.text for one in found] == [one.text for one in expected]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-4)


def test_mistakes_are_explained(model: LitSeq2Seq, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no exported model in .*: run lit-seq2seq export"):
        Model(tmp_path)
    with pytest.raises(UserError, match="there is no generation option 'beams': choose among num_beams"):
        Model(folder)(["eins"], beams=2)
    with pytest.raises(UserError, match=r"num_beams=0: must be an integer of at least 1"):
        Model(folder)(["eins"], num_beams=0)
    other, older = tmp_path / "other", tmp_path / "older"
    shutil.copytree(folder, other)
    (other / "target_tokenizer.json").write_text((other / "target_tokenizer.json").read_text() + "\n")
    with pytest.raises(
        UserError, match=r"expected models of one vocabulary, but .*other has another than .*onnx: join"
    ):
        Model([folder, other])
    np.savez(other / SHORTLIST, **{**np.load(folder / SHORTLIST), "frequent": np.array([5])})
    with pytest.raises(UserError, match=rf"{SHORTLIST} is of another model: export this one again"):
        Model(other)(["eins"], shortlist=True)
    (other / SHORTLIST).unlink()
    with pytest.raises(UserError, match=r"shortlist=True: the model in .*other has none: learn one with lit-seq2seq"):
        Model(other)(["eins"], shortlist=True)
    older.mkdir()
    (older / "export.json").write_text('{"format": 1}')
    with pytest.raises(
        UserError, match=r"older was exported in format 1, this version reads 3: export the model again"
    ):
        Model(older)
    with pytest.raises(UserError, match="expected a text, but it is of type int"):
        Model(folder)([3])
    with pytest.raises(UserError, match="expected one encoder-decoder to export, got Ensemble: export its models one"):
        export_model(LitSeq2Seq.ensemble([model, model]), tmp_path)


class Fickle(TextEncoder):
    """What it does depends on what it reads."""

    def forward(self, source: Padded) -> Encoded:
        return super().forward(source if source.values.sum() > 3 else source.select(torch.tensor([0])))


class Alone(TextEncoder):
    alone = True


def test_what_cannot_be_exported_is_told_in_one_line(tmp_path: Path) -> None:
    fickle = EncoderDecoder(SOURCE_SIZE, TARGET_SIZE, partial(Fickle, **SIZES), DECODERS["parallel general"]).eval()
    with pytest.raises(
        UserError, match=r"a model with Fickle and ParallelDecoder cannot be exported \(.*\): use"
    ) as told:
        exported(fickle, SOURCE, tmp_path)
    assert "\n" not in str(told.value)
    tokenizer = make_data().processor.target
    encoders = {"text": partial(TextEncoder, **tiny.SIZES), "speech": partial(Alone, **tiny.SIZES)}
    beside = make_model(encoder=partial(MultiSourceEncoder, encoders=encoders, hidden_size=12))
    beside.attach(Processor(MultiSource(dict.fromkeys(encoders, tokenizer)), tokenizer))
    with pytest.raises(
        UserError, match="Alone beside other sources cannot be exported: use lit-seq2seq generate or se"
    ):
        export_model(beside, tmp_path)


def test_missing_packages_are_named(model: LitSeq2Seq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_seq2seq.export.find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(UserError, match=r"exporting needs onnxscript: .* pip install -e \"\.\[export\]\""):
        export_model(model, tmp_path)


# the models of the recipes


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=named_recipe)
def test_the_model_of_every_recipe_gives_the_same_texts_without_torch(recipe: Path, tmp_path: Path) -> None:
    settings = small(recipe, tmp_path)
    if named_recipe(recipe) == "captioning/backbone.yaml":
        settings.append("--data.source_feature.init_args.size=64")  # a memory of several positions
    built = load_recipe(recipe, settings)
    made, data = built.model, built.datamodule
    made.attach(data.processor)
    disturb(made.net).eval()
    compare(made, [source for source, _ in data.first_rows("validation", 6)], tmp_path / "onnx")


def compare(made: LitSeq2Seq, sources: list[Any], folder: Path) -> None:
    export_model(made, folder, ["fp32"])
    options = {"num_beams": 3, "max_new_tokens": 9, "min_new_tokens": 0, "do_sample": False}
    config = replace(made.model.generation, **options)
    expected = [row[0].text for row in Predictor(made).stream(sources, config)]
    assert [row[0].text for row in Model(folder)(sources, **options)] == expected


@pytest.mark.slow
def test_a_pretrained_image_model_is_exported(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    backbone = partial(VisionBackbone, name=str(write_backbone("vit", tmp_path / "vit")), hidden_size=12)
    made = make_model(encoder=backbone, decoder=partial(ParallelDecoder, **tiny.SIZES, bridge=MeanBridge))
    made.attach(Processor(Image(16), make_data().processor.target))
    disturb(made.net).eval()
    compare(made, [png(number) for number in range(3)], tmp_path / "onnx")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wav2vec2", "hubert"])
def test_a_pretrained_speech_model_is_exported(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    backbone = partial(SpeechBackbone, name=str(write_backbone(kind, tmp_path / kind)), hidden_size=12)
    decoder = partial(InputFeedingDecoder, **tiny.SIZES, bridge=MeanBridge, attention=LocationAwareAttention)
    made = make_model(encoder=backbone, decoder=decoder, auxiliary=CTC, generation=GenerationConfig(ctc_weight=0.3))
    made.attach(Processor(Waveform(8000), make_data().processor.target))
    disturb(made.net).eval()
    numbers = torch.Generator().manual_seed(1)
    compare(made, [torch.randn(size, generator=numbers).numpy() for size in (800, 333, 90)], tmp_path / "onnx")
    with pytest.raises(UserError, match="a recording of 19 samples is too short for the speech model: it needs 20"):
        Model(tmp_path / "onnx")([torch.randn(19, generator=numbers).numpy()])


def test_a_model_in_sixteen_bits_is_not_exported(model: LitSeq2Seq, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the model is in 16 bits, .* call model.float\(\) first"):
        export_model(copy.deepcopy(model.model).bfloat16(), tmp_path, variants=["fp32"])
