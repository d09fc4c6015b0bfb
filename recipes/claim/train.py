"""Train one arm with this package's trainer, and measure its exact distance to the truth at checkpoints."""

import tempfile
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import LlamaForCausalLM, PrinterCallback, TrainerCallback

from mrt_plugin.evaluation.truth import TruthDistance
from mrt_plugin.groups import load_groups
from mrt_plugin.options import Layout
from mrt_plugin.planning.progress import quiet
from mrt_plugin.trainer import MultiResponseSFTConfig, MultiResponseSFTTrainer
from recipes.claim.arms import ARMS, Arm, arm_groups
from recipes.claim.exact import ExactDistance
from recipes.claim.model import base_model, build_encoder, build_tokenizer
from recipes.claim.world import POOL, RESPONSE, World, draw_pool


@dataclass(frozen=True)
class Scale:
    """Size of every run."""

    n: int = 64
    """Number of prompts in the arm with K = 8. Every arm sees 8n pairs."""
    held_out: int = 32
    """Number of prompts on which the distance is measured. No arm trains on their subjects."""
    base_steps: int = 400
    """Training steps of the base model."""


@dataclass(frozen=True, order=True)
class Setting:
    """Hyperparameters that are tuned."""

    learning_rate: float
    pairs_per_step: int


@dataclass(frozen=True)
class RunKey:
    """Identity of a run."""

    length: int
    """P, the prompt length in tokens."""
    arm: str
    seed: int
    setting: Setting


class Curve(TrainerCallback):
    """Callback that measures the distance at the checkpoints of an arm, between two steps."""

    def __init__(self, measure: ExactDistance, pairs_per_step: int, checkpoints: list[int]) -> None:
        self.measure, self.pairs_per_step, self.checkpoints = measure, pairs_per_step, checkpoints
        self.points: list[dict[str, float]] = []
        self.seconds = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure if this step completed a checkpoint."""
        pairs = state.global_step * self.pairs_per_step
        if pairs in self.checkpoints:
            began = time.perf_counter()
            self.points.append(point(pairs, self.measure(kwargs["model"])))
            self.seconds += time.perf_counter() - began


def point(pairs: int, distance: TruthDistance) -> dict[str, float]:
    """Build a point of a curve, with rounded values."""
    return {"pairs": pairs, **{name: round(getattr(distance, name), 5) for name in ("kl", "coverage", "elsewhere")}}


@lru_cache(maxsize=1)
def _world(seed: int, length: int, scale: Scale) -> tuple[list[dict[str, Any]], ExactDistance]:
    """Build a seed's pool and held-out measure, and cache them for the following arms."""
    world = World(seed)
    most = max(arm.prompts for arm in ARMS.values())
    pool = draw_pool(world, world.prompts(most * scale.n, length=length, stream=0))
    return pool, ExactDistance(world.prompts(scale.held_out, length=length, stream=1), build_encoder())


def train_run(
    key: RunKey, scale: Scale, bases: Path, *, layout: Layout = "auto"
) -> tuple[dict[str, Any], LlamaForCausalLM]:
    """Train one arm from one seed, and measure at the arm's checkpoints.

    Args:
        key: the run.
        scale: size of the run.
        bases: folder of the base models.
        layout: layout of the trainer. A run's numbers do not depend on it.

    Returns:
        The record and the trained model. The record has the key's values, `curve` (a point per checkpoint, the first
        at 0 pairs) and the seconds of `preparing`, `training` and `measuring`.

    Raises:
        ValueError: if a checkpoint is not a whole number of steps.
    """
    arm, setting = ARMS[key.arm], key.setting
    checkpoints = [round(place * scale.n) for place in arm.checkpoints]
    if any(pairs % setting.pairs_per_step for pairs in checkpoints) or setting.pairs_per_step % arm.k:
        raise ValueError(f"{arm.name}: {setting.pairs_per_step} pairs a step do not divide {checkpoints} and K.")
    pool, measure = _world(key.seed, key.length, scale)
    model = base_model(key.seed, bases, steps=scale.base_steps)
    curve = Curve(measure, setting.pairs_per_step, checkpoints)
    start = point(0, measure(model))
    with quiet(), tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        groups = load_groups(Dataset.from_list(arm_groups(arm, pool, scale.n, key.seed)))
        trainer = MultiResponseSFTTrainer(
            model=model,
            args=_config(key, arm, layout, folder),
            train_dataset=groups,
            processing_class=build_tokenizer(),
            callbacks=[curve],
        )
        trainer.remove_callback(PrinterCallback)
        prepared = time.perf_counter() - began
        trainer.train()
        seconds = time.perf_counter() - began - curve.seconds
    record = {
        "length": key.length,
        "arm": key.arm,
        "seed": key.seed,
        **asdict(setting),
        "curve": [start, *curve.points],
        "preparing": round(prepared, 2),
        "training": round(seconds - prepared, 2),
        "measuring": round(curve.seconds, 2),
    }
    return record, model.eval()


def _config(key: RunKey, arm: Arm, layout: Layout, folder: str) -> MultiResponseSFTConfig:
    ordered = arm.passes == 1  # prompts and pairs are already in random order, the same for all arms
    grouped = arm.k if not arm.scattered else 1
    return MultiResponseSFTConfig(
        output_dir=folder,
        selector="all" if arm.scattered else "random_k",
        k=grouped,
        redraw="epoch" if arm.redraw else "never",
        layout=layout if arm.shares else "expanded",
        prefix_check=False,  # proved by the tests on the same model
        row_packing=False,
        prompt_format="plain",
        per_device_train_batch_size=key.setting.pairs_per_step // grouped,
        num_train_epochs=arm.passes,
        train_sampling_strategy="sequential" if ordered else "random",
        learning_rate=key.setting.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_length=key.length + RESPONSE,
        row_length=key.length + POOL * (RESPONSE + 1),
        shuffle_dataset=False,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        seed=key.seed,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
