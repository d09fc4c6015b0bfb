"""`redraw: epoch` in a recipe: what is prepared, and what each epoch trains, packed or not."""

import logging
from collections import Counter

import axolotl_recipe
import pytest
from axolotl_recipe import groups, write_rows

from mrt_plugin.trainer.redraw import DRAW, Redraw

pytest.importorskip("axolotl")
pytestmark = pytest.mark.axolotl

TYPE = "mrt_plugin.axolotl."


@pytest.fixture
def load(tmp_path, tiny_model_dir, monkeypatch):
    """A recipe as `axolotl train` reads it, and the datasets that it prepares."""
    logger_class = logging.getLoggerClass()
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.integrations.base import PluginManager

    logging.setLoggerClass(logger_class)
    monkeypatch.chdir(tmp_path)
    plugins = PluginManager.get_instance().plugins

    def run(**changes):
        plugins.clear()
        plain = {"adapter": "lora", "load_in_4bit": False, "gradient_accumulation_steps": 1, "num_epochs": 3}
        changes = plain | {"mrt": {"k": 2, "redraw": "epoch", "prefix_check": False}} | changes
        cfg = load_cfg(axolotl_recipe.write(tmp_path, axolotl_recipe.recipe(tmp_path, tiny_model_dir, **changes)))
        return cfg, load_datasets(cfg=cfg)

    yield run
    plugins.clear()


def answers(row):
    """The trained tokens of a row."""
    return tuple(label for label in row["labels"] if label != -100)


@pytest.mark.parametrize("layout", ["auto", "expanded"])
@pytest.mark.parametrize("packed", [False, True])
def test_rows_have_room_for_every_draw(load, tmp_path, packed, layout):
    rows = groups(12)
    rows[0]["responses"] = [f"{word} " * 45 for word in ("sea", "moon", "river", "dog", "red")]
    write_rows(tmp_path / "pool.jsonl", rows)
    block = {"k": 2, "redraw": "epoch", "layout": layout, "datasets": [{"path": "other.jsonl", "k": 3}]}
    write_rows(tmp_path / "other.jsonl", groups(4, 4))
    entries = [
        {"path": path, "ds_type": "json", "type": TYPE + "random_k"}
        for path in (str(tmp_path / "pool.jsonl"), "other.jsonl")
    ]
    _, meta = load(sequence_len=112, sample_packing=packed, mrt=block, datasets=entries)
    data = meta.train_dataset
    if not (packed and layout == "expanded"):
        assert len(data) == 17, "the long group's two responses may not fit one row, so it has two"
    redraw = Redraw("token")
    for epoch in range(4):
        redraw.epoch.fill_(epoch)
        drawn = [redraw(row) for row in data]
        for row, part in zip(data, drawn, strict=True):
            assert len(part["input_ids"]) <= len(row["input_ids"]) <= 112
            assert (part["prefix_length"] == 0) == (layout == "expanded" and packed)
        assert sum(len(part["segment_lengths"]) for part in drawn) == 12 * 2 + 4 * 3
    assert {row[DRAW]["k"] for row in data} == {2, 3}
    assert {len(row[DRAW]["pool"]["segment_lengths"]) for row in data} == {4, 5}


def test_only_the_dataset_that_asks_for_it(load, tmp_path):
    write_rows(tmp_path / "drawn.jsonl", groups(6))
    write_rows(tmp_path / "best.jsonl", groups(5))
    write_rows(
        tmp_path / "alpaca.jsonl", [{"instruction": f"Say {n}.", "input": "", "output": str(n)} for n in range(7)]
    )
    _, meta = load(
        datasets=[
            {"path": "drawn.jsonl", "ds_type": "json", "type": TYPE + "random_k"},
            {"path": "best.jsonl", "ds_type": "json", "type": TYPE + "best_k"},
            {"path": "alpaca.jsonl", "ds_type": "json", "type": "alpaca"},
        ],
        mrt={"k": 2, "datasets": [{"path": "drawn.jsonl", "redraw": "epoch"}]},
        val_set_size=0.3,
    )
    for data in (meta.train_dataset, meta.eval_dataset):
        drawing = Counter(row[DRAW] is not None for row in data)
        assert drawing[False] > 0
        assert (drawing[True] > 0) == (data is meta.train_dataset)
    with pytest.raises(ValueError, match=r"best.jsonl.*redraw='epoch' draws a random k anew"):
        load(datasets=[{"path": "best.jsonl", "ds_type": "json", "type": TYPE + "best_k"}])


@pytest.mark.parametrize("packed", [False, True])
def test_what_each_epoch_trains(load, tmp_path, packed):
    """Another draw every epoch, the same in worker processes and in a resumed run; as many steps as foreseen."""
    from axolotl.train import setup_model_and_trainer

    rows = groups(12, 6)
    write_rows(tmp_path / "pool.jsonl", rows)

    def train(name, resume=None, **changes):
        settings = {"sample_packing": packed, "micro_batch_size": 1 if packed else 2, "sequence_len": 160}
        cfg, meta = load(output_dir=str(tmp_path / name), save_steps=2, save_total_limit=20, **settings, **changes)
        trainer = setup_model_and_trainer(cfg, meta)[0]
        seen, inner = {}, trainer.compute_loss

        def compute_loss(model, inputs, *args, **kwargs):
            epoch = int(trainer.train_dataloader_epoch[0])
            for labels, segments, ids in zip(
                inputs["labels"].tolist(), inputs["segment_ids"].tolist(), inputs["group_ids"].tolist(), strict=True
            ):
                pieces = {}
                for label, segment, group in zip(labels, segments, ids, strict=True):
                    if label != -100:
                        pieces.setdefault((group, segment), []).append(label)
                seen.setdefault(epoch, Counter()).update(map(tuple, pieces.values()))
            return inner(model, inputs, *args, **kwargs)

        trainer.train_dataloader_epoch = trainer.data_collator.read_row.epoch.reshape(1)
        trainer.compute_loss = compute_loss
        trainer.train(resume_from_checkpoint=resume)
        losses = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
        return seen, losses, trainer.state.max_steps

    seen, losses, steps = train("whole")
    assert len(losses) == steps
    assert len({frozenset(epoch.items()) for epoch in seen.values()}) == 3
    if not packed:  # Axolotl's packing leaves the last rows of an epoch out
        assert all(sum(epoch.values()) == 24 for epoch in seen.values())
        assert len(set().union(*seen.values())) > 30
        return
    worked, same, _ = train("workers", dataloader_num_workers=2)
    assert (worked, same) == (seen, losses)
    stop = steps // 4 * 2  # about the middle of the second epoch
    _, later, _ = train("resumed", resume=str(tmp_path / "whole" / f"checkpoint-{stop}"))
    assert set(later) == set(range(1, steps + 1))
    assert later == pytest.approx(losses, rel=1e-4)
