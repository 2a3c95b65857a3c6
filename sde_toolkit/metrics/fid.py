"""FID and KID as published, computed by torchmetrics from extracted features."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sde_toolkit.checks import check_count
from sde_toolkit.errors import MissingDependencyError
from sde_toolkit.metrics.estimates import Estimate
from sde_toolkit.metrics.extractors import failing_package
from sde_toolkit.metrics.frechet import frechet_resampled
from sde_toolkit.metrics.jackknife import BLOCKS, Resampled
from sde_toolkit.metrics.kernels import kernel_resampled
from sde_toolkit.metrics.metric import Against, Axis, Metric, SampleSet, version_of
from sde_toolkit.noise.streams import Once, generator_for

__all__ = ["FID", "KID"]

_PRODUCTS = 2e11  # multiplications of a kernel between whole sets, for the error of KID


@dataclass(frozen=True)
class FID(Metric):
    """Fréchet distance of Gaussians with the features' moments (Heusel et al. 2017)."""

    name = "fid"
    heading = "FID"
    meaning = "Fréchet distance of Gaussians with the features' moments"
    against = Against.ALL
    axis = Axis.LOG

    @property
    def explanation(self) -> str:  # type: ignore[override]
        return (
            "Fréchet distance of Gaussians with the features' moments (Heusel et al. 2017), computed by torchmetrics. "
            "Its error is a delete-block jackknife, 8 blocks of either set, and leaves out the bias of small sets."
        )

    def compute(self, generated: SampleSet, reference: SampleSet) -> Estimate:
        return self._resampled(generated, reference, blocks=8).estimate

    def resample(self, generated: SampleSet, reference: SampleSet) -> Resampled:
        return self._resampled(generated, reference, BLOCKS)

    def _resampled(self, generated: SampleSet, reference: SampleSet, blocks: int) -> Resampled:
        value = self.value(generated, reference)
        return frechet_resampled(generated.features, reference.features, value, blocks)

    def value(self, generated: SampleSet, reference: SampleSet) -> float:
        from torchmetrics.image.fid import FrechetInceptionDistance

        found, real = torch.from_numpy(generated.features), torch.from_numpy(reference.features)
        centre = real.mean(0)  # moments are summed in one pass, which loses digits far from the origin
        features = _AsTheyAre(real.shape[1])
        metric = FrechetInceptionDistance(feature=features, sync_on_compute=False).set_dtype(torch.float64)
        metric.update(real - centre, real=True)
        metric.update(found - centre, real=False)
        return float(metric.compute())

    def check(self, n: int, n_real: int) -> None:
        _require_torchmetrics()

    def conditions(self, n: int, n_real: int) -> dict[str, Any]:
        return {"library": f"torchmetrics {version_of('torchmetrics')}", "covariance": "unbiased"}

    def note(self, n: int, n_real: int, dimension: int) -> str:
        least = min(n, n_real)
        if least > dimension:
            return ""
        return f"FID of {least} samples in {dimension} dimensions: the covariance is singular and the bias large."


@dataclass(frozen=True)
class KID(Metric):
    """Unbiased MMD² with the kernel (x·y/d + 1)³, the mean over random subsets (Binkowski et al. 2018).

    The spread over the subsets, ``kid_std``, is kept beside it. Subsets overlap, so it is not a standard error. The
    error is that of the unbiased MMD² of the whole sets, a delete-one jackknife. It is left out (NaN) for sets so large
    that it would take longer than the subsets.

    Args:
        subsets: number of subsets.
        subset_size: of each, at most the size of the smaller set.
        seed: of the subsets.
    """

    subsets: int = 100
    subset_size: int = 1000
    seed: int = 0

    name = "kid"
    heading = "KID"
    meaning = "unbiased MMD² with the cubic kernel, mean over random subsets"
    against = Against.ALL
    axis = Axis.SIGNED
    unbiased = True

    def compute(self, generated: SampleSet, reference: SampleSet) -> Estimate:
        from torchmetrics.image.kid import KernelInceptionDistance

        found, real = torch.from_numpy(generated.features), torch.from_numpy(reference.features)
        size = self._size(len(found), len(real))
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save")
            torch.manual_seed(generator_for(self.seed, Once.KID_SUBSETS).initial_seed())
            metric = KernelInceptionDistance(
                feature=_AsTheyAre(real.shape[1]), subsets=self.subsets, subset_size=size, sync_on_compute=False
            )
            metric.update(real, real=True)
            metric.update(found, real=False)
            mean, spread = metric.compute()
        error = math.nan
        if len(found) * len(real) * found.shape[1] <= _PRODUCTS:
            error = kernel_resampled(generated.features, reference.features).error
        return Estimate(float(mean), error, (("kid_std", float(spread)),))

    def resample(self, generated: SampleSet, reference: SampleSet) -> Resampled:
        """The variance is that of the unbiased MMD² of the whole sets, which the subsets estimate too."""
        return kernel_resampled(generated.features, reference.features).moved_to(self.value(generated, reference))

    def check(self, n: int, n_real: int) -> None:
        check_count("subsets", self.subsets, "Use KID(subsets=100).")
        check_count("subset_size", self.subset_size, "Use KID(subset_size=1000).", least=2)
        check_count("seed", self.seed, "Use KID(seed=3).", least=0)
        _require_torchmetrics()

    def conditions(self, n: int, n_real: int) -> dict[str, Any]:
        library = f"torchmetrics {version_of('torchmetrics')}"
        size = self._size(n, n_real)
        return {"library": library, "subsets": self.subsets, "subset_size": size, "degree": 3, "coef": 1.0}

    def _size(self, n: int, n_real: int) -> int:
        return min(self.subset_size, n, n_real)


class _AsTheyAre(nn.Module):
    """Returns the features that it is given. It stands for an extractor in torchmetrics.

    ``sync_on_compute`` is off: the main process has all features, and the others do not take part.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        return x


def _require_torchmetrics() -> None:
    """Refuse before the work if the package is missing.

    Raises:
        MissingDependencyError: without torchmetrics, or with one that cannot be imported.
    """
    try:
        import torchmetrics.image.fid
        import torchmetrics.image.kid  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:  # the last two: a torchvision of another torch
        raise MissingDependencyError(failing_package(error, "torchmetrics"), "FID and KID", "fid", error) from None
