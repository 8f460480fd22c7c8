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
    left = {name for name in known - set(planned) if not name.startswith("objectives/")}  # to be laid over others
    assert all(name.split("/")[1] in ELSEWHERE or "hub" in name or "backbone" in name for name in left), left


def test_the_folder_takes_the_place_of_the_hub_id_and_a_second_start_trains_nothing(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    folder = tmp_path / "data" / "multi30k"
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        rows = [{"en": f"a dog number {number % 3}", "de": f"ein Hund {number % 3}"} for number in range(12)]
        text = "\n".join(json.dumps(row) for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run = ["--output", str(tmp_path), "--data", str(folder.parent), "--only", "translation/multi30k_quick", "--fast"]
    assert main(run) == 0
    kept = tmp_path / "fast" / "translation" / "multi30k_quick" / "1" / "result.json"
    scores = json.loads(kept.read_text(encoding="utf-8"))["scores"]
    assert {"test_bleu", "test_ppl"} <= scores.keys()
    assert "Ten outputs of the test split" in (kept.parent / "log.txt").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(run) == 0
    assert "translation.py --config" not in capsys.readouterr().out


def result_of(recipe: str, seeds: list[int], score: float, **others: object) -> dict[str, object]:
    known = {
        "date": "2020-01-31",
        "cpu_minutes": 1.0,
        "hardware": "1 abacus (wood)",
        "scores": {"test_exact_match": score},
    }
    return {"recipe": recipe, "seeds": seeds, **known, **others}


def test_a_table_shows_mean_least_and_greatest(tmp_path: Path) -> None:
    runs = [result_of("sanity/copy", [seed], score) for seed, score in ((1, 50.0), (2, 80.0), (3, 20.0))]
    row = (
        "| `sanity/copy.yaml` | built-in | test: exact match 50.00 (20.00 to 80.00) | 3 | 1.0 | 2020-01-31, 1 abacus |"
    )
    assert script["table"](runs).splitlines()[2:] == [row]


def test_recorded_results_replace_those_of_the_same_recipe_and_reach_every_page(tmp_path: Path) -> None:
    (tmp_path / "docs" / "tasks").mkdir(parents=True)
    begin, end = "<!-- results: sanity -->", "<!-- results: end -->"
    pages = [tmp_path / "README.md", tmp_path / "docs" / "tasks" / "sanity.md"]
    for page in pages:
        page.write_text(f"# Before\n\n{begin}\nold\n{end}\n\nAfter\n", encoding="utf-8")
    script["record"](tmp_path, [result_of("sanity/copy", [1], 10.0), result_of("speech/builtin", [1], 20.0)])
    script["record"](tmp_path, [result_of("sanity/copy", [2], 30.0)])
    kept = json.loads((tmp_path / "docs" / "results.json").read_text(encoding="utf-8"))
    assert [(run["recipe"], run["seeds"]) for run in kept] == [("speech/builtin", [1]), ("sanity/copy", [2])]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# Before\n\n{begin}\n| recipe |")
        assert text.endswith(f"|\n{end}\n\nAfter\n")
        assert "exact match 30.00 | 1 |" in text
        assert "speech" not in text


def test_a_recipe_that_fails_is_named_and_the_next_one_runs(tmp_path: Path, monkeypatch, capsys) -> None:
    output = tmp_path / "kept"
    done = output / "sanity" / "sort" / "1"
    done.mkdir(parents=True)
    (done / "result.json").write_text(json.dumps(result_of("sanity/sort", [1], 50.0)), encoding="utf-8")
    jobs = [Job("sanity/none", script="none"), Job("sanity/sort"), Job("sanity/copy", folder="nowhere")]
    monkeypatch.setitem(main.__globals__, "PLAN", jobs)
    assert main(["--output", str(output)]) == 1
    out, err = capsys.readouterr()
    assert "| `sanity/sort.yaml` | built-in | test: exact match 50.00 | 1 | 1.0 | 2020-01-31, 1 abacus |" in out
    assert "sanity/copy: left out, as there is no nowhere in --data" in out
    assert "these did not finish: sanity/none: see their log.txt" in err


def test_the_tables_of_the_pages_are_up_to_date(tmp_path: Path) -> None:
    root = RECIPES.parent
    results = script["recorded"](root)
    tables = 0
    for page in [root / "README.md", *(root / "docs").rglob("*.md")]:
        for _, names, old, _ in script["TABLE"].findall(page.read_text(encoding="utf-8")):
            tables += 1
            assert old == script["table"](results, names.split()) + "\n", (
                f"{page.name}: run recipes/results.py --tables"
            )
    assert tables > 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nothing"], "no recipe begins with nothing"),
        (["--data", "nowhere"], "there is no folder nowhere"),
        (["--record", "--fast"], "mean nothing"),
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
    for job in builtin:
        assert (tmp_path / "fast" / job.recipe / "1" / "result.json").is_file(), job.recipe
