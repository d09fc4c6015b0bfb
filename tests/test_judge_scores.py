"""A judge as scorer: a real HTTP server that answers well, with nonsense, with nothing, and with errors."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from helpers.cli import CliRunner
from helpers.judge_server import serve_judge
from helpers.selecting import write_lines

from mrt_plugin import load_groups, select
from mrt_plugin.cli import app
from mrt_plugin.endpoint import EndpointError, EndpointOptions
from mrt_plugin.scoring import Judge, parse_judge, score_groups
from mrt_plugin.scoring.judge import is_judge
from mrt_plugin.scoring.judge_run import ask, cost_of_scores, journal_file, judge_cost

GOOD = "It is right.\n\nScore: {}"


def rows(count: int = 6) -> list[dict[str, Any]]:
    """Each group has responses of 0 to 3 times `word`."""
    numbers = range(count)
    return [
        {"prompt": f"Question {n}?", "responses": [f"answer {n} " + "word " * k for k in range(4)]} for n in numbers
    ]


def groups(count: int = 6) -> Dataset:
    return load_groups(Dataset.from_list(rows(count)))


def judge_of(server: Any, **more: Any) -> Judge:
    endpoint = EndpointOptions(backoff=0.01, concurrency=4, **more.pop("endpoint", {}))
    return Judge(url=server.url, model="judge", endpoint=endpoint, **more)


def by_length(prompt: str, responses: list[str]) -> str:
    return GOOD.format(1 + responses[0].count("word"))


class TestNames:
    def test_which_names_are_judges(self) -> None:
        assert is_judge("judge:large@http://localhost:8000/v1")
        assert is_judge("judge:my/judge.yaml")
        assert not is_judge("judge:score")  # the function `score` of a module `judge`
        assert not is_judge("path/to/reward-model")
        assert not is_judge("judges.py:score")

    def test_the_model_may_hold_signs_of_its_own(self) -> None:
        found = parse_judge("judge:org/qwen3:8b@v2@https://host/v1")
        assert (found.model, found.url) == ("org/qwen3:8b@v2", "https://host/v1")

    @pytest.mark.parametrize("name", ["judge:large", "judge:http://localhost/v1", "judge:", "judge:@"])
    def test_others_are_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match="names no judge: write judge:MODEL@http"):
            parse_judge(name)

    def test_a_file_describes_it(self, tmp_path: Path) -> None:
        (tmp_path / "question.txt").write_text("Rate {response} to {prompt} from {lowest} to {highest}.")
        lines = ["url: http://localhost/v1", "model: large", "prompt: question.txt", "lowest: 0", "highest: 5"]
        (tmp_path / "judge.yaml").write_text("\n".join([*lines, "concurrency: 2", "extra: {top_k: 1}"]))
        found = parse_judge(f"judge:{tmp_path / 'judge.yaml'}", max_calls=7)
        assert found.ask_score("P {response}", "R") == "Rate R to P {response} from 0 to 5."
        assert (found.endpoint.concurrency, found.endpoint.extra, found.max_calls) == (2, {"top_k": 1}, 7)

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            ("url: http://h/v1", "`model` is missing"),
            ("url: http://h/v1\nmodel: m\nmaxcalls: 3", "did you mean max_calls"),
            ("url: http://h/v1\nmodel: m\nlowest: 5\nhighest: 5", "scale from 5 to 5 is empty"),
            ("url: http://h/v1\nmodel: m\nattempts: 0", "attempts=0 must be at least 1"),
            ("url: http://h/v1\nmodel: m\nprompt: nowhere.txt", "no file .*nowhere.txt"),
            ("url: http://h/v1\nmodel: m\nprompt: bad.txt", r"lacks \{response\}"),
            ("just text", "write `url`, `model`"),
        ],
    )
    def test_mistakes_in_a_file(self, tmp_path: Path, lines: str, message: str) -> None:
        (tmp_path / "bad.txt").write_text("Only {prompt}")
        (tmp_path / "judge.yaml").write_text(lines)
        with pytest.raises(ValueError, match=message):
            parse_judge(f"judge:{tmp_path / 'judge.yaml'}")


class TestReading:
    @pytest.mark.parametrize(
        ("answer", "score"),
        [
            ("Good.\nScore: 7", 7),
            ("**Score: 7**", 7),
            ("**Score:** 7/10", 7),
            ("score: 7.5.", 7.5),
            ("Score: 3\nOn reflection:\nScore: 8", 8),
            ("<think>Score: 2\nmaybe 3</think>\nScore: 9", 9),
            ("6", 6),
            ("Score: 11", None),
            ("Score: -3", None),
            ("Score: high", None),
            ("I counted\n7\nwords and stopped", None),
            ("It scores well: 7 points, I would say.", None),
            ("", None),
        ],
    )
    def test_scores(self, answer: str, score: float | None) -> None:
        assert parse_judge("judge:m@http://h/v1").read_score(answer) == score

    @pytest.mark.parametrize(
        ("answer", "verdict"),
        [
            ("Both.\nVerdict: A", "A"),
            ("**Verdict: b**", "B"),
            ("Verdict: tie.", "tie"),
            ("B", "B"),
            ("Verdict: A\nNo:\nVerdict: B", "B"),
            ("Verdict: C", None),
            ("A is better", None),
            ("Verdict: A is better", None),
            ("", None),
        ],
    )
    def test_verdicts(self, answer: str, verdict: str | None) -> None:
        assert parse_judge("judge:m@http://h/v1").read_verdict(answer) == verdict

    def test_a_text_with_placeholders_is_not_filled_in_again(self) -> None:
        question = parse_judge("judge:m@http://h/v1").ask_pair("Say {response_b}", "one {prompt}", "two")
        assert "Say {response_b}" in question
        assert "one {prompt}" in question
        assert question.count("two\n") == 1

    def test_turns_are_shown_with_their_roles(self) -> None:
        prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
        asked = parse_judge("judge:m@http://h/v1").ask_score(prompt, [{"role": "assistant", "content": ""}])
        assert "[system]\nBe brief.\n\n[user]\nWhy?" in asked
        assert "(an empty response)" in asked


class TestScores:
    def test_they_are_the_judges_and_asked_once(self, tmp_path: Path) -> None:
        with serve_judge(by_length) as server:
            scored = score_groups(groups(), judge_of(server), score_cache=tmp_path)
            assert scored["scores"][:] == [[1, 2, 3, 4]] * 6
            assert len(server.asked) == 24
            assert server.asked[0]["temperature"] == 0
            again = score_groups(groups(8), judge_of(server), score_cache=tmp_path)
            assert again["scores"][:] == [[1, 2, 3, 4]] * 8
            assert len(server.asked) == 32  # two new groups of four

    def test_a_selection_by_name(self, tmp_path: Path) -> None:
        with serve_judge(by_length) as server:
            name = f"judge:judge@{server.url}"
            chosen = select(groups(), "best_k", k=1, scorer=name, score_cache=str(tmp_path))
        assert [len(row[0].split()) for row in chosen["responses"]] == [5] * 6

    def test_it_is_compared_with_scores_and_functions(self, tmp_path: Path, caplog: Any) -> None:
        caplog.set_level(logging.INFO, "mrt_plugin")
        table = groups().add_column("scores", [[1.0, 2.0, 4.0, 3.0]] * 6)
        with serve_judge(by_length) as server:
            score_groups(
                table, [judge_of(server), lambda prompt, given: [-len(text) for text in given]], score_cache=tmp_path
            )
        assert "agrees with the column `scores`: rank correlation 0.80 (Spearman) and 0.67 (Kendall)" in caplog.text
        assert "rank correlation -1.00 (Spearman)" in caplog.text

    @pytest.mark.parametrize("failure", ["500", "429", "garbage", "reset"])
    def test_failures_are_retried(self, tmp_path: Path, failure: str) -> None:
        with serve_judge(by_length) as server:
            server.behave = lambda number, body: failure if number % 3 == 0 else "ok"
            assert score_groups(groups(2), judge_of(server), score_cache=tmp_path)["scores"][:] == [[1, 2, 3, 4]] * 2

    def test_a_stopped_run_goes_on(self, tmp_path: Path) -> None:
        with serve_judge(by_length) as server:
            server.behave = lambda number, body: "ok" if number < 5 else "500"
            with pytest.raises((EndpointError, RuntimeError), match="same command goes on"):
                score_groups(groups(), judge_of(server, endpoint={"retries": 0}), score_cache=tmp_path)
            server.behave = lambda number, body: "ok"
            before = len(server.asked)
            assert score_groups(groups(), judge_of(server), score_cache=tmp_path)["scores"][:] == [[1, 2, 3, 4]] * 6
            assert len(server.asked) - before == 24 - 5

    @pytest.mark.parametrize("answer", ["", "What a lovely day.", "Score: 99"])
    def test_a_judge_that_answers_nonsense_or_nothing_is_refused(self, tmp_path: Path, answer: str) -> None:
        with serve_judge(lambda prompt, responses: answer) as server:
            with pytest.raises(ValueError, match="24 of 24 answers are unreadable"):
                score_groups(groups(), judge_of(server), score_cache=tmp_path)
            assert len(server.asked) == 48  # each was asked twice

    def test_some_unreadable_answers_are_neutral_and_counted(self, tmp_path: Path, caplog: Any) -> None:
        def opinion(prompt: str, responses: list[str]) -> str:
            return "Hm." if prompt == "Question 1?" and "word" not in responses[0] else by_length(prompt, responses)

        with serve_judge(opinion) as server:
            found = score_groups(groups(), judge_of(server), score_cache=tmp_path)["scores"][:]
        assert found[1] == [3, 2, 3, 4]  # the mean of the others
        assert found[0] == [1, 2, 3, 4]
        assert "1 of 24 answers are unreadable. For example: 'Hm.'" in caplog.text

    def test_a_second_answer_may_be_readable(self, tmp_path: Path) -> None:
        asked: dict[str, int] = {}

        def opinion(prompt: str, responses: list[str]) -> str:
            asked[prompt + responses[0]] = asked.get(prompt + responses[0], 0) + 1
            return "Hm." if asked[prompt + responses[0]] == 1 else by_length(prompt, responses)

        with serve_judge(opinion) as server:
            assert score_groups(groups(), judge_of(server), score_cache=tmp_path)["scores"][:] == [[1, 2, 3, 4]] * 6
            assert len({body["seed"] for body in server.asked}) == 48

    def test_rejected_questions_are_counted(self, tmp_path: Path, caplog: Any) -> None:
        with serve_judge(by_length) as server:
            server.behave = lambda number, body: "400" if "answer 2 word word word" in str(body) else "ok"
            judge = judge_of(server, endpoint={}, max_unreadable=0.2)
            found = score_groups(groups(), judge, score_cache=tmp_path)["scores"][:]
        assert found[2] == [1, 2, 3, 2]
        assert "1 questions were rejected" in caplog.text


class TestCost:
    def test_it_is_known_before_and_exact(self, tmp_path: Path) -> None:
        with serve_judge(by_length) as server:
            judge = judge_of(server, attempts=1, max_tokens=50)
            (cost,) = cost_of_scores([judge], groups(), tmp_path).values()
            assert (cost.questions, cost.answered, cost.calls, cost.answer_tokens) == (24, 0, 24, 24 * 50)
            assert server.asked == []
            score_groups(groups(), judge, score_cache=tmp_path)
            assert len(server.asked) == 24
            sent = [len(body["messages"][0]["content"].encode()) for body in server.asked]
            assert cost.prompt_tokens == sum(-(-size // 4) for size in sent)
            (after,) = cost_of_scores([judge], groups(8), tmp_path).values()
            assert (after.questions, after.answered, after.calls) == (32, 24, 8)

    def test_too_many_questions_are_refused_before_the_first(self, tmp_path: Path) -> None:
        with serve_judge(by_length) as server:
            with pytest.raises(ValueError, match="24 questions are to be asked, and at most 23 calls are allowed"):
                score_groups(groups(), judge_of(server, max_calls=23), score_cache=tmp_path)
            assert server.asked == []

    def test_retries_count(self, tmp_path: Path) -> None:
        with serve_judge(by_length) as server:
            server.behave = lambda number, body: "500" if number < 10 else "ok"
            with pytest.raises(EndpointError, match="30 requests were made, which is the limit"):
                score_groups(groups(), judge_of(server, max_calls=30), score_cache=tmp_path)
            assert len(server.asked) == 30

    def test_what_was_asked_before_the_limit_is_kept(self, tmp_path: Path) -> None:
        def behave(number: int, body: dict[str, Any]) -> str:
            """Keep three of the first four requests waiting until the others are done."""
            if number in (0, 1, 2):
                time.sleep(0.5)
            return "500" if number == 3 else "ok"

        with serve_judge(by_length) as server:
            server.behave = behave
            with pytest.raises(EndpointError, match="24 requests were made, which is the limit"):
                score_groups(groups(), judge_of(server, max_calls=24), score_cache=tmp_path)
            assert len(server.asked) == 24
        with serve_judge(by_length) as server:
            score_groups(groups(), judge_of(server), score_cache=tmp_path)
            assert len(server.asked) == 1  # the one that was left

    def test_equal_questions_are_asked_once(self, tmp_path: Path) -> None:
        with serve_judge(by_length) as server:
            judge = judge_of(server)
            questions = [judge.ask_score("Why?", response) for response in ("one", "two", "one")]
            assert judge_cost(judge, questions, tmp_path).questions == 2
            server.behave = lambda number, body: "say 400 no"
            with pytest.raises(RuntimeError, match="2 answers could not be had"):
                ask(judge, lambda: questions, judge.read_score, tmp_path)
            assert len(server.asked) == 2

    def test_the_key_is_in_no_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("JUDGE_KEY", "sk-secret-0123456789abcdef")
        with serve_judge(by_length) as server:
            judge = judge_of(server, endpoint={"api_key_env": "JUDGE_KEY"})
            score_groups(groups(2), judge, score_cache=tmp_path)
            assert server.headers[0]["Authorization"] == "Bearer sk-secret-0123456789abcdef"
        assert "sk-secret" not in journal_file(judge, tmp_path).read_text()


def test_a_changed_question_prepares_axolotls_data_anew(tmp_path: Path, tiny_model_dir: str) -> None:
    from mrt_plugin.axolotl.fingerprint import recipe_fingerprint

    (tmp_path / "question.txt").write_text("Rate {response} to {prompt}.")
    (tmp_path / "judge.yaml").write_text("url: http://127.0.0.1:9/v1\nmodel: large\nprompt: question.txt")
    block = {"scorer": f"judge:{tmp_path / 'judge.yaml'}"}
    found = [recipe_fingerprint({"base_model": tiny_model_dir}, block) for _ in range(2)]
    (tmp_path / "question.txt").write_text("Rate {response} to {prompt}, and be strict.")
    assert found[0] == found[1] != recipe_fingerprint({"base_model": tiny_model_dir}, block)


class TestCommand:
    def run(self, *arguments: Any) -> Any:
        return CliRunner().invoke(app, ["select", *map(str, arguments)])

    def test_select(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MRT_CACHE", str(tmp_path / "cache"))
        pool = write_lines(tmp_path / "pool.jsonl", rows())
        with serve_judge(by_length) as server:
            name, output = f"judge:judge@{server.url}", tmp_path / "chosen.jsonl"
            how = [pool, "--output", output, "--selector", "best_k", "--k", 1, "--scorer", name]
            dry = self.run(*how, "--dry-run")
            assert dry.exit_code == 0, dry.output
            assert "24 questions, at most 48 calls" in dry.output
            assert server.asked == []
            assert not output.exists()
            refused = self.run(*how, "--max-calls", 3)
            assert refused.exit_code == 1
            assert "at most 3 calls are allowed" in refused.output
            done = self.run(*how, "--max-calls", 24)
            assert done.exit_code == 0, done.output
            assert len(server.asked) == 24
        chosen = [json.loads(line) for line in output.read_text().splitlines()]
        assert [len(row["responses"][0].split()) for row in chosen] == [5] * 6
        header = json.loads((tmp_path / "chosen.jsonl.manifest.jsonl").read_text().splitlines()[0])
        assert header["scorers"] == [name]

    def test_options_that_change_nothing(self, tmp_path: Path) -> None:
        pool = write_lines(tmp_path / "pool.jsonl", [{"prompt": "a", "responses": ["b", "c"]}])
        found = self.run(pool, "--output", tmp_path / "o.jsonl", "--dry-run")
        assert found.exit_code == 1
        assert "it needs --scorer judge:MODEL@URL" in found.output

    def test_a_wrong_name(self, tmp_path: Path) -> None:
        pool = write_lines(tmp_path / "pool.jsonl", [{"prompt": "a", "responses": ["b", "c"]}])
        found = self.run(pool, "--output", tmp_path / "o.jsonl", "--scorer", "judge:large@localhost")
        assert found.exit_code == 1
        assert "names no judge" in found.output
