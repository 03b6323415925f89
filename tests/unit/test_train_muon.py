"""Muon: orthogonal steps against the singular value decomposition, AdamW for all else, and an exact resume."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from logsnr.train.muon import Muon, orthogonalise, split_matrices


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
def test_orthogonal_keeps_singular_vectors_and_levels_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ orthogonalise(matrix) @ v.T
    values = inside.diag()
    assert float((inside - values.diag()).abs().max()) < 1e-4
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.3


def test_step_of_a_matrix_is_the_formula_and_of_all_else_adamw() -> None:
    torch.manual_seed(0)
    layer, twin = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
    twin.load_state_dict(layer.state_dict())
    muon = Muon(
        [
            {"params": [layer.weight], "lr": 0.1, "weight_decay": 0.5, "orthogonal": True},
            {"params": [layer.bias], "lr": 0.1},
        ]
    )
    adamw = torch.optim.AdamW([twin.bias], lr=0.1, betas=(0.9, 0.99))
    momentum = torch.zeros(8, 27)
    for step in range(3):
        x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(step))
        before = layer.weight.detach().clone().flatten(1)
        for net in (layer, twin):
            net.zero_grad()
            net(x).square().sum().backward()
        grad = layer.weight.grad.flatten(1).clone()
        twin.bias.grad.copy_(layer.bias.grad)
        momentum = 0.95 * momentum + grad
        expected = before * (1 - 0.05) - 0.1 * 0.2 * 27**0.5 * orthogonalise(grad + 0.95 * momentum)
        muon.step()
        adamw.step()
        assert torch.allclose(layer.weight.detach().flatten(1), expected, atol=1e-6)
        assert torch.equal(layer.bias, twin.bias)


def test_state_is_taken_back() -> None:
    torch.manual_seed(1)
    layers = [nn.Linear(4, 6), nn.Linear(4, 6)]
    muons = [
        Muon([{"params": [n.weight], "lr": 0.1, "orthogonal": True}, {"params": [n.bias], "lr": 0.1}]) for n in layers
    ]
    for n in (0, 0, 1):
        if n:
            layers[1].load_state_dict(layers[0].state_dict())
            muons[1].load_state_dict(deepcopy(muons[0].state_dict()))
        for layer, muon in list(zip(layers, muons, strict=True))[: 1 + n]:
            layer(torch.ones(2, 4)).square().sum().backward()
            muon.step()
            muon.zero_grad()
    assert torch.equal(layers[0].weight, layers[1].weight)
    assert torch.equal(layers[0].bias, layers[1].bias)


def test_ends_and_embeddings_are_no_matrices() -> None:
    net = nn.ModuleDict(
        {
            "conv_in": nn.Conv2d(3, 4, 3),
            "token_embedding": nn.Embedding(5, 4),
            "block": nn.ModuleDict({"proj_out": nn.Linear(4, 4), "norm": nn.LayerNorm(4)}),
            "proj_out": nn.Linear(4, 3),
        }
    )
    parameters = dict(net.named_parameters())
    matrices, others = split_matrices(parameters)
    assert [id(p) for p in matrices] == [id(net["block"]["proj_out"].weight)]
    assert len(others) == len(parameters) - 1
