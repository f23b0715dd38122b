"""A training and its record in MLflow: a single run (`run_alone`) or a sweep's trial (`train_run`).

A sweep, Ctrl-C or SIGTERM can end a training through `Hooks`.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

from omegaconf import OmegaConf

from mnist_hydra.build import prepare
from mnist_hydra.cli.commands import place_words, resume_command, shell_command, ui_command
from mnist_hydra.config import Config, changes_result, fingerprint, flatten, unresolved
from mnist_hydra.data.idx import LABELS
from mnist_hydra.data.load import inputs
from mnist_hydra.errors import StoreAway, UserError, in_one_line
from mnist_hydra.metrics import OF_CLASS, at_end
from mnist_hydra.progress import Progress, percent
from mnist_hydra.runtime import device_name
from mnist_hydra.secrets import by_reference, hide, hide_in_error
from mnist_hydra.stopping import Hooks, StopOnSignal, StopReason, on_signals
from mnist_hydra.tracking import provenance, tag
from mnist_hydra.tracking.journal import SpooledRun, is_in_use, spools
from mnist_hydra.tracking.spool import Spool
from mnist_hydra.tracking.store import shown_address
from mnist_hydra.tracking.tracker import MISTAKES_FILE, Tracker, check_store, import_mlflow
from mnist_hydra.trainer import Listener, NonFiniteLoss, Trainer


def run_alone(config: Config, overrides: list[str], flags: list[str]) -> float | None:
    """Train and record one run outside a sweep, and print its summary.

    Args:
        overrides, flags: the command line's, recorded as tags; flags are Hydra's own, by which
            another command finds the same configuration files.

    Returns:
        The accuracy that the run is judged by: `val/acc`, or `test/acc_last` with no hold-out.

    Raises:
        UserError: before anything is recorded.
        SystemExit: 1 for a training that fails, 130 after Ctrl-C, 143 after SIGTERM.
    """
    # The spool repeats requests itself, and a repeated request for a new run would make two runs.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    hooks = StopOnSignal()
    with on_signals(hooks.handle):
        resumed = config.resume is not None
        if resumed:
            from mnist_hydra.tracking.resume import resumed_run

            config, spool, state = resumed_run(config, overrides)
        else:
            spool, state = _new_run(config, overrides, flags), None
        trainer = prepare(config, state)
        hooks.is_trained = lambda: trainer.position.epoch == config.epochs
        was_trained = hooks.is_trained()
        hooks.go_on = lambda: resume_command(config.composed, spool.run.id)
        failure: BaseException | None = None
        with spool:
            try:
                stopped, metrics = train_run(trainer, spool, hooks, overrides, resumed=resumed)
                last_ms = trainer.position.history[-1]["timestamp_ms"] if was_trained else 0
                ended_ms = int(last_ms) or _now_ms()  # of an earlier process, if it trained all
                if stopped is None:
                    _record_product(trainer, spool)
                spool.end("FINISHED" if stopped is None else "KILLED", ended_ms)
            except BaseException as error:  # noqa: B036  a user's own code may raise what it likes
                failure = error
                _record_failure(spool)
    failure = failure or spool.refusal
    if failure is not None and spool.left and spool.tracker is not None:
        with suppress(Exception):  # its own end waits behind what is refused
            spool.tracker.end(spool.run.id, "FAILED")
    if spool.left:
        _say_what_is_left(config, spool)
    if isinstance(failure, UserError):
        raise failure
    if failure is not None:
        print(f"run {spool.run.id} failed: {hide_in_error(one_line(failure))}", file=sys.stderr)
    elif stopped is not None:
        print(f"run {spool.run.id} stopped in epoch {trainer.position.epoch + 1}")
    else:
        _print_summary(metrics, trainer, spool)
        return metrics.get("val/acc", metrics["test/acc_last"])
    if not isinstance(failure, NonFiniteLoss):  # that would fail again
        print(f"go on with\n  {resume_command(config.composed, spool.run.id)}", flush=True)
    raise SystemExit(hooks.exit_code if failure is None else 1)


def _new_run(config: Config, overrides: list[str], flags: list[str]) -> Spool:
    """The spool of a new run, which MLflow gets as soon as it can be reached."""
    try:
        check_store(config)
    except StoreAway as away:
        print(f"{away}; training goes on, and is recorded once it answers", file=sys.stderr)
    waiting = {spooled.id for folder, spooled in spools(config.folder) if not is_in_use(folder)}
    if waiting:
        print(
            f"{_count(len(waiting), 'earlier run')} below {config.output_dir} not wholly recorded; "
            f"{shell_command('sync', place_words(config.composed))} does that",
            file=sys.stderr,
        )
    Thread(target=import_mlflow, daemon=True).start()  # meanwhile the kernel is compiled
    named = filter(changes_result, overrides)
    tags = {"mlflow.user": provenance.user(), "mlflow.source.name": "mnist_hydra.train"}
    spooled = SpooledRun(
        uuid4().hex,
        config.tracking.experiment_name,
        hide(", ".join(named) or config.model.name),
        tags | ({tag.FLAGS: tag.lines(flags)} if flags else {}),
        _now_ms(),
        shown_address(config.tracking.uri),
        config=config_text(config),
    )
    return Spool(config.folder, spooled, lambda: Tracker(config))


def _record_product(trainer: Trainer, spool: Spool) -> None:
    """Record pictures and model; if that fails the run is finished all the same."""
    from mnist_hydra.export import log_pictures_and_model

    print("drawing the pictures, exporting the model", file=sys.stderr)
    try:
        log_pictures_and_model(trainer, spool)
    except (Exception, SystemExit) as error:
        why = hide_in_error(one_line(error))
        print(f"pictures and exported model are not complete: {why}", file=sys.stderr)


def _record_failure(spool: Spool) -> None:
    """Record that a run has failed, as far as disk and store allow."""
    try:
        spool.log_text(hide_in_error(traceback.format_exc()), "traceback.txt")
        spool.end("FAILED")
    except OSError:
        with suppress(Exception):
            if spool.tracker is not None:
                spool.tracker.end(spool.run.id, "FAILED")


def one_line(error: BaseException) -> str:
    """An error in one line; with file and line where the user's own code raised it."""
    if isinstance(error, NonFiniteLoss):
        return str(error)
    ours, at = Path(__file__).parent, ""
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.exists() and ours not in path.parents and "site-packages" not in path.parts:
            at = f" ({path.name}:{frame.lineno})"
    return in_one_line(error) + at


def _say_what_is_left(config: Config, spool: Spool) -> None:
    """Print how many records the store does not have yet, and the command that delivers them."""
    why = spool.away or "it answers slowly"
    print(
        f"{_count(spool.left, 'record')} of run {spool.run.id} not delivered to the tracking "
        f"store ({why}): kept in {spool.folder}; once it is back, deliver with\n"
        f"  {shell_command('sync', place_words(config.composed))}",
        file=sys.stderr,
    )


def train_run(
    trainer: Trainer,
    spool: Spool,
    hooks: Hooks,
    overrides: list[str],
    *,
    resumed: bool,
    is_trial: bool = False,
) -> tuple[StopReason | None, dict[str, float]]:
    """Train to the end and record that; the caller sets the run's status.

    Args:
        overrides: the command line's, recorded as a tag.
        resumed: whether the run has been begun before.
        is_trial: whether it is a sweep's. It shows no progress then, and another machine may have
            to continue it, so training waits after each checkpoint until the store has it, or is
            away.

    Returns:
        Why it ended before its last epoch, `None` if it did not; the last value of every metric.

    Raises:
        UserError, NonFiniteLoss: and whatever a user's own code raises.
    """
    position = trainer.position
    known = list(position.history)

    def begin() -> None:
        _record_settings(trainer, spool, overrides, resumed)
        spool.log_epochs(known)

    # Asking git and libraries takes a while: the first epoch does not wait for it.
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recording")
    settings = thread.submit(begin)
    thread.shutdown(wait=False)
    with Progress(
        trainer.config.epochs,
        trainer.steps_per_epoch,
        len(trainer.dataset.train),
        trainer.config.model.name,
        done_steps=trainer.steps,
        enabled=not is_trial,
    ) as bar:
        try:
            stopped = trainer.train(_Recorder(trainer, spool, hooks, settings, bar, is_trial))
        except BaseException:
            settings.exception()  # what fails at once is recorded, too
            raise
    settings.result()
    spool.raise_if_refused()
    last = position.history[-1] if position.history else {}
    metrics = {name: value for name, value in last.items() if "/" in name}
    if stopped is not None:
        return stopped, metrics
    return None, metrics | _record_end(trainer, spool)


@dataclass
class _Recorder(Listener):
    """Records a training, shows its progress and asks the hooks."""

    trainer: Trainer
    spool: Spool
    hooks: Hooks
    settings: Future[None]
    """Done when the run's settings are recorded, which comes before all else."""
    bar: Progress
    is_trial: bool
    """See `train_run`."""

    def should_stop(self) -> StopReason | None:
        self.bar.step()
        self.spool.raise_if_refused()
        if self.settings.done():
            self.settings.result()
        return self.hooks.should_stop()

    def save(self, state: dict[str, Any]) -> None:
        self.settings.result()
        self.spool.raise_if_refused()
        self.spool.save_checkpoint(state | {"fingerprint": fingerprint(self.trainer.config)})
        if self.is_trial:
            with self.hooks.waiting():
                self.spool.wait(lambda: self.hooks.should_stop() is not None)

    def after_epoch(self, epoch: int, metrics: dict[str, float]) -> StopReason | None:
        self.spool.raise_if_refused()
        self.spool.log_epochs(self.trainer.position.history[-1:])
        self.bar.epoch(epoch, metrics)
        return self.hooks.after_epoch(epoch, metrics)


def _record_settings(trainer: Trainer, spool: Spool, overrides: list[str], resumed: bool) -> None:
    config, device = trainer.config, device_name(trainer.device)
    chosen = {name: str(value) for name, value in asdict(trainer.runtime).items()}
    spool.log_settings(by_reference(flatten(config), unresolved(config.composed)) | chosen)
    tags = provenance.tags() | {tag.OVERRIDES: tag.lines(overrides)}
    if resumed:  # those of the command that began it stay
        del tags[tag.OVERRIDES], tags[tag.COMMAND]
    tags |= {
        tag.FINGERPRINT: fingerprint(config),
        tag.DATA: trainer.dataset.sha256,
        "device": device,
        "weights": str(sum(p.numel() for p in trainer.model.parameters())),
    }
    spool.set_tags(tags)
    begun_with = spool.run.config if resumed else config_text(config)
    if begun_with is not None:  # a run that was killed early may not have told it yet
        spool.log_text(begun_with, "config.yaml")
    spool.log_data(inputs(config.data, trainer.dataset))
    data = {"sha256": trainer.dataset.sha256, "source": trainer.dataset.source}
    made = provenance.record(data=data, device=device)
    spool.log_text(json.dumps(made, indent=2), provenance.FILE)


def _record_end(trainer: Trainer, spool: Spool) -> dict[str, float]:
    """Record the final metrics and the last and best checkpoint; returns those metrics."""
    position = trainer.position
    assert position.best is not None
    loss, accuracy = trainer.evaluate("test")
    log_probabilities, labels = trainer.predict("test")
    predicted = log_probabilities.argmax(1)
    right = predicted == labels
    last = position.history[-1]
    measured = {
        "test/acc_last": accuracy,
        "test/loss_last": loss,
        "test/acc": accuracy,
        "test/loss": loss,
        f"{trainer.monitored}/acc_best": position.best["value"],
    }
    final = {name: measured[name] for name in at_end(trainer.monitored)}
    for digit in range(LABELS):
        of_class = right[labels == digit]
        if len(of_class):
            final[f"{OF_CLASS}{digit}"] = int(of_class.sum()) / len(of_class)
    tags = {"best_epoch": str(position.best["epoch"]), "selected_on": trainer.monitored}
    at = {"epoch": last["epoch"], "timestamp_ms": last["timestamp_ms"]}
    spool.log_epochs([at | final])
    spool.set_tags(tags)
    wrong = (~right).nonzero().flatten()
    mistakes = dict(zip(wrong.tolist(), predicted[wrong].tolist(), strict=True))
    spool.log_text(json.dumps(mistakes), MISTAKES_FILE)
    spool.log_state(trainer.state()["model"], "checkpoints/last.pt")
    spool.log_state(position.best["model"], "checkpoints/best.pt")
    return final


def config_text(config: Config) -> str:
    """A run's configuration in YAML, without passwords."""
    return hide(OmegaConf.to_yaml(config.composed))


def _now_ms() -> int:
    """The time, in milliseconds since 1970."""
    return int(time.time() * 1000)


def _print_summary(metrics: dict[str, float], trainer: Trainer, spool: Spool) -> None:
    history = trainer.position.history
    seconds = sum(epoch["epoch_s"] for epoch in history)
    after = _count(len(history), "epoch")
    lines = [f"test accuracy {percent(metrics['test/acc_last'])} after {after}"]
    if "test/acc_best" in metrics:
        lines.append(f"best epoch {percent(metrics['test/acc_best'])} (selected on the test set)")
    else:
        lines.append(f"val accuracy {percent(metrics['val/acc'])}")
    chosen = trainer.runtime
    how = f"{chosen.device}, {chosen.precision}, {_count(chosen.threads, 'thread')}"
    print("; ".join(lines))
    print(f"{seconds:.0f} s on {how}")
    show = f"; look at it with\n  {ui_command(trainer.config.composed, spool.run.id)}"
    there = "" if spool.tracker is None else show
    print(f"run {spool.run.id} in experiment {spool.run.experiment}{there}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)
