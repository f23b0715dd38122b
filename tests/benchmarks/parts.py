"""Runs `python -m mnist_hydra.train` with a stopwatch around the parts of an epoch, and prints
where the time went as the last line, in JSON.

The first epoch, beside which MLflow is opened, is left out.

    python -m tests.benchmarks.parts experiment=exp3 epochs=4
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch

from mnist_hydra import export, run, train
from mnist_hydra.progress import Progress
from mnist_hydra.tracking.spool import Spool
from mnist_hydra.trainer import EVALUATION_BATCH, Trainer
from tests.benchmarks.measure import median

EVALUATIONS = 10
taken: dict[str, float] = {}
marks: list[tuple[float, dict[str, float]]] = []
"""At each epoch's beginning, and at the last one's end: when, and what was taken by then."""
report: dict[str, float] = {}


def now() -> float:
    """Seconds, once the device has done what it was told to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, its time counted as that of the part `name`."""

    @wraps(function)
    def with_stopwatch(*arguments: Any, **named: Any) -> Any:
        began = now()
        try:
            return function(*arguments, **named)
        finally:
            taken[name] = taken.get(name, 0.0) + now() - began

    return with_stopwatch


def timed_batches(batches: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """The same generator, the time until each batch counted."""

    def with_stopwatch(*arguments: Any) -> Iterator[Any]:
        advance = timed("gather and augmentation", batches(*arguments).__next__)
        while True:
            try:
                yield advance()
            except StopIteration:
                return

    return with_stopwatch


def mark(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; an epoch begins or the last one has ended where it is called."""

    @wraps(function)
    def marked(*arguments: Any) -> Any:
        marks.append((now(), dict(taken)))
        return function(*arguments)

    return marked


def compare_evaluations(trainer: Trainer, *_: object) -> None:
    """Evaluate on the test set and run the bare forward pass, in turns."""
    images = trainer.dataset.test.images[trainer.dataset.test.index]
    ready = torch.as_tensor(images).to(trainer.device)
    together = EVALUATION_BATCH[trainer.device.type]
    batches = [trainer._normalise(rows) for rows in torch.split(ready, together)]

    def bare() -> None:
        trainer.model.eval()
        with torch.inference_mode(), trainer._autocast():
            for batch in batches:
                trainer.runnable.evaluate(batch)

    seconds: dict[str, list[float]] = {"evaluation_s": [], "bare_forward_s": []}
    for _ in range(EVALUATIONS):
        for name, call in (
            ("evaluation_s", lambda: trainer.evaluate("test")),
            ("bare_forward_s", bare),
        ):
            trainer._predicted = None  # else the last epoch's answers are used again
            began = now()
            call()
            seconds[name].append(now() - began)
    report.update({name: median(values) for name, values in seconds.items()})


def main() -> None:
    Trainer._step = timed("step", Trainer._step)  # type: ignore[method-assign]
    Trainer._batches = mark(  # type: ignore[method-assign]
        timed_batches(Trainer._batches)
    )
    Trainer._training_metrics = timed(  # type: ignore[method-assign]
        "metrics", Trainer._training_metrics
    )
    Trainer.evaluate = timed("evaluation", Trainer.evaluate)  # type: ignore[method-assign]
    Spool.save_checkpoint = timed(  # type: ignore[method-assign]
        "checkpoint", Spool.save_checkpoint
    )
    Spool.log_epochs = timed("tracking", Spool.log_epochs)  # type: ignore[method-assign]
    Progress.step = timed("progress bar", Progress.step)  # type: ignore[method-assign]
    Progress.epoch = timed("progress bar", Progress.epoch)  # type: ignore[method-assign]
    run._record_end = mark(run._record_end)
    # in place of the pictures and the exported model
    export.log_pictures_and_model = compare_evaluations
    train.main()
    (began, before), (ended, after) = marks[1], marks[-1]
    epochs = len(marks) - 2
    parts = {name: (after[name] - before.get(name, 0.0)) / epochs for name in after}
    print("\n" + json.dumps({"epoch_s": (ended - began) / epochs, "parts_s": parts, **report}))


if __name__ == "__main__":
    main()
