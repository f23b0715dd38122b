"""The dropout mask, tested as the random generator that it is."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from mnist_hydra.models import Dropout, Model3, dropout_key, keep_mask, set_dropout_step

COUNT = 1 << 20


def mask(seed: int, step: int, layer: int, p: float = 0.04, count: int = COUNT) -> Tensor:
    key = torch.tensor(dropout_key(seed, step, layer), dtype=torch.int32)
    return keep_mask(key, count, round(p * 65536))


def z_score(hits: int, count: int, p: float) -> float:
    return (hits - count * p) / math.sqrt(count * p * (1 - p))


@pytest.mark.parametrize("p", [0.001, 0.04, 0.1, 0.25, 0.5, 0.9])
def test_the_rate_is_the_one_asked_for(p: float) -> None:
    dropped = sum(COUNT - int(mask(seed, 7, 0, p).sum()) for seed in range(16))
    exact = round(p * 65536) / 65536
    assert abs(exact - p) <= 2**-17
    assert abs(z_score(dropped, 16 * COUNT, exact)) < 4


def test_the_expectation_is_exact_although_the_rate_is_rounded() -> None:
    layer = Dropout(0.04)
    assert layer.scale * (1 - layer.threshold / 65536) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1, 5, 0), (1, 5, 1)),  # layers
        ((1, 5, 0), (1, 6, 0)),  # steps
        ((1, 5, 0), (2, 5, 0)),  # seeds
        ((1, 0, 2), (1, 2, 0)),  # no mixing up of step and layer
        ((0, 0, 0), (0, 0, 1)),
        ((14596, 0, 0), (14596, 1 << 20, 0)),
    ],
)
def test_two_masks_are_independent_at_every_small_shift(
    one: tuple[int, int, int], other: tuple[int, int, int]
) -> None:
    p = 0.25
    a, b = ~mask(*one, p=p), ~mask(*other, p=p)
    for shift in (-3, -2, -1, 0, 1, 2, 3):
        both = int((a & b.roll(shift)).sum())
        assert abs(z_score(both, COUNT, p * p)) < 4.5


def test_elements_and_samples_of_one_mask_are_independent() -> None:
    p = 0.25
    dropped = ~mask(3, 11, 2, p=p)
    for lag in (1, 2, 3, 12, 16, 24, 32, 256, 300, 768, 8112, 9216, 65536):
        both = int((dropped[lag:] & dropped[:-lag]).sum())
        assert abs(z_score(both, COUNT - lag, p * p)) < 4.5


def test_runs_of_eight_elements_are_uniform_over_their_256_patterns() -> None:
    bits = mask(4, 9, 1, p=0.5).view(-1, 8).long()
    counts = torch.bincount((bits << torch.arange(8)).sum(1), minlength=256).double()
    expected = counts.sum() / 256
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_squared - 255) < 4.5 * math.sqrt(2 * 255)


def test_each_place_is_dropped_equally_often_over_the_steps() -> None:
    p, steps, places = 0.1, 2000, 512
    dropped = torch.zeros(places)
    for step in range(steps):
        dropped += (~mask(5, step, 0, p=p, count=places)).float()
    exact = round(p * 65536) / 65536
    z = (dropped - steps * exact) / math.sqrt(steps * exact * (1 - exact))
    assert 0.8 < float(z.square().mean()) < 1.2 and float(z.abs().max()) < 4.5


def test_no_two_keys_of_a_long_run_are_equal() -> None:
    keys = {dropout_key(14596, s, n) for s, n in itertools.product(range(20_000), range(6))}
    assert len(keys) == 120_000
    assert dropout_key(-1, 0, 0) != dropout_key(1, 0, 0)


def test_the_words_are_those_of_the_written_down_generator() -> None:
    key = dropout_key(14596, 3, 1)
    expected = []
    for i in range(1000):
        x = (i // 2 * 0x9E3779B9 + key[0]) & 0xFFFFFFFF
        x = ((x ^ (x >> 16)) * 0x7FEB352D & 0xFFFFFFFF) ^ (key[1] & 0xFFFFFFFF)
        x = (x ^ (x >> 15)) * 0x846CA68B & 0xFFFFFFFF
        x ^= x >> 16
        half = (x >> 16 * (i % 2)) & 0xFFFF
        expected.append((half ^ 0x8000) >= 2621)
    assert mask(14596, 3, 1, count=1000).tolist() == expected


def test_the_mask_depends_on_the_place_and_not_on_memory_format_dtype_or_batch() -> None:
    layer = Dropout(0.3)
    set_dropout_step(layer, 1, 2)
    x = torch.ones(6, 5, 7, 3)
    expected = layer(x)
    assert torch.equal(layer(x.to(memory_format=torch.channels_last)), expected)
    assert torch.equal(layer(x.bfloat16()) != 0, expected != 0)
    assert torch.equal(layer(x[:4]), expected[:4])


def test_the_same_step_gives_the_same_output_whatever_was_drawn_in_between() -> None:
    model = Model3(0.2)
    images = torch.randn(4, 1, 28, 28)
    set_dropout_step(model, 1, 5)
    first = model(images)
    set_dropout_step(model, 1, 6)
    assert not torch.equal(model(images), first)
    torch.rand(100)
    set_dropout_step(model, 1, 5)
    assert torch.equal(model(images), first)
    assert torch.equal(copy.deepcopy(model)(images), first)


def test_kept_elements_are_scaled_and_gradients_go_the_same_way() -> None:
    layer = Dropout(0.5)
    set_dropout_step(layer, 0, 0)
    x = torch.randn(3, 4, 5, 5, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    keep = layer.keep(x)
    assert torch.equal(y, torch.where(keep, 2 * x, 0.0))
    assert x.grad is not None and torch.equal(x.grad, torch.where(keep, 2.0, 0.0))


def test_evaluation_and_a_rate_of_zero_hand_the_input_on() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert Dropout(0.0)(x) is x
    assert Dropout(0.4).eval()(x) is x


def test_the_keys_are_no_part_of_a_checkpoint() -> None:
    assert not [name for name in Model3().state_dict() if "key" in name]


def test_a_model_without_our_layers_is_left_alone() -> None:
    set_dropout_step(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout(0.1)), 1, 2)


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_a_rate_out_of_range_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="dropout rate"):
        Dropout(p)
