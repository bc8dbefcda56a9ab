"""Distillation: the network in training learns to predict what a trained, usually bigger one predicts.

With y the next word, p the teacher's probabilities and q the network's, both at temperature T:

    loss = (1 - w) * CE(y, logits) + w * T**2 * CE(p, q),        CE(p, q) = KL(p || q) + H(p)

T**2 keeps the size of the second term's gradient whatever T is. H(p) is the teacher's alone, so the gradient is that of
the divergence; without it an update is cheaper to teach. The teacher reads the same text as the network, its
own state carried from update to update, without dropout.

Source: Hinton, Vinyals and Dean 2015, arXiv 1503.02531, section 2.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toolchain.exporting import State
from toolchain.training.cross_entropy import soft_cross_entropy
from toolchain.training.teaching_sections import TeacherSection


@dataclass(slots=True, kw_only=True)
class Teacher:
    """A trained network and where it is in the text.

    Attributes:
        section: the recipe's.
        network: in evaluation mode, without gradients.
        perplexity: of the beginning of the validation text, for the user's information.
        state: carried from the previous update; None at the top of the text.
    """

    section: TeacherSection
    network: nn.Module
    perplexity: float
    state: State | None = None


def teacher_of(section: TeacherSection, network: nn.Module, *, perplexity: float) -> Teacher:
    """Return a teacher that is at the top of the text; its network is changed to evaluation mode."""
    return Teacher(section=section, network=network.eval().requires_grad_(False), perplexity=perplexity)


@dataclass(slots=True, kw_only=True)
class Lesson:
    """Logits of the network in training and of its teacher for the same words, `[T, B, vocabulary_size]`.

    Both are None, and so is `section`, without a teacher.
    """

    section: TeacherSection | None = None
    logits: Tensor | None = None
    answer: Tensor | None = None


@contextlib.contextmanager
def attended(model: nn.Module, teacher: Teacher | None, at_top: bool) -> Iterator[Lesson]:
    """Let the teacher read what the model reads meanwhile, one call of it.

    Args:
        model: a `TokenModel` in training.
        teacher: None does nothing.
        at_top: the model is at the top of the text.
    """
    lesson = Lesson()
    if teacher is None:
        yield lesson
        return

    def answer(module: nn.Module, args: tuple[Any, ...], result: tuple[Any, Any]) -> None:
        lesson.section, lesson.logits = teacher.section, result[0]
        lesson.answer = ask(teacher, args[0], at_top=at_top)

    handle = model.register_forward_hook(answer)
    try:
        yield lesson
    finally:
        handle.remove()


@torch.no_grad()
def ask(teacher: Teacher, tokens: Tensor, *, at_top: bool) -> Tensor:
    """Return the teacher's logits of the next words, `[T, B, vocabulary_size]`, and carry its state on.

    Args:
        teacher: its state is changed.
        tokens: what the network in training reads, shape `[T, B]`.
        at_top: these are the first rows of the text.
    """
    if at_top or teacher.state is None:
        teacher.state = teacher.network.initial_state(tokens.shape[1])  # type: ignore[operator]  # nn.Module hides it
    logits, teacher.state = teacher.network(tokens, teacher.state)
    answer: Tensor = logits
    return answer


def taught(loss: Tensor, lesson: Lesson) -> Tensor:
    """Return the loss above in nats per token; without a lesson `loss`, the cross entropy of the next words, itself."""
    if lesson.section is None or lesson.logits is None or lesson.answer is None:
        return loss
    weight, T = lesson.section.weight, lesson.section.temperature
    soft = soft_cross_entropy(lesson.logits.flatten(0, 1), lesson.answer.flatten(0, 1), temperature=T)
    return (1 - weight) * loss + weight * T**2 * soft
