"""Trials in Optuna's data base: drawn, told, taken up. The only file that knows Optuna.

Several processes, on one machine or on many, may work at one study; what one has told, the others draw from.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from luthier.errors import RunError
from luthier.locks import Lock
from luthier.recipe.space import AnyRecipe, combinations, is_whole, meant, own_values, shown
from luthier.recipe.sweep import Search, Sweep

HEARTBEAT_SECONDS, GRACE_SECONDS = 20, 120  # a trial that has not been heard of for this long has failed
LONGEST_WAIT_SECONDS = 60.0  # for another process that writes to the same SQLite file
FIRST_RUNG = 2  # half an epoch: before it, warm-up decides and no curve is compared
MOST_ATTEMPTS = 3  # a trial whose process dies this often is given up
STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}
STORAGE_ERRORS = (optuna.exceptions.StorageInternalError,)
GONE = "its process ended without a word, and nobody has taken it up"
KEY = "luthier:key"


class Steered(BaseSampler):
    """Grid: combination by the trial's number. Else the recipe's own values first, then Optuna's sampler.

    Nothing but (seed, number of the trial, what was told before) decides, whichever process draws.
    """

    def __init__(self, sweep: Sweep, seed: int, own: Mapping[str, Any] | None):
        self.sweep, self.seed, self.own = sweep, seed, own
        self.grid = combinations(sweep.space) if sweep.sampler == "grid" else []
        self.drawing: tuple[int, BaseSampler] | None = None  # number of a trial, and its sampler

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Every key is drawn by itself."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """None is drawn together with others."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The value of one key in one trial."""
        if self.grid:
            return self.grid[trial.number % len(self.grid)][param_name]
        if trial.number == 0 and self.own is not None:
            return self.own[param_name]
        if self.drawing is None or self.drawing[0] != trial.number:
            self.drawing = trial.number, self.sampler(trial.number)
        return self.drawing[1].sample_independent(study, trial, param_name, param_distribution)

    def sampler(self, number: int) -> BaseSampler:
        """Optuna's sampler for a trial, seeded by its number."""
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        if self.sweep.sampler == "random":
            return RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", optuna.exceptions.ExperimentalWarning
            )  # constant_liar: running trials count
            return TPESampler(n_startup_trials=self.sweep.startup_trials, constant_liar=True, seed=seed)


def pruner_of(sweep: Sweep) -> BasePruner:
    """The rule by which trials end early."""
    if sweep.pruner == "median":
        return MedianPruner(n_startup_trials=sweep.startup_trials, n_warmup_steps=FIRST_RUNG)
    if sweep.pruner == "asha":
        return SuccessiveHalvingPruner(min_resource=FIRST_RUNG, reduction_factor=sweep.reduction)
    return NopPruner()


@dataclass
class Turn:
    """A trial that this process works at, alone."""

    trial: optuna.Trial
    storage: RDBStorage
    values: dict[str, Any]
    lock: Lock
    attempts: int
    last_rung: int = field(init=False)

    def __post_init__(self) -> None:
        reported = self.storage.get_trial(self.trial._trial_id).intermediate_values
        self.last_rung = max(reported, default=0)

    @property
    def number(self) -> int:
        """Its number in the study, from 0."""
        return int(self.trial.number)

    def report(self, rung: int, value: float) -> bool:
        """Tell the study a figure at a rung; whether the pruner would end the trial there."""
        self.trial.report(value, rung)
        self.last_rung = rung
        return bool(self.trial.should_prune())

    def note(self, **values: Any) -> None:
        """Keep something beside the trial."""
        for name, value in values.items():
            self.trial.set_user_attr(name, value)

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Inside, other machines can see that the trial is being worked at."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(HEARTBEAT_SECONDS):
                with contextlib.suppress(*STORAGE_ERRORS):  # one beat more or less
                    self.storage.record_heartbeat(self.trial._trial_id)

        self.storage.record_heartbeat(self.trial._trial_id)
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


class Book:
    """A study: its trials, and the next one to work at."""

    def __init__(self, study: optuna.Study, storage: RDBStorage, recipe: AnyRecipe, sweep: Sweep, out: Path):
        self.study, self.storage, self.recipe, self.sweep, self.out = study, storage, recipe, sweep, out

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return list(self.study.get_trials(deepcopy=False))

    def next_turn(self) -> Turn | None:
        """A trial that was left behind in this folder, else a new one; None where all have been given out."""
        self.bury()
        for trial in self.trials():
            if trial.state == TrialState.RUNNING and self.folder(trial.number).is_dir():
                turn = self.taken_up(trial)
                if turn is not None:
                    return turn
        while len(self.trials()) < self.sweep.trials:
            turn = self.turn(self.asked(), 1)
            if turn is not None:
                return turn
        return None

    def asked(self) -> optuna.Trial:
        """A new trial. Optuna warns that nobody sends heartbeats for it; `Turn.alive` does."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Heartbeat of storage", UserWarning)
            return self.study.ask()

    def bury(self) -> None:
        """Mark trials of processes that are gone, where they cannot be taken up from here."""
        for trial in self.trials():
            if trial.state == TrialState.RUNNING and self.folder(trial.number).is_dir():
                self.storage.record_heartbeat(trial._trial_id)  # alive, or to be taken up
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            fail_stale_trials(self.study)
        now = datetime.datetime.now()  # in local time, as Optuna writes it
        for trial in self.trials():
            silent = trial.state == TrialState.RUNNING and "worker" not in trial.user_attrs
            if silent and trial.datetime_start and (now - trial.datetime_start).total_seconds() > GRACE_SECONDS:
                self.study.tell(trial.number, state=TrialState.FAIL)

    def taken_up(self, trial: FrozenTrial) -> Turn | None:
        """A running trial, if no process holds it. One whose process died too often has failed."""
        attempts = int(trial.user_attrs.get("attempts", 0)) + 1
        turn = self.turn(optuna.Trial(self.study, trial._trial_id), attempts)
        if turn is not None and attempts > MOST_ATTEMPTS:
            self.fail(turn, f"its process died {MOST_ATTEMPTS} times (killed, or out of memory).")
            return None
        return turn

    def turn(self, trial: optuna.Trial, attempts: int) -> Turn | None:
        """The trial with its values, held by this process; None where another was faster."""
        lock = Lock(self.out / "locks" / f"{trial.number:04d}")
        if not lock.taken():
            return None
        if self.storage.get_trial(trial._trial_id).state != TrialState.RUNNING:  # finished a moment ago
            lock.release()
            return None
        values = {path: self.value(trial, path, search) for path, search in self.sweep.space.items()}
        turn = Turn(trial, self.storage, values, lock, attempts)
        turn.note(attempts=attempts, worker=f"{socket.gethostname()}:{os.getpid()}")
        self.folder(turn.number).mkdir(parents=True, exist_ok=True)
        return turn

    def value(self, trial: optuna.Trial, path: str, search: Search) -> Any:
        """The value of one key in a trial, as the recipe takes it."""
        whole = is_whole(self.recipe, path)
        return meant(search, draw(trial, path, search, whole), whole)

    def folder(self, number: int) -> Path:
        """The run folder of a trial, where it was worked at from here."""
        return self.out / "trials" / f"{number:04d}"

    def complete(self, turn: Turn, value: float) -> None:
        """A trial that was trained in full."""
        self.study.tell(turn.trial, value)
        turn.lock.release()

    def prune(self, turn: Turn) -> None:
        """A trial that was ended early; its figure is the last one it told."""
        self.study.tell(turn.trial, state=TrialState.PRUNED)
        turn.lock.release()

    def fail(self, turn: Turn, message: str) -> None:
        """A trial that came to nothing, and why."""
        turn.note(error=message)
        self.study.tell(turn.trial, state=TrialState.FAIL)
        turn.lock.release()

    def importances(self, seed: int) -> tuple[dict[str, float] | None, str]:
        """How much of the spread between complete trials each key explains; or None, and why not."""
        done = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        if len(done) < 4 or len({trial.value for trial in done}) < 2:
            return None, "Fewer than four trials were trained in full, or all came out alike: nothing can be said yet."
        found = get_param_importances(self.study, evaluator=FanovaImportanceEvaluator(seed=seed))
        return {path: float(found.get(path, 0.0)) for path in self.sweep.space}, ""


def draw(trial: optuna.Trial, path: str, search: Search, whole: bool) -> Any:
    """The value of one key, drawn or as it was drawn before."""
    if search.choices:
        return trial.suggest_categorical(path, [shown(choice) for choice in search.choices])
    assert search.low is not None and search.high is not None, "checked by Search.agreed"
    if whole:
        step = 1 if search.log else int(search.step or 1)
        return trial.suggest_int(path, int(search.low), int(last_of(search)), step=step, log=search.log)
    return trial.suggest_float(path, search.low, last_of(search), step=search.step, log=search.log)


def last_of(search: Search) -> float:
    """The largest value that a step reaches."""
    assert search.low is not None and search.high is not None
    if search.step is None:
        return search.high
    return search.low + int((search.high - search.low) / search.step + 1e-9) * search.step


def open_book(storage: str, name: str, recipe: AnyRecipe, sweep: Sweep, out: Path, key: str, higher: bool) -> Book:
    """The study of that name, made where it is not there yet.

    Raises:
        RunError: the data base cannot be opened, or the study is of another recipe, space or rows.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = Steered(sweep, recipe.seed, own_values(recipe, sweep.space))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats
        try:
            opened = RDBStorage(storage, engine_kwargs=engine_settings(storage), heartbeat_interval=HEARTBEAT_SECONDS,
                                grace_period=GRACE_SECONDS)  # fmt: skip
            study = optuna.create_study(
                storage=opened, study_name=name, load_if_exists=True, direction="maximize" if higher else "minimize",
                sampler=sampler, pruner=pruner_of(sweep),
            )  # fmt: skip
        except Exception as error:
            raise RunError(
                f"--storage {masked(storage)}: the study cannot be opened: {str(error).splitlines()[0]} "
                "Give a data base's address as SQLAlchemy knows it, such as sqlite:///sweep.db or "
                "postgresql://user:password@host/name, with its driver installed."
            ) from error
    if study.user_attrs.get(KEY, key) != key:
        raise RunError(
            f'study "{name}" in {masked(storage)}: was begun with another recipe, space, metric or rows, and its '
            "trials cannot be compared with new ones. Give another --study or --out."
        )
    study.set_user_attr(KEY, key)
    return Book(study, opened, recipe, sweep, out)


@contextlib.contextmanager
def explained(storage: str) -> Iterator[None]:
    """Turn a data base that does not answer into a message."""
    try:
        yield
    except STORAGE_ERRORS as error:
        raise RunError(
            f"{masked(storage)}: the data base of the study does not answer: {str(error).splitlines()[0]} "
            "Run the same command again to go on."
        ) from error


def engine_settings(storage: str) -> dict[str, Any]:
    """SQLite waits for other writers instead of failing."""
    return {"connect_args": {"timeout": LONGEST_WAIT_SECONDS}} if storage.startswith("sqlite") else {}


def masked(storage: str) -> str:
    """The address of a data base without its password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(storage).render_as_string(hide_password=True)
    except ArgumentError:
        return storage


def trial_values(trials: Sequence[FrozenTrial], space: Mapping[str, Search], out: Path) -> list[dict[str, Any]]:
    """The trials as JSON values."""
    found = []
    for trial in trials:
        state = STATES.get(trial.state, "running")
        folder = out / "trials" / f"{trial.number:04d}"
        error = trial.user_attrs.get("error")
        found.append(
            {
                "number": trial.number,
                "state": state,
                "value": trial.value if state != "failed" else None,
                "values": {path: trial.params.get(path) for path in space},
                "seconds": trial.user_attrs.get("seconds"),
                "best_step": trial.user_attrs.get("best_step"),
                "curve": trial.user_attrs.get("curve", []),
                "error": (error or GONE) if state == "failed" else None,
                "worker": trial.user_attrs.get("worker"),
                "attempts": trial.user_attrs.get("attempts", 1),
                "folder": str(folder) if folder.is_dir() else None,
            }
        )
    return found
