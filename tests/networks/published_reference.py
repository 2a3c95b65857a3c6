"""The published networks a second time: plain loops over torch's functionals, dense filters, no module of the package.

Written from Ho et al. 2020 (appendix B) and Song et al. 2021 (appendix H) in two dimensions, NCHW. Weights come from
an iterator in the order in which the layers act, so that a layer out of place is an error or another result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass
class Recipe:
    """A published network: what its paper's table of hyper-parameters says."""

    widths: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    song: bool  # DDPM++ / NCSN++ rather than DDPM
    filtered: bool = False  # (1, 3, 3, 1) and the residual pyramid of inputs: NCSN++
    skip_pyramids: bool = False  # the forms for large images: inputs and outputs at every size
    fourier: float | None = None
    channels: int = 3
    groups: int = 32
    group_width: int = 2


def parameters(recipe: Recipe) -> int:
    """How many numbers the paper's network learns, counted layer by layer."""
    base, total = recipe.widths[0], 0

    def conv(n, m, size=9):
        return n * m * size + m

    def block(n, m, resampled=False):
        shortcut = conv(n, m, 1) if n != m or resampled else 0
        return 2 * n + conv(n, m) + conv(4 * base, m, 1) + 2 * m + conv(m, m) + shortcut

    def attention(n):
        return 2 * n + 4 * conv(n, n, 1)

    total += conv(2 * base if recipe.fourier else base, 4 * base, 1) + conv(4 * base, 4 * base, 1)
    total += conv(recipe.channels, base)
    kept, n, pyramid = [base], base, recipe.channels
    levels = range(len(recipe.widths))
    for level in levels:
        for _ in range(recipe.blocks):
            total += block(n, recipe.widths[level]) + attention(recipe.widths[level]) * (level in recipe.attention)
            n = recipe.widths[level]
            kept.append(n)
        if level != levels[-1]:
            total += block(n, n, resampled=True) if recipe.song else conv(n, n)
            if recipe.filtered:
                total += conv(pyramid, n)
                pyramid = n
            kept.append(n)
    total += 2 * block(n, n) + attention(n)
    for level in reversed(levels):
        for _ in range(recipe.blocks + 1):
            total += block(n + kept.pop(), recipe.widths[level])
            total += attention(recipe.widths[level]) * (level in recipe.attention and not recipe.song)
            n = recipe.widths[level]
        total += attention(n) * (level in recipe.attention and recipe.song)
        if level:
            total += block(n, n, resampled=True) if recipe.song else conv(n, n)
    return total + 2 * n + conv(n, recipe.channels)


def dense_filter(x, taps, up=1, down=1, before=0, after=0):
    """Insert zeros, pad, convolve with the outer product of the taps, keep every ``down``-th: upfirdn, densely."""
    f = torch.tensor(taps, dtype=x.dtype)
    kernel = torch.outer(f, f) / f.sum() ** 2 * up**2
    if up > 1:
        wide = x.new_zeros(*x.shape[:2], x.shape[2] * up, x.shape[3] * up)
        wide[:, :, ::up, ::up] = x
        x = wide
    x = functional.pad(x, (before, after, before, after))
    planes = x.reshape(-1, 1, *x.shape[2:])
    out = functional.conv2d(planes, kernel[None, None])
    return out.reshape(*x.shape[:2], *out.shape[2:])[:, :, ::down, ::down]


def evaluate(recipe: Recipe, x, time, weights, frequencies=None):
    """The network's output; ``weights`` yields (weight, bias) in the order of use."""
    scale = math.sqrt(0.5) if recipe.song else 1.0
    taps = [1.0, 3.0, 3.0, 1.0] if recipe.filtered or recipe.skip_pyramids else [1.0, 1.0]
    edge = (len(taps) - 2) // 2

    def norm(h):
        w, b = next(weights)
        channels = h.shape[1]
        counts = [g for g in range(1, recipe.groups + 1) if channels % g == 0 and channels // g >= recipe.group_width]
        return functional.group_norm(h, max(counts), w, b, eps=1e-6)

    def conv(h, **options):
        w, b = next(weights)
        return functional.conv2d(h, w, b, **{"padding": 1, **options})

    def pointwise(h):
        w, b = next(weights)
        return torch.einsum("bchw,dc->bdhw", h, w) + b[:, None, None]

    def resampled(h, direction):
        if direction == "down":
            return dense_filter(h, taps, down=2, before=edge, after=edge)
        return dense_filter(h, taps, up=2, before=edge + 1, after=edge) if direction == "up" else h

    def block(h, width, direction=None):
        inner = resampled(functional.silu(norm(h)), direction)
        inner = conv(inner)
        w, b = next(weights)
        inner = inner + (functional.silu(vector) @ w.T + b)[:, :, None, None]
        inner = conv(functional.silu(norm(inner)))
        outer = resampled(h, direction)
        if h.shape[1] != width or direction is not None:
            outer = pointwise(outer)
        return (outer + inner) * scale

    def attention(h):
        inner = norm(h)
        q, k, v = (pointwise(inner).flatten(2) for _ in range(3))
        weight = torch.einsum("bci,bcj->bij", q, k).div(math.sqrt(h.shape[1])).softmax(dim=-1)
        return (h + pointwise(torch.einsum("bij,bcj->bci", weight, v).reshape(h.shape))) * scale

    base = recipe.widths[0]
    if recipe.fourier is None:
        half = base // 2
        angles = time[:, None] * torch.exp(-math.log(10000) * torch.arange(half, dtype=time.dtype) / (half - 1))
    else:
        angles = 2 * math.pi * time[:, None] * frequencies
    w, b = next(weights)
    vector = torch.cat([angles.sin(), angles.cos()], dim=1) @ w.T + b
    w, b = next(weights)
    vector = functional.silu(vector) @ w.T + b

    levels = range(len(recipe.widths))
    pyramid, h = x, conv(x)
    kept = [h]
    for level in levels:
        for _ in range(recipe.blocks):
            h = block(h, recipe.widths[level])
            h = attention(h) if level in recipe.attention else h
            kept.append(h)
        if level != levels[-1]:
            if recipe.song:
                h = block(h, h.shape[1], "down")
            else:
                h = conv(functional.pad(h, (0, 1, 0, 1)), stride=2, padding=0)
            if recipe.filtered:
                pyramid = conv(dense_filter(pyramid, taps, before=2, after=2), stride=2, padding=0)
                h = pyramid = (pyramid + h) * scale
            if recipe.skip_pyramids:
                pyramid = resampled(pyramid, "down")
                h = h + pointwise(pyramid)
            kept.append(h)
    h = block(h, h.shape[1])
    h = attention(h)
    h = block(h, h.shape[1])
    out = None
    for level in reversed(levels):
        for _ in range(recipe.blocks + 1):
            h = block(torch.cat([h, kept.pop()], dim=1), recipe.widths[level])
            h = attention(h) if level in recipe.attention and not recipe.song else h
        h = attention(h) if level in recipe.attention and recipe.song else h
        if recipe.skip_pyramids:
            own = conv(functional.silu(norm(h)))
            out = own if out is None else resampled(out, "up") + own
        if level:
            if recipe.song:
                h = block(h, h.shape[1], "up")
            else:
                h = conv(functional.interpolate(h, scale_factor=2.0, mode="nearest"))
    return conv(functional.silu(norm(h))) if out is None else out


def in_order(net):
    """(weight, bias) of a PublishedUNet's layers in the order in which the papers' networks use them."""

    def of(layer):
        yield layer.weight, layer.bias

    def part(module):
        if hasattr(module, "shift"):  # a residual block
            for layer in (module.enter_norm, getattr(module.enter, "conv", module.enter), module.shift):
                yield from of(layer)
            yield from of(module.leave_norm)
            yield from of(module.leave)
            if hasattr(module.skip, "weight"):
                yield from of(module.skip)
        elif hasattr(module, "heads"):  # attention
            yield from of(module.norm)
            yield from zip(module.enter.weight.chunk(3), module.enter.bias.chunk(3), strict=True)
            yield from of(module.leave)
        else:
            yield from of(module.part.conv)

    yield from of(net.conditioning.enter)
    yield from of(net.conditioning.leave)
    yield from of(net.enter)
    for level, stages in enumerate(net.down):
        for stage in stages:
            for module in stage:
                yield from part(module)
        if level < len(net.shrink):
            yield from part(net.shrink[level])
            if net.input_pyramid is not None:
                pyramid = net.input_pyramid
                yield from of(pyramid.shrink[level].conv if hasattr(pyramid, "shrink") else pyramid.join[level])
    for module in net.middle:
        yield from part(module)
    for level in reversed(range(len(net.up))):
        for stage in net.up[level]:
            for module in stage:
                yield from part(module)
        if net.output_pyramid is not None:
            yield from of(net.output_pyramid.norms[level])
            yield from of(net.output_pyramid.leave[level])
        if level:
            yield from part(net.grow[level - 1])
    if net.output_pyramid is None:
        yield from of(net.leave_norm)
        yield from of(net.leave)
