"""The `sweep.*` settings and their range checks."""

from __future__ import annotations

from dataclasses import dataclass, field

from mnist_hydra.ranges import bad, flag, number, whole

SAMPLERS = ("tpe", "random")
PRUNERS = ("none", "median", "halving")


@dataclass(frozen=True)
class SweepConfig:
    """How a sweep is run; none of it changes a trial's result."""

    name: str | None = None
    fresh: bool = False
    dry_run: bool = False
    retries: int = 1
    fail_fast: bool = False
    trial_timeout_s: float | None = None
    keep: int = 3
    workers: int | None = None
    """How many workers a launcher starts; `None` leaves it to the launcher."""
    trials_per_gpu: int = 1
    n_trials: int = 20
    objective: str = "val/acc"
    objective_at: str = "last"
    sampler: str = "tpe"
    pruner: str = "none"
    parent: str | None = None
    """Set by the sweeper for its workers: the sweep's MLflow run."""
    by: str | None = None
    """Set by the sweeper for its workers: which sweeper process started them."""
    worker: int | None = None
    """Set by the sweeper for its workers: the worker's number."""
    kind: str = "grid"
    """Set by the sweeper for its workers: `grid` or `search`."""
    arguments: list[str] = field(default_factory=list)
    """Set by the sweeper for its workers: all its overrides, swept ones too (`axes.parse`)."""

    def __post_init__(self) -> None:
        flag("sweep.fresh", self.fresh)
        flag("sweep.dry_run", self.dry_run)
        flag("sweep.fail_fast", self.fail_fast)
        whole("sweep.retries", self.retries, at_least=0)
        whole("sweep.keep", self.keep, at_least=0)
        whole("sweep.trials_per_gpu", self.trials_per_gpu, at_least=1)
        whole("sweep.n_trials", self.n_trials, at_least=1)
        if self.workers is not None:
            whole("sweep.workers", self.workers, at_least=1)
        if self.trial_timeout_s is not None:
            number("sweep.trial_timeout_s", self.trial_timeout_s, above=0.0)
        if self.objective_at not in ("last", "best"):
            raise bad("sweep.objective_at", self.objective_at, "last or best")
        if self.sampler not in SAMPLERS:
            raise bad("sweep.sampler", self.sampler, "one of " + ", ".join(SAMPLERS))
        if self.pruner not in PRUNERS:
            raise bad("sweep.pruner", self.pruner, "one of " + ", ".join(PRUNERS))
