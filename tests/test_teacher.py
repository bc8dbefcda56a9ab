"""Learning from a trained network's predictions."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny_training import ALONE, WORDS, Silent, tiny_corpus, tiny_recipe, tiny_run
from toolchain.models.language_model import LanguageModel, LanguageModelConfig

from toolchain.cli import cli
from toolchain.errors import ModelFileError, TrainingError
from toolchain.training.loop import finish, train
from toolchain.training.rebuilding import load_teacher
from toolchain.training.teacher import Lesson, ask, attended, taught, teacher_of
from toolchain.training.teaching_sections import TeacherSection
from toolchain.training.training_run import begin_run


def network():
    torch.manual_seed(0)
    return LanguageModel(LanguageModelConfig(vocabulary_size=11, embedding_size=6, hidden_sizes=(5, 4)))


@pytest.fixture(scope="module")
def trained_teacher(tmp_path_factory):
    """The folder of a run that has learnt the tiny text."""
    run = tiny_run(tmp_path_factory.mktemp("teacher"), run__method="dense", optim__epochs=8,
                   model__hidden_sizes=[16, 14])  # fmt: skip
    train(run, report=Silent())
    finish(run, tiny_corpus(), threads=1)
    return run.folder


def taught_run(folder, teacher_folder, name="run", **overrides):
    recipe = tiny_recipe(folder, teacher__model=str(teacher_folder), **overrides)
    (folder / name).mkdir(exist_ok=True)
    torch.set_num_threads(1)
    teacher = load_teacher(recipe, tiny_corpus())
    return begin_run(recipe, tiny_corpus(), folder=folder / name, processes=ALONE, teacher=teacher)


def lesson_of(student, teacher, tokens):
    """Let both read the tokens from the top; return the cross entropy of some words, and the lesson."""
    with attended(student, teacher, at_top=True) as lesson:
        logits, _ = student(tokens, student.initial_state(tokens.shape[1]))
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()), lesson


def test_a_network_that_says_what_its_teacher_says_has_nothing_to_learn():
    student, tokens = network(), torch.randint(11, (8, 3))
    teacher = teacher_of(TeacherSection(weight=1.0, temperature=1.0), network(), perplexity=1.0)
    taught(*lesson_of(student, teacher, tokens)).backward()
    assert all(float(parameter.grad.abs().max()) < 1e-6 for parameter in student.parameters())  # probabilities round
    student.zero_grad()
    with torch.no_grad():
        teacher.network.decoder.bias[3] += 1.0
    taught(*lesson_of(student, teacher, tokens)).backward()
    assert float(student.decoder.bias.grad[3]) < -1e-2  # that word's probability should rise


@pytest.mark.parametrize(("weight", "T"), [(0.0, 1.0), (0.3, 1.0), (0.7, 2.5)])
def test_the_loss_is_that_of_hinton_2015(weight, T):
    torch.manual_seed(0)
    student, teacher, targets = torch.randn(4, 3, 7), torch.randn(4, 3, 7), torch.randint(7, (4, 3))
    task = torch.nn.functional.cross_entropy(student.flatten(0, 1), targets.flatten())

    def probabilities(logits):
        e = np.exp(logits.double().numpy() / T)
        return e / e.sum(-1, keepdims=True)

    p, q = probabilities(teacher), probabilities(student)
    soft = -(p * np.log(q)).sum(-1).mean()
    expected = (1 - weight) * float(task) + weight * T**2 * soft
    lesson = Lesson(section=TeacherSection(weight=weight, temperature=T), logits=student, answer=teacher)
    assert float(taught(task, lesson)) == pytest.approx(expected, rel=1e-5)


def test_a_teacher_carries_its_own_state_and_starts_anew_at_the_top():
    teacher = teacher_of(TeacherSection(), network(), perplexity=1.0)
    tokens = torch.randint(11, (8, 3))
    whole = ask(teacher, tokens, at_top=True)
    parts = [ask(teacher, tokens[:5], at_top=True), ask(teacher, tokens[5:], at_top=False)]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert not torch.allclose(ask(teacher, tokens[5:], at_top=True), whole[5:])
    assert not whole.requires_grad


def test_without_a_teacher_the_loss_is_the_same_tensor_and_nothing_stays_on_the_model():
    student, tokens = network(), torch.randint(11, (8, 3))
    task, lesson = lesson_of(student, None, tokens)
    assert taught(task, lesson) is task
    lesson_of(student, teacher_of(TeacherSection(), network(), perplexity=1.0), tokens)
    assert not student._forward_hooks


def test_in_a_run_the_teacher_forgets_at_the_top_of_each_epoch_and_only_there(tmp_path, trained_teacher):
    run = taught_run(tmp_path, trained_teacher, optim__epochs=3, gates__compact_steps=5)
    fresh = []
    run.teacher.network.register_forward_pre_hook(
        lambda module, args: fresh.append(not any(part.any() for layer in args[1] for part in layer))
    )
    train(run, report=Silent())
    per_epoch = run.schedule.updates_per_epoch
    assert fresh == [update % per_epoch == 0 for update in range(3 * per_epoch)]


@pytest.mark.parametrize("method", ["dense", "neuron-selection"])
def test_a_network_learns_from_its_teacher_alone(tmp_path, trained_teacher, method):
    run = taught_run(tmp_path, trained_teacher, run__method=method, teacher__weight=1.0, optim__epochs=8)
    before = {name: tensor.clone() for name, tensor in run.teacher.network.state_dict().items()}
    train(run, report=Silent())
    assert run.metrics[-1]["valid_perplexity"] < 0.4 * WORDS  # guessing gives 12, the text's own noise about 2
    assert all(torch.equal(before[name], tensor) for name, tensor in run.teacher.network.state_dict().items())
    assert not run.teacher.network.training


def test_a_teachers_file_or_run_folder_is_rebuilt_and_its_perplexity_known(tmp_path, trained_teacher):
    both = [
        load_teacher(tiny_recipe(tmp_path, teacher__model=str(path), model__factory="anything:at_all"), tiny_corpus())
        for path in (trained_teacher, trained_teacher / "model.onnx")
    ]
    assert [layer.hidden_size for layer in both[0].network.rnn] == [16, 14]
    assert both[0].perplexity == both[1].perplexity < 0.4 * WORDS
    assert load_teacher(tiny_recipe(tmp_path), tiny_corpus()) is None


def test_a_teacher_that_knows_other_words_is_refused_in_one_line(tmp_path, trained_teacher):
    recipe, corpus = tiny_recipe(tmp_path, teacher__model=str(trained_teacher)), tiny_corpus()
    more = dataclasses.replace(corpus, vocabulary=(*corpus.vocabulary, "another"))
    with pytest.raises(TrainingError, match=r"model.onnx: knows 12 words, a cycle has 13; expected the text") as raised:
        load_teacher(recipe, more)
    assert "\n" not in str(raised.value)
    renamed = dataclasses.replace(corpus, vocabulary=tuple(reversed(corpus.vocabulary)))
    with pytest.raises(TrainingError, match=r"was trained on other words than those of a cycle"):
        load_teacher(recipe, renamed)


def test_a_teacher_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelFileError, match=r"gone.onnx"):
        load_teacher(tiny_recipe(tmp_path, teacher__model=str(tmp_path / "gone.onnx")), tiny_corpus())
    with pytest.raises(ModelFileError, match=r"model.onnx"):
        load_teacher(tiny_recipe(tmp_path, teacher__model=str(tmp_path)), tiny_corpus())


def test_the_command_names_the_teacher_and_the_run_folder_is_enough(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text(" ".join("abcdefghijkl"[i * i % 12] for i in range(1200)))
    recipe = tiny_recipe(tmp_path, optim__epochs=1)
    assert recipe.name == "tiny"
    arguments = ["train", "tiny.toml", "--text", "words.txt", "--method", "dense", "--set", "optim.epochs=1"]
    assert CliRunner().invoke(cli, [*arguments, "--name", "big", "-o", "big.onnx"]).exit_code == 0
    result = CliRunner().invoke(cli, [*arguments, "--name", "small", "--set", "teacher.model=runs/big"])
    assert result.exit_code == 0, result.output
    assert "taught by runs/big: perplexity " in result.output
    assert 'model = "runs/big"' in (tmp_path / "runs/small/recipe.toml").read_text()
    assert json.loads((tmp_path / "runs/small/result.json").read_text())["share"] == 1.0
