"""The batched warp: the pixels, the distributions and the seeds of albumentations' steps."""

from __future__ import annotations

from typing import Any

import albumentations as A  # noqa: E402, N812 - its usual name
import cv2  # noqa: E402
import numpy as np
import pytest
import torch
from scipy import stats

from mnist_hydra.augment.warp import backward_maps, choose_images, draw_matrices, warp_images
from tests.augment.steps import albumentations_result, batched, built, original

# OpenCV 4 rounds positions to 1/32 of a pixel, up to this many grey levels on strokes of 255
LEVELS = 1 if int(cv2.__version__.split(".")[0]) >= 5 else 12
SHARE = 1e-4 if LEVELS == 1 else 0.5

SSR = {"shift_limit": 0.0625, "scale_limit": 0.05, "rotate_limit": 7, "border_mode": 0, "fill": 0}
RICH = {
    "scale": {"x": [0.7, 1.2], "y": [0.9, 1.6]},
    "translate_percent": {"x": [-0.3, 0.1], "y": 0.2},
    "rotate": [-170, 200],
    "shear": {"x": [-20, 10], "y": [-5, 25]},
}
PIXELS = {"scale": [0.8, 1.3], "keep_ratio": True, "translate_px": {"x": [-3, 2], "y": [0, 1]}}


def assert_same_pixels(ours: torch.Tensor, theirs: torch.Tensor, steps: int = 1) -> None:
    apart = (ours.int() - theirs.int()).abs()
    assert apart.max() <= LEVELS
    assert (apart > 0).float().mean() <= SHARE * steps


# the same pixels


@pytest.mark.parametrize("given", [SSR, {"shift_limit": 0.4, "scale_limit": [-0.6, 0.9]}])
@pytest.mark.parametrize(("border", "fill"), [(0, 0), (0, 200), (1, 0), (2, 0), (4, 0)])
def test_pixels_equal_those_of_albumentations_for_its_parameters(
    digits: torch.Tensor, given: Any, border: int, fill: int
) -> None:
    given = {**given, "border_mode": border, "fill": fill, "p": 1.0}
    transform = original("ShiftScaleRotate", **given)
    transform.set_random_seed(3)
    theirs, matrices = [], []
    for image in digits.permute(0, 2, 3, 1).numpy():
        theirs.append(transform(image=image)["image"])
        matrices.append(transform.get_applied_params()["matrix"][:2])
    back = backward_maps(torch.from_numpy(np.stack(matrices)), 28, 28, border)
    ours = warp_images(digits, back, border=border, fill=fill)
    assert_same_pixels(ours, torch.from_numpy(np.stack(theirs)).permute(0, 3, 1, 2))


FIXED: list[list[tuple[str, dict[str, Any]]]] = [
    [("HorizontalFlip", {})],
    [("VerticalFlip", {})],
    [("Rotate", {"limit": [33, 33]})],
    [("Affine", {"translate_px": {"x": 3, "y": -2}})],
    [("Affine", {"translate_percent": {"x": 0.2, "y": -0.19}})],
    [("Affine", {"scale": {"x": 0.8, "y": 1.3}, "rotate": 20, "shear": {"x": 10, "y": -15}})],
    [("Affine", {"scale": 0})],
    [
        ("Rotate", {"limit": [33, 33]}),
        ("HorizontalFlip", {}),
        ("Affine", {"scale": 1.1, "rotate": 3}),
    ],
]


@pytest.mark.parametrize("steps", FIXED, ids=lambda steps: "-".join(name for name, _ in steps))
@pytest.mark.parametrize("size", [(28, 28), (21, 34)])
def test_steps_with_nothing_left_to_chance_give_the_pixels_of_albumentations(
    digits: torch.Tensor, steps: list[tuple[str, dict[str, Any]]], size: tuple[int, int]
) -> None:
    images = digits[:500]
    if size != (28, 28):
        flat = torch.from_numpy(np.resize(images.numpy(), (150, 3, *size)))
        images = flat.clone()
    ours = built(*({name: {**given, "p": 1}} for name, given in steps))
    assert ours.on_device
    theirs = albumentations_result([original(n, **g, p=1) for n, g in steps], images)
    assert_same_pixels(ours(images, seed=0), theirs, len(steps))


# the same distribution


@pytest.mark.parametrize(
    ("name", "given"),
    [("ShiftScaleRotate", SSR), ("Affine", RICH), ("Affine", PIXELS), ("Rotate", {})],
    ids=["ssr", "rich", "pixels", "rotate"],
)
def test_matrices_are_distributed_as_those_of_albumentations(name: str, given: Any) -> None:
    n = 4000
    generator = torch.Generator().manual_seed(5)
    ours = draw_matrices(batched(name, **given), n, 28, 28, generator).view(n, 6)
    transform = original(name, **{**given, "p": 1.0})
    transform.set_random_seed(6)
    image = np.zeros((28, 28, 1), np.uint8)
    drawn = []
    for _ in range(n):
        transform(image=image)
        drawn.append(transform.get_applied_params()["matrix"][:2].ravel())
    theirs = np.stack(drawn)
    for entry in range(6):
        a, b = ours[:, entry].numpy().round(9), theirs[:, entry].round(9)
        assert stats.ks_2samp(a, b).pvalue > 0.001, f"entry {entry}"
    # and jointly: every product of two entries
    for i in range(6):
        for j in range(i, 6):
            a, b = (
                (ours[:, i] * ours[:, j]).numpy().round(9),
                (theirs[:, i] * theirs[:, j]).round(9),
            )
            assert stats.ks_2samp(a, b).pvalue > 0.0005, f"entries {i} and {j}"


def test_shifts_are_whole_pixels_cut_toward_zero_as_in_albumentations() -> None:
    step = batched("ShiftScaleRotate", shift_limit=0.0625, scale_limit=0, rotate_limit=0)
    moved = draw_matrices(step, 20000, 28, 28, torch.Generator().manual_seed(0))[:, :, 2]
    values, counts = moved.unique(return_counts=True)
    assert values.tolist() == [-1, 0, 1]
    expected = 40000 * torch.tensor([0.75, 2.0, 0.75]) / 3.5  # of -1.75..1.75
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 0.001


def test_each_step_changes_a_share_p_of_the_images_whatever_other_steps_and_batches_do() -> None:
    n, batches, p = 512, 200, 0.25
    generator = torch.Generator().manual_seed(1)
    chosen = torch.zeros(2 * batches, n)
    for row in chosen:
        row[choose_images(p, n, generator)] = 1
    assert abs(chosen.mean() - p) < 4 * (p * (1 - p) / chosen.numel()) ** 0.5
    spread = (p * (1 - p)) ** 0.5
    centred = (chosen - p) / spread
    for a, b in [
        (centred[::2], centred[1::2]),  # one step and the next
        (centred[:, :-1], centred[:, 1:]),  # an image and its neighbour
        (centred[:-2], centred[2:]),  # a batch and the next
    ]:
        assert abs((a * b).mean()) < 4 / a.numel() ** 0.5
    assert stats.kstest(chosen.sum(1).numpy(), stats.binom(n, p).cdf).statistic < 0.1


def test_what_an_image_gets_does_not_depend_on_which_image_it_is() -> None:
    step = batched("ShiftScaleRotate", **SSR)
    matrices = torch.stack(
        [
            draw_matrices(step, 100, 28, 28, torch.Generator().manual_seed(seed))[:, 0, 0]
            for seed in range(99)
        ]
    )
    by_place, by_seed = matrices.mean(0), matrices.mean(1)
    spread = float(matrices.std())
    assert by_place.std() < 1.3 * spread / 99**0.5 and by_seed.std() < 1.3 * spread / 100**0.5


def test_augmented_digits_look_alike_pixel_by_pixel(digits: torch.Tensor) -> None:
    given = {**SSR, "p": 0.25}
    batches = torch.split(digits, 500)
    ours = torch.cat([built({"ShiftScaleRotate": given})(b, seed=i) for i, b in enumerate(batches)])
    transform = original("ShiftScaleRotate", **given)
    compose = A.Compose([transform], seed=11)
    theirs = torch.from_numpy(
        np.stack([compose(image=i)["image"] for i in digits.permute(0, 2, 3, 1).numpy()])
    ).permute(0, 3, 1, 2)
    apart = (ours.double() - theirs.double()).view(len(digits), -1)
    seen = apart[:, (apart != 0).sum(0) > 100]
    z = seen.mean(0) / (seen.std(0) / len(digits) ** 0.5)
    assert seen.shape[1] > 300 and z.abs().max() < 5 and 0.5 < z.square().mean() < 2
    for statistic in (lambda x: x.double().mean((1, 2, 3)), lambda x: (x > 127).sum((1, 2, 3))):
        assert stats.ks_2samp(statistic(ours).numpy(), statistic(theirs).numpy()).pvalue > 0.01


def test_a_row_of_images_may_come_in_any_batches(digits: torch.Tensor) -> None:
    images = digits[:300]
    augmentation = built({"Rotate": {"p": 0.5}}, {"HorizontalFlip": {"p": 0.02}})
    change = augmentation.plan(images.shape, seed=3)
    cuts = [0, 1, 2, 130, 299, 300]
    parts = [change(images[a:b], a) for a, b in zip(cuts, cuts[1:])]
    assert torch.equal(torch.cat(parts), augmentation(images, seed=3))
    assert torch.equal(change(images[130:299], 130), parts[3])  # in any order, again and again


@pytest.mark.parametrize("device", ["meta", "cuda", "mps"])
def test_the_warp_runs_where_the_images_are(digits: torch.Tensor, device: str) -> None:
    available = {
        "meta": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available[device]:
        pytest.skip(f"no {device} here")
    step = {"ShiftScaleRotate": SSR}, {"Rotate": {"fill": 9}}, {"Affine": {"border_mode": 4}}
    augmentation = built(*step)
    images = digits[:256].to(device)
    there = augmentation(images, seed=1)
    assert there.device == images.device and there.shape == images.shape
    if device != "meta":  # which has shapes but no pixels: nothing may wait for a value there
        assert_same_pixels(there.cpu(), augmentation(digits[:256], seed=1), len(step))
