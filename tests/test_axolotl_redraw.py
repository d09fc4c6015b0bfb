"""`redraw: epoch` in a recipe: what is prepared, and what each epoch trains, packed or not."""

from collections import Counter

import pytest
from helpers.axolotl_recipe import groups, write_rows
from helpers.axolotl_runs import pieces

from mrt_plugin.layout.group_row import count_responses
from mrt_plugin.trainer.redraw import DRAW, EpochDraws

pytest.importorskip("axolotl")
pytestmark = pytest.mark.axolotl

TYPE = "mrt_plugin.axolotl."


@pytest.fixture
def load(read_recipe):
    """A recipe as `axolotl train` reads it, and the datasets that it prepares."""
    from axolotl.common.datasets import load_datasets

    def run(**changes):
        plain = {"adapter": "lora", "load_in_4bit": False, "gradient_accumulation_steps": 1, "num_epochs": 3}
        cfg = read_recipe(**(plain | {"mrt": {"k": 2, "redraw": "epoch", "prefix_check": False}} | changes))
        return cfg, load_datasets(cfg=cfg)

    return run


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
    redraw = EpochDraws("token")
    for epoch in range(4):
        redraw.epoch.fill_(epoch)
        drawn = [redraw(row) for row in data]
        for row, part in zip(data, drawn, strict=True):
            assert len(part["input_ids"]) <= len(row["input_ids"]) <= 112
            alone = (layout == "expanded" and packed) or count_responses(part) == 1
            assert (sum(part["shared_lengths"]) == 0) == alone
        assert sum(map(count_responses, drawn)) == 12 * 2 + 4 * 3
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
    """The draw of that epoch, also in worker processes and in a resumed run; in as many steps as foreseen."""
    from axolotl.train import setup_model_and_trainer

    write_rows(tmp_path / "pool.jsonl", groups(13, 6))

    def train(resume=None, **changes):
        """For each epoch how often each response was trained; those that it draws; the steps, foreseen and taken."""
        settings = {"sample_packing": packed, "micro_batch_size": 2, "sequence_len": 160}
        cfg, meta = load(save_steps=2, save_total_limit=20, **settings, **changes)
        trainer = setup_model_and_trainer(cfg, meta)[0]
        redraw, inner, seen = trainer.data_collator.read_row, trainer.compute_loss, {}

        def compute_loss(model, inputs, *args, **kwargs):
            seen.setdefault(int(redraw.epoch), Counter()).update(pieces(inputs))
            return inner(model, inputs, *args, **kwargs)

        trainer.compute_loss = compute_loss
        trainer.train(resume_from_checkpoint=resume)
        drawn = {}
        for epoch in seen:
            redraw.epoch.fill_(epoch)
            drawn[epoch] = Counter(pieces(trainer.data_collator(list(trainer.train_dataset))))
        return seen, drawn, (trainer.state.max_steps, trainer.state.global_step)

    seen, drawn, (foreseen, taken) = train()
    assert foreseen == taken
    assert len({frozenset(epoch.items()) for epoch in drawn.values()}) == 3
    assert seen == drawn
    if not packed:
        return
    middle = foreseen // 4 * 2
    later, expected, _ = train(resume=str(tmp_path / "out" / f"checkpoint-{middle}"), dataloader_num_workers=2)
    assert sorted(later) == [1, 2], "the second epoch"
    assert later[1] < drawn[1], "what the first part of the epoch left"
    assert later[2] == drawn[2] == expected[2]
