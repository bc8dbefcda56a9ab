from __future__ import annotations

import dataclasses

import pytest

from toolchain.errors import RecipeError
from toolchain.training.recipe_files import dump_recipe, load_recipe, parse_override, recipe_names

MINIMAL = """
[data]
corpus = "pydocs"
[optim]
learning_rate = 0.1
epochs = 2
clip_norm = 1.0
[gates]
keep = 0.2
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_loads(name):
    assert load_recipe(name).name == name


@pytest.mark.parametrize(
    ("name", "hidden", "dropout", "scale", "steps", "epochs", "full_rate_epochs", "divisor", "clip"),
    [
        ("ptb-small", 200, 0.0, 0.1, 20, 13, 4, 2.0, 5.0),
        ("ptb-medium", 650, 0.5, 0.05, 35, 39, 6, 1.2, 5.0),
        ("ptb-large", 1500, 0.65, 0.04, 35, 55, 14, 1.15, 10.0),
    ],
)
def test_the_treebank_recipes_are_those_of_zaremba_2014(
    name, hidden, dropout, scale, steps, epochs, full_rate_epochs, divisor, clip
):
    recipe = load_recipe(name)
    model, optim = recipe.model, recipe.optim
    assert (model.embedding_size, model.hidden_sizes) == (hidden, (hidden, hidden))
    assert (model.dropout, model.init_scale) == (dropout, scale)
    assert (optim.optimizer, optim.learning_rate, optim.loss, optim.batch_size) == (
        "sgd",
        1.0,
        "sequence",
        20,
    )
    assert (optim.steps, optim.epochs, optim.decay_after, optim.clip_norm) == (
        steps,
        epochs,
        full_rate_epochs,
        clip,
    )
    assert optim.decay == pytest.approx(1 / divisor)


def test_defaults_fill_what_a_file_leaves_out(recipe_file):
    recipe = load_recipe(recipe_file)
    assert (recipe.name, recipe.optim.batch_size, recipe.run.method) == ("mine", 20, "neuron-selection")


def test_overrides_replace_add_and_remove(recipe_file):
    recipe = load_recipe(
        recipe_file, overrides={"optim.epochs": 3, "gates.l0_weight": 0.5, "gates.keep": None, "run.seed": 7}
    )
    assert (recipe.optim.epochs, recipe.gates.l0_weight, recipe.gates.keep) == (3, 0.5, None)
    assert recipe.run.seed == 7


def test_an_integer_is_a_number_but_true_is_not(recipe_file):
    assert load_recipe(recipe_file, overrides={"optim.learning_rate": 1}).optim.learning_rate == 1.0
    with pytest.raises(RecipeError, match=r"optim.learning_rate: True; expected a number"):
        load_recipe(recipe_file, overrides={"optim.learning_rate": True})


def test_a_dumped_recipe_reads_back_equal(tmp_path, recipe_file):
    recipe = load_recipe(recipe_file, overrides={"data.text": 'a "b"\\c', "model.hidden_sizes": [3, 5, 7]})
    copy = tmp_path / "copy.toml"
    copy.write_text(dump_recipe(recipe))
    assert dataclasses.replace(load_recipe(copy), name="mine") == recipe


def test_recipes_cannot_be_changed(recipe_file):
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_recipe(recipe_file).optim.epochs = 9


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optim.epoch": 3}, r"mine.toml: optim.epoch: no such key; .* Did you mean epochs\?"),
        ({"optm.epochs": 3}, r"optm: no such key; expected one of data, model, .* Did you mean optim\?"),
        ({"optim.epochs": "3"}, r"optim.epochs: '3'; expected a whole number"),
        ({"optim.epochs": 0}, r"optim.epochs: 0; expected at least 1"),
        ({"optim.epochs": 2.5}, r"optim.epochs: 2.5; expected a whole number"),
        ({"optim.epochs": None}, r"optim.epochs: missing; expected a value. Add it to `\[optim\]`"),
        ({"model.dropout": 1.5}, r"model.dropout: 1.5; expected a value between 0 and 0.99"),
        ({"model.hidden_sizes": []}, r"model.hidden_sizes: \[\]; expected a list such as"),
        ({"model.hidden_sizes": [8, 0]}, r"model.hidden_sizes: 0; expected at least 1"),
        ({"gates.keep": 1.0}, r"gates.keep: 1.0; expected a value strictly between 0 and 1"),
        ({"gates.keep": float("nan")}, r"gates.keep: nan; expected"),
        ({"run.method": "dens"}, r"run.method: 'dens'; expected one of .* Did you mean dense\?"),
        ({"gates.l0_weight": 1.0}, r"gates.keep and gates.l0_weight: both given; expected exactly one"),
        ({"gates.start_at": 0.7}, r"gates.start_at: 0.7; expected less than gates.freeze_at, 0.6"),
        ({"gates.keep": None, "run.method": "magnitude"}, r"gates.keep: missing; expected the share"),
        (
            {"gates.freeze_at": 1.0, "averaging.kind": "ema"},
            r"averaging.kind: ema with gates.freeze_at = 1; expected an earlier freeze, because averages start anew",
        ),
        ({"gates.sites": "all"}, r"gates.sites: 'all'; expected one of both, input, hidden"),
        ({"iss.weight": 0.0}, r"iss.weight: 0.0; expected more than 0"),
        ({"l1.weight": -1}, r"l1.weight: -1.0; expected more than 0"),
        ({"gates.keep": None}, r"gates.keep and gates.l0_weight: neither given; expected exactly one"),
        (
            {"model.tied": True, "model.embedding_size": 9},
            r"model.tied: the last of model.hidden_sizes is 256",
        ),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(recipe_file, overrides, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe_file, overrides=overrides)


def test_a_file_that_is_not_toml_or_not_there_is_named(tmp_path):
    (tmp_path / "x.toml").write_text("[data\n")
    with pytest.raises(RecipeError, match=r"x.toml: not TOML"):
        load_recipe(tmp_path / "x.toml")
    (tmp_path / "y.toml").write_text("data = 3\n")
    with pytest.raises(RecipeError, match=r"data: 3; expected a section"):
        load_recipe(tmp_path / "y.toml")
    with pytest.raises(RecipeError, match=r"ptb-smal: no such recipe .* Did you mean ptb-small\?"):
        load_recipe("ptb-smal")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("optim.epochs=3", 3),
        ("model.hidden_sizes=[4, 5]", [4, 5]),
        ("model.cell=gru", "gru"),
        ("run.seed=1", 1),
    ],
)
def test_a_setting_is_read_as_toml_or_as_text(text, value):
    assert parse_override(text) == (text.partition("=")[0], value)


@pytest.mark.parametrize("text", ["optim.epochs", "epochs=3", "a.b.c=3"])
def test_a_setting_without_section_or_value_is_refused(text):
    with pytest.raises(RecipeError, match=r"expected section.key=value"):
        parse_override(text)
