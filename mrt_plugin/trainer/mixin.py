"""Training on groups, for any trainer that inherits from `transformers.Trainer`."""

import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset, concatenate_datasets
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from mrt_plugin.attention.family import refuse_prompt_learning
from mrt_plugin.attention.fork import recomputes
from mrt_plugin.attention.length_rope import length_ropes, refuse_split_angles
from mrt_plugin.layout.collator import GroupedResponseCollator
from mrt_plugin.layout.group_row import IGNORE, GroupRow
from mrt_plugin.layout.rows import Rows
from mrt_plugin.loss.step_loss import step_loss
from mrt_plugin.loss.token_nll import TokenNLL
from mrt_plugin.options import MultiResponseOptions
from mrt_plugin.trainer.callbacks import watch
from mrt_plugin.trainer.callbacks.memory import out_of_memory_advice
from mrt_plugin.trainer.callbacks.overfitting import TRAIN_ROWS
from mrt_plugin.trainer.callbacks.resuming import SameTrainingData
from mrt_plugin.trainer.callbacks.together import from_main_process
from mrt_plugin.trainer.layout_choice import MANY_FORWARDS, choose_layout
from mrt_plugin.trainer.meter import Meter, batch_counts
from mrt_plugin.trainer.prepare import COLUMNS, is_prepared
from mrt_plugin.trainer.quantized_cpu import keep_trainable
from mrt_plugin.trainer.redraw import DRAW, Redraw
from mrt_plugin.trainer.sharding import keep_head_gathered, read_sharding

logger = logging.getLogger(__name__)


class MultiResponseTrainerMixin(Trainer):
    """Trains on prepared groups. Put it before a trainer class and call `set_up_groups` after its `__init__`.

    The loss is that of `mrt_plugin.loss.step_loss`, divided by the units (the loss denominator) of the whole optimizer
    step: of all its micro-batches on all processes. Evaluation returns the token-weighted mean NLL over all held-out
    tokens.

    Example:

    ```python
    class MyTrainer(MultiResponseTrainerMixin, SomeTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.set_up_groups(options, [self.data_collator])
    ```
    """

    loss_is_scaled_for_ga = True  # read by transformers >= 5.19
    model: Any
    _signature_columns: Any
    _eval_sums: torch.Tensor

    def set_up_groups(self, options: MultiResponseOptions, collators: list[GroupedResponseCollator]) -> None:
        """Choose the layout, prove that it is exact, and set it in the collators.

        Raises:
            ValueError: if the options or the parallelism of the run are not supported.
        """
        self._refuse_parallelism()
        if self.accelerator.mixed_precision == "fp16" and self.accelerator.device.type == "cpu":
            logger.warning(
                "fp16 has no effect on a CPU: accelerate trains in fp32 there. Set bf16=True for half precision, or "
                "fp16=False. (Axolotl makes fp16 of `bf16: auto` where no GPU has bf16.)"
            )
        self.model_accepts_loss_kwargs = True  # read by transformers < 5.19: the loss is already divided by the units
        model = self.accelerator.unwrap_model(self.model)
        keep_trainable(model)
        _refuse_router_loss(model)
        refuse_prompt_learning(model)
        _refuse_reentrant(model, self.args)
        held_out: Any = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"evaluation": self.eval_dataset}
        for name, dataset in {"training": self.train_dataset, **held_out}.items():
            self._refuse_split_angles(dataset, name)
        self._token_nll = TokenNLL(model)
        self._meter = Meter()
        rows: Any = self.train_dataset
        if DRAW in rows.column_names:
            redraw = Redraw(options.loss_aggregation)
            self.add_callback(redraw)
            for collator in collators:
                collator.read_row = redraw
        elif options.redraw == "epoch":
            raise ValueError(
                "redraw='epoch': the training data was prepared without it, so there is nothing to draw from. Give "
                "the groups themselves, or data prepared with redraw='epoch'."
            )
        with self._token_nll.judging():
            choice = choose_layout(
                model,
                self._as_trained(self.train_dataset),
                options,
                compute=self._token_nll.bound(model),
                tokenizer=collators[0].tokenizer,
                gradient_checkpointing=bool(self.args.gradient_checkpointing) or recomputes(model),
                device_type=self.accelerator.device.type,
                sharding=read_sharding(self.accelerator.distributed_type, self.accelerator.state.deepspeed_plugin),
                agree=self._first_refusal,
            )
        self.layout = choice.layout
        self._backend = choice.backend
        if choice.backend.name in MANY_FORWARDS:
            self._stop_sending_buffers()
        for collator in collators:
            collator.layout = choice.layout
            collator.packing = collator.packing and choice.can_pack
        self.add_callback(SameTrainingData(rows, [*COLUMNS, DRAW]))
        self._watching = watch(self, options, collators[0].tokenizer)

    def _first_refusal(self, refusal: str | None) -> str | None:
        """Return the first refusal of any process.

        All processes must choose the same layout. Otherwise they would wait for each other in different places.
        """
        if self.accelerator.num_processes == 1:
            return refusal
        return next((reason for reason in gather_object([refusal]) if reason is not None), None)

    def _stop_sending_buffers(self) -> None:
        """Turn off the broadcast of buffers in DistributedDataParallel.

        It sends the first process's buffers to the others at every forward. The backend runs one forward per group or
        pair, and processes hold different numbers of these, so they would wait for each other forever. The buffers of
        a language model are constants (the angles of its positions).
        """
        if self.accelerator.num_processes == 1:
            return
        if self.args.ddp_broadcast_buffers:
            raise ValueError(
                f"ddp_broadcast_buffers=True: the backend {self._backend.name} runs the model once per group or pair, "
                "and processes have unequally many, so they would wait for each other for ever. Remove it."
            )
        if self.accelerator.ddp_handler is not None:
            self.accelerator.ddp_handler.broadcast_buffers = False

    def _refuse_parallelism(self) -> None:
        if self.args.n_gpu > 1:
            raise ValueError(
                "torch.nn.DataParallel is not supported: start one process per GPU (torchrun or accelerate launch), "
                "or set CUDA_VISIBLE_DEVICES to one GPU."
            )
        parallelism = self.accelerator.parallelism_config
        if parallelism is not None and parallelism.non_data_parallel_size > 1:
            raise ValueError(
                "Context, sequence and tensor parallelism split a row, and a group must stay whole: use DDP, FSDP or "
                "DeepSpeed ZeRO."
            )
        if self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.fsdp_version == 1:
            raise ValueError(
                "FSDP version 1 frees the output head after the model's forward, and the head is applied to the "
                "trained tokens after that. Set fsdp_version: 2."
            )
        if self.accelerator.dispatch_batches:
            raise ValueError(
                "accelerator_config: dispatch_batches=True cuts the first process's batches into equal rows for the "
                "others, and batches of groups have rows of their own lengths. Remove it."
            )

    # ------------------------------------------------------------------ data

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = [*COLUMNS, DRAW]

    def _refuse_split_angles(self, dataset: Any, name: str) -> None:
        config = self.accelerator.unwrap_model(self.model).config
        if length_ropes(config) and isinstance(dataset, Dataset) and is_prepared(dataset):
            rows = zip(dataset["prefix_length"], dataset["segment_lengths"], strict=True)
            refuse_split_angles(config, [prefix + length for prefix, lengths in rows for length in lengths], name)

    def _as_trained(self, dataset: Any) -> Any:
        """Return the rows without the column that `redraw` draws from. Each is then as long as its longest draw."""
        return dataset.remove_columns(DRAW) if DRAW in dataset.column_names else dataset

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Callable[[Any], Any] | None = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> Any:
        # accelerate repeats rows until all processes have equal batches, which would count these rows twice.
        multiple = batch_size * self.accelerator.num_processes
        if self.accelerator.num_processes > 1 and isinstance(dataset, Dataset) and is_prepared(dataset):
            dataset = with_fillers(dataset, multiple)
        if not is_training and isinstance(dataset, Dataset):
            dataset = self._as_trained(dataset)
            self._refuse_split_angles(dataset, "evaluation")
        return super()._get_dataloader(
            dataset,
            description,
            batch_size,
            sampler_fn=sampler_fn,
            is_training=is_training,
            dataloader_key=dataloader_key,
        )

    # ------------------------------------------------------------------ loss

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor:
        """Return the units of the whole optimizer step, over its micro-batches and all processes."""
        sums = torch.zeros(6, dtype=torch.float64)
        for batch in batch_samples:
            sums += torch.cat([batch["units"].double().sum().reshape(1).cpu(), batch_counts(batch)])
        totals = self._sum_over_processes(sums)
        # After an evaluation the model is still in evaluation mode here. Only training asks for a step's units.
        self._meter.add_batches(totals[1:])
        return totals[0].float().to(device)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return this micro-batch's part of the step's loss. There are no outputs: a row's logits never exist."""
        rows = Rows.from_batch(inputs)
        nll = self._nll(model, rows)
        if num_items_in_batch is None:
            units = self._sum_over_processes(rows.units.sum().reshape(1))[0]
        else:
            units = torch.as_tensor(num_items_in_batch, device=nll.device)
        loss = step_loss(nll, rows.loss_weights, units, self.accelerator.num_processes)
        trained = (rows.labels != IGNORE).sum()
        correct = self._token_nll.take_correct_tokens().to(trained.device)
        figures = torch.stack([trained.double(), correct.double(), loss.detach().double()])
        trained, correct, summed = self._sum_over_processes(figures).tolist()
        self._meter.add_predictions(trained, correct)
        if self._watching.smoke is not None:
            self._watching.smoke.add_loss(summed / self.accelerator.num_processes)
        return (loss, {}) if return_outputs else loss

    def _nll(self, model: torch.nn.Module, rows: Rows) -> torch.Tensor:
        """Return the NLL of each token, [R, T] (rows, tokens per row).

        A backend inspects the unwrapped model and runs the one that distributed training wrapped.
        """
        keep_head_gathered(model)
        return self._backend.token_nll(self.model, rows, self._token_nll.bound(model))

    def _sum_over_processes(self, values: torch.Tensor) -> torch.Tensor:
        if self.accelerator.num_processes == 1:
            return values
        gathered: torch.Tensor = self.accelerator.reduce(values.to(self.accelerator.device), reduction="sum")
        return gathered.to(values.device)

    # ------------------------------------------------------------------ evaluation

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, None, None]:
        """Return the mean NLL of the batch's tokens, and add its sums for `evaluation_loop`."""
        rows = Rows.from_batch(self._prepare_inputs(inputs))
        with torch.no_grad(), self.compute_loss_context_manager():
            nll = self._nll(model, rows)
        tokens = (rows.labels != IGNORE).sum()
        sums = torch.stack([nll.double().sum(), tokens.double(), self._token_nll.take_correct_tokens().double()])
        self._eval_sums = self._eval_sums.to(sums.device) + sums
        return nll.sum() / tokens.clamp_min(1), None, None

    def evaluation_loop(
        self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        """Evaluate as `Trainer` does, with the loss taken over all tokens instead of averaged over batches.

        Add the metrics of the monitoring options.
        """
        began = time.perf_counter()
        self._eval_sums = torch.zeros(3, dtype=torch.float64)
        output = super().evaluation_loop(  # type: ignore[misc]
            dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs
        )
        nll, tokens, correct = self._sum_over_processes(self._eval_sums).tolist()
        if tokens:
            metrics: Any = output.metrics
            metrics[f"{metric_key_prefix}_loss"] = nll / tokens
            metrics[f"{metric_key_prefix}_mean_token_accuracy"] = correct / tokens
            metrics[f"{metric_key_prefix}_tokens"] = int(tokens)
            metrics.update(self._watched(dataloader.dataset, nll / tokens, metric_key_prefix))
        self._meter.paused_seconds += time.perf_counter() - began
        return output

    def _watched(self, rows: Any, loss: float, prefix: str) -> dict[str, float]:
        """Return the gap to the training loss, and the metrics of sampled answers to held-out prompts."""
        metrics: dict[str, float] = {}
        overfitting, samples = self._watching.overfitting, self._watching.samples
        if overfitting is not None and self.is_in_train:
            step = self.state.global_step
            metrics |= overfitting.metrics(prefix, held_out=loss, train=self._train_nll(), step=step)
        if samples is not None:
            model = self.accelerator.unwrap_model(self.model)
            with self.compute_loss_context_manager():
                metrics |= from_main_process(self.accelerator, lambda: samples.metrics(model, rows, prefix))
        return metrics

    def _train_nll(self) -> float:
        """Return the mean NLL per token of some training rows, computed as the held-out loss is.

        The rows are the same at every evaluation.
        """
        prepared: Any = self.train_dataset
        rows = prepared.select(range(0, len(prepared), -(-len(prepared) // TRAIN_ROWS)))
        self._eval_sums = torch.zeros(3, dtype=torch.float64)
        with torch.random.fork_rng(devices=[]):  # creating a data loader draws a seed
            model: Any = self.model
            for batch in self.get_test_dataloader(rows):
                self.prediction_step(model, batch, prediction_loss_only=True)
        nll, tokens, _ = self._sum_over_processes(self._eval_sums).tolist()
        return float(nll / tokens)

    def try_longest_rows(self) -> int:
        """Run a forward and backward pass of the micro-batch that needs the most memory, and return its tokens.

        Call it at the end of a run: it changes gradients, not weights. Every process takes the same rows.
        """
        rows = self._as_trained(self.train_dataset)
        shared = self.layout == "shared_prefix"
        sizes = [
            (prefix if shared else prefix * len(lengths)) + sum(lengths)
            for prefix, lengths in zip(rows["prefix_length"], rows["segment_lengths"], strict=True)
        ]
        longest = sorted(range(len(sizes)), key=sizes.__getitem__)[-self.args.train_batch_size :]
        batch = self.data_collator([rows[index] for index in longest])
        model: Any = self.model_wrapped
        units = self._get_num_items_in_batch([batch], self.args.device)
        self.training_step(model, batch, units)
        model.zero_grad()
        return int(batch["stats"]["tokens"])

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as `Trainer` does. If memory runs out, the error says what to lower."""
        with out_of_memory_advice():
            return super().train(*args, **kwargs)

    # ------------------------------------------------------------------ logs

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add throughput, token accuracy and the share of prompt tokens saved to the training logs."""
        if "loss" in logs:
            logs.update(self._meter.read())
            self._meter = Meter()
        super().log(logs, *args, **kwargs)


def _refuse_router_loss(model: Any) -> None:
    if model.config.get_text_config().to_dict().get("output_router_logits"):
        raise ValueError(
            "The load-balancing loss of a mixture of experts counts tokens, and a shared prompt is there once instead "
            "of K times: it is not computed for groups. Set router_aux_loss_coef=0.0 (TRL), or output_router_logits: "
            "false in the model's config, to train without it."
        )


def _refuse_reentrant(model: Any, args: Any) -> None:
    """Refuse reentrant checkpointing for a model whose layers reuse keys and values.

    Such layers pass keys and values on next to their outputs, and reentrant checkpointing loses their gradient.
    """
    reuses = model.config.get_text_config().to_dict().get("num_kv_shared_layers")
    reentrant = (args.gradient_checkpointing_kwargs or {}).get("use_reentrant")
    if reuses and args.gradient_checkpointing and reentrant:
        raise ValueError(
            f"{model.config.model_type} reuses keys and values in its last {reuses} layers, and reentrant gradient "
            "checkpointing loses their gradient. Set gradient_checkpointing_kwargs: {use_reentrant: false}."
        )


def with_fillers(dataset: Dataset, multiple: int) -> Dataset:
    """Extend the dataset to a multiple of `multiple` rows with fillers that train nothing and have no weight."""
    missing = -len(dataset) % multiple
    if not missing:
        return dataset
    token = dataset[0]["input_ids"][0]
    filler = GroupRow(
        input_ids=[token],
        labels=[IGNORE],
        loss_weights=[0.0],
        prefix_length=0,
        segment_lengths=[1],
        segment_units=[0.0],
    )
    plain = dataset.select_columns([name for name in (*COLUMNS, DRAW) if name in dataset.column_names])
    row = {name: dict(filler).get(name) for name in plain.column_names}
    return concatenate_datasets([plain, Dataset.from_list([row] * missing, features=plain.features)])
