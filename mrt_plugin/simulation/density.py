"""Mixture density networks, as in arXiv 2606.00544: two hidden ReLU layers, and a head for five normal distributions.

The parameters of M networks are stacked, so that one matrix product trains all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from mrt_plugin.simulation.world import DIMENSION, OFFSETS, centre, quadrature

HIDDEN, COMPONENTS = 64, 5


@dataclass
class Densities:
    """M stacked networks, as weight [M, in, out] and bias [M, 1, out] of each layer.

    The head's 15 outputs are logits, means and log standard deviations (clamped to [-3, 3]) of the components.
    """

    layers: list[tuple[torch.Tensor, torch.Tensor]]

    @classmethod
    def initialised(cls, seeds: Sequence[int]) -> "Densities":
        """Build one network per seed, initialised like PyTorch's linear layers after `torch.manual_seed(seed)`."""
        sizes = ((DIMENSION, HIDDEN), (HIDDEN, HIDDEN), *[(HIDDEN, COMPONENTS)] * 3)
        drawn = []
        with torch.random.fork_rng(devices=[]):
            for seed in seeds:
                torch.manual_seed(seed)
                layers = [nn.Linear(*size) for size in sizes]
                first, second, *heads = ((layer.weight.detach().T, layer.bias.detach()[None]) for layer in layers)
                head = [torch.cat(parts, dim=1) for parts in zip(*heads, strict=True)]
                drawn.append([*first, *second, *head])
        stacked = [torch.stack(tensors) for tensors in zip(*drawn, strict=True)]
        return cls(list(zip(stacked[::2], stacked[1::2], strict=True)))

    def outputs(self, prompts: torch.Tensor) -> torch.Tensor:
        """Compute the head's outputs, [M, S, 15], for prompts [M or 1, S, 5]."""
        value = prompts.expand(len(self.layers[0][0]), -1, -1)
        for number, (weight, bias) in enumerate(self.layers):
            value = torch.baddbmm(bias, torch.relu(value) if number else value, weight)
        return value


def output_nll(outputs: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
    """Compute -log p(y) in nats, [..., J], from the head's outputs [..., 15], for responses [..., J]."""
    logits, means, log_sigmas = outputs[..., None, :].chunk(3, dim=-1)
    log_sigmas = log_sigmas.clamp(-3, 3)
    scaled = (responses[..., None] - means) * torch.exp(-log_sigmas)
    inside = torch.log_softmax(logits, dim=-1) - 0.5 * scaled**2 - log_sigmas
    return 0.5 * float(np.log(2 * np.pi)) - torch.logsumexp(inside, dim=-1)


def train(
    prompts: np.ndarray,
    responses: np.ndarray,
    seeds: Sequence[int],
    *,
    steps: int,
    watch: Callable[[int, Densities], None] = lambda step, model: None,
) -> Densities:
    """Train one network per seed on prompts [M, n, 5] and responses [M, n, K]. `watch` sees every step and the end."""
    model = Densities.initialised(seeds)
    x, y = (torch.tensor(part, dtype=torch.float32) for part in (prompts, responses))
    parameters = [tensor.requires_grad_(True) for layer in model.layers for tensor in layer]
    optimizer = torch.optim.Adam(parameters, lr=0.005)
    for step in range(steps):
        watch(step, model)
        optimizer.zero_grad()
        # The networks are independent, so the sum of their losses gives each network its own gradients.
        output_nll(model.outputs(x), y).mean(dim=(1, 2)).sum().backward()
        gradients = [tensor.grad for tensor in parameters if tensor.grad is not None]
        squares = torch.stack([gradient.pow(2).sum(dim=(1, 2)) for gradient in gradients]).sum(dim=0)
        scale = (5 / (torch.sqrt(squares) + 1e-6)).clamp(max=1)[:, None, None]
        for gradient in gradients:
            gradient *= scale
        optimizer.step()
    watch(steps, model)
    for tensor in parameters:
        tensor.requires_grad_(False)
    return model


@torch.no_grad()
def true_nll(model: Densities, prompts: np.ndarray) -> np.ndarray:
    """Integrate -log p(y|x) over all answers, and average over prompts [n, 5]: [M]."""
    nodes, weights = quadrature(8)
    answers = torch.tensor(centre(prompts)[:, None] + nodes, dtype=torch.float32)
    losses = [output_nll(one, answers) for one in model.outputs(torch.tensor(prompts, dtype=torch.float32)[None])]
    return np.array([float((loss.double().numpy() @ weights).mean()) for loss in losses])


@torch.no_grad()
def mode_masses(model: Densities, prompts: np.ndarray) -> np.ndarray:
    """Compute the probability that each network gives each mode, [M, n, 3]. An answer belongs to the nearest mode."""
    logits, means, log_sigmas = model.outputs(torch.tensor(prompts, dtype=torch.float32)[None]).double().chunk(3, -1)
    borders = torch.tensor(centre(prompts)[:, None] + (OFFSETS[1:] + OFFSETS[:-1]) / 2)
    scaled = (borders[:, :, None] - means[:, :, None]) * torch.exp(-log_sigmas.clamp(-3, 3))[:, :, None]
    below = (torch.special.ndtr(scaled) * torch.softmax(logits, -1)[:, :, None]).sum(dim=-1)
    return np.diff(below.numpy(), prepend=0, append=1)


def gradient_products(model: Densities, prompts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the outputs of one network, [n, 15], and the inner products J·J^T of their gradients, [n, 15, 15].

    Two losses with the gradients d and e in the outputs have full gradients with the inner product d^T·J·J^T·e.
    """
    parameters = tuple(tensor[0].double() for layer in model.layers for tensor in layer)

    def outputs(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        layers = [(values[i][None], values[i + 1][None]) for i in range(0, len(values), 2)]
        return Densities(layers).outputs(x[None, None])[0, 0]

    at, products = [], []
    for row in torch.tensor(prompts, dtype=torch.float64):
        at.append(outputs(row, *parameters))
        jacobians = torch.autograd.functional.jacobian(lambda *v, row=row: outputs(row, *v), parameters)
        flat = torch.cat([part.flatten(1) for part in jacobians], dim=1)
        products.append((flat @ flat.T).numpy())
    return torch.stack(at).numpy(), np.stack(products)


def output_gradients(outputs: np.ndarray, responses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute -log p(y), [n, J], and its gradients [n, J, 15], from outputs [n, 15] for responses [n, J]."""
    repeated = torch.tensor(outputs)[:, None].expand(-1, responses.shape[1], -1).clone().requires_grad_(True)
    losses = output_nll(repeated, torch.tensor(responses)[..., None])[..., 0]
    (deltas,) = torch.autograd.grad(losses.sum(), repeated)
    return losses.detach().numpy(), deltas.numpy()
