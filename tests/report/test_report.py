"""The report of a real sweep, over real MNIST: by itself, by the command, and what stands in it."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import random
import re
import shlex
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import optuna
import pytest
from hydra import compose, initialize_config_module
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from mnist_hydra.config import Place, TrackingConfig, flatten, settle
from mnist_hydra.errors import UserError
from mnist_hydra.report import answer, page_tables, plots, questions, read, study, wording
from mnist_hydra.report.make import make, pictures_of, rising_at
from mnist_hydra.report.plots import curve
from mnist_hydra.report.questions import Answers, ask
from mnist_hydra.report.read import Findings
from mnist_hydra.report.results import TrialRecord, best_of, ranked, trial_command
from mnist_hydra.report.statistics import Difference, Verdict, correct, difference, summary
from mnist_hydra.report.study import importances
from mnist_hydra.tracking import tag
from mnist_hydra.tracking.tracker import MISTAKES_FILE, Tracker
from tests.commands import ROOT, Commands, Done

AXES = ("dropout=0.0,0.3", "lr=0.05,0.15", "seed=1,2,3")
FAR = Difference(3, 0.1, 0.1, 0.5)
"""A comparison that takes part in a correction."""
SETTINGS = ("model=model1", "data.limit=512", "data.val_size=500", "epochs=2", "threads=1")


def place_in(folder: Path) -> Place:
    """Where the runs of commands are kept that were started in a folder."""
    return Place(str(folder / "outputs"), TrackingConfig("local", None, "mnist_hydra"))


@dataclass(frozen=True)
class Swept:
    """A sweep that has ended."""

    folder: Path
    told: str
    """What it said on stderr."""

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.folder / 'outputs' / 'mlflow.db'}")

    @property
    def tracker(self) -> Tracker:
        return Tracker(place_in(self.folder), make=False)

    def runs(self) -> tuple[Run, list[Run]]:
        """The parent and its trials."""
        experiment = self.client.get_experiment_by_name("mnist_hydra")
        assert experiment is not None
        found = self.client.search_runs([experiment.experiment_id])
        [parent] = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
        return parent, [run for run in found if run is not parent]

    @property
    def page(self) -> Path:
        [found] = (self.folder / "outputs" / "reports").glob("mine-*/report.html")
        return found


@pytest.fixture(scope="module")
def swept(
    mnist: Path, tmp_path_factory: pytest.TempPathFactory, commands: Commands
) -> Swept:
    folder = tmp_path_factory.mktemp("swept")
    (folder / "my own").mkdir()
    flags = ("--multirun", "--config-dir", "my own")
    words = (*AXES, *SETTINGS, f"data.root={mnist}", "sweep.name=mine", "sweep.keep=0")
    done = commands.run_module("train", *flags, *words, cwd=folder)
    assert done.code == 0, done.err[-3000:]
    return Swept(folder, done.err)


pytestmark = pytest.mark.xdist_group("report")


def test_a_sweep_ends_with_its_report_on_disk_and_on_its_run(swept: Swept) -> None:
    assert f"report: {swept.page}" in swept.told
    assert re.search(r"dropout=0\.\d, lr=0\.\d+ comes first of 4: val/acc", swept.told)
    parent, _ = swept.runs()
    files = {file.path for file in swept.client.list_artifacts(parent.info.run_id, "report")}
    names = {f"report/{path.name}" for path in swept.page.parent.iterdir()}
    assert files == names
    assert {"report/report.html", "report/report.csv", "report/heat_map.png"} <= files
    assert parent.info.status == "FINISHED"


def test_the_page_needs_no_other_file_and_is_well_formed(swept: Swept) -> None:
    text = swept.page.read_text()
    page = Reader()
    page.feed(text)
    assert page.open == [], "every tag is closed"
    assert len(page.ids) == len(set(page.ids))
    outside = [link for link in page.links if not link.startswith(("data:", "#"))]
    assert outside == [] and "<script" not in text and "@import" not in text
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert "prefers-color-scheme: dark" in text and "#222222" not in text.partition("</style>")[2]
    assert page.levels[0] == 1 and all(b - a <= 1 for a, b in zip(page.levels, page.levels[1:]))
    assert len(text) < 400_000


def test_the_page_says_what_won_what_each_setting_does_and_what_made_it(swept: Swept) -> None:
    text = swept.page.read_text()
    parent, trials = swept.runs()
    for words in (
        "Can I trust it?",
        "Does dropout matter?",
        "Does lr matter?",
        "On the test set, which is not used for choosing, it reaches",
        "hold-out (val)",
        trials[0].data.tags[tag.DATA],
        "Which classes are hard?",
        "How it was made",
        "12 of 12 trials finished",
    ):
        assert words in text, words
    assert text.count('<svg role="img"') == 5
    assert "take its model as" not in text, "sweep.keep=0"


def test_every_section_is_in_the_list_and_every_row_has_a_heading(swept: Swept) -> None:
    text = swept.page.read_text()
    listed = re.findall('href="#([^"]+)"', text[text.index("<nav") : text.index("</nav>")])
    assert listed == re.findall('<h2 id="([^"]+)"', text) and listed[0] == "answer"
    firsts = re.findall(r"<tr>\s*<(t\w)( scope=.\w+)?", text)
    assert set(firsts) == {("th", ' scope="col'), ("th", ' scope="row')}
    assert 'class="wide picture" tabindex' not in text


def test_the_hard_images_are_shown_from_where_the_trials_had_their_data(swept: Swept) -> None:
    assert not (swept.folder / "outputs" / "data").exists(), "it lay in data.root"
    image = (
        r'<li><img src="data:image/png;base64,[^"]+" alt="handwritten (\d), test image (\d+)">'
        r"(\d) → \d, \d+ of 12 \(no. (\d+)\)"
    )
    shown = re.findall(image, swept.page.read_text())
    assert len(shown) == 24 and (swept.page.parent / "hard_images.png").is_file()
    assert all((label, index) == (true, number) for label, index, true, number in shown)


def test_a_run_says_which_test_images_it_gets_wrong(swept: Swept) -> None:
    _, trials = swept.runs()
    found = read.mistakes(swept.tracker, [run.info.run_id for run in trials])
    for run in trials:
        wrong = found[run.info.run_id]
        assert 1 - len(wrong) / 10_000 == pytest.approx(run.data.metrics["test/acc"])
        assert set(wrong.values()) <= set(range(10))


def test_the_csv_has_every_trial_unrounded_with_its_origin(swept: Swept) -> None:
    rows = list(csv.DictReader((swept.page.parent / "report.csv").open()))
    _, trials = swept.runs()
    by_run = {run.info.run_id: run for run in trials}
    assert {row["run_id"] for row in rows} == set(by_run)
    for row in rows:
        run = by_run[row["run_id"]]
        assert float(row["val/acc"]) == run.data.metrics["val/acc"]
        assert row["seed"] == run.data.params["seed"]
        assert float(row["dropout"]) == float(run.data.params["dropout"])
        assert row["selected_on"] == "hold-out (val)" and row["hardware"]


def test_a_trials_command_is_what_trains_it_alone(swept: Swept) -> None:
    rows = list(csv.DictReader((swept.page.parent / "report.csv").open()))
    for row in rows:
        python, module, name, *words = shlex.split(row["command"])
        assert (module, name) == ("-m", "mnist_hydra.train")
        assert words[:2] == ["--config-dir", str(swept.folder / "my own")]
        own = {f"{key}={row[key]}" for key in ("dropout", "lr", "seed")}
        assert own | set(SETTINGS) <= set(words)
        assert not [word for word in words if word.lstrip("+").startswith(("sweep.", "hydra"))]
    found = read.read_filter(swept.tracker, "params.dropout = '0.3'")
    by_run = {row["run_id"]: row["command"] for row in rows}
    for record in found.records:
        mine = page_tables.origin_of(record, found.results)["command"]
        assert sorted(shlex.split(mine)) == sorted(shlex.split(by_run[record.run_id]))
    assert swept.page.read_text().count("<summary>show</summary>") == len(rows)


def test_a_metric_with_a_settings_name_is_told_apart_in_the_csv(swept: Swept) -> None:
    _, trials = swept.runs()
    metrics = {run.info.run_id: run.data.metrics for run in trials}
    with (swept.page.parent / "report.csv").open() as file:
        header, *rows = csv.reader(file)
    assert len(header) == len(set(header))
    for row in rows:
        named = dict(zip(header, row, strict=True))
        assert float(named["lr"]) in (0.05, 0.15)
        assert float(named["lr_last"]) == metrics[named["run_id"]]["lr"] != float(named["lr"])


def test_the_command_makes_it_again_by_the_runs_id_without_torch(swept: Swept) -> None:
    parent, _ = swept.runs()
    page = swept.page
    before = page.read_text()
    page.unlink()
    line = [sys.executable, "-X", "importtime", "-m", "mnist_hydra.report"]
    again = subprocess.run(
        [*line, f"sweep={parent.info.run_id}"],
        cwd=swept.folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.startswith("Configurations by val/acc on the hold-out")
    assert again.stdout.splitlines()[-1] == str(page)
    assert page.read_text() == before
    imported = {line.rpartition("|")[2].strip() for line in again.stderr.splitlines()}
    assert "sklearn" in imported and not {"torch", "albumentations"} & imported


def test_the_trials_are_written_as_a_study_that_optuna_reads(
    swept: Swept, commands: Commands
) -> None:
    (swept.folder / "study").write_text("one from before")
    done = commands.run_module("report", "sweep=mine", "optuna=study", cwd=swept.folder)
    assert done.code == 0, done.err[-3000:]
    assert done.out.splitlines()[-1] == "optuna-dashboard study"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(swept.folder / "study")))
    written = optuna.load_study(study_name="mine", storage=storage)
    _, trials = swept.runs()
    by_run = {run.info.run_id: run for run in trials}
    assert {trial.user_attrs["run"] for trial in written.trials} == set(by_run)
    for trial in written.trials:
        run = by_run[trial.user_attrs["run"]]
        assert trial.value == run.data.metrics["val/acc"] == trial.intermediate_values[2]
        assert trial.datetime_start.timestamp() == run.info.start_time / 1000
        assert trial.duration.total_seconds() > 0
        assert {key: str(number) for key, number in trial.params.items()} == {
            "dropout": run.data.params["dropout"],
            "lr": run.data.params["lr"],
            "seed": f"{run.data.params['seed']}.0",
        }
    assert written.best_value == max(run.data.metrics["val/acc"] for run in trials)
    assert written.metric_names == ["val/acc"] and written.direction.name == "MAXIMIZE"
    words = ("sweep=mine", "optuna=nowhere/study")
    refused = commands.run_module("report", *words, cwd=swept.folder)
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert "optuna=nowhere/study is not valid" in refused.err


def test_what_did_not_finish_is_no_complete_trial_of_the_study() -> None:
    values = {"lr": "0.1", "dropout": "0.0"}
    states = ["finished", "pruned", "failed", "running", "died"]
    records = [
        TrialRecord(
            values | {"lr": f"0.{place}1"},
            [],
            state,
            0.9 if place == 0 else None,
            state,
            seconds=60.0,
            began_s=1e9 + place,
        )
        for place, state in enumerate(states)
    ]
    results = ranked(records, ["lr", "dropout"], "val/acc")
    findings = Findings("mine", tuple(records), results, 5, drawn={"lr": True})
    found = study.optuna_trials(findings, records, {"pruned": {1: 0.5, 2: 0.6}, "failed": {1: 0.4}})
    assert [trial.state.name for trial in found] == [
        *("COMPLETE", "PRUNED", "FAIL", "RUNNING", "FAIL")
    ]
    assert found[1].intermediate_values == {1: 0.5, 2: 0.6}
    assert [trial.value for trial in found] == [0.9, 0.6, None, None, None], "as Optuna prunes"
    began = [trial.datetime_start.timestamp() for trial in found]
    assert began == [1e9, 1e9 + 1, 1e9 + 2, 1e9 + 3, 1e9 + 4]
    lasted = [trial.duration and trial.duration.total_seconds() for trial in found]
    assert lasted == [60, 60, 60, None, 60]
    assert found[0].params == {"lr": 0.01} and found[0].distributions["lr"].log


def test_a_search_by_the_best_epoch_is_reported_by_it(
    mnist: Path, tmp_path: Path, commands: Commands
) -> None:
    axis = ("hydra/sweeper=search", "lr=interval(0.05,0.5)", "sweep.n_trials=2", "sweep.keep=0")
    best = ("sweep.objective=val/loss", "sweep.objective_at=best", f"data.root={mnist}")
    words = ("--multirun", *axis, *best, *SETTINGS)
    done = commands.run_module("train", *words, cwd=tmp_path)
    assert done.code == 0, done.err[-3000:]
    [file] = (tmp_path / "outputs" / "reports").glob("*/report.csv")
    rows = list(csv.DictReader(file.open()))
    assert len(rows) == 2
    for row in rows:
        history = Swept(tmp_path, "").client.get_metric_history(row["run_id"], "val/loss")
        assert float(row["val/loss"]) == min(point.value for point in history)
        last = row.get("val/loss_last", row["val/loss"])
        assert float(last) == max(history, key=lambda point: point.step).value
    swept = Swept(tmp_path, done.err)
    again = commands.run_module("train", *words, "sweep.objective_at=last", cwd=tmp_path)
    assert again.code == 0 and "2 done and skipped" in again.err
    for row in csv.DictReader(file.open()):
        history = swept.client.get_metric_history(row["run_id"], "val/loss")
        assert float(row["val/loss"]) == max(history, key=lambda point: point.step).value
    parent, _ = swept.runs()
    assert read.read_parents(swept.tracker, [parent]).results.at == "last"
    swept.client.delete_tag(parent.info.run_id, tag.OBJECTIVE_AT)  # as they were on 2026-11-26
    parent, _ = swept.runs()
    [plan] = (tmp_path / "outputs" / "artifacts").glob(f"{parent.info.run_id}/artifacts/plans/*")
    old = {key: of for key, of in json.loads(plan.read_text()).items() if key != "at"}
    plan.write_text(json.dumps(old))  # as they were on 2026-11-25
    assert read.read_parents(swept.tracker, [parent]).results.at == "best"
    plan.unlink()
    with pytest.raises(UserError, match="plans/ are missing"):
        read.read_parents(swept.tracker, [parent])


def test_an_unknown_sweep_is_one_line_with_the_nearest_name(
    swept: Swept, commands: Commands
) -> None:
    done = commands.run_module("report", "sweep=mien", cwd=swept.folder)
    expected = (
        "error: sweep=mien: no such sweep in this store (did you mean mine?); right: the name or "
        "the run's id of one, such as mine\n"
    )
    assert (done.code, done.err) == (2, expected)
    words = ("sweep=mine", "output_dir=elsewhere")
    nowhere = commands.run_module("report", *words, cwd=swept.folder)
    assert nowhere.code == 2 and nowhere.err.count("\n") == 1
    assert not (swept.folder / "elsewhere").exists()


def test_a_sweep_is_found_though_a_thousand_experiments_were_made_after_its_own(
    tmp_path: Path,
) -> None:
    tracker = Tracker(place_in(tmp_path))
    tracker.client.create_run(tracker.experiment_id, tags={tag.SWEEP: "x"}, run_name="mine")
    with closing(sqlite3.connect(tmp_path / "outputs" / "mlflow.db")) as store, store:
        first = "SELECT * FROM experiments WHERE name = 'mnist_hydra'"
        store.execute(f"CREATE TEMP TABLE newer AS {first}")
        later = "UPDATE newer SET experiment_id = ?1, name = ?1, creation_time = creation_time + 1"
        for number in range(1000, 2000):
            store.execute(later, [number])
            store.execute("INSERT INTO experiments SELECT * FROM newer")
    with pytest.raises(UserError, match=r"no such sweep .*\(did you mean mine\?\)"):
        read.read_sweeps(tracker, ["mien"])


def test_runs_are_found_by_a_filter_and_what_differs_is_an_axis(swept: Swept) -> None:
    found = read.read_filter(swept.tracker, "params.dropout = '0.3'")
    assert (found.results.axes, len(found.results.rows), len(found.records)) == (("lr",), 2, 6)
    with pytest.raises(UserError, match="finds no finished run"):
        read.read_filter(swept.tracker, "params.dropout = '0.7'")
    with pytest.raises(UserError, match="filter=nonsense"):
        read.read_filter(swept.tracker, "nonsense")


def test_a_pruned_run_that_a_filter_finds_is_not_said_to_have_failed(
    swept: Swept, tmp_path: Path
) -> None:
    tracker = Tracker(place_in(tmp_path))
    _, (of_real, *_) = swept.runs()
    for lr, state, status in (("0.1", "finished", "FINISHED"), ("0.2", "pruned", "KILLED")):
        tags = {**of_real.data.tags, tag.FINGERPRINT: lr, tag.STATE: state}
        tags.pop("mlflow.parentRunId")
        run = tracker.client.create_run(tracker.experiment_id, tags=tags)
        metrics = [Metric(key, value, 0, 1) for key, value in of_real.data.metrics.items()]
        params = [Param(key, text) for key, text in (of_real.data.params | {"lr": lr}).items()]
        tracker.client.log_batch(run.info.run_id, metrics, params)
        tracker.client.set_terminated(run.info.run_id, status)
    found = read.read_filter(tracker, "")
    assert (found.finished, found.planned) == (1, 2)
    assert answer.without_result(found) == []


def test_a_page_of_200_trials_is_small(swept: Swept, tmp_path: Path) -> None:
    place = place_in(tmp_path)
    tracker = Tracker(place)
    _, (of_real, *_) = swept.runs()
    draw = random.Random(0)
    for number in range(200):
        params = {"lr": repr(draw.random()), "dropout": repr(draw.random()), "seed": "1"}
        tags = {**of_real.data.tags, tag.FINGERPRINT: str(number)}
        tags.pop("mlflow.parentRunId")
        run = tracker.client.create_run(tracker.experiment_id, tags=tags)
        metrics = [
            Metric(key, value + draw.random() / 10, 0, epoch)
            for key, value in of_real.data.metrics.items()
            for epoch in (range(1, 16) if key in ("val/acc", "test/acc") else [15])
        ]
        changed = [Param(key, params.get(key, text)) for key, text in of_real.data.params.items()]
        tracker.client.log_batch(run.info.run_id, metrics, changed)
        tracker.client.set_terminated(run.info.run_id, "FINISHED")
        if number < read.MAX_MISTAKES:
            wrong = {str(draw.randrange(10_000)): draw.randrange(10) for _ in range(100)}
            tracker.log_text(run.info.run_id, json.dumps(wrong), MISTAKES_FILE)
    found = read.read_filter(tracker, "")
    assert len(found.results.rows) == 200
    made = make(tracker, found, place)
    assert made.page.stat().st_size < 3 * 2**20


@pytest.mark.long
def test_10000_trials_take_less_than_30_seconds(tmp_path: Path) -> None:
    draw = random.Random(0)
    for search in (False, True):
        records = []
        for number in range(10_000):
            values = {"model": f"model{number % 3}", "dropout": f"{number // 3 % 8 / 100}"}
            values |= {"lr": f"{number // 24 % 8 / 10}", "seed": str(number // 192)}
            if search:
                values |= {"dropout": repr(draw.random()), "lr": repr(draw.random()), "seed": "1"}
            metrics = {"test/acc_last": draw.random(), "val/acc": draw.random()}
            one = TrialRecord(values, [], "finished", metrics["val/acc"], str(number))
            records.append(replace(one, seed=values["seed"], metrics=metrics, seconds=9.0))
        began_s = time.process_time()
        results = ranked(records, ["model", "dropout", "lr", "seed"], "val/acc")
        found = read.counted_once(Findings("many", tuple(records), results, len(records)))
        answers = ask(found)
        for picture in list(pictures_of(found, answers, [])):
            picture.figure.savefig(tmp_path / "picture.png")
            assert picture.svg
        origins = [page_tables.origin_of(record, results) for record in found.records]
        columns, rows = page_tables.every_trial(found, origins)
        page_tables.csv_text(columns, rows)
        page_tables.configurations(found, answers.leads)
        page_tables.trial_table(found, rows, [])
        answer.in_words(found, answers)
        assert time.process_time() - began_s < 30


def test_a_command_whose_reader_has_gone_ends_without_a_traceback(swept: Swept) -> None:
    line = [sys.executable, "-m", "mnist_hydra.report", "sweep=mine"]
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does
    done = subprocess.run(line, cwd=swept.folder, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_report_that_finds_no_room_is_one_line(swept: Swept, commands: Commands) -> None:
    reports = swept.folder / "outputs" / "reports"
    kept = reports.rename(reports.with_name("kept"))
    reports.touch()
    done = commands.run_module("report", "sweep=mine", cwd=swept.folder)
    reports.unlink()
    kept.rename(reports)
    assert done.code == 1 and "Traceback" not in done.err
    assert done.errors and "reports" in done.errors[0] and len(done.err.splitlines()) == 1


@pytest.mark.parametrize("filter_", ["params.lr = '0.15'", "\"params.lr = '0.15'\""])
def test_a_filter_is_typed_as_mlflow_has_it(
    swept: Swept, filter_: str, commands: Commands
) -> None:
    done = commands.run_module("report", f"filter={filter_}", cwd=swept.folder)
    assert done.code == 0, done.err[-3000:]
    [page] = (swept.folder / "outputs" / "reports").glob("runs-with-*/report.html")
    assert "6 of 6 trials finished" in page.read_text()
    words = (f"filter={filter_}", "sweep=mine")
    refused = commands.run_module("report", *words, cwd=swept.folder)
    assert refused.code == 2 and "one of the two" in refused.err


def test_a_sweep_named_twice_counts_once(swept: Swept) -> None:
    parent, _ = swept.runs()
    once = read.read_sweeps(swept.tracker, ["mine"])
    assert read.read_sweeps(swept.tracker, ["mine", parent.info.run_id]) == once
    assert (once.title, once.planned) == ("mine", 12)


def test_a_sweep_without_a_finished_trial_is_one_line_until_another_finishes_one(
    mnist: Path, tmp_path: Path, commands: Commands
) -> None:
    def command(name: str, *words: str) -> Done:
        return commands.run_module(name, *words, cwd=tmp_path)

    more = (*SETTINGS, f"data.root={mnist}", "sweep.report=false", "sweep.keep=0")
    hasty = ("lr=0.05,0.1", "sweep.name=hasty", "sweep.trial_timeout_s=0.001", "sweep.retries=0")
    assert command("train", "--multirun", *hasty, *more).code == 1
    refused = command("report", "sweep=hasty")
    expected = (
        "error: sweep=hasty: none of its trials has finished; right: the sweep's own command "
        "again, which goes on with it\n"
    )
    assert (refused.code, refused.out, refused.err) == (2, "", expected)
    patient = ("lr=0.05,0.2", "sweep.name=patient")
    assert command("train", "--multirun", *patient, *more).code == 0
    assert not (tmp_path / "outputs" / "reports").exists(), "sweep.report=false"
    found = read.read_sweeps(Swept(tmp_path, "").tracker, ["hasty", "patient"])
    states = {record.values["lr"]: record.state for record in found.records}
    assert states == {"0.05": "finished", "0.1": "timeout", "0.2": "finished"}
    assert (found.finished, found.planned) == (2, 3)


def test_what_a_sweep_left_fixed_is_found_by_the_key_that_another_one_swept() -> None:
    params = {"dropout": "0.1", "aug.steps": '[{"Blur": {"p": 0.5, "limits": [3, 7]}}]'}
    fixed = TrialRecord({"lr": "0.1"}, ["experiment=exp1"], "finished", 0.9, "a", params=params)
    axes = ["lr", "model.dropout", "aug.steps.0.Blur.p", "aug.steps.0.Blur.limits.1"]
    found = read.completed(fixed, [*axes, "aug.steps.1.Blur.p", "experiment", "data"]).values
    assert found == dict(zip(axes, ["0.1", "0.1", "0.5", "7"])) | {
        "aug.steps.1.Blur.p": "",
        "experiment": "exp1",
        "data": "",
    }


def test_what_two_sweeps_do_not_have_in_common_is_an_axis_of_their_report(
    mnist: Path, tmp_path: Path, commands: Commands
) -> None:
    more = (f"data.root={mnist}", "sweep.report=false", "sweep.keep=0", "seed=1,2", *SETTINGS)
    for name, *own in (("short", "epochs=1"), ("wide", "model=model3")):
        words = ("--multirun", *more, f"sweep.name={name}", *own)
        assert commands.run_module("train", *words, cwd=tmp_path).code == 0
    found = read.read_sweeps(Swept(tmp_path, "").tracker, ["short", "wide"])
    assert found.results.axes == ("dropout", "epochs", "model")
    rows = {row.values: row.score.n for row in found.results.rows}
    assert rows == {("0.0", "1", "model1"): 2, ("0.04", "2", "model3"): 2}


def test_a_value_that_a_later_command_spells_in_another_way_is_the_same_value(
    mnist: Path, tmp_path: Path, commands: Commands
) -> None:
    more = (f"data.root={mnist}", "sweep.report=false", "sweep.keep=0", "sweep.name=grown")
    later = ("dropout=range(0,0.15,0.1)", "seed=1,2,3", "data.offline=true")
    for axes in (("dropout=0,0.1", "seed=1"), later):
        words = ("--multirun", *SETTINGS, *more, *axes, "epochs=1")
        assert commands.run_module("train", *words, cwd=tmp_path).code == 0
    tracker = Swept(tmp_path, "").tracker
    found = read.read_sweeps(tracker, ["grown"])
    assert [row.score.n for row in found.results.rows] == [3, 3]
    plans = list((tmp_path / "outputs" / "artifacts").glob("*/artifacts/plans/*"))
    for plan in plans:  # whatever the files are called, the last command's words are typed again
        is_last = "data.offline" in plan.read_text()
        plan.rename(plan.with_name("a.json" if is_last else "z.json"))
    records = read.read_sweeps(tracker, ["grown"]).records
    assert len(records) == 6 and all("data.offline=true" in one.overrides for one in records)
    for name in ("a.json", "z.json"):
        plans[0].with_name(name).unlink()
    with pytest.raises(UserError, match="plans/ are missing"):
        read.read_sweeps(tracker, ["grown"])


def test_trials_whose_runs_are_not_read_have_what_their_command_left_fixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (
        ("model=model1,model3", "lr=0.1,0.2", "sweep.name=grown"),
        ("model=model1", "lr=0.1,0.2", "dropout=0.1,0.2", "sweep.name=grown"),
        ("model=model1", "lr=0.3,0.4", "scheduler.div_factor=25.0", "sweep.name=other"),
    ):
        line = [sys.executable, "-m", "tests.benchmarks.finished_sweep", "--multirun", *words]
        more = ["data.val_size=5000", f"output_dir={tmp_path / 'outputs'}"]
        subprocess.run([*line, *more], cwd=ROOT, check=True, timeout=300)
    tracker = Swept(tmp_path, "").tracker
    whole = read.read_sweeps(tracker, ["grown", "other"])
    axes = {"lr", "dropout", "model"}
    assert set(whole.results.axes) == axes, "25.0 is no other div_factor than 25"
    monkeypatch.setattr(read, "MAX_RUNS", 2)
    found = read.read_sweeps(tracker, ["grown", "other"])
    assert len(found.records) == 10 and sum(bool(one.params) for one in found.records) < 5
    assert [one.values for one in found.records] == [one.values for one in whole.records]
    assert {one.seed for one in found.records} == {"14596"}
    assert found.scores() == whole.scores()


def test_of_runs_over_a_group_its_name_alone_is_an_axis(swept: Swept, tmp_path: Path) -> None:
    tracker = Tracker(place_in(tmp_path))
    for name, mean in (("mnist", "0.1"), ("fashion_mnist", "0.2")):
        copy_of_a_trial(swept, tracker, name, {"data.name": name, "data.mean": mean})
    assert read.read_filter(tracker, "").results.axes == ("data",)


def test_runs_that_spell_a_setting_in_two_ways_have_the_same_setting(
    swept: Swept, tmp_path: Path
) -> None:
    tracker = Tracker(place_in(tmp_path))
    steps = '[{"Blur": {"p": 1}}]'
    for number, changed in enumerate(
        (
            {"lr": "0.1", "seed": "1", "dropout": "0", "aug.steps": steps},
            {"lr": "1", "seed": "1", "dropout": "0.0", "aug.steps": steps.replace("1", "1.0")},
            {"lr": "1.0", "seed": "2", "dropout": "0", "aug.steps": steps},
        )
    ):
        copy_of_a_trial(swept, tracker, str(number), changed)
    found = read.read_filter(tracker, "").results
    assert found.axes == ("lr",)
    assert sorted((float(row.values[0]), row.score.n) for row in found.rows) == [(0.1, 1), (1, 2)]


def test_a_filter_leaves_out_no_run_however_many_it_finds(
    swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(place_in(tmp_path))
    oldest = copy_of_a_trial(swept, tracker, "0", {"lr": "0.1"})
    tracker.client.log_metric(oldest, "val/acc", 1.0, step=2)
    for number in range(1, 5):
        copy_of_a_trial(swept, tracker, str(number), {"lr": f"0.{number + 1}"})
    monkeypatch.setattr(read, "MAX_RUNS", 3)
    monkeypatch.setattr("mnist_hydra.tracking.tracker.RUNS_PER_PAGE", 2)
    found = read.read_filter(tracker, "")
    assert (found.finished, found.planned) == (5, 5)
    assert found.results.rows[0].finished[0].run_id == oldest


def test_hard_images_are_those_of_one_data_set(swept: Swept, tmp_path: Path) -> None:
    tracker, (_, [real, *_]) = Tracker(place_in(tmp_path)), swept.runs()
    config = swept.tracker.read_text(real.info.run_id, "config.yaml")
    share = {"mnist": 0.5, "fashion_mnist": 0.01}
    for number, name in enumerate(share, start=3000):
        run_id = copy_of_a_trial(swept, tracker, name, {"data.name": name})
        if name == "fashion_mnist":
            tracker.client.set_tag(run_id, tag.DATA, "another")
        tracker.client.log_metric(run_id, "val/acc", share[name], step=2)
        tracker.client.log_text(run_id, config, "config.yaml")
        tracker.client.log_text(run_id, json.dumps({number: 3}), MISTAKES_FILE)
    text = make(tracker, read.read_filter(tracker, ""), place_in(tmp_path)).page.read_text()
    assert "Which classes of mnist are hard?" in text
    assert "no. 3000" in text and "no. 3001" not in text


def test_a_run_that_was_repeated_counts_once(swept: Swept, tmp_path: Path) -> None:
    tracker = Tracker(place_in(tmp_path))
    copy_of_a_trial(swept, tracker, "one", {"lr": "0.1"})
    newer = copy_of_a_trial(swept, tracker, "one", {"lr": "0.1"})
    copy_of_a_trial(swept, tracker, "one", {"lr": "0.1"}, "FAILED")
    copy_of_a_trial(swept, tracker, "two", {"lr": "0.2"})
    found = read.read_filter(tracker, "")
    assert [(row.score.n, row.trials) for row in found.results.rows] == [(1, 1), (1, 1)]
    assert newer in [record.run_id for record in found.records]
    assert "2 more runs have the same settings and seed as others" in said_of(found)


def test_the_command_of_a_run_by_a_filter_has_its_overrides_whole(
    mnist: Path, tmp_path: Path, commands: Commands
) -> None:
    named = "tracking.experiment_name='one lr=3'"
    words = (*SETTINGS, f"data.root={mnist}", "epochs=1", named)
    assert commands.run_module("train", *words, cwd=tmp_path).code == 0
    place = replace(place_in(tmp_path), tracking=TrackingConfig("local", None, "one lr=3"))
    [record] = read.read_filter(Tracker(place, make=False), "").records
    assert list(record.overrides) == list(words)
    tags = dict(record.tags) | {tag.OVERRIDES: " ".join(words[:3])}  # as it was on 2026-11-26
    run = Tracker(place).client.get_run(record.run_id)
    run.data.tags.update(tags)
    assert read.overrides_of(run) == list(words[:3])


def test_the_command_of_a_single_run_by_a_filter_finds_its_configuration_files(
    mnist: Path, tmp_path: Path, commands: Commands
) -> None:
    own = tmp_path / "my own" / "model"
    own.mkdir(parents=True)
    (own / "wide.yaml").write_text("_target_: mnist_hydra.models.Model1\ndropout: 0.0\n")
    words = ("model=wide", *SETTINGS[1:], f"data.root={mnist}")
    done = commands.run_module("train", "--config-dir", "my own", *words, cwd=tmp_path)
    assert done.code == 0, done.err[-3000:]
    [record] = read.read_filter(Swept(tmp_path, "").tracker, "").records
    _, _, _, *again = shlex.split(trial_command(record))
    assert again == ["--config-dir", str(own.parent), *words]
    assert commands.run_module("train", *again, "--cfg", "job", cwd=mnist).code == 0


def copy_of_a_trial(
    swept: Swept,
    tracker: Tracker,
    fingerprint: str,
    changed: Mapping[str, str],
    status: str = "FINISHED",
) -> str:
    """Record a run like one of the sweep's with other parameters; returns its id."""
    _, (of_real, *_) = swept.runs()
    tags = {**of_real.data.tags, tag.FINGERPRINT: fingerprint}
    tags.pop("mlflow.parentRunId")
    run = tracker.client.create_run(tracker.experiment_id, tags=tags)
    metrics = [Metric(key, value, 0, 1) for key, value in of_real.data.metrics.items()]
    params = [Param(key, text) for key, text in (of_real.data.params | changed).items()]
    tracker.client.log_batch(run.info.run_id, metrics, params)
    tracker.client.set_terminated(run.info.run_id, status)
    return str(run.info.run_id)


def test_a_report_of_runs_by_a_filter_stays_on_disk(swept: Swept, tmp_path: Path) -> None:
    found = read.read_filter(swept.tracker, "params.lr = '0.15'")
    place = place_in(tmp_path)
    made = make(swept.tracker, found, place)
    assert made.page.is_file() and not place.cache_dir.exists()


def test_a_report_leaves_no_picture_of_an_earlier_one_beside_its_page(
    swept: Swept, tmp_path: Path
) -> None:
    found = read.read_filter(swept.tracker, "params.lr = '0.15'")
    folder = make(swept.tracker, found, place_in(tmp_path)).folder
    files = sorted(folder.iterdir())
    (folder / "earlier.png").touch()
    make(swept.tracker, found, place_in(tmp_path))
    assert sorted(folder.iterdir()) == files


def test_with_one_seed_the_report_says_that_nothing_can_be_told_apart() -> None:
    findings = of({("0.0",): [0.99], ("0.1",): [0.98], ("0.2",): [0.97]})
    said = said_of(findings)
    assert answer.NOTHING_APART in said
    assert "cannot be told from chance" in said and "±" not in said and "interval 0" not in said


@pytest.mark.parametrize("seeds", [1, 2])
def test_only_over_seeds_a_picture_speaks_of_intervals_and_bands(seeds: int) -> None:
    found = of({("0.0",): [0.9, 0.91][:seeds], ("0.1",): [0.8, 0.83][:seeds]})
    curves = [curve("a", [{1: 0.5, 2: 0.9}] * seeds)]
    pictures = {one.name: one for one in pictures_of(found, ask(found), curves)}
    for name, word in (("main_effects", "interval is"), ("learning_curves", "band")):
        assert (word in pictures[name].caption) == (seeds > 1)
    subtitles = [one.get_text() for one in pictures["learning_curves"].figure.texts]
    assert any("band" in text for text in subtitles) == (seeds > 1)


def test_of_configurations_that_reach_the_same_none_comes_first() -> None:
    said = said_of(of({("0.0",): [0.99], ("0.1",): [0.99], ("0.2",): [0.97]}))
    assert "dropout=0.0 shares the first place of 3 with 1 more: val/acc 99.00 %." in said
    assert "The next, dropout=0.1, reached the same; with 1 shared seed that cannot be" in said


def test_a_setting_that_helps_with_every_seed_is_told_from_one_that_does_not() -> None:
    helps = of({("0.0",): [0.90, 0.91, 0.92, 0.93], ("0.1",): [0.951, 0.960, 0.971, 0.980]})
    assert "Yes, by more than chance: dropout=0.1 beats 0.0 by 5.05 points" in said_of(helps)
    none = of({("0.0",): [0.90, 0.91, 0.92, 0.93], ("0.1",): [0.89, 0.93, 0.91, 0.94]})
    no_difference = "With 4 seeds no difference shows: dropout=0.1 is ahead of 0.0 by 0.25 points ("
    assert no_difference in said_of(none)
    assert "), which may be chance" in said_of(none)


def test_the_best_of_each_setting_stands_in_the_answer_and_where_they_lead_together() -> None:
    means = {("0.0", "0.1"): 0.95, ("0.0", "0.2"): 0.9485}
    means |= {("0.1", "0.1"): 0.9, ("0.1", "0.2"): 0.92}
    records = [
        TrialRecord(
            {"dropout": dropout, "lr": lr, "seed": str(seed)},
            [],
            "finished",
            mean + 0.003 * (lr == "0.2" and seed == 2) + 0.0003 * (dropout == "0.1" and seed == 3),
            f"{dropout} {lr} {seed}",
            seed=str(seed),
        )
        for (dropout, lr), mean in means.items()
        for seed in (1, 2, 3)
    ]
    results = ranked(records, ["dropout", "lr", "seed"], "val/acc")
    findings = Findings("mine", tuple(records), results, len(records))
    answers = ask(findings)
    assert answer.in_brief(findings, answers) == [
        "Setting by setting, the others averaged: dropout=0.0 is best, by more than chance; "
        "lr=0.2 is best, by more than chance.",
        "The best value of each setting, taken together, has rank 2 of 4, 0.05 points behind the "
        "first: may be chance.",
    ]
    assert answer.advice(findings, answers) == [
        "Use dropout=0.0, lr=0.1 (or 0.2, as good or better, averaged over the rest). dropout=0.1 "
        "did worse, by more than chance. lr=0.2 is the largest value tried: a larger one may do "
        "better."
    ]


@pytest.mark.parametrize(
    ("pairs", "verdict", "opening", "brief"),
    [
        ([0.010, 0.011, 0.012], Verdict.REAL, "Yes, by more than chance", "best, by more than"),
        ([0.010, 0.020, 0.015], Verdict.HINT, "Perhaps", "a hint only"),
        (
            [0.010, -0.005, 0.015],
            Verdict.CHANCE,
            "With 3 seeds no difference shows",
            "which may be chance",
        ),
    ],
)
def test_one_verdict_is_behind_all_that_is_said_of_a_comparison(
    pairs: list[float], verdict: Verdict, opening: str, brief: str
) -> None:
    gap = correct([difference(dict(zip("123", pairs)), dict.fromkeys("123", 0.0)), FAR, FAR])[0]
    one = questions.Contrast("0.0", "0.1", gap)
    findings = of({("0.0",): [0.9, 0.8, 0.7], ("0.1",): [0.8, 0.7, 0.6]})
    assert gap.verdict == verdict
    alone = replace(ask(findings), contrasts={"dropout": {None: [one]}})
    assert answer.settings(findings, alone)["dropout"][0].startswith(opening)
    two = replace(alone, contrasts={"dropout": {None: [one]}, "lr": {None: [one]}})
    assert answer.in_brief(findings, two)[0].count(brief) == 2
    doubt = "dropout=0.1 did worse, which may be chance." in answer.advice(findings, alone)[0]
    assert doubt == (verdict != Verdict.REAL)


def test_what_is_averaged_over_stands_before_what_is_compared() -> None:
    axes: dict[str, tuple[str, ...]] = {"dropout": (), "model": (), "lr": ()}
    layout = questions.Layout(axes, None, None, None, ())
    one = questions.Contrast("a", "b", Difference(3, 0.0, 0.0))
    told = answer.settings(of({("0",): [0.9]}), Answers({}, layout, {"model": {None: [one]}}, []))
    assert told == {
        "model": ["No: averaged over dropout and lr, model=a came out exactly as b did."]
    }


def test_the_command_is_of_the_best_run_of_the_first_configuration_and_names_it() -> None:
    findings = of({("0.0",): [0.90, 0.95, 0.92], ("0.1",): [0.99, 0.5, 0.5]})
    best = best_of(findings.results.rows[0].finished, minimize=False)
    assert best.run_id == "0.0/2"
    assert trial_command(best).endswith("train dropout=0.0 seed=2")
    told = answer.of_command(findings, best, has_model=False)
    assert "with seed 2, the best of its 3 runs" in told and told.endswith("It was run 0.0/2.")
    assert "take its model as model=0.0/2." in answer.of_command(findings, best, has_model=True)
    loss = of({("0.0",): [0.3, 0.2, 0.4]}, "val/loss")
    assert best_of(loss.results.rows[0].finished, minimize=True).run_id == "0.0/2"


@pytest.mark.parametrize(
    ("histories", "epoch"),
    [
        ([[0.8, 0.90], [0.82, 0.91]], 2),
        ([[0.8, 0.90], [0.82, 0.80]], None),
        ([[0.9, 0.9]], None),
        ([[0.91, 0.9, 0.901]], None),
    ],
)
def test_whether_the_accuracy_still_rises_at_the_end(
    histories: list[list[float]], epoch: int | None
) -> None:
    rising = rising_at([curve("one", [dict(enumerate(one, start=1)) for one in histories])])
    assert rising == epoch
    findings = of({("0.0",): [0.9]})
    told = " ".join([*answer.warnings(findings, [], rising), *answer.trust(findings, [])])
    assert told.count("still rising at epoch 2, the last") == (epoch is not None)
    assert rising_at([]) is None


@pytest.mark.parametrize(
    ("last", "best", "said"),
    [
        ((0.9, 0.8), (0.9, 0.81), {"val/acc at best epoch"}),
        ((0.89, 0.8), (0.9, 0.8), {"val/acc at last epoch"}),
        ((0.9, 0.8), (0.9, 0.8), set()),
    ],
)
def test_the_best_and_the_last_epoch_have_a_column_where_they_say_something_new(
    last: Sequence[float], best: Sequence[float], said: set[str]
) -> None:
    metrics = [{"val/acc": one, "val/acc_best": other} for one, other in zip(last, best)]
    findings = of({("0.0",): [0.9], ("0.1",): [0.8]}, metrics=metrics)
    found = page_tables.configurations(findings, questions.leads(findings))
    assert {len(row) for row in found.rows} == {len(found.header)}
    assert {name for name in found.header if "epoch" in name} == said


def test_a_column_that_says_nothing_of_any_configuration_is_left_out() -> None:
    one, two = of({("0.0",): [0.9]}), of({("0.0",): [0.9], ("0.1",): [0.8]})
    for findings, shown in ((one, False), (two, True)):
        found = page_tables.configurations(findings, questions.leads(findings))
        assert ("behind the first" in found.header) is shown


def test_of_the_best_epochs_value_and_the_last_ones_the_csv_has_both() -> None:
    metrics = [{"val/acc": 0.89, "val/acc_best": 0.9}, {"val/acc": 0.8, "val/acc_best": 0.8}]
    findings = of({("0.0",): [0.9], ("0.1",): [0.8]}, metrics=metrics)
    [first, second] = csv.DictReader(io.StringIO(csv_of(findings)))
    assert (first["val/acc"], first["val/acc_last"]) == ("0.9", "0.89")
    assert (second["val/acc"], second["val/acc_last"]) == ("0.8", "0.8")
    same = [{"val/acc": 0.9}, {"val/acc": 0.8}]
    [header, *_] = csv.reader(io.StringIO(csv_of(of({("0",): [0.9], ("1",): [0.8]}, metrics=same))))
    assert "val/acc_last" not in header


def test_less_is_better_for_a_loss() -> None:
    findings = of({("0.0",): [0.3, 0.31, 0.32], ("0.1",): [0.2, 0.212, 0.221]}, "val/loss")
    said = said_of(findings)
    assert "dropout=0.1 comes first of 2: val/loss 0.211" in said
    assert "dropout=0.1 beats 0.0 by 0.099" in said


def test_what_was_selected_on_the_test_set_is_labelled_so() -> None:
    said = said_of(of({("0.0",): [0.9, 0.8], ("0.1",): [0.7, 0.6]}, "test/acc_last"))
    assert said.count("selected on the test set") == said.count("no ground for choosing it") == 1


@pytest.mark.parametrize("objective", ["val/acc", "test/acc_last"])
def test_only_what_was_picked_among_several_is_called_optimistic(objective: str) -> None:
    one, two = ({(name,): [0.9, 0.8] for name in names} for names in ("a", "ab"))
    assert "slightly optimistic" not in said_of(of(one, objective))
    assert "is slightly optimistic, because it was picked for being the highest" in said_of(
        of(two, objective)
    )


@pytest.mark.parametrize(
    ("states", "told"),
    [
        ([], []),
        (["pruned"], []),
        (["failed"], ["1 of 3 trials has no result: it failed, did not end or was deleted."]),
        (
            ["running", "failed"],
            ["2 of 4 trials have no result: they failed, did not end or were deleted."],
        ),
    ],
)
def test_trials_without_a_result_are_a_warning(states: list[str], told: list[str]) -> None:
    found = of({("0.0",): [0.9], ("0.1",): [0.8]})
    others = tuple(
        TrialRecord({"dropout": state}, [], state, None, state, seed="1") for state in states
    )
    more = replace(found, records=found.records + others, planned=2 + len(others))
    assert answer.warnings(more, []) == told


def test_what_is_first_for_its_seeds_alone_is_not_said_to_beat_what_beats_it() -> None:
    other = [0.981, 0.982, 0.983, 0.5]
    findings = of({("0.0",): [0.980, 0.9811, 0.982], ("0.1",): other, ("0.2",): [0.1, 0.2, 0.3]})
    assert findings.results.rows[0].values == ("0.0",)
    said = said_of(findings)
    assert "Over the seeds that both have, the next, dropout=0.1, leads by 0.10 points" in said
    assert "it beats 1 of the 2 others by more than chance, and 1 of them beats it so." in said
    assert "-0." not in said


def test_what_reached_the_same_is_not_said_to_be_ahead() -> None:
    said = said_of(of({("a",): [0.1], ("b",): [0.1], ("c",): [0.05]}))
    assert "dropout=a is ahead of c by 5.00 points, which cannot be told from chance; " in said
    assert "it reached the same as b" in said and "by 0.00 points" not in said


def test_only_trials_that_count_are_said_to_differ_in_what_made_them() -> None:
    findings = of({("a",): [0.9], ("b",): [0.8], ("c",): [0.7]})
    made = {tag.COMMIT: "1", tag.DATA: "2", tag.PARENT: "sweep"}
    params = {"dropout": "0"}
    first, second, died = (replace(one, params=params, tags=made) for one in findings.records)
    died = replace(died, state="died", objective=None, tags={tag.PARENT: "sweep"})
    other = replace(second, tags=made | {tag.COMMIT: "3"})
    for last, differing in ((second, []), (other, ["commit"])):
        found = replace(findings, records=(first, last, died))
        assert page_tables.made_of(found)[2] == [*differing, "command"]


def test_where_trials_are_missing_the_best_value_may_be_behind_one_of_the_others() -> None:
    scores = {("a",): [0.92, 0.91, 0, 0, 0.80, 0.79], ("b",): [0.91, 0.89, 0.92, 0.91, 0, 0]}
    every = of(scores | {("c",): [0, 0, 0.91, 0.89, 0.85, 0.83]})
    records = tuple(record for record in every.records if record.score > 0)
    results = ranked(records, ["dropout", "seed"], "val/acc")
    findings = replace(every, records=records, results=results)
    [about] = answer.settings(findings, replace(ask(findings), importance={}))["dropout"]
    assert re.search(r"dropout=a is ahead of b by 1\.50 points .*, which may be chance", about)
    assert "it is behind c by 4.50 points (−1.85 to 10.85) where both were tried." in about
    [use] = answer.advice(findings, ask(findings))
    assert "dropout=c did worse" not in use and "as good or better" in use


def test_of_two_configurations_the_lead_is_said_once() -> None:
    two = {("0.0",): [0.90, 0.92, 0.93], ("0.1",): [0.90, 0.90, 0.93]}
    [lead] = [line for line in said_of(of(two)).splitlines() if line.startswith("Its lead")]
    assert lead.endswith("): may be chance.")
    three = said_of(of(two | {("0.2",): [0.90, 0.92, 0.90]}))
    assert "None of the 2 others can be told from it." in three


def test_each_verdict_that_is_not_plain_is_explained() -> None:
    said = said_of(of({("0.0",): [0.90, 0.91], ("0.1",): [0.80, 0.82]}))
    assert f"{Verdict.REAL.value.capitalize()} means p < 0.05 after Holm's correction" in said
    assert f"{Verdict.HINT.value} means that p < 0.05 without it" in said


def test_two_names_of_one_thing_are_found() -> None:
    findings = of({("model2",): [0.9, 0.8], ("model3",): [0.9, 0.8], ("model1",): [0.9, 0.7]})
    once = read.counted_once(findings)
    assert once.same == (("dropout", "model2", "model3"),)
    assert answer.same_thing(once.same) == [
        "dropout=model2 and dropout=model3 came out the same in every trial: they are counted "
        "once, as dropout=model2."
    ]


def test_two_names_of_one_thing_count_once() -> None:
    scores = {("a",): [0.90, 0.93, 0.95], ("c",): [0.89, 0.91, 0.94]}
    without = of(scores)
    found = read.counted_once(of(scores | {("b",): [0.90, 0.93, 0.95]}))
    assert [row.values for row in found.results.rows] == [("a",), ("c",)]
    assert ask(found) == ask(without) and found.scores() == without.scores()
    assert (len(found.records), found.finished) == (9, 9)
    assert "trials are not in it" not in said_of(found)


def test_a_trial_that_failed_is_stood_in_for_by_the_same_under_another_name() -> None:
    whole = of({("a",): [0.90, 0.93, 0.95], ("b",): [0.90, 0.93, 0.95], ("c",): [0.8, 0.7, 0.6]})
    failed = replace(whole.records[0], state="failed", objective=None)
    records = (failed, *whole.records[1:])
    results = ranked(records, ["dropout", "seed"], "val/acc")
    found = read.counted_once(replace(whole, records=records, results=results))
    assert found.scores() == {
        ("a",): {"1": 0.90, "2": 0.93, "3": 0.95},
        ("c",): {"1": 0.8, "2": 0.7, "3": 0.6},
    }


@pytest.mark.parametrize("metric", ["test/acc_last", "train/loss"])
def test_what_differs_in_anything_measured_is_not_the_same(metric: str) -> None:
    findings = of({("a",): [0.9, 0.8], ("b",): [0.9, 0.8]})
    *others, last = findings.records
    records = (*others, replace(last, metrics={**last.metrics, metric: 0.5}))
    assert read.counted_once(replace(findings, records=records)).same == ()


def test_the_speed_is_no_difference() -> None:
    findings = of({("a",): [0.9, 0.8], ("b",): [0.9, 0.8]})
    *others, last = findings.records
    records = (*others, replace(last, metrics={**last.metrics, "epoch_s": 5.0}))
    assert read.counted_once(replace(findings, records=records)).same == (("dropout", "a", "b"),)


def test_what_axes_do_only_together_is_in_the_share_of_none() -> None:
    points = itertools.product(("0.1", "0.2", "0.3", "0.4"), repeat=2)
    records = [
        TrialRecord({"lr": x, "dropout": y}, [], "finished", score, f"{x}/{y}", seed="1")
        for x, y in points
        for score in [0.9 * ((float(x) < 0.25) == (float(y) < 0.25)) + 0.01 * float(x)]
    ]
    found = importances(
        Findings("", tuple(records), ranked(records, ["lr", "dropout"], "val/acc"), 16)
    )
    assert set(found) == {"lr", "dropout"} and sum(found.values()) < 0.5


def test_each_value_weighs_as_much_in_an_axis_share_wherever_it_lies() -> None:
    means = {"0.0001": 0.5, "0.01": 0.9, "1.0": 0.9}
    records = [
        TrialRecord({"lr": lr, "dropout": p}, [], "finished", mean + shift, f"{lr}{p}{s}", seed=s)
        for lr, mean in means.items()
        for p, shift in (("0.0", 0.01), ("0.1", -0.01))
        for s in "12"
    ]
    results = ranked(records, ["lr", "dropout"], "val/acc")
    found = importances(Findings("", tuple(records), results, len(records)))
    assert found["lr"] > 0.9 > 0.1 > found["dropout"]


def test_of_one_axis_alone_no_share_is_said() -> None:
    values = [(f"0.{n}", n % 3 / 3) for n in range(1, 13)]
    records = [TrialRecord({"lr": lr}, [], "finished", score, lr) for lr, score in values]
    results = ranked(records, ["lr"], "val/acc")
    assert importances(Findings("", tuple(records), results, len(records))) == {}


def test_the_two_axes_that_matter_most_are_shown_and_the_others_said() -> None:
    names = ("model", "dropout", "lr", "momentum")
    scores = {
        (model, dropout, lr, momentum): {"1": 0.5}
        for model in ("model1", "model2")
        for dropout in ("0.0", "0.1")
        for lr in ("0.05", "0.1")
        for momentum in ("0.8", "0.9")
    }
    weights = {"model": 0.1, "dropout": 0.05, "lr": 0.5, "momentum": 0.3}
    found = questions.layout(names, scores, weights, {})
    assert (found.rows, found.columns, found.panels) == ("lr", "momentum", "model")
    assert found.averaged == ("dropout",)
    one = questions.layout(("lr",), {("0.1",): {"1": 0.5}, ("0.2",): {"1": 0.5}}, {}, {})
    assert (one.rows, one.columns, one.panels) == (None, None, None)


def test_what_a_search_drew_lies_by_its_size_however_few_the_trials_are() -> None:
    points = [("0.001", "0.02", "model1", "32"), ("1.0", "0.1", "model3", "64")]
    scores = {point: {"1": 0.1 * place} for place, point in enumerate(points, start=1)}
    axes = ("lr", "dropout", "model", "batch_size")
    found = questions.layout(axes, scores, {"lr": 0.5}, {"lr": True, "dropout": False})
    assert found.scales == {"lr": "log", "dropout": "linear"}
    figure = plots.heat_map(scores, axes, found, "val/acc")
    ax = figure.axes[0]
    assert (ax.get_xlabel(), ax.get_xscale(), ax.get_ylabel()) == ("dropout", "linear", "lr")
    assert ax.get_yscale() == "log"
    assert ax.collections[0].get_cmap() == plots.RAMP, "seen on a dark page too"
    assert ax.get_ylim() == figure.axes[1].get_ylim(), "panels of points can be compared"
    assert ax.get_ylim()[0] < 0.001 < 1 < ax.get_ylim()[1]
    effects = {axis: {p[i]: summary([0.9]) for p in points} for i, axis in enumerate(axes)}
    lr, dropout, model, _ = plots.main_effects(effects, {}, "val/acc", found.scales).axes
    assert lr.get_xscale() == "log" and lr.lines[0].get_xdata().tolist() == [0.001, 1.0]
    assert dropout.lines[0].get_xdata().tolist() == [0.02, 0.1]
    assert [tick.get_text() for tick in model.get_xticklabels()] == ["model1", "model3"]
    many = questions.layout(("lr",), {(f"0.{i:02}",): {"1": 0.5} for i in range(1, 14)}, {}, {})
    assert many.scales == {"lr": "linear"}


@pytest.mark.parametrize(("seeds", "said"), [(1, "one seed"), (2, "mean over seeds")])
def test_a_word_among_an_axis_numbers_leaves_each_point_at_its_tick(seeds: int, said: str) -> None:
    limits = ("null", "1000", "5000")
    axes = {"data.limit": limits, "lr": ("0.1", "0.2")}
    of_seed = {str(seed): 0.5 for seed in range(seeds)}
    scores = {point: of_seed for point in itertools.product(*axes.values())}
    found = questions.Layout(axes, "lr", "data.limit", None, (), {"lr": "linear"})
    figure = plots.heat_map(scores, [*axes], found, "val/acc")
    ax = figure.axes[0]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [*limits]
    assert {x for x, _ in ax.collections[0].get_offsets().tolist()} == {*ax.get_xticks()}
    told = " ".join(text.get_text() for text in figure.texts)
    assert f"each point is a configuration, {said}" in told


def test_a_log_axis_of_the_parallel_plot_goes_by_ratio() -> None:
    trials = [
        TrialRecord({"lr": lr}, [], "finished", score, lr)
        for lr, score in (("0.01", 0.7), ("0.1", 0.8), ("1.0", 0.9))
    ]
    values = {"lr": ("0.01", "0.1", "1.0")}
    for scale, spot in (("log", 0.5), ("linear", 1 / 11)):
        layout = questions.Layout(values, None, None, None, (), {"lr": scale})
        figure = plots.parallel_coordinates(trials, layout, "val/acc", False)
        [lines] = figure.axes[0].collections
        places = [path.vertices[0][1] for path in lines.get_paths()]
        assert places == pytest.approx([0, spot, 1])


@pytest.mark.parametrize("recipe", ["exp1", "exp2", "exp3"])
def test_a_published_recipe_is_known_by_its_settings(recipe: str) -> None:
    def known(*words: str) -> str | None:
        return page_tables.recipe_of(settings_of(*words))

    assert known(f"experiment={recipe}") == known(f"experiment={recipe}", "seed=7") == recipe
    changes = ["lr=0.02", "data.val_size=5000", "epochs=3", "dropout=0.2", "momentum=0.9"]
    changes += ["data.mean=0.5", "data.std=0.5", "+optimizer.nesterov=true", "+model.width=8"]
    changes += ["optimizer._target_=torch.optim.RMSprop", "model._target_=mine.Model1"]
    if recipe == "exp1":
        changes += ["scheduler.factor=0.5", "+scheduler.total_iters=1"]
    else:
        changes += ["scheduler.base_momentum=0.5", "+scheduler.three_phase=true"]
    if recipe == "exp3":
        changes.append("aug.steps.0.ShiftScaleRotate.p=0.5")
    for change in changes:
        assert known(f"experiment={recipe}", change) is None, change
    later = settings_of(f"experiment={recipe}", "optimizer.weight_decay=5e-4")
    del later["data.dataset"], later["data.mean"]
    assert page_tables.recipe_of(later) == recipe, "what was no setting yet is as in the recipe"
    assert page_tables.recipe_of({}) is None


@pytest.mark.parametrize(("other", "difference"), [("deterministic", 0.0), ("threads", 0.01)])
def test_each_seed_counts_once_beside_the_published_results(other: str, difference: float) -> None:
    params, records = settings_of("experiment=exp3"), []
    for value, seed in itertools.product(("1", "2"), ("1", "2", "3")):
        reached = 0.9 + int(seed) / 100 + (difference if value == "2" else 0)
        records.append(
            TrialRecord(
                {other: value, "seed": seed},
                [],
                "finished",
                reached,
                f"{value}/{seed}",
                seed=seed,
                metrics={"test/acc_last": reached, "test/acc_best": reached},
                params={**params, other: value, "seed": seed},
            )
        )
    results = ranked(records, [other, "seed"], "test/acc_last")
    found = read.counted_once(Findings("mine", tuple(records), results, len(records)))
    told = page_tables.published(found)
    assert told is not None
    [row] = told.rows
    mean = 0.92 + difference / 2
    here = wording.mean_with_interval("test/acc", summary([mean - 0.01, mean, mean + 0.01]))
    assert row == ["exp3", "99.50 %", here, "99.53 %", here, "3"]


def settings_of(*words: str) -> dict[str, str]:
    """The parameters of a run with these overrides."""
    with initialize_config_module("mnist_hydra.conf", version_base="1.3"):
        return flatten(settle(compose("config", overrides=list(words))))


def of(
    scores: dict[tuple[str], Sequence[float]],
    objective: str = "val/acc",
    metrics: Sequence[Mapping[str, float]] = (),
) -> Findings:
    """Findings of trials with these objectives, a seed each."""
    records = []
    for (value,), objectives in scores.items():
        for seed, score in enumerate(objectives, start=1):
            values = {"dropout": value, "seed": str(seed)}
            words = [f"{key}={text}" for key, text in values.items()]
            records.append(
                TrialRecord(
                    values,
                    words,
                    "finished",
                    score,
                    f"{value}/{seed}",
                    seed=str(seed),
                    metrics=metrics[len(records)] if metrics else {objective: score},
                    seconds=1.0,
                )
            )
    results = ranked(records, ["dropout", "seed"], objective)
    return Findings("mine", tuple(records), results, len(records))


def csv_of(findings: Findings) -> str:
    origins = [page_tables.origin_of(record, findings.results) for record in findings.records]
    return page_tables.csv_text(*page_tables.every_trial(findings, origins))


def said_of(findings: Findings) -> str:
    """All that the report says in sentences."""
    answers = replace(ask(findings), importance={})
    told = answer.winner(findings, answers.leads) + answer.warnings(findings, [])
    told += answer.trust(findings, answers.leads)
    for lines in answer.settings(findings, answers).values():
        told += lines
    return "\n".join(told)


class Reader(HTMLParser):
    """What a page is made of."""

    VOID = ("meta", "img", "br", "path", "use", "rect", "circle", "line", "stop", "image")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.levels: list[int] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found[key] for key in ("href", "src", "xlink:href") if key in found]
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag
