"""Training: it learns, it repeats, its checkpoint is the model, and bad input stops it before the first step."""

import contextlib
import csv
import dataclasses
import importlib.util
import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sde_toolkit import MLP, VESDE, VPSDE, DenoisingScoreMatching, ScoreModel, UNet, ddim, grids, sample
from sde_toolkit.data import Dataset, EDMAugmentation, ShuffledStream, checkerboard, waves
from sde_toolkit.data.augmentation import Draws as AugmentationDraws
from sde_toolkit.errors import ArgumentError, DataError, MissingDependencyError
from sde_toolkit.models import time_inputs
from sde_toolkit.training import Likelihood, SampleSheet, Scene, TrainingOptions, train
from sde_toolkit.transforms import Affine

OPTIONS = TrainingOptions(steps=60, batch_size=64, learning_rate=3e-3, warmup_steps=5, evaluate_every=30, log_every=10)


def new_model(sde=None, kind="edm", seed=0, **options):
    torch.manual_seed(seed)
    network = MLP(event_shape=(2,), width=32, depth=2, embedding_scale=100.0, **options)
    return ScoreModel(network, sde or VPSDE(), kind, event_shape=(2,))


def rows(folder):
    with (folder / "training.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("kind", ["epsilon", "x0", "v", "edm"])
def test_training_lowers_the_held_out_loss(tmp_path, kind):
    """Below that of the untrained network, on the same times and noise, well beyond what chance does."""
    data = checkerboard(n=2000)
    loss = DenoisingScoreMatching(kind)
    nothing = dataclasses.replace(OPTIONS, steps=1, learning_rate=1e-12, evaluate_every=1)
    train(new_model(kind=kind), data, tmp_path / "before", nothing, loss=loss)
    train(new_model(kind=kind), data, tmp_path / "after", dataclasses.replace(OPTIONS, ema_decay=0.8), loss=loss)
    before = float(rows(tmp_path / "before")[-1]["held_out_loss"])
    assert float(rows(tmp_path / "after")[-1]["held_out_loss"]) < 0.95 * before


def test_same_seed_same_weights_and_global_random_state_untouched(tmp_path):
    data = checkerboard(n=500)
    first, second = new_model(), new_model()
    state = torch.get_rng_state()
    one = train(first, data, tmp_path / "a", OPTIONS)
    assert torch.equal(torch.get_rng_state(), state)
    two = train(second, data, tmp_path / "b", OPTIONS)
    other = train(new_model(), data, tmp_path / "c", dataclasses.replace(OPTIONS, seed=1))
    for a, b, c in zip(one.parameters(), two.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_checkpoint_is_the_model_raw_and_average(tmp_path):
    """What is loaded scores as what was trained; raw and EMA weights are two different things, each named."""
    data = dataclasses.replace(checkerboard(n=500), transform=Affine(0.5, 2.0))
    model = new_model()
    model.transform = data.transform
    average = train(model, data, tmp_path, OPTIONS)
    x = torch.randn(5, 2)
    for weights, trained in (("ema", average), ("raw", model)):
        loaded = ScoreModel.from_pretrained(tmp_path, weights=weights)
        assert torch.equal(loaded.score(x, 0.4), trained.score(x, 0.4))
        assert loaded.transform == Affine(0.5, 2.0)
        assert loaded.sde == VPSDE()
        assert not loaded.training
    assert not torch.equal(average.score(x, 0.4), model.score(x, 0.4))


@pytest.mark.parametrize(
    ("sde", "kind", "time_input"),
    [
        (VPSDE(), "epsilon", time_inputs.ScaledTime(1000.0)),
        (VESDE(), "edm", time_inputs.NoiseLevel()),
        (VPSDE.from_betas(torch.linspace(1e-3, 0.2, 100)), "v", time_inputs.DiscreteIndex(100)),
    ],
    ids=["continuous VP", "VE", "discrete VP"],
)
def test_one_trunk_serves_every_sde_from_training_to_sampling(tmp_path, sde, kind, time_input):
    """The same U-Net, on 1-D signals; nothing but the declaration changes."""
    data = waves(n=100, length=20)
    torch.manual_seed(0)
    network = UNet(widths=(8, 16), blocks_per_level=1, attention_levels=(1,), dims=1)
    model = ScoreModel(network, sde, kind, time_input=time_input, transform=data.transform, event_shape=(1, 20))
    options = TrainingOptions(steps=4, batch_size=16, evaluate_every=2, log_every=1, t_min=0.02)
    train(model, data, tmp_path, options, loss=DenoisingScoreMatching(kind))
    loaded = ScoreModel.from_pretrained(tmp_path)
    assert loaded.sde == sde
    assert loaded.time_input == time_input
    assert sample(loaded, ddim(), grids.uniform(sde, 5, end=0.02), shape=(2, 1, 20)).x.isfinite().all()


def test_class_labels_reach_the_network(tmp_path):
    """Two classes at opposite points: the conditional score must point to the class asked for."""
    labels = torch.arange(400) % 2
    points = 4.0 * labels.float().unsqueeze(1).expand(400, 2) - 2.0
    data = Dataset(name="two points", train=points, test=points[:50], train_labels=labels, test_labels=labels[:50])
    options = TrainingOptions(steps=150, batch_size=64, learning_rate=3e-3, warmup_steps=5, ema_decay=0.9)
    model = train(new_model(num_classes=2), data, tmp_path, options, loss=DenoisingScoreMatching("edm"))
    x_0 = model(torch.zeros(2, 2), 0.5, torch.tensor([0, 1])).x_0
    assert (x_0[0] < -0.5).all()
    assert (x_0[1] > 0.5).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Dataset("holes", torch.tensor([[0.0, float("nan")]]), torch.zeros(1, 2)), "NaN or infinity"),
        (Dataset("only tests", torch.zeros(0, 2), torch.zeros(3, 2)), "no training samples"),
    ],
    ids=["NaN", "empty"],
)
def test_bad_data_are_refused_before_anything_is_written(tmp_path, data, message):
    with pytest.raises(DataError, match=message):
        train(new_model(), data, tmp_path / "run", OPTIONS)
    assert not (tmp_path / "run").exists()


def test_missing_labels_are_refused(tmp_path):
    with pytest.raises(DataError, match="train_labels"):
        train(new_model(num_classes=3), checkerboard(n=50), tmp_path / "run", OPTIONS)


def test_labels_the_network_has_no_class_for_are_refused(tmp_path):
    data = Dataset("three", torch.zeros(3, 2), torch.zeros(0, 2), train_labels=torch.tensor([0, 1, 5]))
    with pytest.raises(DataError, match=r"0\.\.5, the network has classes 0\.\.2.*num_classes=6"):
        train(new_model(num_classes=3), data, tmp_path / "run", OPTIONS)


def test_labels_below_zero_are_refused_whatever_the_number_of_classes(tmp_path):
    data = Dataset("three", torch.zeros(3, 2), torch.zeros(0, 2), train_labels=torch.tensor([-1, 0, 1]))
    with pytest.raises(DataError, match=r"-1\.\.1, the network has classes 0\.\.2.*Number the labels from 0"):
        train(new_model(num_classes=3), data, tmp_path / "run", OPTIONS)


def test_data_of_another_shape_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"\(1, 64\), the model's \(2,\)"):
        train(new_model(), waves(n=10, length=64), tmp_path / "run", OPTIONS)


def test_an_augmentation_the_network_cannot_hear_is_refused(tmp_path):
    network = UNet(widths=(8, 16), blocks_per_level=1, attention_levels=())
    model = ScoreModel(network, VPSDE(), "edm", event_shape=(1, 8, 8))
    data = Dataset("images", torch.zeros(4, 1, 8, 8), torch.zeros(0, 1, 8, 8))
    with pytest.raises(ArgumentError, match="augmentation_width=9"):
        train(model, data, tmp_path / "run", OPTIONS, augmentation=EDMAugmentation())


def test_the_network_hears_what_the_augmentation_did(tmp_path):
    """Trained on bright images of which those darkened by the augmentation are labelled, it draws bright ones."""

    class Darken:
        draws, width = (1, 0), 1

        def __call__(self, x, uniform, normal):
            dark = (uniform < 0.5).to(x.dtype)
            return x * (1 - 2 * dark.reshape(-1, 1, 1, 1)), dark

    Darken.draws = AugmentationDraws(1, 0)
    torch.manual_seed(0)
    network = UNet(widths=(8, 16), blocks_per_level=1, attention_levels=(), augmentation_width=1)
    model = ScoreModel(network, VPSDE(), "x0", event_shape=(1, 4, 4))
    data = Dataset("bright", torch.ones(64, 1, 4, 4), torch.ones(4, 1, 4, 4))
    options = TrainingOptions(steps=150, batch_size=32, learning_rate=3e-3, warmup_steps=5, ema_decay=0.9)
    ema = train(model, data, tmp_path, options, loss=DenoisingScoreMatching("x0"), augmentation=Darken())
    drawn = sample(ema, ddim(), grids.uniform(VPSDE(), 10), shape=(8, 1, 4, 4)).x
    assert (drawn.mean((1, 2, 3)) > 0.7).all()


def test_a_class_conditional_network_still_knows_no_class(tmp_path):
    """With hidden labels, no class is all classes: between the two points the denoiser goes to neither."""
    labels = torch.arange(400) % 2
    points = 4.0 * labels.float().unsqueeze(1).expand(400, 2) - 2.0
    data = Dataset("two points", train=points, test=points[:50], train_labels=labels, test_labels=labels[:50])
    options = TrainingOptions(
        steps=300, batch_size=64, learning_rate=3e-3, warmup_steps=5, ema_decay=0.9, label_dropout=0.5
    )
    model = train(new_model(num_classes=2), data, tmp_path, options, loss=DenoisingScoreMatching("edm"))
    x_0 = model(torch.zeros(3, 2), 0.5, torch.tensor([0, 1, 2])).x_0.mean(1)
    assert x_0[0] < -0.5
    assert x_0[1] > 0.5
    assert abs(x_0[2]) < 0.5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_is_trained_on_and_continued_exactly(tmp_path, workers):
    """Samples that cannot be indexed: stopped and continued is never stopped, with and without reading ahead."""
    points = checkerboard(n=300)

    class Points:
        event_shape, dtype, labelled = (2,), torch.float32, False

        def __len__(self):
            return 3

        def records(self, shard, start):
            yield from points.train[shard * 80 : shard * 80 + 80][start:]

        def decode(self, record):
            return record, None

    stream = ShuffledStream(Points(), buffer=50, seed=3)
    data = dataclasses.replace(points, train=points.train[:0], stream=stream)
    options = dataclasses.replace(OPTIONS, steps=20, batch_size=30, evaluate_every=10, workers=workers)
    whole = train(new_model(), data, tmp_path / "whole", options)
    train(new_model(), data, tmp_path / "parts", options, until=7)
    parts = train(new_model(), data, tmp_path / "parts", options)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def test_watchers_see_the_average_and_leave_pictures_and_numbers(tmp_path):
    from matplotlib.image import imread
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = []

    @dataclasses.dataclass(frozen=True)
    class Watch:
        every: int = 20

        def __call__(self, scene):
            seen.append((scene.step, scene.model.training))
            scene.log.scalars(scene.step, {"mine": 2.0 * scene.step})

    watchers = [Watch(), SampleSheet(every=60, n=4, nfe=3), Likelihood(every=60, n=2, nfe=6)]
    model = new_model()
    train(model, checkerboard(n=200), tmp_path, OPTIONS, watchers=watchers, trackers=["tensorboard"])
    assert seen == [(20, False), (40, False), (60, False)]
    assert model.training  # as it was found
    assert [p.name for p in (tmp_path / "pictures").iterdir()] == ["samples-000000060.png"]
    events = EventAccumulator(str(tmp_path / "sde_toolkit")).Reload()
    assert [e.value for e in events.Scalars("mine")] == [40.0, 80.0, 120.0]
    assert {"loss", "held_out_loss", "images_per_second", "held_out_nats_per_dim"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["samples"]
    (picture,) = events.Images("samples")
    pixels = imread(tmp_path / "pictures/samples-000000060.png")
    assert (picture.step, picture.height, picture.width) == (60, *pixels.shape[:2])
    assert np.abs(imread(io.BytesIO(picture.encoded_image_string))[..., :3] - pixels[..., :3]).max() < 1e-3
    logged = [float(row["loss"]) for row in rows(tmp_path)]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(logged, rel=1e-6)


class Recorder:
    """What stands in for a service: keeps what it is called with, under the name of what was called."""

    def __init__(self, calls, name=""):
        self._calls, self._name = calls, name

    def __getattr__(self, name):
        return Recorder(self._calls, name)

    def __call__(self, *arguments, **named):
        self._calls.append((self._name, arguments, named))
        return self


def shown_to(tracker, folder, name="samples"):
    """A picture through the log of a run with this tracker; the pixels of its file."""
    from accelerate import Accelerator
    from matplotlib.image import imread

    from sde_toolkit.data.pictures import contact_sheet
    from sde_toolkit.training.logbook import Logbook

    folder.mkdir(exist_ok=True)
    accelerator = Accelerator(cpu=True, log_with=[tracker] if tracker else None)
    if tracker:
        accelerator.trackers = [tracker]  # started: that of a service would look for it
    sheet = contact_sheet(torch.rand(9, 3, 8, 8))
    Logbook(folder, accelerator, 0).picture(7, name, sheet)
    return (imread(folder / f"pictures/{name}-000000007.png") * 255).round().astype("uint8")[..., :3]


def own_tracker(calls):
    from accelerate.tracking import GeneralTracker

    class Own(GeneralTracker):
        name, requires_logging_directory, tracker = "own", False, None

        def log_images(self, values, step=None, **named):
            calls.append((values, step, named))

    return Own()


def test_a_sheet_goes_to_every_tracker_that_takes_images(tmp_path):
    """As accelerate says it: a list of arrays (H, W, 3) by name; and it is the picture of the file."""
    calls = []
    pixels = shown_to(own_tracker(calls), tmp_path)
    ((values, step, named),) = calls
    assert (list(values), step, named) == (["samples"], 7, {})
    (image,) = values["samples"]
    assert image.dtype.name == "uint8"
    assert np.array_equal(image, pixels)
    assert pixels.std() > 20, "there is something to see"


def test_a_picture_is_a_file_where_no_tracker_takes_images(tmp_path):
    from accelerate.tracking import GeneralTracker

    class Numbers(GeneralTracker):
        name, requires_logging_directory, tracker = "numbers", False, None

    assert shown_to(None, tmp_path / "none").std() > 20
    assert shown_to(Numbers(), tmp_path / "numbers").std() > 20


@pytest.mark.parametrize("service", ["wandb", "swanlab", "aim", "clearml", "mlflow"])
def test_each_service_is_shown_the_picture_in_its_own_way(tmp_path, monkeypatch, service):
    """accelerate's own trackers, and a stand-in for the service: an image is what each of them takes for one."""
    from accelerate import tracking

    calls = []
    monkeypatch.setitem(sys.modules, service, Recorder(calls))
    kinds = {"wandb": "WandB", "swanlab": "SwanLab", "aim": "Aim", "clearml": "ClearML", "mlflow": "MLflow"}
    tracker = object.__new__(getattr(tracking, f"{kinds[service]}Tracker"))
    for handle in ("run", "writer", "task"):
        with contextlib.suppress(AttributeError):
            setattr(tracker, handle, Recorder(calls))
    pixels = shown_to(tracker, tmp_path)
    images = [(arguments, named) for name, arguments, named in calls if name in ("Image", "report_image", "log_figure")]
    ((arguments, named),) = images
    if service == "mlflow":
        assert named["artifact_file"] == "pictures/samples-000000007.png"
        assert hasattr(named["figure"], "savefig")
    else:
        image = named["image"] if service == "clearml" else arguments[0]
        assert np.array_equal(image, pixels)


def test_a_tracker_of_ones_own_that_accelerate_was_told_of_is_used(tmp_path):
    from accelerate import tracking

    calls = []

    class Mine(tracking.GeneralTracker):
        name, requires_logging_directory, tracker = "mine", False, None

        def __init__(self, run_name):
            super().__init__()

        def log(self, values, step=None, **named):
            calls.append((step, set(values)))

        def log_images(self, values, step=None, **named):
            calls.append((step, set(values)))

    tracking.register_tracker_class(Mine)
    try:
        watchers = [SampleSheet(every=60, n=4, nfe=3)]
        train(new_model(), checkerboard(n=200), tmp_path, OPTIONS, watchers=watchers, trackers=["mine"])
    finally:
        del tracking.LOGGER_TYPE_TO_CLASS["mine"]
    assert (60, {"samples"}) in calls
    assert any("loss" in names for _, names in calls)


def test_an_unknown_tracker_is_named(tmp_path):
    with pytest.raises(ArgumentError, match="trackers"):
        train(new_model(), checkerboard(n=200), tmp_path / "run", OPTIONS, trackers=["tensorbored"])


def test_a_tracker_that_is_not_installed_is_named(tmp_path):
    missing = [name for name in ("wandb", "comet_ml", "mlflow") if importlib.util.find_spec(name) is None]
    with pytest.raises(MissingDependencyError, match=f"pip install {missing[0]}$"):  # no extra brings it
        train(new_model(), checkerboard(n=200), tmp_path / "run", OPTIONS, trackers=["tensorboard", missing[0]])
    with pytest.raises(ArgumentError, match=r"Pass \['tensorboard'\]"):
        train(new_model(), checkerboard(n=200), tmp_path / "run", OPTIONS, trackers="tensorboard")


def test_labels_of_a_stream_are_looked_at(tmp_path):
    points = checkerboard(n=100)

    class Labelled:
        event_shape, dtype, labelled = (2,), torch.float32, True

        def __len__(self):
            return 1

        def records(self, shard, start):
            yield from range(start, 60)

        def decode(self, record):
            return points.train[record], record % 4

    data = dataclasses.replace(points, train=points.train[:0], test=points.test[:0], stream=ShuffledStream(Labelled()))
    with pytest.raises(DataError, match=r"0\.\.3, the network has classes 0\.\.2"):
        train(new_model(num_classes=3), data, tmp_path, OPTIONS)


def test_a_sheet_of_a_conditional_network_shows_its_classes(tmp_path):
    seen = []

    class Watched(MLP):
        def forward(self, x, time, condition=None):
            seen.append(condition)
            return super().forward(x, time, condition)

    model = ScoreModel(Watched(event_shape=(1, 4, 4), num_classes=3), VPSDE(), "edm", event_shape=(1, 4, 4))
    log = SimpleNamespace(picture=lambda *arguments: None)
    SampleSheet(n=7, nfe=2)(Scene(1, model.eval(), checkerboard(n=10), log, torch.device("cpu")))
    drawn = [labels.tolist() for labels in seen if labels is not None]  # auto measures without labels
    assert drawn
    assert all(labels == [0, 1, 2, 0, 1, 2, 0] for labels in drawn)


def test_the_mean_loss_is_the_mean_over_the_bins_of_lambda(tmp_path):
    train(new_model(), checkerboard(n=500), tmp_path, OPTIONS)
    with (tmp_path / "lambda.csv").open() as file:
        bins = list(csv.DictReader(file))
    for row in rows(tmp_path):
        for part, column in (("train", "loss"), ("held_out", "held_out_loss")):
            here = [b for b in bins if b["step"] == row["step"] and b["part"] == part]
            if row[column]:
                total = sum(float(b["loss"]) * int(b["count"]) for b in here)
                assert total / sum(int(b["count"]) for b in here) == pytest.approx(float(row[column]), rel=1e-5)


POSITIVE = [
    "steps",
    "batch_size",
    "log_every",
    "evaluate_every",
    "learning_rate",
    "max_gradient_norm",
    "keep",
    "patience",
]


@given(name=st.sampled_from(POSITIVE), value=st.one_of(st.integers(max_value=0), st.just(float("nan"))))
def test_bad_options_are_named(name, value):
    with pytest.raises(ArgumentError, match=name):
        TrainingOptions(**{name: value})


@pytest.mark.parametrize(
    "options",
    [
        {"ema_decay": 1.0},
        {"precision": "float8"},
        {"t_min": 1.0},
        {"warmup_steps": -1},
        {"pass_size": 0},
        {"power_averages": (0.5,)},
        {"power_averages": 0.1},
        {"betas": (0.9,)},
        {"compile": "yes"},
        {"label_dropout": 1.5},
        {"weight_decay": -1.0},
    ],
)
def test_other_bad_options_are_named(options):
    with pytest.raises(ArgumentError, match=next(iter(options))):
        TrainingOptions(**options)
