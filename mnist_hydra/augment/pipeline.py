"""Builds an augmentation from a pipeline that is written in albumentations' terms.

The trainer sees an `Augmentation`. If every step has an exact batched form, it runs on the device
(`warp.py`), otherwise through albumentations itself (`per_image.py`). Only the file that is needed
is imported.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mnist_hydra.augment import affine
from mnist_hydra.errors import UserError, wrong_value

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


class Change(Protocol):
    """The random changes to one sequence of images, already drawn; a pure function."""

    def __call__(self, images: Tensor, first: int) -> Tensor:
        """Return changed images, uint8 [B, C, H, W] like `images`, which are left as they are.

        Args:
            images: a part of the sequence.
            first: its first image's number in the sequence, counted from 0.
        """


class Augmentation(Protocol):
    """A random change to images that is a pure function of the images and a seed."""

    @property
    def on_device(self) -> bool:
        """Whether it runs on the images' device; if not, it is CPU work, done in a thread."""

    def plan(self, shape: Sequence[int], *, seed: int) -> Change:
        """Draw the changes to a sequence of images, which come batch by batch.

        Args:
            shape: [N, C, H, W] of the whole sequence, such as an epoch's images.
            seed: 0 <= seed < 2**63.
        """

    def __call__(self, images: Tensor, *, seed: int) -> Tensor:
        """Change images that come at once: `plan` for them alone, carried out.

        Args:
            images: uint8 [B, C, H, W]; not modified.
            seed: 0 <= seed < 2**63.
        """
        return self.plan(images.shape, seed=seed)(images, 0)


@dataclass(frozen=True)
class Step:
    """One entry of `aug.steps`: a name that albumentations knows, or a class of the user's own."""

    key: str
    """Where it stands in the configuration, such as `aug.steps.0.Rotate`."""
    name: str
    """Its name in albumentations, or a dotted path."""
    own: bool
    """Whether `name` is a dotted path."""
    given: dict[str, Any]
    """Its arguments."""

    @property
    def batched(self) -> affine.Affine | None:
        """Its exact batched form; `None` if it has none."""
        return None if self.own else affine.read_step(self.name, self.given)


def build_augmentation(
    aug: Mapping[str, Any], *, sample: np.ndarray | None = None
) -> Augmentation | None:
    """Build what `aug` describes, or `None` where it has no steps.

    Each step changes what the one before has made. They run on the device only if all of them have
    an exact batched form.

    Args:
        aug: an entry of the group `aug`: `name`, and `steps`, a list of mappings of one name to
            its arguments, `{Rotate: {limit: 5}}`, or of `_target_` and arguments.
        sample: uint8 [N, C, H, W], images on which steps without a batched form are tried out;
            by default noise of [4, 1, 28, 28].

    Raises:
        UserError: an unknown step, a wrong argument, or a step that does not work on `sample`.
    """
    for key, value in aug.items():
        if key not in ("name", "steps"):
            raise UserError(f"aug.{key}={value!r} is no setting; right: name or steps")
    steps = read_steps(aug.get("steps") or [], "aug.steps")
    if not steps:
        return None
    slow = [step.name for step in steps if step.batched is None]
    if not slow:
        from mnist_hydra.augment.warp import Warp

        return Warp([step.batched for step in steps if step.batched is not None])

    import torch

    from mnist_hydra.augment.per_image import PerImage, made

    pipeline = PerImage([(step.key, made(step)) for step in steps])
    if sample is None:
        sample = np.random.default_rng(0).integers(0, 256, (4, 1, 28, 28), dtype=np.uint8)
    pipeline.try_out(torch.from_numpy(sample.copy()))
    log.info("augmentation runs through albumentations on the CPU: no batched form of %s", slow)
    return pipeline


def read_steps(steps: Any, key: str) -> list[Step]:
    """Check the outer form of a list of steps; `key` is where it stands in the configuration.

    Raises:
        UserError: naming the step and what would be right.
    """
    if not isinstance(steps, list | tuple):
        raise wrong_value(key, steps, "a list of steps such as [{Rotate: {limit: 5}}]")
    return [_read_step(step, f"{key}.{i}") for i, step in enumerate(steps)]


def _read_step(raw: Any, key: str) -> Step:
    form = "a mapping of one name to its arguments, such as {Rotate: {limit: 5}}"
    if isinstance(raw, Mapping) and "_target_" in raw:
        target = raw["_target_"]
        if not isinstance(target, str):
            right = "a dotted path such as my_module.MyTransform"
            raise wrong_value(f"{key}._target_", target, right)
        given = {name: value for name, value in raw.items() if name != "_target_"}
        return Step(key, target, True, given)
    if not isinstance(raw, Mapping) or len(raw) != 1:
        raise wrong_value(key, raw, form)
    ((name, given),) = raw.items()
    given = {} if given is None else given
    if not isinstance(name, str) or not isinstance(given, Mapping):
        raise wrong_value(key, dict(raw), form)
    for argument, value in given.items():
        if not _finite(value):  # albumentations would take it
            raise wrong_value(f"{key}.{name}.{argument}", value, "finite numbers")
    return Step(f"{key}.{name}", name, False, dict(given))


def _finite(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_finite, value))
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    return not isinstance(value, float) or math.isfinite(value)
