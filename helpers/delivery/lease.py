"""What each server serves, as it says itself in the store, so that nobody removes a version from under it."""

import json
import re
from datetime import UTC, datetime, timedelta

from helpers.delivery.layout import VERSION, Layout
from helpers.delivery.objects import ObjectNotFound, Store

LEASE = timedelta(days=1)  # long: to keep a version a day too long costs little, and clocks may differ
RENEWAL_S = 3600.0


class Lease:
    """The lease of the server `server_id`, written at each `name` and gone after `drop`, or a day without either."""

    def __init__(self, store: Store, model: str, server_id: str):
        self.store, self.key = store, Layout(model).key("servers", f"{server_id}.json")

    def name(self, versions: set[str]) -> None:
        """Says that the server needs `versions`, from now on for a day."""
        until = (datetime.now(UTC) + LEASE).isoformat(timespec="seconds")
        data = json.dumps({"versions": sorted(versions), "until": until}).encode()
        self.store.write(self.key, data, if_generation=None)  # nobody else writes it

    def drop(self) -> None:
        """Says that the server needs none."""
        try:
            self.store.delete(self.key, if_generation=None)
        except ObjectNotFound:
            return


def leased_versions(store: Store, model: str) -> set[str]:
    """The versions that the servers of `model` need; a lease that cannot be read counts for all versions in it."""
    needed, now = set(), datetime.now(UTC)
    for info in store.list(Layout(model).key("servers/")):
        try:
            text = store.read(info.key).data.decode(errors="replace")
        except ObjectNotFound:  # the server has stopped since
            continue
        try:
            expired = datetime.fromisoformat(json.loads(text)["until"]) < now
        except (ValueError, KeyError, TypeError):
            expired = False
        if not expired:
            needed |= set(re.findall(VERSION, text))
    return needed
