"""Mixing by category: what a prompt's category is, what is drawn, and what the ledger says."""

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from helpers.cli import CliRunner
from helpers.endpoint_server import serve
from hypothesis import given
from hypothesis import strategies as st

from mrt_plugin import load_groups
from mrt_plugin.cli import app
from mrt_plugin.curation import curate
from mrt_plugin.curation.categories import (
    DEFAULT_FILE,
    PRESET,
    MixCategories,
    category_of,
    entropy,
    read_categories,
)
from mrt_plugin.curation.config import parse_rules
from mrt_plugin.groups import DataError
from mrt_plugin.groups.manifest import manifest_path
from mrt_plugin.sampling import Endpoint, sample_pool

PROMPTS = {
    "code": ["Write a python function that adds two numbers.", "Fix this: ```x = 1```", "What does SELECT do in SQL?"],
    "reasoning": ["How many pens are in 4 boxes of 8?", "Prove that 2 is prime.", r"Find $\frac{1}{2}$ of 9."],
    "dialogue": ["Hello there!", "Pretend to be a pirate.", "Hi, how are you?"],
    "instructions": ["Name a river.", "Summarise the text.", "Translate 'bread' into French."],
}
SIZES = {"reasoning": 60, "instructions": 20, "dialogue": 10, "code": 30}


def rows(sizes: dict[str, int] = SIZES, **more: Any) -> list[dict[str, Any]]:
    return [
        {"prompt": f"{PROMPTS[name][number % 3]} ({name} {number})", "responses": ["a", "b"], "category": name, **more}
        for name, size in sizes.items()
        for number in range(size)
    ]


def jsonl(path: Path, items: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return str(path)


def counts(groups: Dataset) -> Counter[str]:
    return Counter(groups["category"])


class TestCategories:
    @pytest.mark.parametrize(("name", "prompt"), [(name, prompt) for name, all_ in PROMPTS.items() for prompt in all_])
    def test_the_file_of_the_package(self, name: str, prompt: str) -> None:
        categories = read_categories(DEFAULT_FILE)
        assert {one.name for one in categories} == set(PRESET)
        assert category_of(prompt, categories) == name
        assert category_of([{"role": "user", "content": prompt}], categories) == name

    def test_a_conversation_with_an_earlier_turn_is_dialogue(self) -> None:
        turns = [{"role": "user", "content": "Name a river."}, {"role": "assistant", "content": "The Elbe."}]
        categories = read_categories(DEFAULT_FILE)
        assert category_of([*turns, {"role": "user", "content": "Another?"}], categories) == "dialogue"

    def test_a_file_of_the_users(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text("rivers: ['river']\nlong talks: {turns: 3}\n")
        categories = read_categories(path)
        assert category_of("Name a RIVER.", categories) == "rivers"
        assert category_of("Name a lake.", categories) is None
        path.write_text("lakes: ['lake']\n")
        assert category_of("Name a lake.", read_categories(path)) == "lakes"  # read again after a change

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("- code\n", "write a category per line"),
            ("", "write a category per line"),
            ("code: [\n", "not YAML"),
            ("code: 3\n", "code: give it a list of patterns"),
            ("code: {words: [a]}\n", "code: give it a list of patterns"),
            ("code: [3]\n", "must be a list of strings"),
            ("code: ['(']\n", "is no regular expression"),
            ("code: {turns: 0}\n", "must be a whole number from 1"),
            ("rest: {}\ncode: [a]\n", "rest takes all the rest"),
        ],
    )
    def test_files_that_say_nothing(self, text: str, words: str, tmp_path: Path) -> None:
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(ValueError, match=words):
            parse_rules([{"mix_categories": {"by": str(tmp_path / "mine.yaml")}}])

    def test_a_file_that_is_not_there(self) -> None:
        with pytest.raises(ValueError, match="there is no such file"):
            parse_rules([{"mix_categories": {"by": "gone.yaml"}}])

    @given(st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(any))
    def test_entropy(self, sizes: list[int]) -> None:
        drawn = [number for number, size in enumerate(sizes) for _ in range(size)]
        direct = sum(math.log2(len(drawn) / sizes[number]) for number in drawn) / len(drawn)
        assert entropy(dict(enumerate(map(int, sizes)))) == pytest.approx(direct, abs=1e-12)  # type: ignore[arg-type]


class TestTheRule:
    @pytest.mark.parametrize("by", ["column", "default"])
    def test_the_preset(self, by: str, tmp_path: Path) -> None:
        groups = load_groups(jsonl(tmp_path / "pool.jsonl", rows()))
        curated = curate(groups, [{"mix_categories": {"by": by, "max_repeats": 1}}])
        # The fewest against their share are the 10 of dialogue: 50 groups are 20 % of them.
        assert counts(curated.groups) == {"reasoning": 17, "instructions": 15, "dialogue": 10, "code": 8}
        (entry,) = curated.ledger.entries
        assert entry.reasons == {
            "drop: reasoning beyond its share": 43,
            "drop: instructions beyond its share": 5,
            "drop: code beyond its share": 22,
        }
        before, after = entry.notes
        assert before == (
            "categories before: code 25.0%, dialogue 8.3%, instructions 16.7%, reasoning 50.0%; entropy 1.73 bits"
        )
        assert "code 16.0%, dialogue 20.0%, instructions 30.0%, reasoning 34.0%; entropy 1.94 bits" in after
        assert sum(f"mix_categories: {note}" in curated.ledger.lines() for note in entry.notes) == 2

    def test_repeats_and_a_total(self, tmp_path: Path) -> None:
        groups = load_groups(jsonl(tmp_path / "pool.jsonl", rows()))
        curated = curate(groups, [{"mix_categories": {"by": "column", "total": 100}}])
        assert counts(curated.groups) == {"reasoning": 35, "instructions": 30, "dialogue": 20, "code": 15}
        assert curated.ledger.entries[0].groups_added == 10 + 10
        assert len(set(curated.groups["id"])) == 100
        with pytest.raises(ValueError, match="a mix of 100 groups with 30.0% from instructions needs 30"):
            curate(groups, [{"mix_categories": {"by": "column", "total": 100, "max_repeats": 1}}])

    def test_the_draw_depends_on_the_seed_and_not_on_the_order(self, tmp_path: Path) -> None:
        groups = load_groups(jsonl(tmp_path / "pool.jsonl", rows()))
        again = load_groups(jsonl(tmp_path / "other.jsonl", rows()[::-1]))
        rule = [{"mix_categories": {"by": "column", "max_repeats": 1}}]
        chosen = [
            set(curate(one, rule, seed=seed).groups["id"]) for one, seed in ((groups, 1), (again, 1), (groups, 2))
        ]
        assert chosen[0] == chosen[1] != chosen[2]

    def test_categories_without_a_share_or_a_name_are_dropped_and_counted(self, tmp_path: Path) -> None:
        sizes = {"reasoning": 4, "code": 4, "dialogue": 3}
        items = [*rows(sizes), {"prompt": "a", "responses": ["b"], "category": None}]
        groups = load_groups(jsonl(tmp_path / "pool.jsonl", items))
        curated = curate(groups, [{"mix_categories": {"by": "column", "shares": {"reasoning": 1, "code": 1}}}])
        assert counts(curated.groups) == {"reasoning": 4, "code": 4}
        assert curated.ledger.entries[0].reasons == {
            "drop: dialogue has no share": 3,
            "drop: no category has no share": 1,
        }

    def test_what_cannot_be_mixed(self, tmp_path: Path) -> None:
        groups = load_groups(jsonl(tmp_path / "pool.jsonl", rows({"reasoning": 4, "code": 4})))
        with pytest.raises(ValueError, match=r"of the category instructions or dialogue; there are reasoning \(4\)"):
            curate(groups, [{"mix_categories": {"by": "column"}}])
        with pytest.raises(ValueError, match="needs groups with a column `category`"):
            curate(groups.remove_columns("category"), [{"mix_categories": {"by": "column"}}])
        with pytest.raises(ValueError, match="at least 0 and not all 0"):
            parse_rules([{"mix_categories": {"shares": {"code": -1, "reasoning": 1}}}])

    def test_it_depends_on_its_file(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text("rivers: ['river']\nrest: {}\n")
        assert MixCategories(by=str(path), shares={"rivers": 1}).dependencies() == [path]
        assert MixCategories().dependencies() == [DEFAULT_FILE]


class TestTheColumn:
    def test_of_flat_rows_and_of_groups(self, tmp_path: Path) -> None:
        flat = [{"prompt": "a", "completion": text, "category": "code"} for text in "bc"]
        groups = load_groups(jsonl(tmp_path / "flat.jsonl", [*flat, {"prompt": "d", "completion": "e"}]))
        assert groups["category"][:] == ["code", None]
        assert (
            "category"
            not in load_groups(jsonl(tmp_path / "none.jsonl", [{"prompt": "a", "responses": ["b"]}])).features
        )

    def test_any_source_reads_it_from_a_field(self, tmp_path: Path) -> None:
        folder = Path(__file__).parent / "data" / "sources"
        for name, field, found in (
            ("sharegpt", "domain", ["math", "code"]),
            ("helpsteer3", "domain", ["general", "code", "stem"]),
            ("oasst2", "tree_state", ["ready_for_export"] * 4),
        ):
            assert load_groups(folder / f"{name}.jsonl", source=f"{name}:category={field}")["category"][:] == found
        path = jsonl(tmp_path / "mine.jsonl", [{"q": "a", "a": ["b", "c"], "meta": {"kind": 3}}])
        assert load_groups(path, source="fields:prompt=q,responses=a,category=meta.kind")["category"][:] == ["3"]
        with pytest.raises(DataError, match="`meta` has no `topic`; it has `kind`"):
            load_groups(path, source="fields:prompt=q,responses=a,category=meta.topic")

    @pytest.mark.parametrize(("value", "words"), [(["a"], "a list; it must be a string"), ("\ud83d", "surrogate")])
    def test_values_that_are_none(self, value: Any, words: str, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=f"column `category`: .*{words}"):
            load_groups(
                jsonl(tmp_path / "pool.jsonl", [*rows({"code": 1}), {**rows({"code": 1})[0], "category": value}])
            )
        late = [{"prompt": "a", "responses": ["b"]}, *rows({"code": 1})]
        with pytest.raises(DataError, match="not in the first group"):
            load_groups(jsonl(tmp_path / "late.jsonl", late))

    def test_it_survives_an_extended_pool(self, tmp_path: Path) -> None:
        pool = jsonl(tmp_path / "pool.jsonl", rows({"code": 2, "dialogue": 1}))
        with serve() as server:
            sample_pool(pool, Endpoint(server.url, "tiny"), tmp_path / "more.jsonl", n=4, extend=True)
        groups = load_groups(tmp_path / "more.jsonl")
        assert groups["category"][:] == ["code", "code", "dialogue"]
        assert all(len(responses) > 2 for responses in groups["responses"])


class TestInAJob:
    def test_select_reports_the_entropies(self, tmp_path: Path) -> None:
        pool, output = jsonl(tmp_path / "pool.jsonl", rows()), tmp_path / "chosen.jsonl"
        options = [
            "--selector",
            "random_k",
            "--k",
            "1",
            "--curation",
            "[{mix_categories: {by: column, max_repeats: 1}}]",
        ]
        done = CliRunner().invoke(app, ["select", pool, "--output", str(output), *options, "--stats"])
        assert done.exit_code == 0, done.output
        shown = " ".join(done.output.split())
        assert "entropy 1.73 bits" in shown
        assert "entropy 1.94 bits" in shown
        assert "entropy of the task types:" in shown
        assert counts(load_groups(output)) == {"reasoning": 17, "instructions": 15, "dialogue": 10, "code": 8}
        header = json.loads(manifest_path(output).read_text().splitlines()[0])
        (rule,) = [entry for entry in header["ledger"]["entries"] if entry["rule"] == "mix_categories"]
        assert len(rule["notes"]) == 2
        again = tmp_path / "again.jsonl"
        done = CliRunner().invoke(
            app, ["select", "--from-manifest", str(manifest_path(output)), "--output", str(again)]
        )
        assert done.exit_code == 0, done.output
        assert again.read_bytes() == output.read_bytes()

    @pytest.mark.axolotl
    def test_a_recipe(self, tmp_path: Path, read_recipe: Callable[..., Any]) -> None:
        from axolotl.common.datasets import load_datasets

        pool = jsonl(tmp_path / "mixed.jsonl", rows())
        (tmp_path / "mine.yaml").write_text("code: ['python', '```', 'SQL']\nrest: {}\n")
        entry = {"path": pool, "ds_type": "json", "type": "mrt_plugin.axolotl.all"}
        rule = {"mix_categories": {"by": "mine.yaml", "shares": {"code": 0.5, "rest": 0.5}, "max_repeats": 1}}
        cfg = read_recipe(datasets=[entry], mrt={"curation": [rule]})
        assert len(load_datasets(cfg=cfg).train_dataset) == 60
        (ledger,) = (Path(cfg.output_dir) / "mrt_curation").glob("*.json")
        (found,) = json.loads(ledger.read_text())["entries"]
        assert "code 50.0%, rest 50.0%; entropy 1.00 bits" in found["notes"][1]
