"""The page on parts of your own: what it shows runs, from training to the runtime, without an edit of the package."""

import contextlib
import importlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from lit_seq2seq import LitSeq2Seq, Seq2SeqModel
from lit_seq2seq.features import Feature, MultiSource
from lit_seq2seq.features.feature import build_feature, describe_feature, encode_named
from lit_seq2seq.inference.predictor import Predictor
from lit_seq2seq.metrics import TextMetric
from lit_seq2seq.runtime.model import Model
from lit_seq2seq.serve import api
from lit_seq2seq.serve.page import Page
from lit_seq2seq.serve.schema import RequestLimits
from lit_seq2seq.training import CrossEntropy
from lit_seq2seq.types import Batch, Padded, Source, UserError
from tests.nn import cases, test_attention, test_cell_contract, test_encoders
from tests.nn.pieces import check_pieces
from tests.test_docs import ROOT, run_here, run_page, shell
from tests.test_export import OTHER_VERSION
from tests.tiny import needs_bfloat16

WALKS = ["N N E", "W", "S E S E S", "", "E W"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which the page has been followed."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.chdir(folder)
        patch.syspath_prepend(folder)

        def ours(text: str) -> str:
            short = ["--trainer.max_epochs", "2"] if " fit " in text else []
            return run_here(text, *short) if "lit-seq2seq" in text else shell(text)

        _, printed = run_page(ROOT / "docs" / "your_own_part.md", ours)
        (folder / "said.txt").write_text(said.getvalue() + "".join(printed), encoding="utf-8")
        yield folder
    sys.modules.pop("my_parts")
    sys.modules.pop("my_walk")


@pytest.fixture
def parts(place: Path) -> ModuleType:
    return importlib.import_module("my_parts")


@pytest.fixture
def predictor(place: Path) -> Predictor:
    return Predictor(
        Seq2SeqModel.from_pretrained(place / "runs" / "version_0" / "model", trust=["my_walk", "my_parts"])
    )


@pytest.fixture
def expected(predictor: Predictor) -> list[str]:
    return [outputs[0].text for outputs in predictor.stream(WALKS)]


def test_the_page_runs_and_each_way_to_use_the_model_writes_the_same(place: Path, expected: list[str]) -> None:
    said = (place / "said.txt").read_text(encoding="utf-8")
    assert said.splitlines().count(expected[0]) == 2, said
    assert f"[{{'generated_text': '{expected[0]}'}}, {{'generated_text': '" in said


@pytest.mark.parametrize("dtype", [pytest.param(torch.bfloat16, marks=needs_bfloat16), torch.int8])
def test_it_decodes_in_fewer_bits(predictor: Predictor, dtype: torch.dtype) -> None:
    fast = Predictor(predictor.model, dtype=dtype)
    assert len(list(fast.stream(WALKS))) == len(WALKS)
    with torch.autocast("cpu", torch.bfloat16):
        predictor.model.net.train()(*batch_of(predictor)).sum().backward()


def batch_of(predictor: Predictor) -> tuple[Source, Padded]:
    """A walk and a target."""
    return predictor.model.processor.source(["N E"]), Padded(torch.tensor([[5, 6, 2]]), torch.tensor([3]))


def test_what_is_not_trusted_is_not_imported(place: Path) -> None:
    with pytest.raises(UserError, match=r"--trust my_walk"):
        Seq2SeqModel.from_pretrained(place / "runs" / "version_0" / "model")
    with pytest.raises(UserError, match=r"--trust my_parts"):
        Seq2SeqModel.from_pretrained(place / "runs" / "version_0" / "model", trust="my_walk")
    with pytest.raises(UserError, match=r"my_walk.* --trust my_walk"):
        Model(place / "exported")
    with pytest.raises(UserError, match=r"--trust my_walk"):
        Model(place / "exported", trust="my_wal")


def test_the_runtime_writes_what_the_model_does(place: Path, expected: list[str]) -> None:
    found = Model(place / "exported", trust="my_walk")(WALKS)
    assert [outputs[0].text for outputs in found] == expected
    with pytest.raises(UserError, match="input 1: expected a walk of the letters N, E, S and W, but it has 'north'"):
        Model(place / "exported", trust=["my_walk"])(["N", "north"])


def test_a_feature_in_a_file_of_its_own_needs_no_torch(place: Path, expected: list[str]) -> None:
    """Torch cannot be imported, and another version of this package is here."""
    program = f"import sys; sys.modules['torch'] = None; sys.path.insert(0, '.')\n{OTHER_VERSION}"
    program += "import json\nfrom runtime.model import Model\n"
    program += f"print(json.dumps([row[0].text for row in Model('.', trust='my_walk')({WALKS})]))"
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(command, cwd=place / "exported", capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == expected


def test_the_constraint_and_the_scorer_have_their_say(place: Path, predictor: Predictor) -> None:
    generation = predictor.model.generation
    assert [type(part).__name__ for part in (*generation.constraints, *generation.scorers)] == ["NoReturn", "Favour"]
    part = importlib.import_module("my_walk")
    no_north = replace(generation, constraints=[part.NoReturn("north", "north")], scorers=())
    favoured = replace(generation, constraints=(), scorers=[part.Favour("south", 50.0)])
    texts = [row[0].text for row in predictor.stream(["N N N N"], no_north)]
    assert "north north" not in texts[0]
    assert set(next(predictor.stream(["N N N N"], favoured))[0].text.split()) == {"south"}
    options = {"constraints": no_north.constraints, "scorers": ()}
    assert Model(place / "exported", trust="my_walk")(["N N N N"], **options)[0][0].text == texts[0]


class OldReader:
    """What early features named as their `reader_class`."""

    def __init__(self, config: dict[str, int]) -> None:
        self.shift = config["shift"]

    def encode(self, raw: list[str]) -> list[np.ndarray]:
        return [np.array([self.shift + int(code) for code in text.split()]) for text in raw]

    def nothing(self) -> np.ndarray:
        return np.zeros(1, np.int64)


class OldFeature(Feature):
    reader_class = OldReader
    size = 9

    def __init__(self, shift: int = 1) -> None:
        self.config = {"shift": shift}


def test_a_feature_with_a_reader_class_reads_by_it() -> None:
    described = {"reader": "tests.OldReader", **describe_feature(OldFeature(shift=2))}
    feature = build_feature(described, ("tests",))
    batch = feature.collate([*feature.encode(["4 5"]), feature.nothing()])
    assert (batch.values.tolist(), batch.lengths.tolist()) == ([[6, 7], [0, 0]], [2, 1])
    with pytest.raises(UserError, match="input 1: invalid literal for int"):
        encode_named(feature.encode, ["4", "x"], ["input 0", "input 1"])
    assert feature.truncate(feature.encode(["4 5"])[0], 1).tolist() == [6]


def test_it_is_served(predictor: Predictor, expected: list[str]) -> None:
    service = api.Service(predictor, RequestLimits())
    with TestClient(api.make_app(service, "walks", 4, 0.01), base_url="http://localhost") as client:
        answers = [client.post("/predict", json={"text": walk}).json() for walk in WALKS]
        assert [answer["outputs"][0]["text"] for answer in answers] == expected
        wrong = client.post("/predict", json={"text": "up"})
        assert (wrong.status_code, "expected a walk of the letters" in wrong.json()["detail"]) == (422, True)
        pieces = map(json.loads, client.post("/stream", json={"text": "N W"}).text.splitlines())
        assert "".join(piece.get("text", "") for piece in pieces) == "".join(
            predictor.stream_text("N W", replace(predictor.model.generation, num_beams=1))
        )


def test_it_is_on_the_page_to_play_with(predictor: Predictor, expected: list[str]) -> None:
    pytest.importorskip("gradio")
    page = Page(predictor)
    kinds = [component["type"] for component in page.build("walks").config["components"]]
    assert kinds.count("textbox") == 1
    _, rows, picture = page.answer(WALKS[0], 2, 1, 10, sample=False, temperature=1.0)
    assert rows[0][1] == expected[0]
    assert picture is not None
    with pytest.raises(UserError, match="give a walk, such as N N E"):
        page.answer(" ", 2, 1, 10, sample=False, temperature=1.0)


def test_the_cell_keeps_to_the_contract_of_cells(parts: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cases.CELLS, "own", parts.Fading)
    for size in (1, 2, 5):
        test_cell_contract.test_pieces_equal_the_whole("own", size)
    test_cell_contract.test_a_layer_of_sixteen_bits_gives_sixteen_bits("own")
    for reverse in (False, True):
        test_cell_contract.test_steps_equal_the_whole("own", reverse)
        test_cell_contract.test_padding_is_not_read_and_an_empty_sequence_keeps_its_state("own", reverse)


def test_the_attention_keeps_to_the_contract_of_attentions(parts: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(test_attention.ATTENTIONS, "own", parts.Onward)
    test_attention.test_weights_are_a_distribution_over_real_positions("own")
    test_attention.test_queries_of_one_source_do_not_touch_each_other("own")
    test_attention.test_one_call_for_all_steps_equals_a_call_for_each("own")
    test_attention.test_a_query_looks_only_where_it_may("own")
    test_attention.test_padding_changes_nothing_and_has_no_gradient("own")
    test_attention.test_an_empty_source_gives_zero_weights("own")


def test_the_encoder_keeps_to_the_contract_of_encoders(parts: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    class Symbols(parts.WalkEncoder):
        dimensions = None

        def forward(self, source):
            return super().forward(
                source.map(lambda ids: torch.nn.functional.one_hot(ids, 9).float() if ids.dim() == 2 else ids)
            )

    monkeypatch.setitem(cases.ENCODERS, "own", lambda size: Symbols(size, 6))
    test_encoders.test_sizes_are_as_promised("own")
    test_encoders.test_batch_mates_change_nothing("own")
    test_encoders.test_padding_changes_nothing("own")
    test_encoders.test_batch_order_changes_nothing("own")
    check_pieces(cases.disturb(parts.WalkEncoder(2, 6)).eval(), Padded(torch.randn(3, 7, 2), torch.tensor([7, 0, 4])))


def test_the_feature_is_rebuilt_and_cut_and_one_of_several(place: Path) -> None:
    walk = importlib.import_module("my_walk").Walk(scale=3.0)
    again = build_feature(describe_feature(walk), ("my_walk",))
    arrays = again.encode(["N N E", "W"])
    assert again.identity() == walk.identity()
    assert again.collate(arrays).values.tolist() == [[[0, 3], [0, 3], [3, 0]], [[-3, 0], [0, 0], [0, 0]]]
    assert walk.truncate(arrays[0], 2).tolist() == [[0, 3], [0, 3]]
    several = MultiSource({"first": walk, "second": again})
    sources = several.collate(several.encode([{"first": "N E"}]))
    assert sources.lengths.tolist() == [3]


def test_the_objective_goes_with_the_model(place: Path, predictor: Predictor, parts: ModuleType) -> None:
    """Its formula from the logarithms of single probabilities; without gamma it is cross-entropy."""
    model = LitSeq2Seq.from_pretrained(place / "runs" / "version_0" / "model", trust=["my_walk", "my_parts"])
    source, target = batch_of(predictor)
    batch = Batch(source, target, torch.tensor([0]))
    log_probs = model.net.score(source, target)
    found = model.objective(model.model, batch)
    assert float(found.total.detach()) == pytest.approx(float((-(1 - log_probs.exp()) * log_probs).sum()), rel=1e-5)
    plain = CrossEntropy().of(model.net, source, target)
    torch.testing.assert_close(parts.Focal(gamma=0.0)(model.model, batch), plain)


def test_the_metric_counts_what_it_says(parts: ModuleType) -> None:
    metric: TextMetric = parts.Arrival()
    metric.update(["east north", "west", "north south"], [["north east"], ["east"], ["", "east"]])
    assert float(metric.compute()) == pytest.approx(200 / 3)
