"""Training on groups, for any trainer that inherits from `transformers.Trainer`."""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from mrt_plugin.attention.backend import UnsharedBackend
from mrt_plugin.attention.family import NotShareable
from mrt_plugin.attention.fork_checkpoint import recomputes
from mrt_plugin.attention.length_rope import length_ropes, refuse_split_angles
from mrt_plugin.attention.proof import prove_wrapped
from mrt_plugin.layout.beginnings import shared_paths
from mrt_plugin.layout.collator import GroupedResponseCollator
from mrt_plugin.layout.group_row import COLUMNS, IGNORE, OPTIONAL, SCORES, GroupRow
from mrt_plugin.layout.responses import Responses
from mrt_plugin.layout.rows import Rows
from mrt_plugin.loss.objective import Objective, Scored, choose_objective
from mrt_plugin.loss.ranking import name_figures
from mrt_plugin.loss.token_nll import TokenLoss, TokenNLL, step_loss, token_nll
from mrt_plugin.options import MultiResponseOptions, ranks
from mrt_plugin.trainer import processes
from mrt_plugin.trainer.callbacks.resuming import SameTrainingData
from mrt_plugin.trainer.callbacks.watch import TRAIN_ROWS, watch
from mrt_plugin.trainer.checks import check_model, refuse_half_an_adapter, refuse_parallelism
from mrt_plugin.trainer.describing import DescribesRun, count_prompts
from mrt_plugin.trainer.layout_choice import MANY_FORWARDS, RunSetup, announce_grouping, choose_layout
from mrt_plugin.trainer.prefix_order import PrefixSampler, PrefixTree
from mrt_plugin.trainer.prepare import beginnings_of, is_prepared, row_tokens
from mrt_plugin.trainer.redraw import DRAW, EpochDraws, epoch_begun
from mrt_plugin.trainer.reference import attach_references
from mrt_plugin.trainer.run_facts import RunFacts
from mrt_plugin.versions import warn_of_untested

logger = logging.getLogger(__name__)

OUT_OF_MEMORY = (
    "Out of memory. Lower, in this order: per_device_train_batch_size (in Axolotl micro_batch_size) while raising "
    "gradient_accumulation_steps; row_length and max_length; k; samples_per_prompt and sample_tokens. Or save memory: "
    "gradient_checkpointing, QLoRA, an 8-bit optimizer. `mrt doctor recipe.yaml --measure` tries its longest rows."
)

_COUNTED = ("groups", "pairs", "tokens", "slots", "saved_tokens")
"""Counts of a collated batch that are logged. Slots are tokens with padding; saved tokens are those that the expanded
layout would have computed in addition."""


@contextmanager
def out_of_memory_advice() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise torch.OutOfMemoryError(f"{OUT_OF_MEMORY}\n{error}") from error
        raise


class MultiResponseTrainerMixin(DescribesRun, Trainer):
    """Trains any `transformers.Trainer` on groups, with the prompt computed once for its responses.

    Put it before a trainer class, and call `set_up_groups` at the end of `__init__`. The training data are rows as
    `prepare_groups` makes them, and the collator is a `GroupedResponseCollator`.

    The loss of a step is sum(c · nll) divided by the units of the step, over all its micro-batches and processes. nll
    is a token's negative log-likelihood in nats, c its coefficient (`docs/loss.md`). With an objective that ranks
    responses, it is the mean over the step's groups (`docs/objectives-reference.md`). Evaluation returns the mean NLL
    over all held-out tokens.

    Example:

    ```python
    from transformers import Trainer, TrainingArguments

    from mrt_plugin import GroupedResponseCollator, MultiResponseOptions, MultiResponseTrainerMixin
    from mrt_plugin import load_groups, prepare_groups


    class GroupTrainer(MultiResponseTrainerMixin, Trainer):
        def __init__(self, options, **kwargs):
            super().__init__(**kwargs)
            self.set_up_groups(options, [self.data_collator])


    options = MultiResponseOptions(selector="random_k", k=2, row_length=1024)
    rows, report = prepare_groups(load_groups("pool.jsonl"), tokenizer, options, max_length=512, seed=0)
    trainer = GroupTrainer(
        options,
        model=model,
        args=TrainingArguments("out", per_device_train_batch_size=2, max_steps=2, report_to="none"),
        data_collator=GroupedResponseCollator(tokenizer, row_length=1024),
        train_dataset=rows,
    )
    trainer.train()
    ```
    """

    loss_is_scaled_for_ga = True  # read by transformers >= 5.19
    model: Any
    _signature_columns: Any
    _prefix_tree: PrefixTree | None = None
    """The training rows by their common beginnings, with `group_by_prefix`."""
    _ranking: list[float]
    """Since the last log, the sums of `loss.ranking.figure_sums`."""
    _eval_sums: torch.Tensor
    """Over an evaluation [4]: the NLL, its tokens, and of the tokens computed the correct ones and all. [5] more sums
    for an objective that ranks responses (`loss.ranking.figure_sums`)."""

    def set_up_groups(self, options: MultiResponseOptions, collators: list[GroupedResponseCollator]) -> None:
        """Choose the layout, prove that it is exact on the model and the data, and set it in the collators.

        Args:
            options: `layout`, `prefix_backend`, `prefix_check`, `row_length`, `row_packing`, `loss_aggregation`,
                `group_by_prefix`, `redraw`, the options of the objective and the monitoring options are read. They
                are those with which the rows were prepared.
            collators: those of the trainer; all get the same layout.

        Raises:
            ValueError: if the options or the parallelism of the run are not supported.
        """
        accelerator = self.accelerator
        warn_of_untested()
        refuse_parallelism(self)
        if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
            logger.warning(
                "fp16 has no effect on a CPU: accelerate trains in fp32 there. Set bf16=True for half precision, or "
                "fp16=False. (Axolotl makes fp16 of `bf16: auto`.)"
            )
        self.model_accepts_loss_kwargs = True  # read by transformers < 5.19: the loss is already divided by the units
        model = accelerator.unwrap_model(self.model)
        check_model(model, self.args)
        held_out: Any = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"evaluation": self.eval_dataset}
        for name, dataset in {"training": self.train_dataset, **held_out}.items():
            self._refuse_split_angles(dataset, name)
        self._token_nll = TokenNLL(model)
        self._start_counting()
        rows: Any = self.train_dataset
        if DRAW in rows.column_names:
            draws = EpochDraws(options.loss_aggregation)
            self.add_callback(draws)
            for collator in collators:
                collator.read_row = draws
        elif options.redraw == "epoch":
            raise ValueError(
                "redraw='epoch': the training data was prepared without it. Give groups, or data prepared with it."
            )
        self._objective: Objective = choose_objective(options, options)
        if ranks(options) is not (SCORES in rows.column_names):
            now = "with" if SCORES in rows.column_names else "without"
            raise ValueError(
                f"objective={options.objective!r}: the training data was prepared {now} scores to rank by. Give "
                "groups, or data prepared for this objective."
            )
        tokenizer: Any = collators[0].tokenizer
        if options.group_by_prefix:
            if self.args.train_sampling_strategy != "random":
                raise ValueError(
                    f"group_by_prefix=True draws the order of the groups, and train_sampling_strategy="
                    f"{str(self.args.train_sampling_strategy)!r} sets another. Remove one of them."
                )
            self._prefix_tree = PrefixTree(shared_paths(beginnings_of(rows)))
        setup = RunSetup(
            model,
            options,
            compute=self._token_nll.bound(model),
            pad_token_id=tokenizer.pad_token_id,
            gradient_checkpointing=bool(self.args.gradient_checkpointing) or recomputes(model),
            device_type=accelerator.device.type,
            sharding=processes.read_sharding(accelerator.distributed_type, accelerator.state.deepspeed_plugin),
            groups_per_batch=self.groups_per_batch(rows),
            tree=self._prefix_tree,
            in_order=self.trains_in_order(),
            agree=lambda refusal: next((reason for reason in gather_object([refusal]) if reason is not None), None),
        )
        with self._token_nll.judging(), processes.complete_models():
            choice = choose_layout(setup, _as_trained(rows))
        self.layout, self._backend, self._unproved = choice.layout, choice.backend, choice.unproved
        reason = f"{choice.reason}; proved in the first step" if choice.unproved is not None else choice.reason
        self.describe_run(
            RunFacts(
                objective=options.objective,
                loss_aggregation=options.loss_aggregation,
                layout=choice.layout,
                layout_reason=reason,
                backend=choice.backend.name,
                held_out_groups=count_prompts(self.eval_dataset),
            )
        )
        self._setup, self._grouped_collators = setup, collators
        if self._prefix_tree is not None:
            announce_grouping(_as_trained(rows), options, setup.groups_per_batch, self._prefix_tree, choice.layout)
        if choice.backend.name in MANY_FORWARDS and accelerator.num_processes > 1:
            if self.args.ddp_broadcast_buffers:
                raise ValueError(
                    f"ddp_broadcast_buffers=True: with the backend {choice.backend.name} processes run the model "
                    "unequally often, and would wait for each other forever. Remove it."
                )
            if accelerator.ddp_handler is not None:
                accelerator.ddp_handler.broadcast_buffers = False
        for collator in collators:
            collator.layout = choice.layout
            collator.packing = collator.packing and choice.can_pack
            collator.find_responses = ranks(options)
        if options.objective == "plackett_luce" and options.reference != "none":
            if setup.sharding is not None:
                raise ValueError(
                    f"reference={options.reference!r}: {setup.sharding} shards the weights, and the reference is "
                    "computed before it does. Use DDP, or reference='none'."
                )
            attach_references(self, options, collators[0], self._backend, self._token_nll)
        self.add_callback(SameTrainingData(rows, [*COLUMNS, SCORES, DRAW], group_by_prefix=options.group_by_prefix))
        self._watching = watch(self, options, tokenizer)

    def groups_per_batch(self, rows: Any) -> int:
        return int(self.args.train_batch_size)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self._prefix_tree is None:
            return super()._get_train_sampler(train_dataset)
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        size = self.args.train_batch_size
        return PrefixSampler(self._prefix_tree, len(rows), size, seed, epoch=lambda: epoch_begun(self.state))

    def trains_in_order(self) -> bool:
        return bool(self.args.train_sampling_strategy == "sequential")

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = [*COLUMNS, *OPTIONAL, DRAW]

    def _refuse_split_angles(self, dataset: Any, name: str) -> None:
        config = self.accelerator.unwrap_model(self.model).config
        if length_ropes(config) and isinstance(dataset, Dataset) and is_prepared(dataset):
            rows = zip(dataset["shared_lengths"], dataset["segment_lengths"], strict=True)
            lengths = [shared + own for row in rows for shared, own in zip(*row, strict=True)]
            refuse_split_angles(config, lengths, name)

    def _get_dataloader(self, dataset: Any, description: str, batch_size: int, *args: Any, **kwargs: Any) -> Any:
        # accelerate repeats rows until all processes have equal batches, which would count these rows twice.
        count = self.accelerator.num_processes
        if count > 1 and isinstance(dataset, Dataset) and is_prepared(dataset):
            dataset = processes.with_fillers(dataset, batch_size * count)
        if not kwargs.get("is_training") and isinstance(dataset, Dataset):
            dataset = _as_trained(dataset)
            self._refuse_split_angles(dataset, "evaluation")
        return super()._get_dataloader(dataset, description, batch_size, *args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor:
        """Return the units of the complete optimizer step, over its micro-batches and all processes."""
        sums = torch.zeros(1 + len(_COUNTED), dtype=torch.float64)
        for batch in batch_samples:
            counts = [batch["stats"][name] for name in _COUNTED]
            sums += torch.tensor([batch["units"].double().sum().item(), *counts], dtype=torch.float64)
        sums = self._sum(sums)
        # After an evaluation the model is still in evaluation mode here. Only training asks for a step's units.
        self._counts.update({name: int(total) for name, total in zip(_COUNTED, sums[1:], strict=True)})
        return sums[0].float().to(device)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return this micro-batch's part of the step's loss. There are no outputs: a row's logits never exist."""
        rows = Rows.from_batch(inputs)
        values = self._nll(model, rows, self._objective.token_loss)
        if num_items_in_batch is None:
            units = self._sum(rows.units.sum())
        else:
            units = torch.as_tensor(num_items_in_batch, device=values.device)
        weights, ranked = rows.loss_weights, self._rank(values, inputs)
        if ranked is not None:
            values, weights = ranked.losses, torch.ones_like(ranked.losses)
        loss = step_loss(values, weights, units, self.accelerator.num_processes)
        trained = (rows.shift_labels != IGNORE).sum()
        correct = self._token_nll.take_correct_tokens().to(trained.device)
        figures = torch.stack([trained.double(), correct.double(), loss.detach().double()])
        if ranked is not None:
            figures = torch.cat([figures, ranked.figures])
        trained, correct, summed, *ranking = self._sum(figures).tolist()
        if ranking:
            self._ranking = [before + found for before, found in zip(self._ranking, ranking, strict=True)]
        self._counts.update(trained_tokens=int(trained), correct_tokens=int(correct))
        if self._watching.smoke is not None:
            self._watching.smoke.pending_loss += summed / self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    def _rank(self, nll: torch.Tensor, batch: dict[str, Any]) -> Scored | None:
        """Return the losses of a batch's groups, if the objective ranks their responses."""
        return self._objective.rank(nll, Responses.from_batch(batch)) if self._objective.rank is not None else None

    def _nll(self, model: torch.nn.Module, rows: Rows, loss: TokenLoss = token_nll) -> torch.Tensor:
        """Return the NLL, or another loss, of each token, [rows, tokens per row]. `model` may be wrapped for
        distributed training."""
        processes.keep_head_gathered(model)
        if self._unproved is not None:
            self._prove_wrapped(model, self._unproved)
            self._unproved = None
        return self._backend.token_nll(self.model, rows, self._token_nll.bound(model, loss))

    def _prove_wrapped(self, model: torch.nn.Module, row: list[GroupRow]) -> None:
        """Prove the backend on the wrapped model, before its first forward, or expand from here on."""
        setup, inner, compute = self._setup, self.accelerator.unwrap_model(model), self._token_nll.bound(model)
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)
        spacing = torch.finfo(half).eps if half is not None else 0.0
        with self._token_nll.judging():
            refusal = prove_wrapped(
                inner, self._backend, row, compute=compute, pad_token_id=setup.pad_token_id, spacing=spacing
            )
        refusal = setup.agree(refusal)
        if refusal is None:
            return
        self._backend.restore_model(inner)
        if setup.options.layout == "shared_prefix":
            raise NotShareable(refusal)
        logger.warning("The prompt is copied for every response (layout expanded): %s", refusal)
        # Data workers may have collated rows already; this backend takes both kinds.
        self.layout, self._backend = "expanded", UnsharedBackend()
        now = replace(self.facts, layout="expanded", layout_reason=refusal, backend=self._backend.name)
        self.describe_run(now)
        self._backend.prepare_model(inner)
        for collator in self._grouped_collators:
            collator.layout, collator.packing = "expanded", False

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        return processes.sum_over_processes(self.accelerator, values)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor, None, None]:
        """Return the mean NLL of the batch's tokens, and add its sums for `evaluation_loop`."""
        batch = self._prepare_inputs(inputs)
        rows = Rows.from_batch(batch)
        with torch.no_grad(), self.compute_loss_context_manager():
            nll = self._nll(model, rows)
            ranked = self._rank(nll, batch)
        total, tokens = (nll.double() * rows.trained_counts).sum(), rows.trained_counts.sum()
        computed = (rows.shift_labels != IGNORE).sum()  # a token that several responses share is computed once
        correct = self._token_nll.take_correct_tokens()
        sums = torch.stack([total, tokens.double(), correct.double(), computed.double()])
        if ranked is not None:
            sums = torch.cat([sums, ranked.figures])
        self._eval_sums = self._eval_sums.to(sums.device) + sums
        return (total / tokens.clamp_min(1)).float(), None, None

    def evaluation_loop(
        self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Evaluate as `Trainer` does, with the loss over all tokens and the metrics of the monitoring options."""
        began, prefix = time.perf_counter(), metric_key_prefix
        self._eval_sums = self._no_sums()
        output = super().evaluation_loop(  # type: ignore[misc]
            dataloader, *args, metric_key_prefix=prefix, **kwargs
        )
        nll, tokens, correct, computed, *ranking = self._sum(self._eval_sums).tolist()
        if tokens:
            metrics: Any = output.metrics
            figures = {"loss": nll / tokens, "mean_token_accuracy": correct / computed, "tokens": int(tokens)}
            figures |= name_figures(ranking) if ranking else {}
            metrics.update({f"{prefix}_{name}": value for name, value in figures.items()})
            overfitting, samples = self._watching.overfitting, self._watching.samples
            if overfitting is not None and self.is_in_train:
                train, step = self._train_nll(), self.state.global_step
                metrics.update(overfitting.metrics(prefix, held_out=nll / tokens, train=train, step=step))
            if samples is not None:
                model, rows = self.accelerator.unwrap_model(self.model), dataloader.dataset
                with self.compute_loss_context_manager():
                    metrics.update(
                        processes.from_main_process(self.accelerator, lambda: samples.metrics(model, rows, prefix))
                    )
        self._counting_since += time.perf_counter() - began
        return output

    def _no_sums(self) -> torch.Tensor:
        return torch.zeros(4 if self._objective.rank is None else 9, dtype=torch.float64)

    def _train_nll(self) -> float:
        """Return the mean NLL per token of some training rows, the same at every evaluation."""
        prepared: Any = self.train_dataset
        rows = prepared.select(range(0, len(prepared), -(-len(prepared) // TRAIN_ROWS)))
        self._eval_sums = self._no_sums()
        with torch.random.fork_rng(devices=[]):  # creating a data loader draws a seed
            for batch in self.get_test_dataloader(rows):
                self.prediction_step(self.model, batch, prediction_loss_only=True)
        nll, tokens, *_ = self._sum(self._eval_sums).tolist()
        return float(nll / tokens)

    def try_longest_rows(self) -> int:
        """Run a forward and backward pass of the micro-batch that needs the most memory, at the end of a run, and
        return its tokens."""
        rows = _as_trained(self.train_dataset)
        longest = np.argsort(row_tokens(rows, self.layout), kind="stable")[-self.args.train_batch_size :]
        batch = self.data_collator([rows[int(index)] for index in longest])
        model: Any = self.model_wrapped
        self.training_step(model, batch, self._get_num_items_in_batch([batch], self.args.device))
        model.zero_grad()
        return int(batch["stats"]["tokens"])

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as `Trainer` does. If memory runs out, the error says what to lower."""
        if resume_from_checkpoint:
            refuse_half_an_adapter(self)
        processes.forget_evaluation(self)
        with out_of_memory_advice():
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add throughput, token accuracy and the share of prompt tokens saved to the training logs."""
        if "loss" in logs:
            counts = self._counts
            seconds = max(time.perf_counter() - self._counting_since, 1e-9)
            logs["tokens_per_second"] = counts["tokens"] / seconds
            logs["pairs_per_second"] = counts["pairs"] / seconds
            logs["responses_per_prompt"] = counts["pairs"] / max(counts["groups"], 1)
            logs["padding_share"] = 1 - counts["tokens"] / max(counts["slots"], 1)
            expanded = counts["tokens"] + counts["saved_tokens"]
            logs["prompt_tokens_saved_share"] = counts["saved_tokens"] / max(expanded, 1)
            if self._objective.rank is not None:
                logs |= name_figures(self._ranking)
            if counts["trained_tokens"]:
                logs["mean_token_accuracy"] = counts["correct_tokens"] / counts["trained_tokens"]
            self._start_counting()
        super().log(logs, *args, **kwargs)

    def _start_counting(self) -> None:
        """Count from zero over all processes. The time of evaluations is added to the start, so rates leave it out."""
        self._counts: Counter[str] = Counter()
        self._ranking = [0.0] * 5
        self._counting_since = time.perf_counter()


def _as_trained(dataset: Any) -> Any:
    """Return the rows without the column that `redraw` draws from. Each is then as long as its longest draw."""
    return dataset.remove_columns(DRAW) if DRAW in dataset.column_names else dataset
