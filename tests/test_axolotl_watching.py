"""A real Axolotl run whose recipe asks for everything that looks at it."""

import pytest
from helpers import axolotl_recipe
from helpers.axolotl_runs import axolotl, logged

pytestmark = pytest.mark.axolotl


def test_a_run_is_watched_stops_early_and_fails_its_smoke_test(tmp_path, tiny_model_dir):
    """It learns, but after so few steps its answers do not end: an error, and an exit status that scripts see."""
    settings = axolotl_recipe.recipe(
        tmp_path,
        tiny_model_dir,
        val_set_size=0.3,
        eval_steps=4,
        num_epochs=20,
        mrt={
            "k": 3,
            "early_stopping": 2,
            "min_improvement": 0.2,
            "sample_prompts": 2,
            "samples_per_prompt": 2,
            "sample_tokens": 8,
            "smoke_steps": 60,
        },
    )
    recipe = axolotl_recipe.write(tmp_path, settings)
    printed = axolotl("train", recipe, "--launcher", "python", folder=tmp_path, status=1)
    assert "Smoke test: 60 steps, then a verdict." in printed
    seen = logged(printed, "eval_loss")
    assert 4 <= len(seen) < 12
    for name in ("train_gap", "coverage", "alignment", "diversity", "sample_tokens", "samples_ended"):
        assert len(logged(printed, f"eval_{name}")) == len(seen)
    stopped = 4 * (len(seen) - 1)  # the first evaluation is before training
    assert f"Stopped at step {stopped}: eval_loss has not improved on" in printed
    # saved at every evaluation, as the best one has to be there
    assert (tmp_path / "out" / f"checkpoint-{stopped}").is_dir()
    assert f"error: Smoke test failed after {stopped} steps." in printed
    assert "ok: the longest rows fit" in printed
    assert "FAILED: 0 of" in printed
    assert "did not end within 8 tokens" in printed
