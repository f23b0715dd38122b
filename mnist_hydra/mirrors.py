"""torchvision's own download, as a process of its own: `python -m mnist_hydra.mirrors MNIST DIR`.

It keeps torchvision's slow import out of the training process, and it never hangs: where nothing
arrives for `STALL_S` seconds it gives up.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path

STALL_S = 15.0


def give_up_when_stalled(folder: Path, stall_s: float) -> None:
    """End this process, with exit code 1, once `folder` has not grown for `stall_s` seconds."""
    size, waited_s, step_s = -1, 0.0, 0.5
    tick = threading.Event()
    while waited_s < stall_s:
        tick.wait(step_s)
        now = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        size, waited_s = now, (waited_s + step_s if now == size else 0.0)
    print(f"nothing arrived for {stall_s:.0f} seconds", file=sys.stderr, flush=True)
    os._exit(1)


def main() -> None:
    """Download the torchvision data set `argv[1]` to the folder `argv[2]`."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    from torchvision import datasets  # type: ignore[import-untyped]

    socket.setdefaulttimeout(STALL_S / 3)
    watch = threading.Thread(target=give_up_when_stalled, args=(folder, STALL_S), daemon=True)
    watch.start()
    getattr(datasets, name)(folder, download=True)


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # whatever the network and torchvision come up with
        sys.exit(str(error) or type(error).__name__)
