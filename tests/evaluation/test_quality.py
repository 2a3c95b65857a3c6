"""FID, KID, precision and recall obey their laws; records refuse to be compared across conditions."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from sde_toolkit.data import decoding, mnist_test_images
from sde_toolkit.errors import ArgumentError, DataError, MissingDependencyError
from sde_toolkit.evaluation import (
    FID,
    KID,
    Extractor,
    FlowError,
    Judge,
    Precision,
    Quality,
    Recall,
    Reference,
    SlicedWasserstein,
    classifier_extractor,
    classifier_features,
    compare_records,
    data_extractor,
    evaluate_samples,
    inception_extractor,
    module_extractor,
    precision_recall,
)
from sde_toolkit.evaluation.sample_files import read_samples
from sde_toolkit.metrics.quality import metrics_with_floor

FLAT = data_extractor()


def normal(seed, n, d=4):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def measure(samples, reference, extractor=FLAT, metrics=("fid", "kid", "precision_recall"), **options):
    """``metrics``: the groups that the command line knows."""
    seed, neighbours = options.get("seed", 0), options.pop("neighbours", 3)
    known = {
        "fid": (FID(),),
        "kid": (KID(options.pop("kid_subsets", 100), options.pop("kid_subset_size", 1000), seed),),
        "precision_recall": (Precision(neighbours), Recall(neighbours)),
        "distance": metrics_with_floor(extractor, seed),
    }
    chosen = [metric for group in metrics for metric in known[group]]
    return evaluate_samples(samples, reference, extractor, metrics=chosen, say=lambda text: None, **options)


# Fréchet distance


def closed_frechet(m, C, n, D):
    """|m − n|² + tr(C + D − 2 (C D)^½), with scipy's matrix square root."""
    root = scipy.linalg.sqrtm(C @ D)
    return float(((m - n) ** 2).sum() + np.trace(C + D - 2 * np.real(root)))


def with_moments(mean, covariance, n, seed):
    """n points whose sample mean and unbiased sample covariance are exactly these."""
    z = normal(seed, n, len(mean)).numpy()
    z = z - z.mean(0)
    white = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T))).T
    return torch.from_numpy(white @ np.linalg.cholesky(covariance).T + mean)


@pytest.mark.parametrize("shift", [0.0, 300.0])
def test_fid_of_gaussians_is_the_closed_distance(shift):
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((2, 5, 5))
    m, n, C, D = rng.standard_normal(5), rng.standard_normal(5), A @ A.T + np.eye(5), B @ B.T + 0.1 * np.eye(5)
    x, y = with_moments(m + shift, C, 200, 1), with_moments(n + shift, D, 300, 2)
    float32 = 1e-5 if shift else 1e-6  # what an extractor is shown
    found = measure(x, y, metrics=["fid"]).values["fid"]
    assert found == pytest.approx(closed_frechet(m, C, n, D), rel=20 * float32)


def test_fid_of_a_set_with_itself_is_zero_and_of_a_shift_its_square():
    x, c = normal(0, 500), torch.tensor([1.0, -2.0, 0.5, 0.0])
    assert measure(x, x.flip(0), metrics=["fid"]).values["fid"] == pytest.approx(0, abs=1e-6)
    assert measure(x + c, x, metrics=["fid"]).values["fid"] == pytest.approx(float((c**2).sum()), rel=1e-5)


def test_fid_of_digits_is_the_closed_distance_of_their_features():
    real = mnist_test_images().test
    x, y = real[:400], real[400:1000]
    classifier = classifier_extractor()
    f, g = (classifier(part, 256).double().numpy() for part in (x, y))
    expected = closed_frechet(f.mean(0), np.cov(f.T), g.mean(0), np.cov(g.T))
    found = measure(x, y, classifier, metrics=["fid"], levels=256)
    assert found.values["fid"] == pytest.approx(expected, rel=1e-6)


# Kernel distance


def test_kid_is_unbiased_around_zero_for_equal_distributions():
    """Its expectation is 0; subsets of all samples leave the two draws as the only chance."""
    found = [
        measure(normal(2 * r, 60), normal(2 * r + 1, 60), metrics=["kid"], kid_subsets=1).values["kid"]
        for r in range(150)
    ]
    assert abs(np.mean(found)) < 4 * np.std(found) / math.sqrt(len(found))
    assert np.mean(np.array(found) < 0) > 0.3


def test_kid_of_all_samples_is_the_double_sum():
    x, y = normal(0, 7, 3), normal(1, 7, 3) + 0.5

    def k(a, b):
        return float((a @ b / 3 + 1) ** 3)

    within = [np.mean([k(a, b) for a, b in itertools.permutations(s.float().double(), 2)]) for s in (x, y)]
    across = np.mean([k(a, b) for a in x.float().double() for b in y.float().double()])
    found = measure(x, y, metrics=["kid"], kid_subsets=2).values
    assert found["kid"] == pytest.approx(sum(within) - 2 * across, rel=1e-9)
    assert found["kid_std"] == pytest.approx(0, abs=1e-12)


def test_kid_is_repeatable_and_leaves_the_global_generator_alone():
    x, y = normal(0, 50), normal(1, 50)
    options = {"metrics": ["kid"], "kid_subsets": 5, "kid_subset_size": 20}
    before = torch.random.get_rng_state()
    one, two, other = (measure(x, y, seed=seed, **options).values["kid"] for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert one == two != other


# Precision and recall


def brute_force(generated, real, k):
    """Straight from the definition, point by point."""

    def inside(points, manifold):
        hits = []
        for p in points:
            hit = False
            for i, q in enumerate(manifold):
                others = sorted(math.dist(q, o) for j, o in enumerate(manifold) if j != i)
                hit = hit or math.dist(p, q) <= others[k - 1]
            hits.append(hit)
        return sum(hits) / len(hits)

    return inside(generated, real), inside(real, generated)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("rows", [7, 1024])
def test_precision_and_recall_are_their_definition(k, rows):
    x, y = normal(0, 40, 2).numpy() * 1.5, normal(1, 30, 2).numpy() + 100
    x += 100.3
    precision, recall = precision_recall(x, y, k, rows=rows)
    assert (precision.value, recall.value) == pytest.approx(brute_force(x.tolist(), y.tolist(), k))
    assert 0 < precision.value < 1
    assert 0 < recall.value < 1


def test_precision_and_recall_in_closed_cases():
    line = np.arange(10.0)[:, None]
    one = lambda a, b, k=1: tuple(e.value for e in precision_recall(a, b, k))  # noqa: E731
    assert one(line, line) == (1, 1)
    assert one(line + 100, line) == (0, 0)
    assert one(line + 1, line) == (1, 1)  # every ball has radius 1, and is closed
    assert one(line + 1.001, line) == (0.9, 0.9)
    assert one(line + 2.001, line, 2) == (0.9, 0.9)  # ends reach 2, inner points 1; 9 reaches back to 11
    half = np.concatenate([line, line + 1000])
    assert one(line, half) == (1, 0.5)  # half of the modes: precise, and without recall
    assert one(half, line) == (0.5, 1)
    cluster = np.concatenate([np.zeros((5, 1)), np.full((5, 1), 9.0)])
    assert one(cluster, cluster) == (1, 1)  # radius 0, distance 0


def test_precision_and_recall_refuse_what_has_no_neighbours():
    with pytest.raises(DataError, match="3 neighbours"):
        precision_recall(normal(0, 3), normal(1, 50))
    with pytest.raises(ArgumentError, match="neighbours=0"):
        precision_recall(normal(0, 30), normal(1, 50), 0)


# The distance of the solver reports


def test_the_distance_is_that_of_the_solver_reports():
    real = mnist_test_images().test[:300]
    fake = (torch.rand(60, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 255).float()
    judge = Judge(real, 60, classifier_features(), seed=4)
    scores = judge(fake)
    found = measure(fake, real, classifier_extractor(), metrics=["distance"], levels=256, seed=4)
    for name in ("sliced_wasserstein", "kernel_distance", "plausible"):
        own, floor = scores[name], judge.floor[name]
        assert found.values[name] == pytest.approx(own.value, rel=1e-5)
        assert found.errors[name] == pytest.approx(own.error, rel=1e-5)
        assert found.floors[name] == pytest.approx([floor.value, floor.error], rel=1e-5)


# Extraction


def test_nothing_depends_on_the_batch_or_on_parts(tmp_path):
    x, y = normal(0, 30), normal(1, 47)
    options = {"metrics": ["fid", "kid", "precision_recall"], "kid_subsets": 3}
    whole = measure(x, y, batch_size=100, **options)
    parts = measure(x, y, batch_size=7, directory=tmp_path / "parts", **options)
    assert whole.values == parts.values
    assert whole.conditions == parts.conditions
    assert whole.about["samples_sha256"] == parts.about["samples_sha256"]
    assert not (tmp_path / "parts").exists()


class Lazy:
    """Real samples that are read when they are asked for."""

    def __init__(self, values):
        self.values, self.most = values, 0

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        rows = self.values[index]
        self.most = max(self.most, len(rows))
        return rows


def test_the_reference_is_read_as_it_goes():
    x, y = normal(0, 30), normal(1, 100)
    index = torch.arange(90, 10, -1)
    lazy = Lazy(y)
    found = measure(x, Reference(lazy, "mine", "train", index), metrics=["fid"], batch_size=16)
    assert lazy.most == 16
    assert found.values == measure(x, y[index], metrics=["fid"]).values
    assert found.conditions["reference"]["sha256"] == measure(x, y[index]).conditions["reference"]["sha256"]
    assert found.conditions["reference"]["count"] == 80


def test_samples_are_rounded_as_they_would_be_in_a_file():
    seen = []
    spy = Extractor("spy", lambda x: seen.append(x) or x.flatten(1), lambda x, levels: x, {})
    x = torch.tensor([[-3.0, 2.4], [300.0, 16.6]])
    measure(x, torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8), spy, metrics=["fid"], levels=17)
    assert seen[0].tolist() == [[0.0, 2.0], [16.0, 16.0]]


def test_inception_is_shown_eight_bit_colours():
    from sde_toolkit.metrics.extractors import _as_bytes

    grey = torch.tensor([0.0, 8.0, 16.0]).reshape(1, 1, 1, 3)
    shown = _as_bytes(grey, 17)
    assert shown.dtype == torch.uint8
    assert shown.shape == (1, 3, 1, 3)
    assert shown[0, 2, 0].tolist() == [0, 128, 255]
    with pytest.raises(DataError, match="levels=256"):
        _as_bytes(grey, None)
    with pytest.raises(DataError, match="1 or 3"):
        _as_bytes(torch.zeros(2, 5), 256)


class Mean(torch.nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.about = {"resize": "8x8"}
        self.scale = torch.nn.Parameter(torch.tensor(scale))
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.scale * x.flatten(2).mean(2))


def test_a_module_of_ones_own_extracts_in_evaluation_mode_and_is_told_apart_by_its_weights():
    x, y = torch.rand(20, 3, 4, 4), torch.rand(30, 3, 4, 4)
    one, two = (measure(x, y, module_extractor(Mean(scale)), metrics=["fid"]) for scale in (1.0, 2.0))
    assert two.values["fid"] == pytest.approx(4 * one.values["fid"], rel=1e-4)
    assert one.conditions["extractor"]["resize"] == "8x8"
    with pytest.raises(ArgumentError, match=r"extractor\.weights_sha256"):
        compare_records(one, two)


def test_an_extractor_that_extracts_no_features_is_refused():
    x = torch.rand(20, 3, 4, 4)
    with pytest.raises(DataError, match=r"\(B, d\)"):
        measure(x, x, module_extractor(torch.nn.Identity()))
    with pytest.raises(ArgumentError, match="module"):
        module_extractor(lambda x: x)
    with pytest.raises(DataError, match="NaN"):
        measure(x, x, module_extractor(_Nan()))


class _Nan(torch.nn.Module):
    def forward(self, x):
        return x.flatten(1) * math.nan


def test_without_its_packages_inception_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch_fidelity", None)
    monkeypatch.setitem(__import__("sys").modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(MissingDependencyError, match=r"torch-fidelity.*sde-toolkit\[fid\]"):
        inception_extractor()


def test_without_torchmetrics_fid_is_refused_and_precision_is_not(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics.image.fid", None)
    with pytest.raises(MissingDependencyError, match=r"torchmetrics.*sde-toolkit\[fid\]"):
        measure(normal(0, 10), normal(1, 10), metrics=["fid"])
    assert measure(normal(0, 10), normal(1, 10), metrics=["precision_recall"]).values["recall"] > 0


def test_weights_that_cannot_be_had_are_named(monkeypatch, tmp_path):
    from sde_toolkit.metrics import extractors

    def offline(*args, **options):
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(DataError, match=r"weights_path=FILE"):
        extractors._inception_weights("somewhere/weights-2015-6726825d.pth", None)
    with pytest.raises(DataError, match="no such file"):
        extractors._inception_weights("somewhere/weights-2015-6726825d.pth", tmp_path / "none.pth")


def test_weights_are_never_unpickled(tmp_path):
    from sde_toolkit.metrics import extractors

    class Evil:
        def __reduce__(self):
            return (print, ("unpickled",))

    torch.save({"w": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(DataError, match="weights alone"):
        extractors._check_weights(tmp_path / "evil.pth")
    torch.save({"w": 3}, tmp_path / "odd.pth")
    with pytest.raises(DataError, match="dictionary of tensors"):
        extractors._check_weights(tmp_path / "odd.pth")


# Records


@pytest.fixture
def record():
    return measure(
        normal(0, 30), Reference(normal(1, 40), "mine", "test"), metrics=["fid", "precision_recall"], levels=9
    )


def test_a_record_is_what_was_written(record, tmp_path):
    record.save(tmp_path / "one.json")
    again = Quality.load(tmp_path / "one.json")
    assert dataclasses.asdict(again) == json.loads(json.dumps(dataclasses.asdict(record)))
    assert set(compare_records(tmp_path / "one.json", record).values()) == {0.0}
    named = again.conditions
    assert named["extractor"]["name"] == "data"
    assert named["samples"]["count"] == 30
    assert (named["reference"]["name"], named["reference"]["split"], named["reference"]["count"]) == (
        "mine",
        "test",
        40,
    )
    assert named["preparation"] == {"levels": 9, "rounded": True}
    assert {"resize", "antialias", "weights_sha256"} <= set(named["extractor"])
    assert named["metrics"]["fid"]["library"].startswith("torchmetrics ")
    assert again.about["seed"] == 0


def leaves(content, path=()):
    if isinstance(content, dict) and content:
        for key, value in content.items():
            yield from leaves(value, (*path, key))
    else:
        yield path


def test_whatever_differs_is_named(record):
    """Every single condition, one after the other."""
    paths = list(leaves(record.conditions))
    assert len(paths) > 12
    for path in paths:
        changed = json.loads(json.dumps(record.conditions))
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = "another"
        with pytest.raises(ArgumentError) as refused:
            compare_records(record, dataclasses.replace(record, conditions=changed))
        assert refused.value.argument == ".".join(path)
        assert "another here" in str(refused.value)


def test_metrics_that_only_one_has_do_not_matter(record):
    x, y = normal(2, 30), Reference(normal(1, 40), "mine", "test")
    other = measure(x, y, metrics=["fid", "kid"], levels=9, kid_subsets=2)
    assert set(compare_records(record, other)) == {"fid"}
    with pytest.raises(ArgumentError, match="no metric in common"):
        compare_records(record, measure(x, y, metrics=["kid"], levels=9, kid_subsets=2))


def test_unlike_conditions_are_refused_before_the_extraction(record):
    calls = []
    spy = Extractor("data", lambda x: calls.append(1) or x, FLAT.prepare, FLAT.about)
    with pytest.raises(ArgumentError, match=r"samples\.count"):
        measure(normal(0, 29), Reference(normal(1, 40), "mine", "test"), spy, metrics=["fid"], levels=9, against=record)
    assert not calls
    with pytest.raises(ArgumentError, match=r"reference\.sha256"):
        measure(normal(0, 30), Reference(normal(5, 40), "mine", "test"), spy, metrics=["fid"], levels=9, against=record)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "sde_toolkit quality/2", "values": {}}'])
def test_files_that_are_no_records_are_refused(tmp_path, text):
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(DataError, match=r"record\.json"):
        Quality.load(tmp_path / "record.json")
    with pytest.raises(DataError, match=r"none\.json"):
        compare_records(tmp_path / "none.json", tmp_path / "record.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"samples": torch.zeros(1, 4)}, "samples"),
        ({"samples": torch.full((9, 4), math.nan)}, "NaN"),
        ({"samples": torch.zeros(9, 5)}, r"\(4,\)"),
        ({"reference": torch.zeros(1, 4)}, "reference"),
        ({"metrics": []}, "metrics"),
        ({"metrics": [FID(), "is"]}, "metrics"),
        ({"metrics": [FID, KID]}, "a class, not a metric"),
        ({"metrics": [FID(), FID()]}, "metrics='fid'"),
        ({"metrics": [FlowError()]}, "compare_solvers"),
        ({"metrics": "fid"}, "metrics"),
        ({"levels": 1}, "levels=1"),
        ({"metrics": [Precision(0)]}, "neighbours=0"),
        ({"metrics": [Recall(20)]}, "20 neighbours"),
        ({"metrics": [KID(0)]}, "subsets=0"),
        ({"metrics": [KID(1, 1)]}, "subset_size=1"),
        ({"seed": -1}, "seed=-1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"metrics": [SlicedWasserstein()]}, "2n real ones"),
    ],
)
def test_bad_requests_are_refused_before_the_extraction(change, said):
    calls = []
    spy = Extractor("spy", lambda x: calls.append(1) or x, FLAT.prepare, {})
    request = {"samples": torch.zeros(9, 4), "reference": torch.zeros(12, 4), "extractor": spy} | change
    with pytest.raises((ArgumentError, DataError), match=said):
        evaluate_samples(**request)
    assert not calls


# Files of samples


def test_arrays_and_folders_of_images_are_read(tmp_path):
    image = pytest.importorskip("PIL.Image")
    x = np.arange(24, dtype=np.float32).reshape(3, 2, 4)
    np.save(tmp_path / "a.npy", x)
    np.savez(tmp_path / "b.npz", x=x, other=x + 1)
    (tmp_path / "run").mkdir()
    np.savez(tmp_path / "run/samples.npz", x=x)
    for name in ("a.npy", "b.npz", "run"):
        assert np.array_equal(read_samples(tmp_path / name), x)
    assert np.array_equal(read_samples(tmp_path / "b.npz", "other"), x + 1)
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), dtype=np.uint8)
    for i, p in enumerate(pixels):
        image.fromarray(p).save(tmp_path / f"images/{i}.png")
    assert np.array_equal(read_samples(tmp_path / "images"), np.moveaxis(pixels, 3, 1))
    image.fromarray(pixels[0, :3]).save(tmp_path / "images/9.png")
    with pytest.raises(DataError, match=r"9\.png"):
        read_samples(tmp_path / "images")
    (tmp_path / "images/9.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"9\.png.*not a readable image"):
        read_samples(tmp_path / "images")


def test_images_are_those_that_data_sets_are_made_of(tmp_path):
    """Whatever ``image_folder`` reads is read here, whichever way it was saved without loss; and no more."""
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    lossless = (".png", ".bmp", ".tif", ".tiff", ".ppm")
    assert set(lossless) < decoding.SUFFIXES
    for suffix in lossless:
        image.fromarray(pixels).save(tmp_path / f"a{suffix}")
    image.fromarray(pixels).save(tmp_path / "A.PNG")
    (tmp_path / "notes.txt").write_text("not an image")
    found = read_samples(tmp_path)
    assert found.shape == (6, 3, 8, 8)
    assert all(np.array_equal(one, np.moveaxis(pixels, 2, 0)) for one in found)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError) as refused:
        read_samples(tmp_path / "none")
    assert all(suffix in str(refused.value) for suffix in decoding.SUFFIXES)


def test_an_image_of_more_than_eight_bits_is_not_cut_off_in_silence(tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png.*more than 8 bits"):
        read_samples(tmp_path)


def test_files_without_samples_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    np.save(tmp_path / "none.npy", np.zeros((0, 3)))
    for name, said in (("empty", "no image"), ("two.npz", "a, b"), ("none.npy", "samples"), ("gone.npy", "no such")):
        with pytest.raises(DataError, match=said):
            read_samples(tmp_path / name)
