"""One definition of every option, and what is derived from it."""

import dataclasses
from pathlib import Path

import pytest

from mrt_plugin import MultiResponseSFTConfig
from mrt_plugin.options import MultiResponseOptions, check_options, markdown

REFERENCE = Path(__file__).parent.parent / "docs" / "options.md"


def test_the_reference_page_is_the_definition():
    """Print it again with `python -m mrt_plugin.options > docs/options.md`."""
    assert REFERENCE.read_text() == markdown()


def test_the_trl_config_has_every_option_with_its_default(tmp_path):
    config = MultiResponseSFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    for item in dataclasses.fields(MultiResponseOptions):
        if item.name != "row_length":  # where it is not given, max_length
            assert getattr(config, item.name) == item.default
        assert item.metadata["help"].endswith(".")
    assert config.row_length == config.max_length


def test_defaults_pass_and_bounds_hold():
    check_options(MultiResponseOptions())
    with pytest.raises(ValueError, match="k=0 is too small: it must be at least 1"):
        check_options(MultiResponseOptions(k=0))
    with pytest.raises(ValueError, match="layout='x' is unknown: choose one of auto, shared_prefix, expanded"):
        check_options(MultiResponseOptions(layout="x"))  # type: ignore[arg-type]
