"""Per-token NLL against the model's own full logits, for families that change their logits and those that do not."""

import math

import pytest
import torch
from helpers import tiny
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    OPTConfig,
    RecurrentGemmaConfig,
    xLSTMConfig,
)

from mrt_plugin.layout.group_row import IGNORE
from mrt_plugin.loss.dft import dft_loss
from mrt_plugin.loss.gem import gem_loss
from mrt_plugin.loss.token_nll import TokenNLL, logit_transform, step_loss

SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "softcap": Gemma2Config(**SMALL, final_logit_softcapping=2.0),
    "divided": GraniteConfig(**SMALL, logits_scaling=8.0),
    "scaled": CohereConfig(**SMALL, logit_scale=0.25),
    "gpt2": GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0),
    "opt": OPTConfig(
        vocab_size=300, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, dropout=0.0
    ),
}


def build(name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="eager")
    # logits far from zero, so that a forgotten cap or scale shows
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)
    return model


def batch():
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(3, 300, (3, 17), generator=generator)
    labels = torch.where(torch.rand((3, 17), generator=generator) < 0.6, input_ids.roll(-1, 1), IGNORE)
    labels[:, -1] = labels[2] = IGNORE
    return input_ids, labels


def reference(model, input_ids, labels):
    logits = model(input_ids=input_ids, use_cache=False).logits.float()
    log_probs = logits.log_softmax(-1)
    nll = torch.zeros(labels.shape)
    for row in range(labels.shape[0]):
        for t in range(labels.shape[1]):
            if labels[row, t] != IGNORE:
                nll[row, t] = -log_probs[row, t, labels[row, t]]
    return nll


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("chunk", [4, 1000])
def test_nll_and_gradients_are_those_of_the_full_logits(name, chunk):
    input_ids, labels = batch()
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(2))
    plain = build(name)
    expected = reference(plain, input_ids, labels)
    (weights * expected).sum().backward()
    model = build(name)
    compute = TokenNLL(model, chunk=chunk)
    nll = compute(model, {"input_ids": input_ids, "use_cache": False}, labels)
    (weights * nll).sum().backward()
    assert torch.allclose(nll, expected, rtol=1e-5, atol=1e-5)
    assert (gradient(model) - gradient(plain)).norm() < 1e-5 * gradient(plain).norm()
    predicted = plain(input_ids=input_ids).logits.argmax(-1)
    right = (predicted == labels).sum()
    assert compute.take_correct_tokens() == right
    assert compute.take_correct_tokens() == 0


def changed(model, change):
    """The model, whose forward changes its logits in a way that no configuration says."""

    class Changed(type(model)):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = change(output.logits)
            return output

    model.__class__ = Changed
    return model


def shout(logits):
    return logits * 1.5 + 0.1 * logits**2


def cap_at_five(logits):
    return torch.tanh(logits / 5) * 5


def double_in_place(logits):
    return logits.mul_(2)


def drop_the_last_tokens(logits):
    return logits[..., :-4]


@pytest.mark.parametrize("change", [shout, cap_at_five, double_in_place, drop_the_last_tokens])
def test_a_transformation_not_known_here_is_noticed(change):
    """The model's own head then runs on the trained tokens, and the numbers stay its own."""
    input_ids, labels = batch()
    labels[labels >= 296] = IGNORE
    model = changed(build("llama"), change)
    expected = reference(model, input_ids, labels)
    compute = TokenNLL(model)
    for _ in range(2):
        nll = compute(model, {"input_ids": input_ids, "use_cache": False}, labels)
        assert torch.allclose(nll, expected, rtol=1e-5, atol=1e-5)
    assert nll.requires_grad


def test_a_cap_that_the_first_token_does_not_show_is_noticed():
    """A token whose logits are all small looks the same capped and not."""
    input_ids, labels = batch()
    input_ids[:, 0] = 1
    labels[:, 0] = IGNORE
    model = build("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[1] = 0  # the first position's logits are 0 then
    changed(model, cap_at_five)
    expected = reference(model, input_ids, labels)
    nll = TokenNLL(model)(model, {"input_ids": input_ids, "use_cache": False}, labels)
    assert torch.allclose(nll, expected, rtol=1e-5, atol=1e-5)


def test_within_judging_every_call_is_compared():
    """Where only some tokens show the change, a later call may be the first to have one."""
    input_ids, labels = batch()
    model = changed(build("llama"), lambda logits: logits.clamp(max=20.0))
    small = torch.full_like(labels, IGNORE)
    logits = model(input_ids=input_ids).logits
    row, place = (logits[:, :-1].amax(-1) < 20).nonzero()[0].tolist()
    small[row, place + 1] = input_ids[row, place + 1]
    compute = TokenNLL(model)
    with compute.judging():
        for asked in (small, labels, small):
            nll = compute(model, {"input_ids": input_ids, "use_cache": False}, asked)
            assert torch.allclose(nll, reference(model, input_ids, asked), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "known"),
    [
        (RecurrentGemmaConfig(logits_soft_cap=7.0), 7 * math.tanh(3 / 7)),
        (xLSTMConfig(output_logit_soft_cap=7.0), 7 * math.tanh(3 / 7)),
        (FalconH1Config(lm_head_multiplier=0.5), 1.5),
        (Gemma2Config(final_logit_softcapping=7.0), 7 * math.tanh(3 / 7)),
        (LlamaConfig(), 3.0),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_the_transformations_known_by_name(config, known):
    assert logit_transform(config)(torch.tensor([3.0])).item() == pytest.approx(known)


@pytest.mark.parametrize("loss", [dft_loss, gem_loss])
@pytest.mark.parametrize("change", [None, shout])
@pytest.mark.parametrize("name", ["llama", "softcap"])
def test_other_losses_of_a_token_see_the_models_own_logits(name, change, loss):
    """In chunks, with known transformations, and through the model's own head where it changes its logits."""
    input_ids, labels = batch()
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(2))
    models = [changed(build(name), change) if change else build(name) for _ in range(2)]
    where = labels != IGNORE
    logits = models[0](input_ids=input_ids, use_cache=False).logits.float()
    expected = torch.zeros(labels.shape).masked_scatter(where, loss(logits[where], labels[where]))
    (weights * expected).sum().backward()
    compute = TokenNLL(models[1], chunk=4)
    for _ in range(2):  # the first call compares
        models[1].zero_grad()
        found = compute.bound(models[1], loss)({"input_ids": input_ids, "use_cache": False}, labels)
        (weights * found).sum().backward()
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
        assert (gradient(models[1]) - gradient(models[0])).norm() < 1e-5 * gradient(models[0]).norm()
    plain = compute(models[1], {"input_ids": input_ids, "use_cache": False}, labels)
    assert torch.allclose(plain, reference(models[0], input_ids, labels), rtol=1e-5, atol=1e-5)


def test_the_logits_of_a_prompt_never_exist():
    """The head sees trained positions only, a chunk at a time."""
    input_ids, labels = batch()
    model = build("llama")
    seen = []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.numel() // output.shape[-1]))
    compute = TokenNLL(model, chunk=4)
    trained = int((labels != IGNORE).sum())
    compute(model, {"input_ids": input_ids, "use_cache": False}, labels)
    assert max(seen) == trained, "the first call compares all trained tokens"
    seen.clear()
    compute(model, {"input_ids": input_ids, "use_cache": False}, labels).sum().backward()
    assert max(seen) <= 4
    assert trained > 4
    # forward; all but the last chunk once more in the backward; and the model's own one position
    assert sum(seen) == trained + (trained - 1) // 4 * 4 + 1


def test_nothing_trained_still_has_a_graph():
    input_ids, labels = batch()
    model = build("llama")
    nll = TokenNLL(model)(model, {"input_ids": input_ids, "use_cache": False}, torch.full_like(labels, IGNORE))
    assert nll.sum() == 0
    nll.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_bfloat16_autocast():
    input_ids, labels = batch()
    model = build("llama")
    expected = reference(model, input_ids, labels)
    compute = TokenNLL(model, chunk=4)
    with torch.autocast("cpu", torch.bfloat16):
        nll = compute(model, {"input_ids": input_ids, "use_cache": False}, labels)
        full = model(input_ids=input_ids).logits.float().log_softmax(-1)
    assert nll.dtype == torch.float32
    expected = -full.gather(2, labels.clamp(min=0)[..., None])[..., 0] * (labels != IGNORE)
    assert torch.allclose(nll, expected, rtol=1e-2, atol=1e-2)


def test_step_loss_divides_by_the_units_of_the_step():
    nll, weights = torch.tensor([[0.0, 2.0, 4.0]]), torch.tensor([[0.0, 1.0, 0.5]])
    assert step_loss(nll, weights, torch.tensor(8.0)) == 0.5
    assert step_loss(nll, weights, torch.tensor(8.0), processes=2) == 1.0
    assert step_loss(nll, torch.zeros(1, 3), torch.tensor(0.0)) == 0.0


def test_a_model_without_a_head_is_refused():
    from transformers import LlamaModel

    with pytest.raises(ValueError, match="no output embeddings"):
        TokenNLL(LlamaModel(CONFIGS["llama"]))
    assert TokenNLL(tiny.llama()).chunk > 0
