"""Real data that ``sde-toolkit compare`` holds samples against."""

from __future__ import annotations

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from sde_toolkit.cli.parts import find_dataset
from sde_toolkit.data import Dataset
from sde_toolkit.errors import DataError, warn_caller
from sde_toolkit.evaluation.real_samples import check_split, part_of, some_of
from sde_toolkit.models.mixture import GaussianMixture
from sde_toolkit.models.score_model import ScoreModel
from sde_toolkit.ranges import range_problems

__all__ = ["real_data"]


def real_data(
    config: DictConfig,
    model: ScoreModel,
    n_real: int,
    n: int,
    labels: Tensor | None = None,
    without: Tensor | None = None,
) -> tuple[Tensor | None, str]:
    """Real samples (N, *event) in data space and their source, or None and the reason why there are none.

    The exact mixture draws its own. Otherwise ``data=...`` is taken, or the images of the package that have
    the model's event shape, and of them the part ``reference.split``, see :func:`part_of`.
    With ``labels``, only samples of these classes are used. Those at the places ``without`` of the
    held-out part are left out.
    """
    split = str(OmegaConf.select(config, "reference.split"))
    check_split(split, "reference.split")
    if isinstance(model, GaussianMixture):
        generator = torch.Generator().manual_seed(config.seed + 1)
        return model.draw(max(n_real, 4 * n), generator=generator), "fresh exact draws of the mixture"
    dataset = find_dataset(config, model)
    if dataset is None:
        return None, f"no real data of shape {model.event_shape} ship with the package; give them with data=..."
    given = config.get("data") is not None
    part, values, known = part_of(dataset, split, "reference.split")
    index, which = torch.arange(len(values)), ""
    if labels is not None and known is not None:
        asked = labels.unique()
        index = index[torch.isin(known, asked)]
        which = f", classes {', '.join(map(str, asked.tolist()))}" if len(index) < len(values) else ""
    if without is not None and (part == "test" or len(dataset.test) == 0):  # where the held-out samples come from
        index = index[~torch.isin(index, without)]
        which += f", without the {len(without)} that were measured"
    if len(index) < 4:
        raise DataError("data", dataset.name, f"fewer than 4 samples{which}", "Give more of them.")
    problem = _unlike(dataset, model, values[index[:1000]])
    if problem and not given:
        return None, f"{problem}; give the model's own data with data=..."
    if problem:
        raise DataError("data", dataset.name, problem, "Choose the data that the model was trained on.")
    return values[some_of(index, n_real, config.seed)], f"{part} part of {dataset.name} ({dataset.source}){which}"


def _unlike(dataset: Dataset, model: ScoreModel, values: Tensor) -> str:
    """The reason why these are not the data of the model, or "". A mere doubt is a warning."""
    outside, doubt = range_problems(model.transform, values, dataset.transform)
    if outside:
        return f"the {dataset.name} data reach from {values.min()} to {values.max()}, but {outside}"
    spread = model.transform.forward(values).double().square().mean().sqrt().item()
    if not 0.1 <= spread <= 10:
        return f"in the model's space the {dataset.name} data have root mean square {spread:.3g}: another data space"
    if doubt:
        warn_caller(f"data={dataset.name}: {doubt}. Choose the data that the model was trained on.")
    return ""
