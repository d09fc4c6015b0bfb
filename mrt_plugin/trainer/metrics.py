"""Name every metric that a run logs, with its unit, better direction and meaning, for `docs/metrics.md`."""

from dataclasses import dataclass
from typing import Literal

from mrt_plugin.markdown import markdown_table

Better = Literal["lower", "higher", "neither"]


@dataclass(frozen=True)
class Metric:
    """A metric. Of a held-out set, the name has the prefix `eval_`, or `eval_<name>_` with several sets."""

    name: str
    unit: str
    better: Better
    meaning: str
    needs: str = ""
    """The options without which it is not logged."""

    def row(self, prefix: str = "") -> tuple[str, str, str, str]:
        needs = f" Needs {self.needs}." if self.needs else ""
        return f"`{prefix}{self.name}`", self.unit, self.better, f"{self.meaning}{needs}"


RANKING = "`objective: pro` or `plackett_luce`"
SAMPLES = "`sample_prompts`"

FIGURES = (
    Metric("best_nll", "nats per token", "lower", "NLL of each group's best response by score.", RANKING),
    Metric(
        "ranking_accuracy",
        "share",
        "higher",
        "Pairs of responses with different scores that the model orders as the scores do.",
        RANKING,
    ),
    Metric(
        "margin",
        "nats; for `pro` nats per token",
        "higher",
        "Mean of the model's own score of the better response minus that of the worse one.",
        RANKING,
    ),
)

TRAINING = (
    Metric(
        "loss",
        "nats per token",
        "lower",
        "The objective, as it is minimised: its mean over what has one vote (`loss_aggregation`). Its unit is per "
        "token for `nll`, `dft` and `gem`, and per group for `pro` and `plackett_luce`.",
    ),
    Metric(
        "mean_token_accuracy",
        "share",
        "higher",
        "Trained tokens that the model predicts first. A token that several responses share counts once.",
    ),
    Metric(
        "responses_per_prompt",
        "responses",
        "neither",
        "Responses that trained, by groups: the K that took place.",
    ),
    Metric(
        "prompt_tokens_saved_share",
        "share",
        "higher",
        "Tokens that sharing did not compute, of the tokens of the expanded layout. 0 in layout `expanded`.",
    ),
    Metric("padding_share", "share", "lower", "Slots of the batches that held padding."),
    Metric(
        "tokens_per_second",
        "tokens per second",
        "higher",
        "Computed tokens of all processes, without padding and without the time of evaluations. A shared prompt "
        "counts once, so compare layouts by `pairs_per_second`.",
    ),
    Metric("pairs_per_second", "pairs per second", "higher", "Prompts with one response trained, of all processes."),
    *FIGURES,
)
"""Logged every `logging_steps` optimizer steps, over the steps since the last log and over all processes."""

HELD_OUT = (
    Metric(
        "loss",
        "nats per token",
        "lower",
        "Mean NLL over all held-out tokens, under every objective and batch size. No weights, no dropout.",
    ),
    Metric("mean_token_accuracy", "share", "higher", "As in training, on held-out tokens."),
    Metric("tokens", "tokens", "neither", "Held-out tokens that `eval_loss` is the mean of."),
    Metric(
        "train_gap",
        "nats per token",
        "lower",
        "Held-out minus training loss, on the same at most 64 training rows each time. Its growth counts.",
        "`overfit_limit` above 0, the default, and a run in training",
    ),
    Metric(
        "coverage",
        "cosine",
        "higher",
        "Mean over references of the best cosine to a sampled answer.",
        SAMPLES,
    ),
    Metric("alignment", "cosine", "higher", "Mean over sampled answers of the best cosine to a reference.", SAMPLES),
    Metric("diversity", "1 - cosine", "neither", "1 minus the mean cosine between the answers to a prompt.", SAMPLES),
    Metric("sample_tokens", "tokens", "neither", "Mean length of the sampled answers.", SAMPLES),
    Metric("samples_ended", "share", "higher", "Sampled answers that ended by themselves.", SAMPLES),
    *FIGURES,
)
"""Logged at every evaluation. `train_gap`, the samples and `tokens` have one value for each held-out set."""

FROM_TRANSFORMERS = (
    Metric("grad_norm", "norm", "neither", "Norm of the gradient before clipping, at the last step."),
    Metric("learning_rate", "", "neither", "At the last step."),
    Metric("epoch", "epochs", "neither", "Passes over the groups. With `redraw: epoch` each draws other responses."),
    Metric("train_loss", "as `loss`", "lower", "Mean of `loss` over the run, at its end."),
    Metric("train_runtime", "seconds", "neither", "Of the run, evaluations and saving included."),
    Metric("train_samples_per_second", "groups per second", "higher", "Groups, not pairs: a sample is a row."),
    Metric("train_steps_per_second", "steps per second", "higher", "Optimizer steps."),
    Metric(
        "total_flos",
        "operations",
        "neither",
        "6 x parameters without embeddings x slots of the rows, so a shared prompt counts once. No attention.",
    ),
    Metric("eval_runtime", "seconds", "neither", "Of the evaluation, with sampled answers and `train_gap`."),
    Metric("eval_samples_per_second", "groups per second", "higher", "Held-out groups."),
    Metric("eval_steps_per_second", "batches per second", "higher", "Held-out batches."),
)
"""Logged by transformers' `Trainer`, and what they mean where a sample is a group."""


@dataclass(frozen=True)
class Elsewhere:
    """A metric of TRL or Axolotl, and what becomes of it under this trainer."""

    name: str
    library: str
    here: str


ELSEWHERE = (
    Elsewhere("mean_token_accuracy", "TRL", "Logged, over the complete step. TRL averages its micro-batches."),
    Elsewhere("entropy", "TRL", "Not logged: it needs the logits of a row, which are never computed as one tensor."),
    Elsewhere("num_tokens", "TRL", "Not logged: see `tokens_per_second`, or set `include_num_input_tokens_seen`."),
    Elsewhere("aux_loss", "TRL", "Not logged: a run with the router's loss of a mixture of experts is refused."),
    Elsewhere("ppl", "Axolotl", "e^`loss`. It is a perplexity for `objective: nll` alone."),
    Elsewhere("eval_ppl", "Axolotl", "e^`eval_loss`: the held-out perplexity."),
    Elsewhere("memory/max_active (GiB)", "Axolotl", "As Axolotl logs it: memory of the device."),
    Elsewhere("memory/max_allocated (GiB)", "Axolotl", "Likewise."),
    Elsewhere("memory/device_reserved (GiB)", "Axolotl", "Likewise."),
    Elsewhere("tokens/train_per_sec_per_gpu", "Axolotl", "Not logged: see `tokens_per_second`, of all processes."),
    Elsewhere("tokens/trainable", "Axolotl", "Not logged."),
    Elsewhere("tokens/total", "Axolotl", "Not logged: see `total_flos`."),
)


def tables() -> str:
    """Return the tables of `docs/metrics.md`."""
    head = ("name", "unit", "better", "meaning")
    parts = (
        (
            "Training",
            "Every `logging_steps` steps, over the steps since the last log and all processes.",
            TRAINING,
            "",
        ),
        ("Held-out data", "At every evaluation, over the complete held-out set.", HELD_OUT, "eval_"),
        ("From transformers", "A sample is a group, so rates are in groups.", FROM_TRANSFORMERS, ""),
    )
    lines = []
    for title, when, metrics, prefix in parts:
        rows = [metric.row(prefix) for metric in metrics]
        lines += [f"## {title}", "", when, "", *markdown_table(head, rows, numbers=False), ""]
    elsewhere = [(f"`{one.name}`", one.library, one.here) for one in ELSEWHERE]
    lines += ["## Metrics of TRL and Axolotl", ""]
    lines += markdown_table(("name", "from", "here"), elsewhere, numbers=False)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(tables(), end="")
