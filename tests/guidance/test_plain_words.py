"""Measurements of data are measurements of the model's z = T(x): affine transforms move y and scale the noise."""

import pytest
import torch

from sde_toolkit import VPSDE, Affine, Identity, ddim, gaussian, inpaint, posterior, sample
from sde_toolkit.errors import ArgumentError
from sde_toolkit.guidance import DDNM, MMPS, Blur, Downsample, Mask, PiGDM, deblur, super_resolve
from sde_toolkit.transforms import Transform


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


D, M = 4, 3
ROOT = numbers(D, D, seed=1)
COVARIANCE = ROOT @ ROOT.mT / D + 0.05 * torch.eye(D, dtype=torch.float64)
MEAN, A, Y = numbers(D, seed=2), numbers(M, D, seed=3), 10 * numbers(M, seed=4)
EXACT = MMPS(tolerance=0.0)
TRANSFORMS = [
    Affine(127.5, 1 / 127.5),
    Affine(2.0, -0.25),
    Affine(numbers(D, seed=5), 0.1 + numbers(D, seed=6).abs()),
    Affine(numbers(D, seed=5), -3.0),
]
root = numbers(M, M, seed=7)
NOISES = {"noise_std": 0.7, "std each": 0.2 + numbers(M, seed=8).abs(), "covariance": root @ root.mT + torch.eye(M)}


def model_in(transform, mean=MEAN, covariance=COVARIANCE, event=(D,)):
    """An exact model of z, whose data are x = T⁻¹(z)."""
    made = gaussian(mean.reshape(event), VPSDE(), covariance=covariance)
    made.transform = transform
    return made


def truth_in_model_space(transform, A, y, R):
    """Mean and covariance of z given y = A x + N(0, R): Bayes in data space, then z = T(x)."""
    shift = transform.inverse(torch.zeros(1, D, dtype=torch.float64))[0]
    step = transform.inverse(torch.ones(1, D, dtype=torch.float64))[0] - shift
    mean, C = shift + step * MEAN, step[:, None] * COVARIANCE * step
    G = C @ A.mT @ torch.linalg.inv(A @ C @ A.mT + R)
    return (mean + G @ (y - A @ mean) - shift) / step, (C - G @ A @ C) / step[:, None] / step


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("transform", TRANSFORMS, ids=["grey levels", "mirrored", "each its own", "a shift each"])
def test_the_posterior_is_that_of_the_data(transform, kind):
    noise = NOISES[kind]
    R = noise if kind == "covariance" else torch.diag(torch.as_tensor(noise, dtype=torch.float64).expand(M) ** 2)
    given = {"noise_covariance": noise} if kind == "covariance" else {"noise_std": noise}
    mean, C = truth_in_model_space(transform, A, Y, R)
    exact = gaussian(mean, VPSDE(), covariance=(C + C.mT) / 2)
    x_t, t = numbers(5, D), 0.5
    shared = posterior(model_in(transform), A, Y, **given, method=EXACT)
    torch.testing.assert_close(shared(x_t, t).x_0, exact(x_t, t).x_0, rtol=1e-8, atol=1e-8)
    own = posterior(model_in(transform), A, **given, method=EXACT)
    torch.testing.assert_close(own(x_t, t, Y.expand(5, M)).x_0, exact(x_t, t).x_0, rtol=1e-8, atol=1e-8)


def test_in_model_space_nothing_is_moved():
    x_t, t = numbers(5, D), 0.5
    said = posterior(model_in(TRANSFORMS[0]), A, Y, 0.3, space="model")(x_t, t).x_0
    torch.testing.assert_close(said, posterior(model_in(Identity()), A, Y, 0.3)(x_t, t).x_0, rtol=0, atol=0)


def test_a_transform_that_bends_is_refused():
    class Bent:
        def forward(self, x):
            return torch.tanh(x)

        def inverse(self, y):
            return y + y**3

        def log_abs_det(self, event_shape):
            return 0.0

    assert isinstance(Bent(), Transform)
    with pytest.raises(ArgumentError, match=r"transform=.*not affine"):
        posterior(model_in(Bent()), A, Y, 0.3)
    posterior(model_in(Bent()), A, Y, 0.3, space="model")


# Plain words

IMAGE = (1, 4, 4)
LEVELS = Affine(127.5, 1 / 127.5, low=0, high=255)


def picture_model():
    root = numbers(16, 16, seed=9) / 4
    return model_in(LEVELS, torch.zeros(16).double(), 0.1 * root @ root.mT + 0.01 * torch.eye(16), IMAGE)


PICTURE = LEVELS.inverse(picture_model().draw(1, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
MASK = (torch.arange(16).reshape(IMAGE) % 3 > 0).float()
KERNEL = torch.tensor([[0.0, 0.2, 0.0], [0.2, 0.2, 0.2], [0.0, 0.2, 0.0]])


@pytest.mark.parametrize("std", [0.0, 5.0])
@pytest.mark.parametrize("task", ["inpaint", "super-resolve", "deblur"])
def test_pictures_that_fit_what_is_known_in_grey_levels(task, std):
    model = picture_model()
    made, A, y = {
        "inpaint": lambda: (inpaint(model, PICTURE, MASK, noise_std=std), Mask(MASK), PICTURE[MASK == 1]),
        "super-resolve": lambda: (
            super_resolve(model, PICTURE.unflatten(1, (2, 2)).unflatten(3, (2, 2)).mean((2, 4)), 2, noise_std=std),
            Downsample(2, IMAGE),
            PICTURE.unflatten(1, (2, 2)).unflatten(3, (2, 2)).mean((2, 4)),
        ),
        "deblur": lambda: (
            deblur(model, Blur(KERNEL, IMAGE)(PICTURE[None])[0], KERNEL, noise_std=std),
            Blur(KERNEL, IMAGE),
            Blur(KERNEL, IMAGE)(PICTURE[None])[0],
        ),
    }[task]()
    x_t, t = numbers(4, *IMAGE), 0.3
    in_model_space = model.posterior(A, (y - A(torch.full((1, *IMAGE), 127.5).double())[0]) / 127.5, std / 127.5)
    made.method.__init__(tolerance=0.0)
    torch.testing.assert_close(made(x_t, t).x_0, in_model_space(x_t, t).x_0, rtol=1e-6, atol=1e-6)
    if std == 0:
        drawn = sample(made, ddim(), steps=10, shape=(3, *IMAGE), dtype=torch.float64)
        assert (A(drawn.data) - y).abs().max() < 1.0


def test_unknown_values_have_no_meaning_and_whole_numbers_are_pictures():
    holes = torch.where(MASK == 1, PICTURE, torch.nan)
    x_t = numbers(2, *IMAGE)
    model = picture_model()
    said = inpaint(model, PICTURE, MASK)(x_t, 0.5).x_0
    assert torch.equal(inpaint(model, holes, MASK)(x_t, 0.5).x_0, said)
    rounded = PICTURE.clamp(0, 255).round()
    whole = inpaint(model, rounded.to(torch.uint8), MASK.bool())(x_t, 0.5).x_0
    assert torch.equal(whole, inpaint(model, rounded, MASK)(x_t, 0.5).x_0)


def test_the_method_can_be_chosen():
    for method in (PiGDM(), DDNM()):
        assert inpaint(picture_model(), PICTURE, MASK, method=method).method is method


def test_what_is_no_picture_is_refused_by_name():
    model = picture_model()
    for make, words in (
        (lambda: inpaint(model, PICTURE[None], MASK), r"known=\(1, 1, 4, 4\): it must have shape \(1, 4, 4\)"),
        (lambda: inpaint(model, PICTURE, MASK * 0.5), "mask=.*0 or 1"),
        (lambda: inpaint(model, "cat", MASK), "known='cat'"),
        (lambda: inpaint(model, PICTURE, MASK[:, :3]), "mask="),
        (lambda: super_resolve(model, PICTURE, 2), r"low=\(1, 4, 4\): it must have shape \(1, 2, 2\)"),
        (lambda: super_resolve(model, PICTURE, 3), "factor=3: it does not divide"),
        (lambda: super_resolve(model, PICTURE, 0.5), "factor=0.5"),
        (lambda: deblur(model, PICTURE[0], KERNEL, noise_std=1.0), r"blurred=\(4, 4\)"),
        (lambda: deblur(model, PICTURE, torch.ones(5, 5), noise_std=1.0), "kernel="),
        (lambda: inpaint(torch.nn.Linear(2, 2), PICTURE, MASK), "model=.*not a ScoreModel"),
    ):
        with pytest.raises(ArgumentError, match=words):
            make()
