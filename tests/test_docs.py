import contextlib
import functools
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import lit_seq2seq
from lit_seq2seq import LitSeq2Seq, pipeline
from lit_seq2seq.builtin.phrase_kinds import SENTENCES
from lit_seq2seq.cli import main
from lit_seq2seq.features import Feature, LogMel, Processor, Prompt, SherpaLogMel, Tokenizer
from lit_seq2seq.nn import CTC, MeanBridge, NoSource, ParallelDecoder, PyramidalEncoder, TransducerDecoder, ZeroBridge
from tests.loopback_hub import LoopbackHub
from tests.test_stream_command import record
from tests.tiny import SIZES, make_data, make_model

ROOT = Path(__file__).parent.parent
PACKAGE = Path(lit_seq2seq.__file__).parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = ["--data.dataset.init_args.train_size", "200", "--data.dataset.init_args.validation_size", "20"]
SMALL += ["--data.dataset.init_args.test_size", "20", "--trainer.fast_dev_run", "true"]


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the language and the text of every fenced block."""
    yield from re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


def shell(text: str) -> str:
    """Run a shell block with this environment's commands; return what it printed."""
    path = f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
    command = ["bash", "-euo", "pipefail", "-c", f"export {path}\n{text}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_here(text: str, *more: str) -> str:
    """Run the lines of a shell block, `lit-seq2seq` in this process with options more; return what it printed."""
    printed = io.StringIO()
    for line in text.replace("\\\n", "").splitlines():
        before, _, command = line.rpartition(" | ")
        name, *arguments = shlex.split(command)
        if name != "lit-seq2seq":
            subprocess.run([name, *arguments], check=True)
            continue
        given = subprocess.run(shlex.split(before), capture_output=True, check=True).stdout if before else b""
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
            assert main([*arguments, *more]) == 0
    return printed.getvalue()


def run_page(page: Path, shell: Callable[[str], str] = shell) -> tuple[dict[str, Any], list[str]]:
    """Run the blocks of a page in order; return the names it defines and what its shell blocks printed."""
    names: dict[str, Any] = {"__name__": page.stem}
    printed = []
    for number, (language, text) in enumerate(blocks(page), start=1):
        if named := re.match(r"# (\w+\.(?:py|yaml))\n", text):
            Path(named[1]).write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, f"{page.name}, block {number}", "exec"), names)
        elif language == "bash":
            printed.append(shell(text))
    return names, printed


def forms(text: str) -> set[str]:
    """Return the lines of what was printed, whatever the numbers, and what a model wrote from long words."""
    lines = re.sub(r"\b[a-j]{9,}\b", "word", re.sub(r"[\d.]+", "0", text)).splitlines()
    return {" ".join(line.split()) for line in lines}


@pytest.mark.slow
def test_the_guide_runs_and_what_it_claims_is_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "guide.md"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        names, printed = run_page(page)
    shown = "".join(text for language, text in blocks(page) if language == "text")
    assert forms(shown) <= forms(said.getvalue() + "".join(printed))
    assert names["scores"]["test_exact_match"] > 90
    exact = names["exact"]
    assert exact["without attention", 1] > 80
    assert exact["without attention", 17] < 20
    assert exact["with attention", 9] > 90
    assert exact["with attention", 17] > exact["without attention", 17] + 30
    assert printed[0] == "egacdaeh\ncba\n"
    assert (tmp_path / "runs" / "version_0" / "model" / "model.safetensors").is_file()
    assert (tmp_path / "attention.png").is_file()


@pytest.mark.slow
def test_the_page_on_fine_tuning_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["--trainer.max_steps", "2", "--trainer.enable_model_summary", "false"]
    names, _ = run_page(ROOT / "docs" / "fine_tuning.md", lambda text: run_here(text, *short))
    assert names["model"].processor.target.symbols[-1] == "sechs"
    models = [LitSeq2Seq.from_pretrained(folder) for folder in sorted(tmp_path.glob("runs/version_*/model"))]
    added = [{"sechs", "six"} & set(model.processor.target.symbols) for model in models]
    assert added == [{"sechs"}, {"six"}, {"sechs"}, {"sechs"}, {"sechs"}, set()]


def test_the_page_on_fine_tuning_names_every_recipe_for_it() -> None:
    text = (ROOT / "docs" / "fine_tuning.md").read_text(encoding="utf-8")
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "recipes").rglob("finetune.yaml")}
    assert set(re.findall(r"--config (recipes/\S+)", text)) == there


def test_the_page_on_sharing_runs(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    save_model(tmp_path / "runs" / "version_0" / "model")
    names, (pushed, generated) = run_page(ROOT / "docs" / "sharing.md", run_here)
    repo = hub.repos["models", "alice/digits"]
    assert pushed.startswith(f"{hub.url}/alice/digits/commit/")
    assert repo.private
    card = repo.commits[repo.branches["main"]]["README.md"].decode()
    assert "license: mit" in card
    assert "- de\n- en" in card
    here = pipeline("translation", "runs/version_0/model")("eins zwei", num_beams=4)[0]["translation_text"]
    assert generated == f"{here}\n"
    assert names["translate"]("eins zwei", num_beams=4) == [{"translation_text": here}]


@pytest.mark.slow
def test_the_page_on_exporting_runs(workplace: Path) -> None:
    save_transducer(workplace / "runs" / "sherpa" / "version_0" / "model", SherpaLogMel(20, normalize="none"))
    page = ROOT / "docs" / "exporting.md"
    names, printed = run_page(page, lambda text: "" if text.startswith("python recipes/") else shell(text))
    assert [len(row) for row in names["outputs"]] == [2, 2]
    assert printed[1].count("\n") == 1


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the recipes, a file of pairs, and the model folder that the demo leaves."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    rows = "".join(f"{number} Hunde,{number} dogs\n" for number in range(2, 60))
    (tmp_path / "pairs.csv").write_text("german,english\n" + rows, encoding="utf-8")
    save_model(tmp_path / "runs" / "demo" / "version_0" / "model")
    return tmp_path


def save_model(folder: Path) -> None:
    model = make_model()
    model.attach(make_data().processor)
    model.save_pretrained(folder)


def save_language_model(folder: Path) -> None:
    network = {"encoder": NoSource, "decoder": partial(ParallelDecoder, **SIZES, bridge=ZeroBridge), "metrics": []}
    model = make_model(**network)
    model.attach(Processor(Prompt(), make_data().processor.target))
    model.save_pretrained(folder)


def save_speech_model(folder: Path, transducer: bool = False) -> None:
    encoder = partial(PyramidalEncoder, hidden_size=12, factors=[1], bidirectional=not transducer)
    decoder = (
        partial(TransducerDecoder, **SIZES) if transducer else partial(ParallelDecoder, **SIZES, bridge=MeanBridge)
    )
    model = make_model(encoder=encoder, decoder=decoder, auxiliary=CTC)
    normalize = "none" if transducer else "utterance"
    model.attach(Processor(LogMel(8000, n_mels=5, normalize=normalize), make_data().processor.target))
    model.save_pretrained(folder)


def save_transducer(folder: Path, feature: Feature) -> None:
    encoder = partial(PyramidalEncoder, hidden_size=12, factors=[1, 2], bidirectional=False)
    model, target = make_model(encoder=encoder, decoder=partial(TransducerDecoder, **SIZES)), Tokenizer("char")
    target.train(["one two three"])
    model.attach(Processor(feature, target))
    model.save_pretrained(folder)


def test_the_page_on_generation_runs(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names, _ = run_page(ROOT / "docs" / "generation.md", run_here)
    told = json.loads((workplace / "told.jsonl").read_text(encoding="utf-8"))
    assert told[0]["tokens"] == names["output"]["tokens"]
    assert told[0]["alignment"] == names["output"]["alignment"]
    (scored,) = json.loads((workplace / "scored.jsonl").read_text(encoding="utf-8"))
    assert scored["score"] == pytest.approx(names["scored"]["score"], abs=1e-4)


def test_the_python_of_the_readme_runs(workplace: Path) -> None:
    names: dict[str, Any] = {}
    for language, text in blocks(ROOT / "README.md"):
        if language == "python":
            exec(text.replace('["--trainer.max_epochs", "1"]', repr(SMALL)), names)
    assert len(names["hypotheses"]) == 1
    assert (workplace / "my-model" / "config.json").is_file()


def readme_commands() -> list[str]:
    texts = [text.replace("\\\n", "") for language, text in blocks(ROOT / "README.md") if language == "bash"]
    return [line for text in texts for line in text.splitlines()]


def test_the_readme_names_no_command_that_is_not_checked() -> None:
    known = ("make ", "python recipes/", "echo ", ".venv/bin/", "python -m venv")
    assert [command for command in readme_commands() if not command.startswith(known)] == []


@pytest.mark.parametrize("command", [c for c in readme_commands() if c.startswith("python recipes/")])
def test_the_recipe_commands_of_the_readme_run_or_parse(
    command: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, script, *arguments = shlex.split(command)
    if "pairs.csv" in arguments:
        arguments += ["--trainer.fast_dev_run", "true"]
    elif not arguments:
        arguments = SMALL
    else:
        arguments += ["--print_config"]
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(script, run_name="__main__")
    assert not exit.value.code
    if "--print_config" in arguments:
        assert "class_path: lit_seq2seq.nn.TextEncoder" in capsys.readouterr().out


def page_commands() -> list[str]:
    """The commands of the pages that run a recipe; those for fine-tuning need a trained model and run elsewhere."""
    pages = [page for page in (ROOT / "docs").rglob("*.md") if page.name not in ("results.md", "guide.md")]
    lines = [
        line for page in sorted(pages) for _, text in blocks(page) for line in text.replace("\\\n", "").splitlines()
    ]
    found = [line.split("  #")[0].strip() for line in lines if line.startswith("python recipes/")]
    return sorted({line for line in found if "all_languages" not in line and "finetune" not in line})


@pytest.mark.parametrize("command", page_commands())
def test_the_recipe_commands_of_the_pages_parse(
    command: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, script, *arguments = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [script, *arguments, "--print_config"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(script, run_name="__main__")
    assert not exit.value.code
    assert "class_path: lit_seq2seq.nn." in capsys.readouterr().out


RUN = ["README", "your_own_part", "exporting", "fine_tuning", "generation", "guide", "multi_node", "page"]
RUN += ["serving", "sharing", "decoding", "live"]


def test_the_page_on_writing_while_reading_runs(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(workplace / "runs" / "wait_k" / "version_0" / "model")
    for name in ("telephone_live", "whole"):
        save_speech_model(workplace / "runs" / name / "version_0" / "model", transducer=name != "whole")
    (_, command), (making, python, drawing, aligning) = (
        [text for language, text in blocks(ROOT / "docs" / "live.md") if language == wanted]
        for wanted in ("bash", "python")
    )
    (workplace / "sounddevice.py").write_text("raise ImportError")  # there is no microphone here
    record(workplace, (np.sin(np.arange(8000) / 10) * 9000).astype("<i2").tobytes())
    monkeypatch.setenv("PYTHONPATH", f"{workplace}:{os.environ.get('PYTHONPATH', '')}")
    exec(making, made := {})
    assert shell(f"PATH={workplace}:$PATH\n{command}").count("\n") == 4
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(python, names := {})
    assert printed.getvalue().strip() == names["live"].text
    exec(drawing, made)
    assert (workplace / "lattice.png").is_file()
    for name in ("one.wav", "two.wav"):
        soundfile.write(name, np.sin(np.arange(4000) / 5), 8000)
    exec(aligning, names := {})
    assert [len(row) for row in names["ends"]] == [2, 1]


def test_the_commands_of_the_page_on_decoding_run(workplace: Path) -> None:
    """With words of a tiny model in place of those of the demo's."""
    commands = [text for language, text in blocks(ROOT / "docs" / "decoding.md") if language == "bash"]
    others = {"Das Buch kostet [0-9]+,[0-9]{2} €[.]": "(three |four ){2}five", "Euro": "one", "€": "two"}
    (workplace / "terms.csv").write_text("book,two\n", encoding="utf-8")
    (workplace / "words.txt").write_text("one\nfour two\n", encoding="utf-8")
    save_language_model(workplace / "runs" / "language_model" / "version_0" / "model")
    said = [run_here(functools.reduce(lambda text, one: text.replace(*one), others.items(), text)) for text in commands]
    assert [text.count("\n") for text in said] == [2, 3, 1, 3, 5]
    assert "two" not in said[0].splitlines()[0]
    assert "one" in said[0].splitlines()[1]
    terms, words, pattern = said[1].splitlines()
    assert "two" in terms
    assert re.fullmatch("(one ?|four two ?)+", words)
    assert re.fullmatch("(three |four ){2}five", pattern)


def test_every_other_command_of_the_pages_runs(workplace: Path) -> None:
    for page in [*PAGES, *(ROOT / "docs" / "tasks").glob("*.md")]:
        texts = [text.replace("\\\n", "") for language, text in blocks(page) if language == "bash"]
        lines = [line for text in texts for line in text.splitlines()]
        for command in lines if page.stem not in RUN else ():
            if command.startswith("lit-seq2seq generate "):
                words = shlex.split(command)
                if not (folder := Path(words[words.index("--model") + 1])).exists():
                    save_model(folder)
                Path(words[words.index("--input") + 1]).write_text("eins\nzwei\n", encoding="utf-8")
                said = run_here(command)
                if "--output" in words:
                    said = Path(words[words.index("--output") + 1]).read_text(encoding="utf-8")
                assert said.count("\n") == 2
            elif command.startswith("ls *.wav | lit-seq2seq generate "):
                save_speech_model(Path(shlex.split(command)[-1]))
                soundfile.write("one.wav", np.sin(np.arange(4000) / 5), 8000)
                assert run_here(command.replace("*.wav", "one.wav")).count("\n") == 1
            elif command.startswith("lit-seq2seq shortlist "):
                assert "has a shortlist" in run_here(command)
            else:
                assert command.startswith(("python recipes/", "pip install ")), page


@pytest.mark.parametrize("command", [c for c in readme_commands() if c.startswith("echo ")])
def test_the_shell_commands_of_the_readme_run(command: str, workplace: Path) -> None:
    assert shell(command).count("\n") == 1


def test_the_readme_names_targets_of_the_makefile() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    named = [command.removeprefix("make ") for command in readme_commands() if command.startswith("make ")]
    assert named
    assert set(named) <= set(targets)


def test_the_configuration_page_is_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_configuration.py"))["page"]()
    committed = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert committed == made, "run: python docs/make_configuration.py"


def test_the_architecture_names_every_file_and_no_other() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = "\n".join(line for line in text.splitlines() if line.startswith("| `"))
    named = set(re.findall(r"`([\w/]+\.py)`", table))
    assert named == {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}


def test_every_other_file_that_the_architecture_names_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name in re.findall(r"`([\w/]+\.(?:py|md|yaml))`", text):
        assert (ROOT / name).is_file() or (PACKAGE / name).is_file(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_page_on_reliability_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    files: dict[str, str] = {}  # some have the same name in two folders
    for path in (ROOT / "tests").rglob("test_*.py"):
        files[path.name] = files.get(path.name, "\n") + path.read_text(encoding="utf-8")
    named, file = 0, ""
    for name, test in re.findall(r"`(test_\w+\.py)?(?:::(test_\w+))?`", text):
        file = name or file
        assert not name or name in files, name
        assert not test or f"\ndef {test}(" in files[file], (file, test)
        named += bool(test)
    assert named > 20


@pytest.mark.parametrize(("page", "count"), [("serving", 2), ("exporting", 3), ("generation", 6), ("page", 1)])
def test_the_examples_of_what_uses_the_demo_model_are_sentences_of_its_kind(page: str, count: int) -> None:
    kinds = "|".join(re.sub(r"\\{\w+\\}", ".+", re.escape(sentence)) for sentence in SENTENCES["en"].values())
    programs = [text for language, text in blocks(ROOT / "docs" / f"{page}.md") if language in ("bash", "python")]
    given = [sentence for text in programs for sentence in re.findall(r'"([A-Z][^"\n]*[.?])"', text)]
    assert len(given) == count
    assert [sentence for sentence in given if not re.fullmatch(kinds, sentence)] == []


def test_extras_are_installed_from_the_clone_as_there_is_no_release() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    files = [path for folder in (ROOT / "docs", PACKAGE, ROOT / "recipes") for path in folder.rglob("*.*")]
    texts = [path.read_text(encoding="utf-8") for path in files if path.suffix in (".md", ".py", ".yaml")]
    assert not any(re.search(r"(pip install|needs) .{0,3}lit_seq2seq", text) for text in texts)
    named = {name for text in texts for names in re.findall(r'-e "\.\[([\w,]+)\]"', text) for name in names.split(",")}
    assert {"audio", "demo", "export", "serve", "summarization", "vision"} <= named <= set(extras)
