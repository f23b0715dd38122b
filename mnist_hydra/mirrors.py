"""torchvision's own download, as a process of its own: `python -m mnist_hydra.mirrors MNIST DIR`.

It keeps torchvision's slow import out of the training process, and it never hangs: where nothing
arrives for `STALL_S` seconds it gives up.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from pathlib import Path

STALL_S = 15.0


def size_of(folder: Path) -> int:
    """Bytes in all files below `folder`; files may come and go meanwhile."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                size += os.stat(os.path.join(parent, name)).st_size
    return size


def give_up_when_stalled(folder: Path, stall_s: float) -> None:
    """End this process, with exit code 1, once `folder` has not grown for `stall_s` seconds."""
    size, since = -1, time.monotonic()
    while time.monotonic() - since < stall_s:
        now = size_of(folder)
        if now != size:
            size, since = now, time.monotonic()
        time.sleep(0.2)
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
