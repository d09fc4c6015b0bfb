"""One definition of every option, and what is derived from it."""

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from mrt_plugin import MultiResponseSFTConfig
from mrt_plugin.options import (
    Bounds,
    MultiResponseOptions,
    SelectionOptions,
    Similarity,
    check_options,
    markdown,
    unused_options,
)

REFERENCE = Path(__file__).parent.parent / "docs" / "options.md"
HINTS = get_type_hints(MultiResponseOptions)
FIELDS = {item.name: item for item in dataclasses.fields(MultiResponseOptions)}
OTHER_SIMILARITY = next(name for name in get_args(Similarity) if name != MultiResponseOptions().similarity)


def bad_values() -> list[tuple[str, Any]]:
    """For every option of a bounded type: a value of another type, and values on and beyond each bound."""
    found: list[tuple[str, Any]] = []
    for name, hint in HINTS.items():
        kinds = (hint, *get_args(hint))
        if get_origin(hint) is Literal:
            found.append((name, "nonsense"))
        if bool in kinds:
            found.append((name, "yes"))
        if int in kinds:
            found += [(name, "4"), (name, True), (name, 2.5), (name, math.nan)]
        if float in kinds:
            found += [(name, "4"), (name, True), (name, math.nan), (name, math.inf), (name, -math.inf)]
        bounds: Bounds = FIELDS[name].metadata["bounds"]
        found += [(name, limit - 1) for limit in (bounds.ge, bounds.gt) if limit is not None]
        found += [(name, bounds.gt)] if bounds.gt is not None else []
    return found


def test_the_reference_page_is_the_definition():
    """Print it again with `python -m mrt_plugin.options > docs/options.md`."""
    assert REFERENCE.read_text() == markdown()


def test_the_trl_config_has_every_option_with_its_default(tmp_path, caplog):
    config = MultiResponseSFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    for item in FIELDS.values():
        if item.name != "row_length":  # where it is not given, max_length
            assert getattr(config, item.name) == item.default
        assert item.metadata["help"].endswith(".")
    assert config.row_length == config.max_length
    assert "changes nothing" not in caplog.text


def test_defaults_pass_and_bounds_hold():
    check_options(MultiResponseOptions())
    with pytest.raises(ValueError, match="k=0 must be a whole number, at least 1"):
        check_options(MultiResponseOptions(k=0))
    with pytest.raises(ValueError, match="layout='x' is unknown: choose one of auto, shared_prefix, expanded"):
        check_options(MultiResponseOptions(layout="x"))  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "value"), bad_values())
def test_a_bad_value_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name}="):
        check_options(dataclasses.replace(MultiResponseOptions(), **{name: value}))


def test_numbers_have_bounds():
    """A new option that is a number says which numbers it may be."""
    for name, hint in HINTS.items():
        if {int, float} & {hint, *get_args(hint)}:
            assert FIELDS[name].metadata["bounds"] != Bounds(), name


class TestUnused:
    """Options that change nothing without another one."""

    @pytest.mark.parametrize("name", ["mean_k", "target_total", "min_k", "max_k"])
    def test_a_number_of_responses_without_adaptive_allocation_is_refused(self, name):
        with pytest.raises(ValueError, match=f"{name}=3 changes nothing here: it needs allocation='adaptive'"):
            check_options(MultiResponseOptions(**{name: 3}))
        check_options(MultiResponseOptions(allocation="adaptive", **{name: 3}))

    @pytest.mark.parametrize(
        ("unused", "used"),
        [
            ({"alpha": 0.5}, {"selector": "diverse_best_k"}),
            ({"similarity": OTHER_SIMILARITY, "selector": "best_k"}, {"selector": "diverse_k"}),
            ({"embedder": "sentence-transformers"}, {"sample_prompts": 8}),
            ({"embedder": "a/model"}, {"allocation": "adaptive"}),
            ({"score_cache": "cache"}, {"scorer": "a/model"}),
            ({"allocation_score": "length"}, {"allocation": "adaptive"}),
            ({"weight_temperature": 2.0}, {"weights": "softmax"}),
            ({"k": 2, "selector": "all"}, {"selector": "random_k"}),
            ({"k": 2, "allocation": "adaptive", "mean_k": 3}, {"mean_k": None}),
            ({"min_improvement": 0.1}, {"early_stopping": 2}),
            ({"samples_per_prompt": 8}, {"sample_prompts": 8}),
            ({"sample_tokens": 64}, {"smoke_steps": 100}),
            ({"prefix_check": False, "layout": "expanded", "row_packing": False}, {"row_packing": True}),
            ({"group_by_prefix": True, "row_packing": False}, {"row_packing": True}),
        ],
    )
    def test_others_are_named_and_the_run_goes_on(self, unused, used, tmp_path, caplog):
        name = next(iter(unused))
        check_options(MultiResponseOptions(**unused))
        found = unused_options(MultiResponseOptions(**unused))
        assert found[name].startswith(f"{name}={unused[name]!r} changes nothing here: it needs ")
        assert name not in unused_options(MultiResponseOptions(**{**unused, **used}))
        with caplog.at_level(logging.WARNING, "mrt_plugin"):
            MultiResponseSFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **unused)
        assert found[name] in caplog.messages

    def test_a_default_is_named_only_where_it_was_given(self):
        assert unused_options(MultiResponseOptions()) == {}
        assert list(unused_options(MultiResponseOptions(), {"alpha", "k", "seed"})) == ["alpha"]


def test_a_selector_from_outside_may_read_every_option():
    options = MultiResponseOptions(
        selector="mine.py:choose", alpha=0.5, similarity=OTHER_SIMILARITY, embedder="a/model"
    )
    check_options(options)
    assert unused_options(options) == {}


def test_a_part_of_the_options_is_checked_alone():
    check_options(SelectionOptions(k=2))
    with pytest.raises(ValueError, match="k=0 must be a whole number, at least 1"):
        check_options(SelectionOptions(k=0))
    with pytest.raises(ValueError, match="mean_k=3 changes nothing here"):
        check_options(SelectionOptions(mean_k=3))
