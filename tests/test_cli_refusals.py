"""The command line refuses what it can before anything slow: no data is read, no model loaded, no torch imported."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer

from mrt_plugin.cli import app
from mrt_plugin.cli.option import ALONE, COMMANDS
from mrt_plugin.options import NEEDS

GROUP: Any = typer.main.get_command(app)

RUN = """
import json, sys
from helpers.cli import CliRunner
from mrt_plugin.cli import app
done = []
for arguments in json.loads(sys.stdin.read()):
    result = CliRunner(env={"COLUMNS": "1000"}).invoke(app, arguments)
    done.append([result.exit_code, result.output, "torch" in sys.modules])
print(json.dumps(done))
"""

REFUSED: list[tuple[str, str]] = [
    # values
    ("select pool.jsonl --output o.jsonl --alpha nan", "'--alpha': nan must be a finite number, at least 0"),
    ("select pool.jsonl --output o.jsonl --weight-temperature nan", "'--weight-temperature': nan must be a finite"),
    ("select pool.jsonl --output o.jsonl --weight-temperature 0", "'--weight-temperature': 0.0 must be"),
    ("select pool.jsonl --output o.jsonl --held-out 0.1 --held-out-threshold 5", "above 0 and at most 1"),
    ("select pool.jsonl --output o.jsonl --held-out 1.5", "'--held-out': 1.5 must be a finite number, above 0 and"),
    ("select pool.jsonl --output o.jsonl --allocation adaptive --mean-k inf", "'--mean-k': inf must be a finite"),
    ("select pool.jsonl --output o.jsonl --k 0", "'--k'"),
    ("select pool.jsonl --output o.jsonl --similarity near", "'near' is not one of 'paper', 'rescaled'"),
    ("select pool.jsonl --output o.jsonl --engine spark", "'spark' is not one of 'local', 'ray'"),
    ("select pool.jsonl --output o.jsonl --selector best", "selector='best' is unknown: choose one of random_k"),
    ("select pool.jsonl --output o.jsonl --selector mine.py:f", "'--selector': there is no such file: mine.py"),
    ("select pool.jsonl --output o.jsonl --source necter", "source='necter' is unknown. Did you mean 'nectar'?"),
    ("select pool.jsonl --output o.jsonl --proportion pool=nan", "proportions must be at least 0"),
    ("select pool.jsonl --output o.jsonl --proportion pol=1", "proportions are given for pol, and the datasets are"),
    ("sample pool.jsonl --model m --top-p 1.5", "'--top-p': 1.5 must be a finite number, above 0 and at most 1"),
    ("sample pool.jsonl --model m --temperature nan", "'--temperature': nan must be"),
    ("sample pool.jsonl --endpoint http://localhost/v1 --timeout inf", "'--timeout': inf must be"),
    ("sample pool.jsonl --endpoint http://localhost/v1 --api talk", "'talk' is not one of 'chat', 'completions'"),
    ("sample pool.jsonl --output out.jsonl --endpoint http://localhost/v1 --extra [1]", "is not JSON as in"),
    ("plan pool.jsonl --model m --budget double", "'--budget': budget='double' is neither a number of tokens"),
    ("plan pool.jsonl --model m --budget nanx", "'--budget': budget='nanx'"),
    ("plan pool.jsonl --model m --layout packed", "'packed' is not one of 'shared_prefix', 'expanded'"),
    ("plan pool.jsonl --p nan", "'--p': nan must be"),
    ("audit pool.jsonl --pool pool.jsonl --selector diverse_best_k --alpha -1", "'--alpha': -1.0 must be"),
    ("audit pool.jsonl --pool pool.jsonl --model m --loss-aggregation mean", "'mean' is not one of 'token'"),
    ("evaluate --data pool.jsonl --model m --at 1,two", "--at 1,two: write numbers with commas"),
    ("evaluate --data pool.jsonl --model m --backoff 0", "'--backoff': 0.0 must be"),
    ("augment pool.jsonl --data pool.jsonl --output o.jsonl --threshold 2", "'--threshold': 2.0 must be"),
    ("grid pool.jsonl --tokenizer t --k 1,0", "--k 1,0: give whole numbers of at least 1"),
    ("grid pool.jsonl --tokenizer t --arm equal", "--arm 'equal' is unknown"),
    ("grid pool.jsonl --cost-prompt 1", "Give --cost-prompt and --cost-response together."),
    ("grid pool.jsonl --axis selectr=random_k", "'selectr' is no option to vary: did you mean selector?"),
    ("grid pool.jsonl --annotations 0", "--annotations 0: give whole numbers of responses"),
    ("grid pool.jsonl --annotations 12 --duration weeks", "--duration weeks: choose of epochs, steps."),
    ("select pool.jsonl --output o.jsonl --scorer judge:large", "'judge:large' names no judge"),
    ("select pool.jsonl --output o.jsonl --scorer judge:large@localhost", "names no judge: write judge:MODEL@http"),
    ("select pool.jsonl --output o.jsonl --scorer judge:j.yaml", "there is no file j.yaml"),
    ("evaluate --data pool.jsonl --model model --judge large", "names no judge"),
    ("reward-model pool.jsonl --model model --share 1", "'--share': 1.0 must be"),
    ("bench --prefix-backend flash", "prefix_backend='flash' is unknown: choose one of auto, flex"),
    ("bench --plot out.jpg", "'--plot': out.jpg must end in one of .png, .svg, .pdf"),
    ("bench --dtype half", "'half' is not one of 'auto', 'float32', 'bfloat16'"),
    # places
    ("select pol.jsonl --output o.jsonl", "there is no such file: pol.jsonl; did you mean pool.jsonl?"),
    ("select pool.jsonl --output o.jsonl --selector diverse_k --embedder ./modle", "did you mean model?"),
    (
        "select pool.jsonl --output o.jsonl --scorer rewards.py:score",
        "there is no such file: rewards.py; did you mean",
    ),
    ("select pool.jsonl --output o.jsonl --stats --tokenizer ./modle", "'--tokenizer': there is no folder ./modle"),
    ("select --from-manifest o.manifest.jsonl --output o.jsonl", "there is no such file: o.manifest.jsonl."),
    ("sample pool.jsonl --output out.jsonl --model ./modle", "there is no folder ./modle; did you mean model?"),
    ("sample promts.txt --model model", "there is no such file: promts.txt; did you mean prompts.txt?"),
    ("sample pool.jsonl --model model --adapter model", "the folder model has no adapter_config.json"),
    ("plan pool.jsonl --model ./modle", "'--model': there is no folder ./modle; did you mean model?"),
    ("plan pool.jsonl --model a/b/c", "'--model': there is no folder a/b/c."),
    ("plan pool.jsonl --model empty", "the folder empty has no config.json"),
    ("audit pool.jsonl --pool pol.jsonl", "'--pool': there is no such file: pol.jsonl; did you mean pool.jsonl?"),
    ("evaluate --data pool.jsonl --model ./modle", "there is no folder ./modle; did you mean model?"),
    (
        "evaluate --data pool.jsonl --model model+outputs/rum",
        "there is no folder outputs/rum; did you mean outputs/run?",
    ),
    ("evaluate --data pool.jsonl --pool a=samples.jsonl", "there is no such file: samples.jsonl."),
    ("evaluate --data pool.jsonl --model model --lm-eval x --lm-eval-include tasks", "there is no folder tasks."),
    ("grid --recipe recipe.yml", "there is no such file: recipe.yml; did you mean recipe.yaml?"),
    ("grid --results runs.jsonl", "there is no such file: runs.jsonl."),
    ("reward-model pool.jsonl --model ./modle", "there is no folder ./modle; did you mean model?"),
    ("bench --model ./modle", "'--model': there is no folder ./modle; did you mean model?"),
    ("simulate --fit runs.jsonl", "there is no such file: runs.jsonl."),
    ("augment new.jsonl --data pool.jsonl --output o.jsonl", "there is no such file: new.jsonl."),
    # options that need another
    (
        "select pool.jsonl --output o.jsonl --mean-k 3",
        "--mean-k 3.0 changes nothing here: it needs allocation",
    ),
    ("select pool.jsonl --output o.jsonl --dry-run", "it needs --scorer judge:MODEL@URL"),
    ("evaluate --data pool.jsonl --model model --max-calls 3", "it needs a judge: --judge"),
    ("grid pool.jsonl --duration steps", "it needs --annotations."),
    ("grid pool.jsonl --annotations 12 --pairs 3", "it needs a run without --annotations."),
    ("select pool.jsonl --output o.jsonl --alpha 1", "--alpha 1.0 changes nothing here"),
    ("select pool.jsonl --output o.jsonl --selector all --k 4", "--k 4 changes nothing here"),
    ("select pool.jsonl --output o.jsonl --held-out-threshold 0.8", "it needs --held-out."),
    ("select pool.jsonl --output o.jsonl --held-out-output h.jsonl", "it needs --held-out or --from-manifest."),
    ("select pool.jsonl --output o.jsonl --max-repeats 2", "it needs --proportion."),
    ("select pool.jsonl --output o.jsonl --decisions d.jsonl", "it needs --curation or --proportion."),
    ("select pool.jsonl --output o.jsonl --tokenizer model", "it needs --curation or --stats."),
    (
        "select --from-manifest recipe.yaml --output o.jsonl --k 2",
        "--k 2 changes nothing here: it needs a run wi",
    ),
    ("sample pool.jsonl --model model --concurrency 4", "it needs --endpoint."),
    ("sample pool.jsonl --endpoint http://localhost/v1 --batch-size 4", "it needs a run without --endpoint."),
    ("sample --extend pool.jsonl --to 4 --model model --n 4", "it needs a run without --extend."),
    ("plan pool.jsonl --budget 2x", "it needs --model."),
    ("audit pool.jsonl --pool pool.jsonl --alpha 0.5", "it needs --selector diverse_best_k."),
    ("audit pool.jsonl --pool pool.jsonl --gradient-prompts 9", "it needs --model."),
    ("evaluate --data pool.jsonl --model model --lm-eval-limit 9", "it needs --lm-eval."),
    ("evaluate --data pool.jsonl --model model --m 0 --temperature 1", "samples that are drawn"),
    ("evaluate --data pool.jsonl --endpoint http://localhost/v1 --tokenizer model", "a run without --endpoint."),
    ("grid pool.jsonl --cost-prompt 1 --cost-response 1 --tokenizer model", "it needs a run without --cost-prompt."),
    ("grid pool.jsonl --tokenizer model --repeats 2", "it needs --output."),
    ("grid --results recipe.yaml --k 2", "it needs a run without --results."),
    ("bench --model model --vocabulary 100", "it needs a run without --model."),
    ("bench --model model --hybrid", "it needs a run without --model."),
    ("simulate --fit recipe.yaml --seed 1", "it needs a run without --fit."),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Names that could be meant. Nothing in it can be read: whatever looks into a file fails in another way."""
    folder = tmp_path_factory.mktemp("refusals")
    for name in ("model", "empty", "outputs/run"):
        (folder / name).mkdir(parents=True)
    for name in ("pool.jsonl", "prompts.txt", "recipe.yaml", "reward.py", "model/config.json"):
        (folder / name).write_text("not what it should be")
    (folder / "outputs/run/adapter_config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[str, Any]:
    commands = [command for command, _ in REFUSED]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{RUN}"],
        cwd=folder,
        input=json.dumps([command.split() for command in commands]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(commands, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.processes
@pytest.mark.parametrize(("command", "words"), REFUSED)
def test_is_refused_before_anything_slow(outcomes: dict[str, Any], command: str, words: str) -> None:
    code, output, torch = outcomes[command]
    assert code == 1
    assert words in output
    assert not torch


def numbers() -> list[tuple[str, str, str]]:
    found = []
    for registered in app.registered_commands:
        name, hints = registered.callback.__name__.replace("_", "-"), get_type_hints(registered.callback)
        for parameter in GROUP.commands[name].params:
            hint = hints.get(parameter.name)
            if holds(hint, float):
                found += [(name, parameter.opts[0], value) for value in ("nan", "inf", "-inf", "word")]
            if holds(hint, int):
                found += [(name, parameter.opts[0], value) for value in ("-1", "1.5", "nan")]
    return found


def holds(hint: Any, kind: type) -> bool:
    """Whether a type hint is a type, or has it among its parts."""
    return hint is kind or any(holds(part, kind) for part in get_args(hint))


@pytest.mark.parametrize(("command", "option", "value"), numbers())
def test_every_number_has_bounds(
    command: str, option: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new option that is a number gets `min=`, or bounds such as `ge=0`."""
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as ended:
        GROUP([command, f"{option}={value}"])
    assert ended.value.code == 1
    assert f"Invalid value for '{option}'" in "".join(capsys.readouterr())


def test_the_tables_name_options_that_there_are() -> None:
    for name in {*COMMANDS, *ALONE}:
        known = {parameter.name for parameter in GROUP.commands[name].params}
        needs = [need for need in COMMANDS.get(name, ()) if need not in NEEDS]
        assert {option for need in needs for option in need.names} <= known
        assert name not in ALONE or ALONE[name][0] in known


@pytest.mark.parametrize("name", sorted(GROUP.commands))
def test_defaults_are_within_bounds(name: str) -> None:
    for parameter in GROUP.commands[name].params:
        if isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool):
            assert math.isfinite(parameter.default)
