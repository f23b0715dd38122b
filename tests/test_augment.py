"""Augmentation is albumentations', whichever way it runs: same pixels, same odds, same refusals."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy import stats

from mnist_hydra.augment import Augmentation, affine
from mnist_hydra.augment.affine import Affine
from mnist_hydra.augment.per_image import PerImage
from mnist_hydra.augment.pipeline import build_augmentation, read_steps
from mnist_hydra.augment.warp import Warp, backward_maps, choose_images, draw_matrices, warp_images
from mnist_hydra.errors import UserError
from mnist_hydra.targets import LET_IN

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import albumentations as A  # noqa: E402, N812 - its usual name
import cv2  # noqa: E402

CONF = Path(__file__).parents[1] / "conf" / "aug"
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


@pytest.fixture(scope="module")
def digits(mnist: Path) -> torch.Tensor:
    """The first 2,000 training images, uint8 [2000, 1, 28, 28]."""
    pixels = np.fromfile(
        mnist / "MNIST" / "raw" / "train-images-idx3-ubyte", np.uint8, 2000 * 784, offset=16
    )
    return torch.from_numpy(pixels).view(-1, 1, 28, 28)


def pipeline(*steps: Any) -> dict[str, Any]:
    return {"name": "test", "steps": list(steps)}


def built(*steps: Any) -> Augmentation:
    made = build_augmentation(pipeline(*steps))
    assert made is not None
    return made


def batched(name: str, **given: Any) -> Affine:
    step = affine.read_step(name, given)
    assert step is not None
    return step


def original(name: str, **given: Any) -> Any:
    """albumentations' own transform."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(A, name)(**given)


def albumentations_result(transforms: list[Any], images: torch.Tensor) -> torch.Tensor:
    compose = A.Compose(transforms)
    pixels = [compose(image=image)["image"] for image in images.permute(0, 2, 3, 1).numpy()]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


def assert_same_pixels(ours: torch.Tensor, theirs: torch.Tensor, steps: int = 1) -> None:
    apart = (ours.int() - theirs.int()).abs()
    assert apart.max() <= LEVELS
    assert (apart > 0).float().mean() <= SHARE * steps


# the groups


def test_the_published_augmentation_runs_on_the_device_with_the_published_ranges() -> None:
    entry = OmegaConf.to_container(OmegaConf.load(CONF / "ssr.yaml"))
    (step,) = read_steps(entry["steps"], "aug.steps")  # type: ignore[arg-type]
    assert step.batched == Affine(
        p=0.25,
        rotate=(-7.0, 7.0),
        scale_x=(0.95, 1.05),
        scale_y=(0.95, 1.05),
        translate_x=(-0.0625, 0.0625),
        translate_y=(-0.0625, 0.0625),
    )
    made = build_augmentation(entry)  # type: ignore[arg-type]
    assert made is not None and made.on_device


def test_no_augmentation_is_nothing_to_call() -> None:
    entry = OmegaConf.to_container(OmegaConf.load(CONF / "none.yaml"))
    assert build_augmentation(entry) is None  # type: ignore[arg-type]


def test_a_batched_pipeline_imports_neither_albumentations_nor_opencv() -> None:
    code = (
        "import sys\n"
        "from mnist_hydra.augment.pipeline import build_augmentation, read_steps\n"
        "aug = {'name': 'x', 'steps': [{'ShiftScaleRotate': {'p': 0.5}}, {'HorizontalFlip': {}}]}\n"
        "assert all(step.batched for step in read_steps(aug['steps'], 'aug.steps'))\n"
        "assert 'torch' not in sys.modules\n"
        "import torch\n"
        "build_augmentation(aug)(torch.zeros(8, 1, 28, 28, dtype=torch.uint8), seed=0)\n"
        "assert not {'albumentations', 'cv2'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# the same language as albumentations


@pytest.mark.parametrize("name", sorted(affine.DEFAULTS))
def test_the_arguments_and_their_defaults_are_those_of_albumentations(name: str) -> None:
    theirs = {
        argument: parameter.default
        for argument, parameter in inspect.signature(getattr(A, name)).parameters.items()
        if argument != "self"
    }
    if name.endswith("Flip"):
        theirs = {"p": 0.5}
    assert affine.DEFAULTS[name] == theirs


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"shift_limit": 0.1, "scale_limit": 0.5, "rotate_limit": 10},
        {"shift_limit": [0.1, -0.2], "scale_limit": [-0.3, 0.1], "rotate_limit": [-3, 20]},
        {"shift_limit_x": 0.2, "shift_limit_y": [0, 0.5]},
        {"shift_limit": 0.3, "shift_limit_y": 0},
        {"shift_limit": -0.1, "rotate_limit": -10},
    ],
)
def test_shift_scale_rotate_reads_its_limits_as_albumentations_does(given: Any) -> None:
    step, theirs = batched("ShiftScaleRotate", **given), original("ShiftScaleRotate", **given)
    assert (step.scale_x, step.scale_y) == (theirs.scale["x"], theirs.scale["y"])
    shift = theirs.translate_percent
    assert (step.translate_x, step.translate_y) == (shift["x"], shift["y"])
    assert step.rotate == tuple(sorted(theirs.rotate))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"scale": 0.8, "rotate": -7, "shear": 5, "translate_percent": 0.1},
        {"scale": [1.2, 0.8], "rotate": [-3, 20], "shear": [-5, 5], "translate_px": 2},
        {"scale": {"x": 0.9}, "shear": {"x": [1, 2]}, "translate_px": {"y": [-1, 3]}},
        {"scale": [0.5, 2], "keep_ratio": True, "translate_percent": {"x": [-0.2, 0.1]}},
    ],
)
def test_affine_reads_its_ranges_as_albumentations_does(given: Any) -> None:
    step, theirs = batched("Affine", **given), original("Affine", **given)
    assert {"x": step.scale_x, "y": step.scale_y} == theirs.scale
    assert {"x": step.shear_x, "y": step.shear_y} == theirs.shear
    assert step.rotate == theirs.rotate
    move = theirs.translate_px if theirs.translate_percent is None else theirs.translate_percent
    assert {"x": step.translate_x, "y": step.translate_y} == move
    assert step.keep_ratio == theirs.keep_ratio


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("ShiftScaleRotate", {"interpolation": 2}),
        ("ShiftScaleRotate", {"border_mode": 3}),
        ("Affine", {"fit_output": True}),
        ("Affine", {"balanced_scale": True}),
        ("Rotate", {"crop_border": True}),
        ("Rotate", {"fill": [0]}),
    ],
)
def test_what_has_no_exact_batched_form_is_left_to_albumentations(name: str, given: Any) -> None:
    assert affine.read_step(name, given) is None


@pytest.mark.parametrize(
    "step",
    [
        {"Rotate": {"p": True}},
        {"Rotate": {"fill": 256}},
        {"Affine": {"translate_px": 0.5}},
    ],
)
def test_an_odd_value_that_albumentations_accepts_is_left_to_albumentations(step: Any) -> None:
    assert isinstance(built(step), PerImage)


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


# a pure function


@pytest.mark.parametrize("name", ["ShiftScaleRotate", "CLAHE"])
def test_the_result_depends_on_images_and_seed_alone(digits: torch.Tensor, name: str) -> None:
    images = digits[:300]
    before = images.clone()
    augmentation = built({name: {"p": 0.5}}, {"Rotate": {"limit": 20, "p": 0.5}})
    first = augmentation(images, seed=2**63 - 1)
    torch.manual_seed(99)
    np.random.seed(99)
    state = torch.get_rng_state()
    augmentation(images[:7], seed=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        again = augmentation(images, seed=2**63 - 1)
        rebuilt = built({name: {"p": 0.5}}, {"Rotate": {"limit": 20, "p": 0.5}})
        assert torch.equal(rebuilt(images, seed=2**63 - 1), first)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(again, first) and torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.dtype == torch.uint8 and first.shape == images.shape
    assert not torch.equal(augmentation(images, seed=0), first)


def test_a_row_of_images_may_come_in_any_batches(digits: torch.Tensor) -> None:
    images = digits[:300]
    augmentation = built({"Rotate": {"p": 0.5}}, {"HorizontalFlip": {"p": 0.02}})
    change = augmentation.plan(images.shape, seed=3)
    cuts = [0, 1, 2, 130, 299, 300]
    parts = [change(images[a:b], a) for a, b in zip(cuts, cuts[1:])]
    assert torch.equal(torch.cat(parts), augmentation(images, seed=3))
    assert torch.equal(change(images[130:299], 130), parts[3])  # in any order, again and again


def test_batches_that_albumentations_changes_draw_apart(digits: torch.Tensor) -> None:
    same = digits[:1].expand(64, 1, 28, 28)
    change = built({"RandomBrightnessContrast": {"p": 0.5}}).plan((128, 1, 28, 28), seed=3)
    first, second = change(same, 0), change(same, 64)
    assert not torch.equal(first, second)
    assert torch.equal(change(same, 64), second)


@pytest.mark.parametrize("p", [0, 0.25, 1])
def test_only_chosen_images_are_touched_and_the_result_is_a_tensor_of_its_own(
    digits: torch.Tensor, p: float
) -> None:
    images = digits[:512]
    changed = built({"HorizontalFlip": {"p": p}})(images, seed=4)
    flipped = (changed == images.flip(-1)).flatten(1).all(1)
    kept = (changed == images).flatten(1).all(1)
    assert (flipped | kept).all()
    assert abs(flipped.float().mean() - p) < 0.08
    assert changed.data_ptr() != images.data_ptr()


def test_a_read_only_file_can_be_augmented(tmp_path: Path, digits: torch.Tensor) -> None:
    digits[:64].numpy().tofile(tmp_path / "images")
    mapped = np.memmap(tmp_path / "images", np.uint8, "r", shape=(64, 1, 28, 28))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = torch.from_numpy(mapped)
    for step in ({"ShiftScaleRotate": {"p": 1}}, {"CLAHE": {"p": 1}}):
        assert built(step)(images, seed=0).shape == images.shape


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


# through albumentations itself


def test_anything_else_runs_through_albumentations_in_order(digits: torch.Tensor) -> None:
    steps = [("GaussianBlur", {"sigma_limit": [1, 1], "blur_limit": [3, 3]}), ("InvertImg", {})]
    ours = built(*({name: {**given, "p": 1}} for name, given in steps))
    assert not ours.on_device
    theirs = albumentations_result([original(n, **g, p=1) for n, g in steps], digits[:50])
    assert torch.equal(ours(digits[:50], seed=0), theirs)


def test_steps_with_equal_p_choose_their_images_independently(digits: torch.Tensor) -> None:
    images = digits[:1000]
    ours = built({"InvertImg": {"p": 0.5}}, {"VerticalFlip": {"p": 0.5}})
    changed = ours(images, seed=0)
    both = (changed == 255 - images.flip(-2)).flatten(1).all(1)
    neither = (changed == images).flatten(1).all(1)
    assert abs(both.float().mean() - 0.25) < 0.06 and abs(neither.float().mean() - 0.25) < 0.06


def test_one_of_several_steps_can_be_chosen(digits: torch.Tensor) -> None:
    choice = [{"InvertImg": {"p": 1}}, {"VerticalFlip": {"p": 1}}]
    images = digits[:400]
    changed = built({"OneOf": {"transforms": choice, "p": 1}})(images, seed=0)
    inverted = (changed == 255 - images).flatten(1).all(1)
    flipped = (changed == images.flip(-2)).flatten(1).all(1)
    assert (inverted | flipped).all() and 0.4 < inverted.float().mean() < 0.6


OWN = """
import albumentations
import numpy as np

class Roll(albumentations.ImageOnlyTransform):
    def __init__(self, most=3, p=0.5):
        super().__init__(p=p)
        self.most = most
    def get_params(self):
        return {"by": self.py_random.randint(1, self.most)}
    def apply(self, img, by, **params):
        return np.roll(img, by, 0)

class Blank(albumentations.ImageOnlyTransform):
    def apply(self, img, **params):
        img[:] = 0
        return img

class Restless(albumentations.ImageOnlyTransform):
    def apply(self, img, **params):
        return np.roll(img, np.random.randint(28), 0)

class Broken(albumentations.ImageOnlyTransform):
    def apply(self, img, **params):
        raise RuntimeError("no such luck")

def function():
    pass
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_augmentation.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(LET_IN, "modules", ["own_augmentation", "no_such_module"])
    monkeypatch.delitem(sys.modules, "own_augmentation", raising=False)


@pytest.mark.usefixtures("own")
def test_a_step_of_ones_own_works_beside_those_of_albumentations(digits: torch.Tensor) -> None:
    images = digits[:200]
    step = {"_target_": "own_augmentation.Roll", "most": 2, "p": 1}
    changed = built(step, {"HorizontalFlip": {"p": 0}})(images, seed=0)
    rolled = [(changed == images.roll(by, 2)).flatten(1).all(1) for by in (1, 2)]
    assert (rolled[0] ^ rolled[1]).all() and 0.3 < rolled[0].float().mean() < 0.7


@pytest.mark.usefixtures("own")
def test_a_step_that_writes_into_its_image_leaves_the_data_alone(digits: torch.Tensor) -> None:
    images = digits[:20].clone()
    changed = built({"_target_": "own_augmentation.Blank", "p": 1})(images, seed=0)
    assert not changed.any() and torch.equal(images, digits[:20])


# refusals


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"Rotat": {}}, ["aug.steps.0", "'Rotat'", "did you mean Rotate"]),
        ({"clahe": {}}, ["'clahe'", "did you mean CLAHE"]),
        ({"from_dict": {}}, ["no step 'from_dict'"]),
        ({"Rotate": {"limt": 3}}, ["aug.steps.0.Rotate", "'limt'", "did you mean limit"]),
        ({"Rotate": {"limit": "far"}}, ["aug.steps.0.Rotate", "limit='far'", "a valid number"]),
        ({"Rotate": {"limit": float("nan")}}, ["aug.steps.0.Rotate.limit=nan", "finite"]),
        ({"Rotate": {"p": 1.5}}, ["aug.steps.0.Rotate", "p=1.5", "less than or equal to 1"]),
        ({"Rotate": {"border_mode": 5}}, ["border_mode=5", "0, 1, 2, 3 or 4"]),
        ({"Rotate": {"crop_border": 1}}, ["aug.steps.0.Rotate", "same type and shape"]),
        ({"Rotate": {"rotate_method": "box"}}, ["rotate_method='box'", "largest_box"]),
        ({"ShiftScaleRotate": {"shift_limit": 1.5}}, ["shift_limit", "[-1, 1]"]),
        ({"ShiftScaleRotate": {"scale_limit": [-2, 0]}}, ["scale_limit=[-2, 0]"]),
        ({"Affine": {"shear": {"z": 1}}}, ["shear={'z': 1}", "\"x\" or key \"y\""]),
        ({"Affine": {"scale": [1, 2, 3]}}, ["scale=[1, 2, 3]"]),
        ({"Affine": {"scale": {"x": 2}, "keep_ratio": True}}, ["keep_ratio", "identical"]),
        (
            {"Affine": {"translate_px": 1, "translate_percent": 0.1}},
            ["translate_percent or translate_px"],
        ),
        ({"CLAHE": {"clip_limit": -3}}, ["aug.steps.0.CLAHE", "clip_limit=-3", ">= 1"]),
        ({"CLAHE": {"cliplimit": 3}}, ["'cliplimit'", "did you mean clip_limit"]),
        ({"OneOf": {"transforms": [{"Rotat": {}}]}}, ["aug.steps.0.OneOf.transforms.0", "Rotate"]),
        ({"Normalize": {}}, ["Normalize", "float32", "the trainer"]),
        ({"ToTensorV2": {}}, ["ToTensorV2", "Tensor"]),
        ({"Resize": {"height": 3, "width": 3}}, ["Resize", "(3, 3, 1)", "same type and shape"]),
        ({"_target_": "own_augmentation.Rol"}, ["own_augmentation.Rol"]),
        ({"_target_": "own_augmentation.Roll", "mst": 1}, ["'mst'", "did you mean most"]),
        ({"_target_": "own_augmentation.function"}, ["function", "BasicTransform"]),
        ({"_target_": "own_augmentation.Broken"}, ["aug.steps.0", "no such luck"]),
        ({"_target_": "own_augmentation.Restless"}, ["same seed", "self.py_random"]),
        ({"_target_": "os.system"}, ["os.system", "not let in"]),
        ({"_target_": "no_such_module.Roll"}, ["no_such_module"]),
        ({"_target_": 3}, ["aug.steps.0._target_=3", "dotted path"]),
        ("Rotate", ["aug.steps.0=Rotate", "a mapping of one name"]),
        ({"Rotate": {}, "CLAHE": {}}, ["a mapping of one name"]),
        ({"Rotate": 3}, ["a mapping of one name"]),
    ],
    ids=str,
)
@pytest.mark.usefixtures("own")
def test_a_wrong_step_is_refused_in_one_line_that_names_it(step: Any, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        build_augmentation(pipeline(step))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_mistyped_key_or_a_list_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="aug.step=.*right: name or steps"):
        build_augmentation({"name": "x", "step": []})
    with pytest.raises(UserError, match="aug.steps=Rotate is not valid; right: a list"):
        build_augmentation({"name": "x", "steps": "Rotate"})


def test_a_step_that_fails_on_the_data_itself_is_found_before_training() -> None:
    colour = np.zeros((2, 3, 8, 8), np.uint8)
    crop = {"RandomCrop": {"height": 20, "width": 20}}
    with pytest.raises(UserError, match="aug.steps.0.RandomCrop"):
        build_augmentation(pipeline(crop), sample=colour)
    made = build_augmentation(pipeline({"ToGray": {}}), sample=colour)
    assert isinstance(made, PerImage) and isinstance(built({"Rotate": None}), Warp)
