"""Builds an augmentation from a pipeline that is written in albumentations' terms.

If every step has an exact batched form, it runs on the device (`warp.py`), otherwise through
albumentations itself (`per_image.py`). Only the file that is needed is imported.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mnist_hydra.augment import Augmentation, affine
from mnist_hydra.errors import UserError, wrong_value

log = logging.getLogger(__name__)


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

    from mnist_hydra.augment.per_image import PerImage

    pipeline = PerImage([(step.key, _transform(step)) for step in steps])
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
        try:
            json.dumps(value, allow_nan=False, default=str)
        except ValueError:  # albumentations would take it
            raise wrong_value(f"{key}.{name}.{argument}", value, "finite numbers") from None
    return Step(f"{key}.{name}", name, False, dict(given))


def _transform(step: Step) -> Any:
    """Make albumentations' object for a step, after those of the steps inside it."""
    from mnist_hydra.augment import per_image

    if step.own:
        return per_image.own_step(step.name, step.given, step.key)
    given = dict(step.given)
    if "transforms" in given:
        inner = read_steps(given["transforms"], f"{step.key}.transforms")
        given["transforms"] = [_transform(one) for one in inner]
    return per_image.albumentations_step(step.name, given, step.key)
