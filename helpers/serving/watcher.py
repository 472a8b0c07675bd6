"""A server that follows an alias by itself: takes what it points to, and goes back if that turns out to be worse.

What is new is loaded and verified beside the model that answers, as by ``/reload_model``. If it is refused, or does
worse than the version before (`inference.trial.Rule`), the version before serves again, at once and from memory, and
the alias is moved back with the reason, if it still points to the bad version: of many servers one does it, and the
others follow. A version that was refused is not tried again until the alias moves. While the bucket is away the last
good model serves, and the looks go on as before: one costs a bucket little, and the first after its return catches up.
"""

import logging
import random
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace

from helpers.delivery.bundle import BundleError, UnsignedBundle
from helpers.delivery.lease import RENEWAL_S, Lease
from helpers.delivery.model_dir import parse
from helpers.delivery.storage import StorageError, Store, open_store
from helpers.inference.engine import ModelRejected
from helpers.inference.swap import ChangeUnderWay, NoModelBefore, Swapper
from helpers.inference.trial import Rule, Scorebook
from helpers.registry import Alias, PromotionConflict, Registry, RegistryError, UnknownModel

PATIENCE_S = 1.0  # a look that waits longer is better begun anew
MAX_POLL_S = 8.0  # while the alias can be read and what it points to cannot be fetched
RETRY_S = 60.0  # of a lease that could not be written
WHO = "watcher"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """A version that has just begun to serve, the one before it, and when that was (monotonic seconds)."""

    version: str
    before: str
    since: float


@dataclass(frozen=True)
class Return:
    """A way back that was taken here and is to be taken by the alias; `told`, once the log says that it cannot yet."""

    bad: str
    good: str
    reason: str
    told: bool = False


def follow(swapper: Swapper, bucket: str, poll_s: float | None) -> AbstractContextManager:
    """A `Watcher` of the alias in `bucket`, with a look every `poll_s` seconds; None watches nothing."""
    if poll_s is None:
        return nullcontext()
    return Watcher(swapper, open_store(bucket, patience_s=PATIENCE_S), poll_s=poll_s)


class Watcher:
    """Follows the alias behind the model_dir of `swapper` while the block runs; idle while that names a version.

    Args:
        store: to read and move the alias in; best one with little patience, for a poll must end.
        poll_s: seconds from one look at the alias to the next, give or take a tenth, so that servers do not all look at
            once. What it points to costs more than a look: from its second fetch in a row that fails on, twice as many
            after each, up to 8.
        trial_s: seconds for which a new version is compared with the one before it.
        rule: what is worse.

    Attributes:
        refused: the reason by version, of those that were sent back.
    """

    def __init__(
        self,
        swapper: Swapper,
        store: Store,
        *,
        poll_s: float = 1.0,
        trial_s: float = 300.0,
        rule: Rule | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not poll_s > 0:
            raise ValueError(f"poll_s must be above 0, got {poll_s}")
        self.swapper, self.store, self.poll_s, self.trial_s = swapper, store, poll_s, trial_s
        self.rule, self.scores, self._clock = rule or Rule(), Scorebook(), clock
        self._placed: Trial | None = None
        self.refused: dict[str, str] = {}
        self._return: Return | None = None
        self._seen: tuple | None = None  # the move of the alias that was dealt with last
        self._alias_was_read = False  # in the last look
        self._id, self._leased = uuid.uuid4().hex, (None, frozenset(), 0.0)
        self._stop, self._thread = threading.Event(), None

    def __enter__(self) -> "Watcher":
        self.swapper.predictor.listeners.add(self.scores)
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        self.swapper.predictor.listeners.remove(self.scores)
        if lease := self._leased[0]:
            self._try("give up the lease", lease.drop)

    @property
    def trial(self) -> Trial | None:
        """The version on trial, if there is one."""
        placed = self._placed
        return placed if placed and self._clock() - placed.since <= self.trial_s else None

    def look(self) -> None:
        """One poll: judges the version on trial, reads the alias, and does what follows from both.

        Raises:
            StorageError, RegistryError: if the alias cannot be read, or what it points to cannot be fetched.
        """
        self._alias_was_read = False
        self._judge()
        name, alias, version = parse(self.store, self.swapper.model_dir)
        if version:
            return
        registry = Registry(self.store, name)
        found = registry.alias(alias)
        self._alias_was_read = True
        if found and self._return:
            found = self._take_alias_back(registry, alias, found)
        if found:
            self._follow(registry, alias, found)
        self._renew_lease(name)

    def _run(self):
        failed, fetches, wait = False, 0, self.poll_s  # the last look, and fetches in a row
        while not self._stop.wait(wait):
            begun = time.monotonic()
            try:
                self.look()
            except Exception as error:
                if not failed:  # an outage must not flood the log
                    known = isinstance(error, StorageError | RegistryError)
                    log.warning("cannot follow the alias: %s; the model goes on serving", error, exc_info=not known)
                failed, fetches = True, fetches + 1 if self._alias_was_read else 0
            else:
                if failed:
                    log.warning("the alias can be followed again")
                failed, fetches = False, 0
            pause = min(self.poll_s * 2 ** min(max(fetches - 1, 0), 10), max(MAX_POLL_S, self.poll_s))
            wait = begun + pause * random.uniform(0.9, 1.1) - time.monotonic()

    def _judge(self):
        placed, serving = self._placed, self.swapper.predictor.model.version
        if placed is None:
            return
        if serving != placed.version:
            self._placed = None
            if isinstance(error := self.scores.error(placed.version), ModelRejected):  # the predictor went back itself
                self._send_back(placed.version, serving, f"it failed while it served: {error}")
        elif self.trial and (reason := self.rule.judge(*map(self.scores.record, (placed.before, placed.version)))):
            with suppress(ChangeUnderWay, NoModelBefore):  # someone changes it at this moment: look again
                self.swapper.roll_back()
                self._placed = None
                self._send_back(placed.version, self.swapper.predictor.model.version, reason)

    def _follow(self, registry, alias, found):
        move = (registry.name, alias, found.version, found.moved, found.reason)
        predictor = self.swapper.predictor
        if move == self._seen:
            return
        if found.version != predictor.model.version:
            before = predictor.model.version
            self._lease(registry.name, {found.version})
            self.scores.forget(found.version)
            try:
                if predictor.previous and predictor.previous.version == found.version:
                    self.swapper.roll_back()  # it is in memory still
                else:
                    self.swapper.change(self.swapper.model_dir)
            except (ChangeUnderWay, NoModelBefore):
                return  # and look again
            except UnsignedBundle as error:  # the key of this server may be the wrong one: others may go on with it
                log.error("version %s is refused: %s", found.version, error)
                self.refused[found.version] = str(error)
            except (BundleError, ModelRejected) as error:
                self._send_back(found.version, before, f"it is refused: {error}")
                self._take_alias_back(registry, alias, found)
            else:
                # A way back is not tried: somebody took it because the version before was worse.
                forward = before in found.history
                self._placed = Trial(predictor.model.version, before, self._clock()) if forward else None
        self._seen = move

    def _send_back(self, bad, good, reason):
        log.error("version %s is sent back, version %s serves: %s", bad, good, reason)
        self.refused[bad] = reason
        self._return = Return(bad, good, reason)

    def _take_alias_back(self, registry, alias, found) -> Alias | None:
        """Moves the alias back if it still points to the bad version; where it points then, None if unknown."""
        going = self._return
        if found.version != going.bad:
            self._return = None
            return found
        how = {"alias": alias, "reason": f"{going.bad} sent back: {going.reason}", "who": WHO}
        try:
            if found.previous == going.good:
                found = registry.rollback(expected=found.generation, **how)
            else:
                found = registry.promote(going.good, expected=found.generation, **how)
        except PromotionConflict:
            return None  # another server was first, or somebody moved it: look again
        except UnknownModel as error:
            log.warning("the alias stays at version %s: %s", going.bad, error)
        except StorageError as error:
            if not going.told:
                log.warning("the alias cannot be moved back yet: %s; each look tries again", error)
            self._return = replace(going, told=True)
            return found
        self._return = None
        return found

    def _renew_lease(self, name):
        predictor = self.swapper.predictor
        previous = {predictor.previous.version} if predictor.previous else set()
        needed = frozenset({predictor.model.version} | previous)
        _, leased, since = self._leased
        if needed != leased or self._clock() - since > RENEWAL_S:
            self._lease(name, needed)

    def _lease(self, name, versions):
        lease = Lease(self.store, name, self._id)
        needed = frozenset({*versions, self.swapper.predictor.model.version})
        done = self._try("say what is served here", lambda: lease.name(needed))
        self._leased = (lease, needed, self._clock() - (0 if done else RENEWAL_S - RETRY_S))

    def _try(self, what, action):
        try:
            action()
        except StorageError as error:  # an account that may only read follows all the same
            log.warning("cannot %s: %s", what, error)
            return False
        return True
