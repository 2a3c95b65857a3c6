"""bfloat16 is another arithmetic, not another result."""

import dataclasses

import pytest
from runs import VECTORS, rows, vectors

from sde_toolkit.errors import ArgumentError

OPTIONS = dataclasses.replace(
    VECTORS, steps=600, batch_size=256, learning_rate=3e-3, evaluate_every=600, log_every=600, power_averages=()
)


def test_bfloat16_reaches_the_held_out_loss_of_float32(tmp_path):
    """Within 2 %, where training has taken off three times that; most of the rest is the variance of the target."""
    found = {}
    for precision in ("float32", "bfloat16"):
        vectors(tmp_path / precision, options=dataclasses.replace(OPTIONS, precision=precision))
        found[precision] = float(rows(tmp_path / precision)[-1]["held_out_loss"])
    vectors(tmp_path / "start", options=dataclasses.replace(OPTIONS, steps=5, warmup_steps=5, evaluate_every=5))
    start = float(rows(tmp_path / "start")[-1]["held_out_loss"])
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=0.02)
    assert found["float32"] < 0.94 * start


def test_float16_without_cuda_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"float16.*bfloat16"):
        vectors(tmp_path / "run", options=dataclasses.replace(OPTIONS, precision="float16"))
    assert not (tmp_path / "run").exists()
