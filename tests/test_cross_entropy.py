"""Cross entropy by blocks: the value and the gradient of PyTorch's own."""

from __future__ import annotations

import pytest
import torch

from toolchain.training import cross_entropy as module
from toolchain.training.cross_entropy import cross_entropy, soft_cross_entropy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight", [1.0, 20.0])
def test_value_and_gradient_are_those_of_pytorch(
    dtype: torch.dtype, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", 3 * 11)  # three rows: the last block is not full
    random = torch.Generator().manual_seed(0)
    scores = (4 * torch.randn(20, 11, generator=random)).to(dtype)
    targets = torch.randint(0, 11, (20,), generator=random)
    found, wanted = (scores.clone().requires_grad_() for _ in range(2))
    loss, expected = cross_entropy(found, targets), torch.nn.functional.cross_entropy(wanted.float(), targets)
    torch.testing.assert_close(loss, expected)
    assert (loss.dtype, loss.shape) == (torch.float32, ())
    (weight * loss).backward()
    (weight * expected).backward()
    torch.testing.assert_close(found.grad, wanted.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_another_networks_probabilities_are_targets_as_in_pytorch(
    dtype: torch.dtype, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", 3 * 11)
    random = torch.Generator().manual_seed(0)
    scores, answer = ((4 * torch.randn(20, 11, generator=random)).to(dtype) for _ in range(2))
    found, wanted = (scores.clone().requires_grad_() for _ in range(2))
    loss = soft_cross_entropy(found, answer, temperature=temperature)
    p = torch.softmax(answer.float() / temperature, dim=-1)
    expected = torch.nn.functional.cross_entropy(wanted.float() / temperature, p)
    torch.testing.assert_close(loss, expected)
    assert (loss.dtype, loss.shape) == (torch.float32, ())
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(found.grad, wanted.grad)
    assert wanted.grad is not None
    assert wanted.grad.abs().max() > 1e-3


def test_a_second_pass_backward_gives_the_same_gradient() -> None:
    scores = torch.randn(6, 5, requires_grad=True)
    loss = 3 * cross_entropy(scores, torch.arange(6) % 5)
    (first,) = torch.autograd.grad(loss, scores, retain_graph=True)
    (second,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_scores_that_need_no_gradient_are_measured_too() -> None:
    scores, targets = torch.randn(6, 5), torch.arange(6) % 5
    torch.testing.assert_close(cross_entropy(scores, targets), torch.nn.functional.cross_entropy(scores, targets))
