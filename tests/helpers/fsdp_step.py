"""The gradient of one step under FSDP2, started by torchrun: every process holds half of the groups."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from helpers import tiny
from mrt_plugin import GroupedResponseCollator
from mrt_plugin.attention import resolve_backend
from mrt_plugin.encoding.pair import Pair
from mrt_plugin.layout.group_row import build_group_row
from mrt_plugin.layout.rows import Rows
from mrt_plugin.loss.token_nll import TokenNLL, step_loss
from mrt_plugin.trainer.processes import keep_head_gathered


def make_rows() -> list:
    generator = torch.Generator().manual_seed(3)
    rows = []
    for responses in (4, 2, 1, 3):
        prompt = torch.randint(10, 500, (responses + 3,), generator=generator).tolist()
        pool = [torch.randint(10, 500, (2 + j,), generator=generator).tolist() for j in range(responses)]
        rows.append(
            build_group_row([Pair(prompt + r, [False] * len(prompt) + [True] * len(r)) for r in pool], "prompt")
        )
    return rows


def shard(model, way: str) -> None:
    """Apply FSDP2 as accelerate does: 1.13 has the head in the outermost unit, 1.15 with the final norm."""
    for layer in model.model.layers:
        fully_shard(layer, reshard_after_forward=True)
    if way == "1.15":
        fully_shard(model.get_input_embeddings(), reshard_after_forward=True)
        fully_shard([model.model.norm, model.get_output_embeddings()], reshard_after_forward=False)
        fully_shard(model)
    else:
        fully_shard(model, reshard_after_forward=True)


def gradient(
    model, groups: list, units: float, processes: int, *, way: str | None = None, chunk: int = 4
) -> torch.Tensor:
    """Return the gradient of a step that follows a step and an evaluation. `way` is how FSDP2 shards the model."""
    backend = resolve_backend("sdpa", model.config, device_type="cpu")
    backend.prepare_model(model)
    if way is not None:
        shard(model, way)
        keep_head_gathered(model)
    token_nll = TokenNLL(model, chunk=chunk)
    collator = GroupedResponseCollator(tiny.tokenizer(), row_length=64)
    rows = Rows.from_batch(collator(groups))
    for trained in (True, False, False, True):
        model.zero_grad()
        with torch.set_grad_enabled(trained):
            nll = backend.token_nll(model.train(trained), rows, token_nll.bound(model))
        if trained:
            step_loss(nll, rows.loss_weights, torch.tensor(units), processes).backward()
    whole = [p.grad.full_tensor() if way is not None else p.grad for p in model.parameters()]
    return torch.cat([g.flatten() for g in whole]).double()


def main(folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rows, rank = make_rows(), dist.get_rank()
    for way in ("1.13", "1.15"):
        sharded = gradient(tiny.llama(), rows[rank * 2 : rank * 2 + 2], 4.0, 2, way=way)
        if rank == 0:
            torch.save(sharded, Path(folder) / f"gradient-{way}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
