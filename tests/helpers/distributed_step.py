"""One optimizer step per run asked for, started by torchrun: writes the loss and the gradient of the whole step."""

import json
import sys
from pathlib import Path

import torch
from accelerate import FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType, gather_object
from torch.distributed.tensor import DTensor
from transformers import set_seed

from helpers import tiny
from helpers.training import (
    Fails,
    FailsInside,
    GradientTap,
    IgnoresTheMask,
    MovesPositions,
    ReadsPadding,
    config,
    losses,
    make_groups,
    make_nested_groups,
)
from mrt_plugin import MultiResponseSFTTrainer
from mrt_plugin.attention import branches
from mrt_plugin.attention.branches import FORWARD


class ShardedTrainer(MultiResponseSFTTrainer):
    """Trains with FSDP2 as accelerate wraps it, which accelerate itself does with an accelerator only."""

    state_dict_type = "FULL_STATE_DICT"
    layers: list[str] | None = ["LlamaDecoderLayer"]  # noqa: RUF012
    """Classes that are sharded; None for those that the model names."""

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=self.layers,
            cpu_ram_efficient_loading=False,
            state_dict_type=self.state_dict_type,
        )
        self.is_fsdp_enabled = True


class ShardedTap(GradientTap):
    """Keeps the complete gradient of every optimizer step."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        found = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(isinstance(gradient, DTensor) for gradient in found)
        self.gradients.append(torch.cat([gradient.full_tensor().flatten() for gradient in found]).double())


BROKEN = {
    "ignores": (IgnoresTheMask, [1]),
    "moves": (MovesPositions, [1]),
    "fails": (Fails, [1]),
    "fails inside": (FailsInside, [1]),
    "padding": (ReadsPadding, [0, 1]),
}
"""Models by what is wrong with them, and the processes that have them."""


def main(folder: str, runs: str) -> None:
    torch.set_num_threads(1)
    for name, settings in json.loads(runs).items():
        set_seed(0)
        count = settings.pop("groups")
        groups, held_out = (make_groups(count, 3, weights=True, first=first) for first in (0, count))
        if settings.pop("nested", False):
            groups = make_nested_groups().select(range(count))
        sharded = settings.pop("sharded", False)  # the state of accelerate stays so: such runs come last
        tap = ShardedTap() if sharded else GradientTap()
        model, broken = tiny.llama(), settings.pop("broken", None)
        branches.FORWARD = settings.pop("forward", FORWARD)
        args = config(Path(folder), max_steps=1, **{"ddp_find_unused_parameters": False, **settings})
        if broken is not None and args.process_index in BROKEN[broken][1]:
            model.__class__ = BROKEN[broken][0]
        trainer = (ShardedTrainer if sharded else MultiResponseSFTTrainer)(
            model=model,
            args=args,
            train_dataset=groups,
            eval_dataset=held_out,
            processing_class=tiny.tokenizer(),
            callbacks=[tap],
        )
        forwards: list[int] = []
        hook = model.register_forward_pre_hook(lambda *_, forwards=forwards: forwards.append(1))
        if sharded and broken is not None:
            assert trainer.layout == "shared_prefix", "it is proved in the first step only"
        trainer.train()
        hook.remove()
        evaluated = trainer.evaluate()["eval_loss"]
        layouts = gather_object([f"{trainer.layout} {trainer._backend.name}"])
        counts = gather_object([len(forwards)])
        if trainer.args.process_index == 0:
            result = {
                "loss": losses(trainer)[0],
                "gradient": tap.gradients[0],
                "eval_loss": evaluated,
                "layouts": layouts,
                "forwards": counts,
            }
            torch.save({**result, "processes": trainer.accelerator.num_processes}, Path(folder) / f"{name}.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
