import itertools
import re
import warnings
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from lightning.pytorch.loggers import CSVLogger
from matplotlib import font_manager, pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import lit_seq2seq.metrics
from lit_seq2seq.plots import (
    AttentionExample,
    CaptionExample,
    common,
    plot_attention,
    plot_attention_grid,
    plot_captions,
    plot_curves,
    plot_lattice,
    plot_lattices,
    plot_live,
)
from lit_seq2seq.plots.curves import ERRORS, SCORES
from lit_seq2seq.plots.lattice import best_path
from lit_seq2seq.types import UserError

ROWS = [
    *({"step": step, "train_loss": 4.0 - step / 50, "lr": 1e-3} for step in range(0, 100, 5)),
    *({"step": step, "val_loss": 4.0 - step / 60, "val_bleu": step / 3, "val_wer": 90.0 - step} for step in (49, 99)),
]


def tokens(count: int, kind: str) -> list[str]:
    words = ["▁Ein", "Mann", "##s", "$x$", "\\$5", "a_b^c", "Ġthe", "<eos>", "für", "￭,￭", "@@", " "]
    return [f"{kind}{word}" for word, _ in zip(itertools.cycle(words), range(count), strict=False)]


def label_boxes(figure: Figure, axis: str):
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    return [label.get_window_extent(renderer) for label in getattr(figure.axes[0], f"get_{axis}ticklabels")()]


@pytest.mark.parametrize(("targets", "sources"), [(1, 1), (3, 3), (3, 60), (60, 3), (25, 30), (60, 60)])
def test_every_token_is_labelled_inside_the_picture_without_overlap(targets, sources):
    weights = torch.rand(targets, sources, dtype=torch.bfloat16).softmax(-1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plot_attention(weights, tokens(sources, "s"), tokens(targets, "t"), title="100 $ → 90 €")
        columns, rows = label_boxes(figure, "x"), label_boxes(figure, "y")
    assert len(columns) == sources
    assert len(rows) == targets
    width, height = figure.get_size_inches() * figure.dpi
    for box in [*columns, *rows]:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
    assert all(left.x1 <= right.x0 + 1 for left, right in itertools.pairwise(columns))
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in itertools.pairwise(rows))


def test_attention_picture_shows_the_weights_and_invisible_tokens():
    weights = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
    axes = plot_attention(weights, ["a", " "], ["x", "\n", "z"]).axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), weights)
    assert axes.images[0].get_clim() == (0, 1)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "␣"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["x", "⏎", "z"]


def test_attention_takes_weights_that_require_gradients_and_saves(tmp_path: Path):
    path = tmp_path / "new" / "attention.png"
    plot_attention(torch.eye(3).requires_grad_(), tokens(3, "s"), tokens(3, "t"), path)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("shape", [(2, 3), (3, 3), (6,)])
def test_attention_refuses_wrong_shape(shape):
    with pytest.raises(UserError, match=r"\(target tokens, source tokens\) = \(3, 2\), but are"):
        plot_attention(torch.zeros(shape), ["a", "b"], ["x", "y", "z"])


def test_every_panel_of_a_grid_is_inside_the_picture():
    sizes = [(15, 12), (14, 14), (22, 16), (14, 14)]
    examples = [AttentionExample(torch.rand(t, s), tokens(s, "s"), tokens(t, "target")) for t, s in sizes]
    figure = plot_attention_grid(examples)
    figure.set_dpi(150)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    width, height = figure.get_size_inches() * figure.dpi
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


@pytest.mark.parametrize(("count", "columns"), [(1, 2), (3, 2), (4, 3)])
def test_grid_has_a_panel_per_example_and_one_colour_bar(count, columns):
    sizes = range(2, count + 2)
    examples = [AttentionExample(torch.eye(n), tokens(n, "s"), tokens(n, "t"), str(n)) for n in sizes]
    figure = plot_attention_grid(examples, columns=columns)
    assert [axes.get_title() for axes in figure.axes[:-1]] == [str(n) for n in sizes]
    assert figure.axes[-1].get_ylabel() == "attention weight"


def test_attention_to_sound_has_an_axis_of_time():
    axes = plot_attention_grid([AttentionExample(torch.eye(3, 30), [], tokens(3, "t"), seconds=1.5)]).axes[0]
    assert axes.get_xlabel() == "seconds"
    assert axes.get_xlim() == (0, 1.5)


def test_the_best_path_never_goes_back():
    weights = np.random.default_rng(1).random((4, 5)) ** 4
    paths = itertools.combinations_with_replacement(range(5), 4)
    best = max(paths, key=lambda path: sum(np.log(row[place]) for row, place in zip(weights, path, strict=True)))
    assert best_path(weights) == list(best)


def test_a_lattice_goes_on_with_blanks_and_up_with_symbols(tmp_path: Path):
    weights = torch.eye(3, 4)
    axes = plot_lattice(weights, [], ["$x$", "b", "<eos>"], tmp_path / "lattice.png", seconds=2.0).axes[0]
    (written,) = axes.lines
    np.testing.assert_allclose(written.get_xydata(), [[0.25, 0], [0.75, 1], [1.25, 2]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["$x$", "b", "<eos>"]
    assert axes.get_xlabel() == "seconds"
    assert (tmp_path / "lattice.png").stat().st_size > 5000
    figure = plot_lattices([AttentionExample(weights, list("abcd"), list("xyz"), f"{n}") for n in range(2)])
    assert [axes.get_title() for axes in figure.axes[:-1]] == ["0", "1"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == list("abcd")
    with pytest.raises(UserError, match=r"\(target tokens, source tokens\) = \(2, 4\), but are"):
        plot_lattice(weights, list("abcd"), ["x", "y"])
    with pytest.raises(UserError, match="expects one or more examples"):
        plot_lattices([])


def shown(picture: str) -> dict[str, tuple[float, float, float]]:
    """Return the place of each text that appears, and from when it begins to, in shares of the whole."""
    svg, found = "{http://www.w3.org/2000/svg}", {}
    for text in ET.fromstring(picture).iter(f"{svg}text"):
        if (animated := text.find(f"{svg}animate")) is not None:
            times = [float(time) for time in animated.attrib["keyTimes"].split(";")]
            assert times == sorted(times)
            assert (times[0], times[-1]) == (0, 1)
            found[text.text] = float(text.attrib["x"]), float(text.attrib["y"]), times[1]
    return found


def test_words_appear_in_the_order_of_their_delays(tmp_path: Path):
    row = {"prediction": "a <b> & c d", "delays": [2, 2, 3, 4, 4], "source_length": 4}
    words = [("ein", 1), ("langesWort", 3)]
    picture = plot_live(row, tmp_path / "new" / "live.svg", words=words)
    assert (tmp_path / "new" / "live.svg").read_text(encoding="utf-8") == picture
    found = shown(picture)
    assert list(found) == ["ein", "langesWort", "a", "<b>", "&", "c", "d"]
    places = [found[word][0] for word in ("a", "<b>", "&", "c", "d")]
    assert places == sorted(places)
    times = [found[word][2] for word in ("ein", "a", "<b>", "langesWort", "&", "c", "d")]
    assert times == sorted(times)
    assert times[1] == times[2] < times[3] == times[4] < times[5]


def test_what_has_no_room_goes_to_the_next_row():
    row = {"prediction": " ".join(["word"] * 40), "delays": [5] * 40, "source_length": 5}
    assert len(re.findall('y="[0-9]+">word<', plot_live(row))) == 40
    assert len(set(re.findall('y="([0-9]+)">word<', plot_live(row)))) > 2


def test_characters_appear_below_their_sound():
    row = {"prediction": "4\x007", "delays": [100.0, 100.0, 900.0], "source_length": 1000.0}
    picture = plot_live(row, samples=np.sin(np.arange(8000) / 10))
    found = shown(picture)
    assert found["7"][2] == pytest.approx(0.9 / 3, abs=1e-3)  # the whole stays for two seconds
    assert picture.count("<path") == 1
    assert ">0.5 s<" in picture
    assert len(picture) < 12_000
    assert shown(plot_live({"prediction": "", "delays": [], "source_length": 0.0}, samples=np.zeros(0))) == {}
    with pytest.raises(UserError, match="delays of words, or of characters, but got 2 for 'abc'"):
        plot_live({"prediction": "abc", "delays": [1, 2], "source_length": 3})


def test_grid_refuses_nothing():
    with pytest.raises(UserError, match="expects one or more examples"):
        plot_attention_grid([])


def test_curves_from_the_csv_logger(tmp_path: Path):
    logger = CSVLogger(tmp_path, name="", version="")
    for row in ROWS:
        logger.log_metrics({key: value for key, value in row.items() if key != "step"}, step=row["step"])
    logger.save()
    figure = plot_curves(tmp_path / "metrics.csv", tmp_path / "curves.png", smoothing=0.5)
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    panels = {axes.get_ylabel(): axes for axes in figure.axes}
    assert list(panels) == ["loss", "score (%)", "error rate (%)", "learning rate"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"optimizer step"}
    bleu = panels["score (%)"].lines[0]
    assert bleu.get_label() == "BLEU"
    np.testing.assert_allclose(bleu.get_xydata(), [[49, 49 / 3], [99, 33]])
    assert [line.get_label() for line in panels["loss"].lines[1:]] == ["training (running mean)", "validation"]


def test_smoothing_of_a_constant_is_the_constant():
    rows = [{"step": step, "train_loss": 2.0} for step in range(10)]
    raw, smooth = plot_curves(rows, smoothing=0.9).axes[0].lines
    np.testing.assert_allclose(smooth.get_ydata(), raw.get_ydata())
    (only,) = plot_curves(ROWS[:20], smoothing=0.0).axes[0].lines
    np.testing.assert_allclose(only.get_ydata(), [row["train_loss"] for row in ROWS[:20]])


def test_curves_leave_out_absent_panels():
    assert [axes.get_ylabel() for axes in plot_curves([{"step": 1, "val_cer": 7.0}]).axes] == ["error rate (%)"]


def test_curves_refuse_missing_file_and_columns(tmp_path: Path):
    with pytest.raises(UserError, match=r"there is no file .*metrics\.csv"):
        plot_curves(tmp_path / "metrics.csv")
    with pytest.raises(UserError, match="but found step, accuracy"):
        plot_curves([{"step": 1, "accuracy": 0.5}])


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([{"step": "0", "val_loss": "abc"}], "expects numbers in the columns step and val_loss, .* 'abc'"),
        ([{"epoch": "0", "val_loss": "1"}], "expects numbers in the columns step and val_loss, .* 'step'"),
    ],
)
def test_curves_refuse_what_is_no_number(rows, match):
    with pytest.raises(UserError, match=match):
        plot_curves(rows)


def test_a_torn_row_is_no_point(tmp_path: Path):
    (tmp_path / "metrics.csv").write_text("epoch,step,val_loss\n0,1,2.0\n0,2\n")
    (line,) = plot_curves(tmp_path / "metrics.csv").axes[0].lines
    assert line.get_ydata().tolist() == [2.0]


@pytest.mark.parametrize(
    ("name", "match"), [("", "it is a folder: give a file, such as"), ("x.xyz", "'xyz' is not supp")]
)
def test_a_picture_is_not_written_beside_its_name(name, match, tmp_path: Path):
    with pytest.raises(UserError, match=f"cannot write a picture to .*{match}"):
        plot_attention([[1.0]], ["\ud800"], ["b"], path=tmp_path / name)


def test_no_global_pyplot_state():
    plot_curves(ROWS)
    plot_attention(torch.eye(2), "ab", "cd")
    assert pyplot.get_fignums() == []


def test_captions_lay_the_weights_of_each_word_over_the_image(tmp_path: Path):
    image = np.full((8, 8, 3), 200, np.uint8)
    weights = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 0.0, 1.0]])
    examples = [CaptionExample(image, weights, ["a", "$x$", "<eos>"], "a $x$")]
    examples += [CaptionExample(image, weights[:1], ["b"])]
    figure = plot_captions(examples, tmp_path / "captions.png", columns=3)
    assert (tmp_path / "captions.png").is_file()
    assert [axes.get_title() for axes in figure.axes] == ["", "a", "$x$", "<eos>", "", "b"]
    shadows = [axes.images[1].get_array()[..., 3] for axes in figure.axes if len(axes.images) == 2]
    assert shadows[0].argmin() == 0
    assert shadows[2].reshape(-1).tolist() == pytest.approx([0.85, 0.85, 0.85, 0])
    assert (shadows[1] == 0).all()


@pytest.mark.parametrize("shape", [(2, 3), (3, 4)])
def test_weights_of_no_square_grid_are_refused(shape):
    came = re.escape(f"(tokens, cells of a square grid), with 2 tokens, but are {shape}")
    with pytest.raises(UserError, match=came):
        plot_captions([CaptionExample(np.zeros((4, 4, 3)), np.ones(shape), ["a", "b"])])
    with pytest.raises(UserError, match="one or more examples, but got none"):
        plot_captions([])


@pytest.fixture
def forget_fonts():
    before = list(font_manager.fontManager.ttflist)
    common._fonts.cache_clear()
    yield
    font_manager.fontManager.ttflist = before
    common._fonts.cache_clear()


def make_font(path: Path, characters: str) -> None:
    """Write a font whose only glyph is a square, and make matplotlib know it."""
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(char): "square" for char in characters})
    pen = TTGlyphPen(None)
    for step, point in enumerate([(0, 0), (0, 700), (700, 700), (700, 0)]):
        (pen.lineTo if step else pen.moveTo)(point)
    pen.closePath()
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    builder.setupHorizontalMetrics(dict.fromkeys((".notdef", "square"), (800, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    font_manager.fontManager.addfont(path)


WRITTEN = ["\U0001f9a3你好", "안녕", "ᏣᎳᎩ"]


@pytest.mark.usefixtures("forget_fonts")
def test_fonts_are_found_that_have_the_characters(tmp_path: Path):
    make_font(tmp_path / "One.ttf", "\U0001f9a3你好")
    make_font(tmp_path / "Two.ttf", "안녕ᏣᎳᎩ")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plot_attention(torch.eye(3), WRITTEN, ["a", "café", "я"], tmp_path / "attention.png", title="你")
        plot_captions(
            [CaptionExample(np.zeros((4, 4, 3), np.uint8), torch.ones(3, 4), WRITTEN, "안")], tmp_path / "c.png"
        )
        plot_curves([{"step": 1, "val_你好": 1.0}], tmp_path / "curves.png")
    label = figure.axes[0].get_xticklabels()[0]
    assert label.get_fontfamily() in (["DejaVu Sans", "One", "Two"], ["DejaVu Sans", "Two", "One"])


@pytest.mark.usefixtures("forget_fonts")
@pytest.mark.parametrize("texts", [WRITTEN, ["天気", "ᏣᎳᎩ 𒀀", "ไทย 한국"], ["\U0001f9a3" * 3]])
def test_characters_without_a_font_are_told_in_one_line(tmp_path: Path, texts):
    fonts = font_manager.fontManager
    fonts.ttflist = [font for font in fonts.ttflist if font.name.startswith(("DejaVu", "STIX", "Last"))]
    with warnings.catch_warnings(record=True) as caught:
        figure = plot_attention(torch.eye(len(texts)), texts, texts, tmp_path / "attention.png", title=texts[0])
        figure.savefig(tmp_path / "again.svg")  # as a page does
    (line,) = [str(one.message) for one in caught]
    assert "characters are drawn as boxes, as no installed font has them" in line
    assert "\n" not in line


def test_every_metric_has_a_curve(tmp_path: Path):
    metrics = [
        "per",
        "sequence_error_rate",
        "slot_error_rate",
        "wer_lc",
        "distinct1",
        "rougeLsum",
        "bleu_zh",
        "bleu_auto",
    ]
    metrics += ["bleu2", "exact_match", "exact_match_raw", "my_own"]
    rows = [{"step": step, "val_loss": 1.0, "val_ppl": 2.0, **{f"val_{m}": step for m in metrics}} for step in (1, 2)]
    panels = {axes.get_ylabel(): [line.get_label() for line in axes.lines] for axes in plot_curves(rows).axes}
    assert panels == {
        "loss": ["validation"],
        "score (%)": ["distinct-1", "ROUGE-Lsum", "BLEU zh", "BLEU auto", "BLEU-2", "exact match"],
        "error rate (%)": ["PER", "sequence error rate", "slot error rate", "WER lc"],
        "my_own": ["my_own"],
    }
    known = [cls for cls in vars(lit_seq2seq.metrics).values() if isinstance(cls, type) and hasattr(cls, "name")]
    assert {cls.name: cls.higher_is_better for cls in known} == {n: n in SCORES for n in (*SCORES, *ERRORS)}
