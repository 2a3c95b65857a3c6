"""``sde-toolkit train conditional=true``: classes from the labels of the data, some of them hidden."""

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from sde_toolkit import ScoreModel, dpmpp_2m, sample
from sde_toolkit.cli.classes import fill_in_classes
from sde_toolkit.data import two_moons
from sde_toolkit.errors import ArgumentError

WORDS = ["train", "data=rings", "network=mlp", "network.width=64", "network.depth=2", "watch=none", "threads=1",
         "progress=false", "options.held_out=8", "options.batch_size=128", "options.evaluate_every=1000"]  # fmt: skip


@pytest.fixture
def trained(command, tmp_path):
    def run(name, *words):
        status, _, err = command(*WORDS, f"output={name}", *words)
        assert status == 0, err
        return ScoreModel.from_pretrained(tmp_path / name, weights="raw")

    return run


def test_samples_of_a_class_look_like_the_class(trained, tmp_path):
    """Label i is the ring of radius i + 1. All classes come without a label."""
    model = trained("run", "conditional=true", "options.steps=250", "options.learning_rate=4e-3")
    assert model.num_classes == 3
    labels = torch.arange(3).repeat_interleave(50)
    radii = sample(model, dpmpp_2m(), steps=12, shape=(150, 2), condition=labels).data.norm(dim=1)
    assert (radii.reshape(3, 50).median(dim=1).values - torch.tensor([1.0, 2.0, 3.0])).abs().max() < 0.4
    mixed = sample(model, dpmpp_2m(), steps=12, shape=(150, 2)).data.norm(dim=1)
    assert mixed.quantile(0.1) < 1.6
    assert mixed.quantile(0.9) > 2.4
    options = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["options"]
    assert options["label_dropout"] == 0.1


def test_only_hidden_labels_train_the_row_of_no_class(trained):
    def rows(*words):
        few, more = (
            trained(f"{words[0]}{steps}", "conditional=true", f"options.steps={steps}", *words) for steps in (2, 6)
        )
        return [torch.equal(*pair) for pair in zip(table(few), table(more), strict=True)]

    def table(model):
        return model.network.conditioning.labels.weight

    assert rows("options.label_dropout=0.5") == [False] * 4
    assert rows("options.label_dropout=0.0") == [False, False, False, True]


def test_nothing_changes_without_it_and_more_classes_may_be_asked_for(trained):
    assert trained("plain", "options.steps=1").num_classes is None
    assert trained("more", "options.steps=1", "conditional=true", "network.num_classes=7").num_classes == 7


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data=checkerboard"], "has no labels"),
        (["network.num_classes=2"], "labels"),
        (["conditional=yes"], "neither true nor false"),
    ],
)
def test_what_cannot_be_learned_is_refused_before_the_first_step(command, tmp_path, words, said):
    status, _, err = command(*WORDS, "output=run", "options.steps=1", "conditional=true", *words)
    assert status == 2
    assert said in err
    assert not (tmp_path / "run/config.yaml").exists()


def test_a_network_without_classes_is_refused():
    moons = two_moons(4, 4)
    config = OmegaConf.create({"conditional": True, "options": {"label_dropout": None}, "network": {}})
    with pytest.raises(ArgumentError, match="takes no classes"):
        fill_in_classes(config, moons)
    config.network.num_classes = None
    fill_in_classes(config, moons)
    assert config.network.num_classes == 2
