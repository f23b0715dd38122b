"""Augmentation through albumentations itself, one image after another, on the CPU.

albumentations is imported (2.5 s) only when a pipeline needs it. A step whose result does not
follow from the images and the seed alone is refused.
"""

from __future__ import annotations

import importlib
import inspect
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnist_hydra import targets
from mnist_hydra.augment import Augmentation, Change
from mnist_hydra.errors import UserError, did_you_mean, in_one_line


class PerImage(Augmentation):
    """albumentations steps applied to one image after another."""

    on_device = False

    def __init__(self, steps: Sequence[tuple[str, Any]]) -> None:
        """Take over `steps`: pairs of the place in the configuration and the transform."""
        self.steps = tuple(steps)
        # 28 x 28 pixels are not worth a thread; OpenCV's own make this ten times slower
        importlib.import_module("cv2").setNumThreads(0)

    def plan(self, shape: Sequence[int], *, seed: int) -> Change:
        """See `Augmentation`; here the changes also depend on how the sequence is cut into batches.

        Images on another device than the CPU are copied there and back, which waits for the device.

        Raises (when carried out):
            UserError: a step raised, or made something else of an image than uint8 of its size.
        """

        def change(images: Tensor, first: int) -> Tensor:
            # One stream for all steps: set_random_seed would give each the same one, and steps
            # with equal p would then choose the same images.
            streams = np.random.default_rng((seed, first)), random.Random(f"{seed}/{first}")
            for _, transform in self.steps:
                transform.set_random_state(*streams)
            pixels = images.permute(0, 2, 3, 1).to("cpu", copy=True).contiguous().numpy()
            for image in pixels:
                image[...] = self._transformed(image)
            return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(images.device)

        return change

    def try_out(self, images: Tensor) -> None:
        """Try each step alone, and always applied, on `images` uint8 [N, C, H, W].

        Raises:
            UserError: a step does not work on these images, or does not repeat itself.
        """
        for key, transform in self.steps:
            alone = PerImage([(key, transform)])
            p, transform.p = getattr(transform, "p", 1.0), 1.0
            try:
                with targets.blaming(key, "a transform that returns an image"):
                    first, second = alone(images, seed=0), alone(images, seed=0)
            finally:
                transform.p = p
            if not torch.equal(first, second):
                raise UserError(
                    f"{key}: the same seed gave two results; a transform must draw from "
                    "self.py_random or self.random_generator only, and keep no state"
                )

    def _transformed(self, original: np.ndarray) -> Any:
        image: Any = original
        for key, transform in self.steps:
            try:
                image = transform(image=image)["image"]
            except Exception as error:
                raise UserError(f"{key} failed on an image: {_reason(error)}") from error
            got = getattr(image, "dtype", None), getattr(image, "shape", None)
            if not isinstance(image, np.ndarray) or got != (np.uint8, original.shape):
                raise UserError(
                    f"{key} makes {type(image).__name__} {got[0]} {got[1]} of an image uint8 "
                    f"{original.shape}; right: the same type and shape (the trainer scales and "
                    "normalises after the last step)"
                )
        return image


def albumentations_step(name: str, given: Mapping[str, Any], key: str) -> Any:
    """Make one step by albumentations' own name for it.

    Args:
        name: such as `CLAHE`.
        given: its arguments. A step that holds others (OneOf, SomeOf, Sequential) takes them as
            `transforms`: objects that were made before.
        key: where the step stands in the configuration, for messages.

    Raises:
        UserError: there is no such step, or it does not take these arguments.
    """
    import albumentations as a  # type: ignore[import-untyped]

    kinds = (a.BasicTransform, a.BaseCompose)
    names = [n for n, v in vars(a).items() if isinstance(v, type) and issubclass(v, kinds)]
    if name not in names:
        raise UserError(
            f"{key}: albumentations {a.__version__} has no step {name!r}"
            f"{did_you_mean(name, names)}; right: one of its transforms, or your own as "
            "`_target_: my_module.MyTransform`"
        )
    return _made(getattr(a, name), given, key)


def own_step(target: str, given: Mapping[str, Any], key: str) -> Any:
    """Make one step of the user's own class, a subclass of `albumentations.BasicTransform`.

    Raises:
        UserError: there is no such class, or it does not take these arguments.
    """
    from albumentations import BasicTransform

    kind = targets.resolve_class(target, BasicTransform, f"{key}._target_")
    return _made(kind, given, key)


def _made(kind: type, given: Mapping[str, Any], key: str) -> Any:
    parameters = inspect.signature(kind).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for argument in given:  # albumentations would only warn, and go on without it
            if argument not in parameters:
                raise UserError(
                    f"{key}: {kind.__name__} has no argument {argument!r}"
                    f"{did_you_mean(argument, parameters)}; right: {', '.join(sorted(parameters))}"
                )
    # albumentations turns a failed check of its own into defaults unless it is strict
    strict = {"strict": True} if "InitSchema" in vars(kind) else {}
    refuses = targets.blaming(f"{key}: {kind.__name__} refuses this", why=_reason)
    with warnings.catch_warnings(), refuses:
        warnings.simplefilter("ignore")  # ShiftScaleRotate recommends Affine each time
        return kind(**given, **strict)


def _reason(error: BaseException) -> str:
    """Say in one line what was wrong; pydantic's errors by argument."""
    cause: Any = error.__cause__
    if hasattr(cause, "errors"):
        by_argument = {e["loc"][0] if e["loc"] else "": e for e in cause.errors()}
        return "; ".join(
            (f"{argument}={e.get('input')!r}: " if argument else "") + e["msg"]
            for argument, e in by_argument.items()
        )
    return in_one_line(error)
