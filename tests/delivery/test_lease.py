"""What servers say that they serve: believed for a day, and longer where it cannot be read."""

import json
from datetime import UTC, datetime, timedelta

from interleaving import MemoryStore

from helpers.delivery.lease import Lease, leased_versions

V1, V2, V3 = (f"2026010{day}T000000Z-{day * 12}" for day in "123")


def test_the_versions_of_all_servers_are_needed_until_they_are_dropped():
    store = MemoryStore()
    one, two = Lease(store, "tiny", "one"), Lease(store, "tiny", "two")
    one.name({V1})
    two.name({V2})
    two.name({V2, V3})
    Lease(store, "other", "one").name({V1})
    assert leased_versions(store, "tiny") == {V1, V2, V3}
    one.drop()
    one.drop()
    assert leased_versions(store, "tiny") == {V2, V3}


def test_a_lease_that_was_not_renewed_for_a_day_no_longer_counts():
    store = MemoryStore()
    lease = Lease(store, "tiny", "one")
    for hours, expected in ((1, {V1}), (-1, set())):
        until = (datetime.now(UTC) + timedelta(hours=hours)).isoformat()
        store.write(lease.key, json.dumps({"versions": [V1], "until": until}).encode(), if_generation=None)
        assert leased_versions(store, "tiny") == expected
    lease.name({V1})
    until = datetime.fromisoformat(json.loads(store.read(lease.key).data)["until"])
    assert timedelta(hours=23) < until - datetime.now(UTC) <= timedelta(hours=24)


def test_what_is_no_lease_counts_for_the_versions_in_it():
    store = MemoryStore()
    for number, data in enumerate((b"", b"\xff", b"[]", f'{{"versions": ["{V1}"]'.encode(), f'"{V2}"'.encode())):
        store.write(f"models/tiny/servers/{number}.json", data, if_generation=0)
    assert leased_versions(store, "tiny") == {V1, V2}
