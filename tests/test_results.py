"""The script behind `make results`."""

import json
import runpy
from pathlib import Path

import pytest

RECIPES = Path(__file__).parent.parent / "recipes"
script = runpy.run_path(str(RECIPES / "results.py"))
main, PLAN, Job = script["main"], script["PLAN"], script["Job"]
ELSEWHERE = ("finetune", "your_files", "inflection", "hub", "hub_nested", "cnn_dailymail", "xsum", "librispeech")


def test_every_recipe_with_data_at_hand_is_in_the_plan() -> None:
    known = {path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.glob("*/*.yaml")}
    planned = [job.recipe for job in PLAN]
    assert len(planned) == len(set(planned))
    assert set(planned) <= known
    left = known - set(planned)
    assert all(name.split("/")[1] in ELSEWHERE or "hub" in name or "backbone" in name for name in left), left


def test_a_page_gets_the_table_and_a_second_start_trains_nothing(tmp_path: Path, capsys) -> None:
    run = ["--output", str(tmp_path), "--only", "sanity/reverse"]
    assert main([*run, "--fast"]) == 0
    kept = tmp_path / "fast" / "sanity" / "reverse" / "1" / "scores.json"
    scores = json.loads(kept.read_text(encoding="utf-8"))["scores"]
    assert {"test_exact_match", "test_ppl"} <= scores.keys()
    assert "Ten outputs of the test split" in (kept.parent / "log.txt").read_text(encoding="utf-8")
    (tmp_path / "sanity").symlink_to(tmp_path / "fast" / "sanity")
    page = tmp_path / "page.md"
    page.write_text(f"# Before\n\n{script['BEGIN']}\nold\n{script['END']}\n\nAfter\n", encoding="utf-8")
    capsys.readouterr()
    assert main([*run, "--page", str(page)]) == 0
    out, text = capsys.readouterr().out, page.read_text(encoding="utf-8")
    assert "sanity.py --config" not in out
    assert text.startswith(f"# Before\n\n{script['BEGIN']}\n| date |")
    assert text.endswith(f"|\n{script['END']}\n\nAfter\n")
    assert f"`sanity/reverse.yaml` | built-in | test: ppl {scores['test_ppl']:.2f}, exact match" in text


def test_a_recipe_that_fails_is_named_and_the_next_one_runs(tmp_path: Path, monkeypatch, capsys) -> None:
    output = tmp_path / "kept"
    done = output / "sanity" / "sort" / "1"
    done.mkdir(parents=True)
    kept = {"date": "2020-01-31", "minutes": 1.0, "hardware": "abacus", "scores": {"test_exact_match": 50.0}}
    (done / "scores.json").write_text(json.dumps(kept), encoding="utf-8")
    jobs = [Job("sanity/none"), Job("sanity/sort"), Job("sanity/copy", folder="nowhere")]
    monkeypatch.setitem(main.__globals__, "PLAN", jobs)
    assert main(["--output", str(output)]) == 1
    out, err = capsys.readouterr()
    assert "| 2020-01-31 | `sanity/sort.yaml` | built-in | test: exact match 50.00 | 1 | 1.0 | abacus |" in out
    assert "sanity/copy: left out, as there is no nowhere in --data" in out
    assert "these did not finish: sanity/none: see their log.txt" in err


def test_the_folder_takes_the_place_of_the_hub_id(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "data" / "multi30k"
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        rows = [{"en": f"a dog number {number % 3}", "de": f"ein Hund {number % 3}"} for number in range(12)]
        text = "\n".join(json.dumps(row) for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setitem(main.__globals__, "PLAN", [job for job in PLAN if job.recipe == "translation/multi30k_quick"])
    assert main(["--output", str(tmp_path), "--data", str(tmp_path / "data"), "--fast"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nothing"], "no recipe begins with nothing"),
        (["--data", "nowhere"], "there is no folder nowhere"),
        (["--page", "none.md"], "expected the marks"),
        (["--page", "none.md", "--fast"], "mean nothing"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], message: str, tmp_path: Path, capsys) -> None:
    assert main(["--output", str(tmp_path), *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_every_builtin_recipe_runs_from_data_to_scores(tmp_path: Path, monkeypatch) -> None:
    builtin = [job for job in PLAN if job.folder is None]
    monkeypatch.setitem(main.__globals__, "PLAN", builtin)
    assert main(["--output", str(tmp_path), "--fast"]) == 0
    table = (tmp_path / "fast" / "results.md").read_text(encoding="utf-8")
    assert [job.recipe for job in builtin if f"`{job.recipe}.yaml`" not in table] == []
