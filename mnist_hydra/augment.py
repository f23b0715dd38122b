"""Turns a pipeline written in albumentations' terms into one callable over batches of images.

What has an exact batched form runs on the device (`warp`), anything else through albumentations
itself (`per_image`). This file imports neither, nor torch, so that a pipeline can be checked early.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mnist_hydra import affine
from mnist_hydra.errors import UserError, wrong_value

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


class Change(Protocol):
    """What chance has decided for a row of images; a pure function of its arguments."""

    def __call__(self, images: Tensor, first: int) -> Tensor:
        """Return changed images, uint8 [B, C, H, W] like `images`, which are left as they are.

        Args:
            images: the ones from number `first` of the row on.
            first: counted from 0.
        """


class Augmentation(Protocol):
    """A random change to images that is a pure function of the images and a seed."""

    @property
    def on_device(self) -> bool:
        """Whether it works where the images are; if not, it is CPU work worth a thread."""

    def plan(self, shape: Sequence[int], *, seed: int) -> Change:
        """Let chance decide for a row of images, which is to come batch by batch.

        Args:
            shape: [N, C, H, W] of the whole row, such as an epoch's images.
            seed: 0 <= seed < 2**63.
        """

    def __call__(self, images: Tensor, *, seed: int) -> Tensor:
        """Change images that come at once: the same as `plan` for them alone, carried out.

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
    batched: affine.Affine | None
    """Its batched form, where there is an exact one."""


def build(aug: Mapping[str, Any], *, sample: np.ndarray | None = None) -> Augmentation | None:
    """Build what `aug` describes, or `None` where it has no steps.

    Steps follow one another, each on what the one before has made. Only where all of them have an
    exact batched form do they run on the device.

    Args:
        aug: an entry of the group `aug`: `name`, and `steps`, a list of mappings of one name to
            its arguments, `{Rotate: {limit: 5}}`, or of `_target_` and arguments.
        sample: uint8 [N, C, H, W], images on which steps without a batched form are tried out;
            by default noise of [4, 1, 28, 28].

    Raises:
        UserError: an unknown step, a wrong argument, or a step that does not work on `sample`.
    """
    steps = read(aug)
    if not steps:
        return None
    batched = [step.batched for step in steps if step.batched is not None]
    if len(batched) == len(steps):
        from mnist_hydra.warp import Warp

        return Warp(batched)

    import torch

    from mnist_hydra.per_image import PerImage

    pipeline = PerImage([(step.key, _transform(step)) for step in steps])
    if sample is None:
        sample = np.random.default_rng(0).integers(0, 256, (4, 1, 28, 28), dtype=np.uint8)
    pipeline.check(torch.from_numpy(sample.copy()))
    slow = ", ".join(step.name for step in steps if step.batched is None)
    log.info("augmentation runs through albumentations on the CPU: no batched form of %s", slow)
    return pipeline


def read(aug: Mapping[str, Any]) -> list[Step]:
    """Read `aug.steps`, checking as much of it as can be without importing albumentations.

    That is everything about steps with a batched form, and the outer form of the others.

    Raises:
        UserError: naming the step and what would be right.
    """
    for key, value in aug.items():
        if key not in ("name", "steps"):
            raise UserError(f"aug.{key}={value!r} is no setting; right: name or steps")
    return _read_steps(aug.get("steps") or [], "aug.steps")


def _read_steps(steps: Any, key: str) -> list[Step]:
    if not isinstance(steps, list | tuple):
        raise wrong_value(key, steps, "a list of steps such as [{Rotate: {limit: 5}}]")
    return [_read_step(step, f"{key}.{i}") for i, step in enumerate(steps)]


def _read_step(raw: Any, key: str) -> Step:
    form = "a mapping of one name to its arguments, such as {Rotate: {limit: 5}}"
    if isinstance(raw, Mapping) and "_target_" in raw:
        target = raw["_target_"]
        if not isinstance(target, str):
            raise wrong_value(f"{key}._target_", target, "a dotted path such as my_module.MyTransform")
        given = {name: value for name, value in raw.items() if name != "_target_"}
        return Step(key, target, True, given, None)
    if not isinstance(raw, Mapping) or len(raw) != 1:
        raise wrong_value(key, raw, form)
    ((name, given),) = raw.items()
    given = {} if given is None else given
    if not isinstance(name, str) or not isinstance(given, Mapping):
        raise wrong_value(key, dict(raw), form)
    key = f"{key}.{name}"
    batched = affine.read(name, given, key) if name in affine.DEFAULTS else None
    return Step(key, name, False, dict(given), batched)


def _transform(step: Step) -> Any:
    """Make albumentations' object for a step, and before it those that it holds."""
    from mnist_hydra import per_image

    if step.own:
        return per_image.own_step(step.name, step.given, step.key)
    given = dict(step.given)
    if "transforms" in given:
        inner = _read_steps(given["transforms"], f"{step.key}.transforms")
        given["transforms"] = [_transform(one) for one in inner]
    return per_image.albumentations_step(step.name, given, step.key)
