"""Random changes to batches of images. This file holds the two protocols that the trainer uses.

`pipeline.py` builds an augmentation from a configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


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
