"""An exported model, found by what people call it, and asked what it sees.

Anything but a `torch.export` program is refused before MLflow would run what its files name.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mnist_hydra.archive import copy_plain
from mnist_hydra.config import DataConfig, Place
from mnist_hydra.errors import UserError, first_line, shown

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.models import Model

AT_ONCE = 500
HOLD_OUT = "hold_out"
RIGHT_MODEL = "right: model=RUN_ID, model=NAME@ALIAS, or the folder of a model"

Images = npt.NDArray[np.uint8]
Probabilities = npt.NDArray[np.float32]


class Exported:
    """A model that takes images uint8 [N, 1, side, side] and returns class probabilities.

    The program itself is loaded when it is first asked, which takes seconds, from a copy.

    Args:
        folder: the model's.
        name: as the user called it.

    Raises:
        UserError: see `copy_program` and `side_of`.
    """

    def __init__(self, folder: Path, name: str) -> None:
        above = tempfile.TemporaryDirectory()
        weakref.finalize(self, above.cleanup)
        self.folder, self.name = Path(above.name), name
        about = copy_program(folder, self.folder, name)
        self.side = side_of(about, name)
        self.hold_out: dict[str, Any] = dict((about.metadata or {}).get(HOLD_OUT, {}))
        """As `hold_out_of`; empty for a model that does not say, as none before 2026-11-27 does."""

    @cached_property
    def _model(self) -> Any:
        import mlflow

        with (
            in_short(f"model={self.name} cannot be read"),
            lean_models(),
            warnings.catch_warnings(),
        ):
            # torch 2.10 says so of the weights that it reads
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            # on a machine with a GPU MLflow would refuse a program that was exported on a CPU
            return mlflow.pyfunc.load_model(str(self.folder), model_config={"device": "cpu"})

    @property
    def module(self) -> Any:
        """The program as a torch module: images uint8 [N, 1, side, side] to log-probabilities."""
        return self._model.get_raw_model()

    def __call__(self, images: Images) -> Probabilities:
        """Images uint8 [N, side, side] -> probabilities float32 [N, classes], N at least 1.

        A row sums to at most one: `model1` gives the rest to classes that it does not return.

        Raises:
            UserError: the program is damaged, or is none that returns log-probabilities of classes.
        """
        model, takes = self._model, f"uint8 [{len(images)}, 1, {self.side}, {self.side}]"
        with in_short(f"model={self.name} fails on images {takes}"):
            parts = [np.exp(model.predict(batch)) for batch in batches(images)]
            found = np.concatenate(parts).astype(np.float32)
        sums = found.sum(axis=1) if found.ndim == 2 and found.shape[1] > 1 else np.zeros(1)
        if len(found) != len(images) or not ((0 < sums) & (sums < 1.01)).all():
            raise UserError(
                f"model={self.name} returns {list(found.shape)} for images {takes}, which are no "
                f"log-probabilities [N, classes]; {RIGHT_MODEL}"
            )
        return found


def batches(images: Images) -> Iterator[Images]:
    """Images uint8 [N, side, side] as a model takes them: uint8 [at most 500, 1, side, side]."""
    for start in range(0, len(images), AT_ONCE):
        yield images[start : start + AT_ONCE, None]


def images_of(
    data: DataConfig, split: str, model: Exported, cache_dir: Path
) -> tuple[Images, npt.NDArray[np.int64]]:
    """The images uint8 [N, side, side] of a split and their labels [N], to measure a model on.

    Args:
        split: `test`, or `val` of data with a hold-out.
        cache_dir: where data is looked for, and kept that is fetched.

    Raises:
        UserError: there is no such data, or its images are of another size than the model's; see
            `insist_on_hold_out`, too.
    """
    from mnist_hydra.data.load import load_dataset

    dataset = load_dataset(data, cache_dir)
    if split == "val":
        insist_on_hold_out(model, hold_out_of(data, dataset.sha256))
    found = dataset.test if split == "test" else dataset.val
    assert found is not None
    images = found.images[found.index, 0]
    if images.shape[1] != model.side:
        raise UserError(
            f"model={model.name} takes {model.side} pixels a side, data={data.name} has "
            f"{images.shape[1]}; right: the data that it was trained on"
        )
    if model.hold_out.get("sha256", dataset.sha256) != dataset.sha256:
        said = f"model={model.name} was trained on other data than data={data.name}"
        print(said, file=sys.stderr)
    return images, found.labels[found.index].astype(np.int64)


def hold_out_of(data: DataConfig, sha256: str) -> dict[str, Any]:
    """Which images a training with this data leaves out, by the settings that say so.

    Args:
        sha256: of the data.
    """
    chosen = {"data.val_size": data.val_size, "data.split_seed": data.split_seed}
    return {"sha256": sha256, **chosen}


def insist_on_hold_out(model: Exported, asked: dict[str, Any]) -> None:
    """Refuse to measure a model on images that it was trained on.

    Args:
        asked: as `hold_out_of`.

    Raises:
        UserError: its training held out others of the same data, or none.
    """
    had = model.hold_out
    if had.get("sha256") != asked["sha256"] or had == asked:
        return
    given, right = (
        " ".join(f"{key}={one.get(key)}" for key in asked if key != "sha256")
        for one in (asked, had)
    )
    raise UserError(
        f"split=val with {given} is not what model={model.name} held out in training; right: "
        f"{right if had.get('data.val_size') else 'split=test, for it held out nothing'}"
    )


def find_model(name: str | None, place: Place) -> Exported:
    """The model of a finished run, of a registered name and alias, or in a folder.

    Raises:
        UserError: there is none of that name, or it cannot be read.
    """
    if not name or name == "null":
        raise UserError(f"model={shown(name)} names no model; {RIGHT_MODEL}")
    from mnist_hydra.tracking.tracker import Tracker, import_mlflow

    import_mlflow()
    import mlflow

    folder = Path(name).absolute()
    with in_short(f"model={name} cannot be read"):
        if folder.exists():
            return Exported(folder, name)
        tracker = Tracker(place, make=False)
        mlflow.set_tracking_uri(tracker.client.tracking_uri)
        address = address_of(tracker, name)
        with tempfile.TemporaryDirectory() as above:
            downloaded = Path(mlflow.artifacts.download_artifacts(address, dst_path=above))
            if not (downloaded / "MLmodel").exists():
                right = "another run, whose model is there"
                raise UserError(f"model={name}: its files are gone from the store; right: {right}")
            return Exported(downloaded, name)


@contextmanager
def lean_models() -> Iterator[None]:
    """Let MLflow save or load a model without two things that nothing here uses.

    Lightning, where that is installed: MLflow would import it for its autologging, 2 s and 80 MiB.
    In a user's own code `mlflow.pytorch.autolog()` works as ever; only MLflow's checkpoint callback
    must then be imported from where it is made.

    The lists of files of all installed packages, a second to read: by them MLflow would know which
    modules each package has. It needs that for a package that cannot be found by its name.
    """
    from mlflow.utils import requirements_utils

    asking, modules = "mlflow.pytorch._lightning_autolog", "_MODULES_TO_PACKAGES"
    read: object = getattr(requirements_utils, modules, None)
    if read is None:
        setattr(requirements_utils, modules, {})
    sys.modules.setdefault(asking, None)  # type: ignore[arg-type]  # None: no such module
    try:
        yield
    finally:
        setattr(requirements_utils, modules, read)
        if sys.modules[asking] is None:
            del sys.modules[asking]


@contextmanager
def in_short(what: str) -> Iterator[None]:
    """Turn whatever a damaged or foreign model makes MLflow raise into one line.

    Args:
        what: goes wrong then, as the line begins.

    Raises:
        UserError: for any exception.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        why = first_line(error)
        raise UserError(f"{what} ({why}); {RIGHT_MODEL}") from None


def side_of(about: Model, name: str) -> int:
    """The side, in pixels, of the images that a model takes, as its signature says.

    Args:
        about: what the `MLmodel` file says.
        name: of the model, as the user called it.

    Raises:
        UserError: it takes anything but square images of bytes in one channel, or does not say.
    """
    schema = about.get_input_schema()  # type: ignore[no-untyped-call]
    tensor = schema.inputs[0] if schema is not None and schema.inputs else None
    kind, shape = getattr(tensor, "type", None), list(getattr(tensor, "shape", ()))
    if kind != np.uint8 or len(shape) != 4 or shape[1] != 1 or not 0 < shape[2] == shape[3]:
        takes = f"{kind} {shape}" if shape else "something that it does not say"
        raise UserError(
            f"model={name} takes {takes}; right: a model of square images in one channel, uint8 "
            "[N, 1, side, side]"
        )
    return int(shape[2])


def copy_program(folder: Path, copy: Path, name: str) -> Model:
    """Copy of a model's folder what is needed to load it, if it is a `torch.export` program.

    MLflow imports the loader and the code that an `MLmodel` file names, and unpickles; here it is
    let do neither. A program's archive may hold pickles, too: that MLflow refuses those, as it is
    told here, is why `setup.cfg` admits no older one. What torch would run of it, see `archive.py`.

    Args:
        folder: the model's.
        copy: an empty folder.
        name: as the user called it.

    Returns:
        What its `MLmodel` file says.

    Raises:
        UserError: it is more than a program, or something else.
        OSError: it is no model's folder.
    """
    from mlflow.models import Model

    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    shutil.copyfile(folder / "MLmodel", copy / "MLmodel")
    with suppress(FileNotFoundError):  # of the libraries that it was made with
        shutil.copyfile(folder / "requirements.txt", copy / "requirements.txt")
    about = Model.load(str(copy))
    loader = about.flavors.get("python_function", {})
    program = folder / "data" / "model.pt2"
    if (
        loader.get("loader_module") != "mlflow.pytorch"
        or loader.get("code")
        or loader.get("data") != "data"
        or not program.is_file()
        or program.with_name("model.pth").exists()
    ):
        raise UserError(
            f"model={name} is no torch.export program, or names code of its own to run; right: a "
            f"model that this project exported"
        )
    (copy / "data").mkdir()
    if (found := copy_plain(program, copy / "data" / program.name)) is not None:
        raise UserError(
            f"model={name} is no program of plain layers: torch would run {shown(found)[:200]}; "
            f"right: a model that this project exported, without operators of your own"
        )
    return about


def address_of(tracker: Any, name: str) -> str:
    """What MLflow calls a model.

    Raises:
        UserError: the store has none of that name.
    """
    from mlflow.exceptions import MlflowException

    from mnist_hydra.tracking.tracker import is_away

    if "@" in name:
        registered, _, alias = name.removeprefix("models:/").partition("@")
        try:
            tracker.client.get_model_version_by_alias(registered, alias)
        except MlflowException as error:
            if is_away(error):
                raise
            models = tracker.client.search_registered_models()
            there = sorted(f"{model.name}@{known}" for model in models for known in model.aliases)
            right = ", ".join(there) or "none is registered"
            raise UserError(
                f"model={name}: no such registered model and alias; right: {right}"
            ) from None
        return f"models:/{registered}@{alias}"
    return f"models:/{model_of(tracker, tracker.find_run(name, 'model'))}"


def model_of(tracker: Any, run: Run) -> str:
    """The id of a run's exported model.

    Raises:
        UserError: it has none.
    """
    from mlflow.entities import LoggedModelStatus

    mine = f"source_run_id = '{run.info.run_id}'"
    for model in tracker.client.search_logged_models([run.info.experiment_id], mine):
        if model.status == LoggedModelStatus.READY:
            return str(model.model_id)
    raise UserError(
        f"run {run.info.run_id} has no exported model; right: a run that finished, or one of a "
        "sweep's best, whose models the sweep's command makes, also later, with sweep.keep=3"
    )
