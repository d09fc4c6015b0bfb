"""Pools on the hub: folders with the configuration and the columns that each dataset's public card describes.

`load_dataset` reads such a folder like a repository of that name. All rows are invented.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, Features, List, Value
from helpers.cli import CliRunner

from mrt_plugin.cli import app
from mrt_plugin.groups import DataError, load_groups, read_groups
from mrt_plugin.groups.manifest import manifest_path

TEXT, NUMBER, INTEGER, TRUTH = Value("string"), Value("float64"), Value("int64"), Value("bool")
MESSAGES = List({"content": TEXT, "role": TEXT})
TURNS = List({"from": TEXT, "value": TEXT})


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def repository(name: str, features: dict[str, Any], rows: list[dict[str, Any]], split: str = "train") -> str:
    """Write a dataset repository with one split: a card with its configuration, and a Parquet file."""
    folder = Path(name)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    card = {"configs": [{"config_name": "default", "data_files": [{"split": split, "path": f"data/{split}-*"}]}]}
    (folder / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    complete = [{column: row.get(column) for column in features} for row in rows]
    Dataset.from_list(complete, features=Features(features)).to_parquet(
        folder / "data" / f"{split}-00000-of-00001.parquet"
    )
    return name


def openthoughts3() -> str:
    features = {"difficulty": INTEGER, "source": TEXT, "domain": TEXT, "conversations": TURNS}
    rows = [
        {
            "difficulty": 5,
            "source": "invented",
            "domain": "math",
            "conversations": talk(question, f"<think>{n}</think>"),
        }
        for n in range(3)
        for question in ("2 + 2?", "3 + 3?")
    ]
    return repository("open-thoughts/OpenThoughts3-1.2M", features, rows)


def openr1() -> str:
    names = ("problem", "solution", "answer", "problem_type", "question_type", "source", "uuid")
    lists = {"is_reasoning_complete": TRUTH, "generations": TEXT, "correctness_math_verify": TRUTH}
    lists |= {"correctness_llama": TRUTH, "finish_reasons": TEXT}
    features = dict.fromkeys(names, TEXT) | {name: List(kind) for name, kind in lists.items()}
    features |= {"correctness_count": INTEGER, "messages": MESSAGES}
    row = {"problem": "2 + 2?", "solution": "4", "generations": ["4", "5"], "correctness_math_verify": [True, False]}
    row["messages"] = [user("2 + 2?"), assistant("4")]
    return repository("open-r1/OpenR1-Math-220k", features, [row])


def deepmath() -> str:
    features = {"question": TEXT, "final_answer": TEXT, "difficulty": NUMBER, "topic": TEXT}
    features |= {f"r1_solution_{number}": TEXT for number in (1, 2, 3)}
    row = {"question": "2 + 2?", "final_answer": "4", "difficulty": 5.0, "topic": "Algebra"}
    return repository(
        "zwhe99/DeepMath-103K", features, [row | {f"r1_solution_{number}": f"s{number}" for number in (1, 2, 3)}]
    )


def armo() -> str:
    features: dict[str, Any] = {"prompt_id": TEXT, "prompt": TEXT}
    row: dict[str, Any] = {"prompt_id": "x", "prompt": "Name a tree."}
    for number, (response, reward) in enumerate([("Oak", 0.15), ("Elm", 0.125), ("Ash", 0.0625), ("Fir", 0.25)]):
        features |= {f"response_{number}": TEXT, f"response_{number}_reward": NUMBER}
        row |= {f"response_{number}": response, f"response_{number}_reward": reward}
    features |= {"chosen": TEXT, "reject": TEXT, "llama_chosen_tokens": List(INTEGER), "chosen_reward": NUMBER}
    row |= {"chosen": "Fir", "reject": "Ash", "llama_chosen_tokens": [5, 6], "chosen_reward": 0.25}
    return repository("Cornell-AGI/Ultrafeedback-Llama-3-Armo-iter_1", features, [row], split="train_prefs")


def open_math_reasoning() -> str:
    names = "expected_answer problem_type problem_source generation_model pass_rate_72b_tir problem generated_solution"
    features = dict.fromkeys([*names.split(), "inference_mode"], TEXT) | {"used_in_kaggle": TRUTH}
    rows = [
        {"problem": problem, "generated_solution": f"s{n}", "inference_mode": "cot", "used_in_kaggle": True}
        for n in range(2)
        for problem in ("2 + 2?", "3 + 3?")
    ]
    return repository("nvidia/OpenMathReasoning", features, rows, split="cot")


def nemotron_math() -> str:
    features = dict.fromkeys(["uuid", "expected_answer", "problem", "data_source"], TEXT)
    features |= {"messages": List({"role": TEXT, "content": TEXT, "reasoning_content": TEXT}), "tools": List(TEXT)}
    rows = [
        {"problem": "2 + 2?", "messages": [user("2 + 2?"), {**assistant(str(n)), "reasoning_content": "Add."}]}
        for n in (4, 5)
    ]
    rows[1]["tools"] = ['{"name": "python"}']
    return repository("nvidia/Nemotron-Math-v2", features, rows, split="low")


def helpsteer3() -> str:
    features = {"domain": TEXT, "language": TEXT, "context": MESSAGES, "response1": TEXT, "response2": TEXT}
    one = {"score": INTEGER, "reasoning": TEXT, "feedback1": TEXT, "feedback2": TEXT}
    features |= {"overall_preference": INTEGER, "individual_preference": List(one)}
    row = {"context": [user("Hi")], "response1": "Hello.", "response2": "No.", "overall_preference": -2}
    row["individual_preference"] = [{"score": -2, "reasoning": "Polite.", "feedback1": "a", "feedback2": "b"}]
    return repository("nvidia/HelpSteer3", features, [row])


def oasst2() -> str:
    names = "message_id parent_id user_id created_date text role lang model_name message_tree_id tree_state".split()
    features = dict.fromkeys(names, TEXT) | dict.fromkeys(["review_count", "rank"], Value("int32"))
    features |= dict.fromkeys(["review_result", "deleted", "synthetic"], TRUTH)
    features |= {"detoxify": {"toxicity": NUMBER}, "labels": {"name": List(TEXT), "value": List(NUMBER)}}
    rows = [
        {"message_id": "t", "text": "Hi", "role": "prompter"},
        {"message_id": "a", "parent_id": "t", "text": "Hello.", "role": "assistant", "rank": 1},
        {"message_id": "b", "parent_id": "t", "text": "Good day.", "role": "assistant", "rank": 0},
    ]
    common = {"message_tree_id": "t", "lang": "en", "review_result": True, "deleted": False}
    return repository("OpenAssistant/oasst2", features, [row | common for row in rows])


CASES = {
    "openthoughts3": (openthoughts3, None, "train", [3, 3], None),
    "openr1": (openr1, "openr1", "train", [2], [1.0, 0.0]),
    "deepmath": (deepmath, "fields:prompt=question,responses=r1_solution_*", "train", [3], None),
    "armo": (
        armo,
        "fields:prompt=prompt,responses=response_*,scores=response_*_reward",
        "train_prefs",
        [4],
        [0.15, 0.125, 0.0625, 0.25],
    ),
    "open_math_reasoning": (
        open_math_reasoning,
        "fields:prompt=problem,completion=generated_solution",
        "cot",
        [2, 2],
        None,
    ),
    "nemotron_math": (nemotron_math, "fields:messages=messages", "low", [2], None),
    "helpsteer3": (helpsteer3, "helpsteer3", "train", [2], [2.0, 0.0]),
    "oasst2": (oasst2, "oasst2", "train", [2], [0.0, 1.0]),
}


@pytest.mark.parametrize("name", CASES)
def test_by_id(name: str) -> None:
    make, source, split, sizes, scores = CASES[name]
    hub_id = make()
    assert not Path(hub_id).suffix or not Path(hub_id).is_file()
    groups = load_groups(hub_id, split=split, source=source)
    assert [len(pool) for pool in groups["responses"]] == sizes
    assert (groups[0]["scores"] if scores else groups.column_names) == (scores or ["id", "prompt", "responses"])


@pytest.mark.parametrize("name", CASES)
def test_the_page_has_the_command(name: str) -> None:
    page = (Path(__file__).parents[1] / "docs" / "sources.md").read_text()
    make, source, split, *_ = CASES[name]
    hub_id = make()
    (line,) = [line for line in page.splitlines() if line.startswith(f"| `{hub_id}` |")]
    assert source is None or source in line
    assert split == "train" or split in line


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("openthoughts3", "nemotron_math")])
def test_without_a_source_the_error_names_it(name: str) -> None:
    make, source, split, *_ = CASES[name]
    with pytest.raises(DataError, match=f"source[ =]'{re.escape(str(source))}'"):
        load_groups(make(), split=split)


def test_what_is_not_read_is_counted() -> None:
    report = read_groups(deepmath(), source="fields:prompt=question,responses=r1_solution_*")[1]
    assert {name: tally.count for name, tally in report.unused.items()} == {
        "final_answer": 1,
        "difficulty": 1,
        "topic": 1,
    }
    report = read_groups(nemotron_math(), split="low", source="fields:messages=messages")[1]
    assert {name: tally.count for name, tally in report.unused.items()} == {"problem": 2, "tools": 1}
    with pytest.raises(DataError, match="column `tools`: it would be left out"):
        load_groups("nvidia/Nemotron-Math-v2", split="low")


def test_a_split_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(DataError, match=r"split 'train'.*cot"):
        load_groups(open_math_reasoning())


def run(*arguments: str) -> None:
    done = CliRunner().invoke(app, ["select", *arguments])
    assert done.exit_code == 0, done.output


def test_select_reads_pools_by_id_and_makes_them_again() -> None:
    source, name = "fields:prompt=problem,completion=generated_solution", open_math_reasoning()
    chosen = ["--selector", "random_k", "--k", "1", "--output", "math.jsonl"]
    run(name, "--source", source, "--split", "cot", *chosen)
    assert [len(pool) for pool in load_groups("math.jsonl")["responses"]] == [1, 1]
    header = json.loads(manifest_path("math.jsonl").read_text().splitlines()[0])
    assert header["pools"] == [{"path": name, "source": source, "split": "cot", "subset": None, "sha256": None}]
    run("--from-manifest", str(manifest_path("math.jsonl")), "--output", "again.jsonl")
    assert Path("again.jsonl").read_bytes() == Path("math.jsonl").read_bytes()


def test_a_subset() -> None:
    """A repository with two configurations, as OpenR1-Math-220k has."""
    hub_id = openr1()
    folder = Path(hub_id)
    one = Dataset.from_parquet(str(folder / "data" / "train-00000-of-00001.parquet"))
    (folder / "extended").mkdir()
    one.map(lambda row: {"problem": "3 + 3?"}).to_parquet(folder / "extended" / "train-00000-of-00001.parquet")
    configs = [
        {"config_name": name, "data_files": [{"split": "train", "path": f"{place}/train-*"}]}
        for name, place in (("default", "data"), ("extended", "extended"))
    ]
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")
    assert load_groups(hub_id, source="openr1")["prompt"][:] == ["2 + 2?"]
    assert load_groups(hub_id, source="openr1", subset="extended")["prompt"][:] == ["3 + 3?"]
    run(hub_id, "--source", "openr1", "--subset", "extended", "--selector", "all", "--output", "extended.jsonl")
    assert load_groups("extended.jsonl")["prompt"][:] == ["3 + 3?"]
    run("--from-manifest", str(manifest_path("extended.jsonl")), "--output", "again.jsonl")
    assert Path("again.jsonl").read_bytes() == Path("extended.jsonl").read_bytes()
    with pytest.raises(DataError, match="extended"):
        load_groups(hub_id, source="openr1", subset="gone")


def test_select_mixes_pools_by_id() -> None:
    sources = ["--source", "sharegpt", "--split", "train", "--source", "fields:messages=messages", "--split", "low"]
    shares = ["--proportion", "OpenThoughts3-1.2M=0.5", "--proportion", "Nemotron-Math-v2=0.5"]
    run(openthoughts3(), nemotron_math(), *sources, *shares, "--selector", "all", "--output", "both.jsonl")
    assert {len(pool) for pool in load_groups("both.jsonl")["responses"]} == {2, 3}


def test_select_mixes_messages_with_strings_and_makes_the_file_again() -> None:
    """OpenThoughts has messages, DeepMath strings, and HelpSteer3 both: the strings become messages."""
    names = ["openthoughts3", "deepmath", "helpsteer3"]
    sources = [part for name in names for part in ("--source", CASES[name][1] or "sharegpt")]
    shares = [part for name in names for part in ("--proportion", f"{Path(CASES[name][0]()).name}=1")]
    run(*(CASES[name][0]() for name in names), *sources, *shares, "--selector", "all", "--output", "both.jsonl")
    groups = {group["prompt"][0]["content"]: group for group in load_groups("both.jsonl")}
    assert set(groups) >= {"2 + 2?", "Hi"}
    assert all(pool[0]["role"] == "assistant" for group in groups.values() for pool in group["responses"])
    math = next(
        group
        for group in groups.values()
        if len(group["responses"]) == 3 and group["responses"][0][0]["content"] == "s1"
    )
    assert math["prompt"] == [user("2 + 2?")]
    assert groups["Hi"]["responses"] == [[assistant("Hello.")], [assistant("No.")]]
    run("--from-manifest", str(manifest_path("both.jsonl")), "--output", "again.jsonl")
    assert Path("again.jsonl").read_bytes() == Path("both.jsonl").read_bytes()


@pytest.mark.axolotl
@pytest.mark.parametrize("name", ["openthoughts3", "open_math_reasoning", "oasst2"])
def test_a_recipe_reads_a_pool_by_id(name: str, read_recipe: Callable[..., Any]) -> None:
    from axolotl.common.datasets import load_datasets

    make, source, split, sizes, _ = CASES[name]
    entry = {"path": make(), "split": split, "type": "mrt_plugin.axolotl.all"}
    block = {"source": source} if source else {}
    rows = load_datasets(cfg=read_recipe(datasets=[entry], mrt=block)).train_dataset
    assert sorted(len(row["segment_units"]) for row in rows) == sizes


@pytest.mark.axolotl
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_recipe_reads_a_table(ending: str, read_recipe: Callable[..., Any]) -> None:
    """The answers are numbers, which Axolotl's own reader would not leave as text."""
    from axolotl.common.datasets import load_datasets

    mark = "," if ending == "csv" else "\t"
    lines = ["prompt completion score", "2+2? 4 true", "2+2? 5 false", "3+3? 6 1"]
    Path(f"pool.{ending}").write_text("".join(line.replace(" ", mark) + "\n" for line in lines))
    entry = {"path": f"pool.{ending}", "ds_type": "csv", "type": "mrt_plugin.axolotl.best_k"}
    rows = load_datasets(cfg=read_recipe(datasets=[entry], mrt={"k": 1})).train_dataset
    assert [len(row["segment_units"]) for row in rows] == [1, 1]
