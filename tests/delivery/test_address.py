"""Where a service is: said while it runs, by the one that started last, and found by whoever knows the model's name."""

import json

import pytest
from interleaving import MemoryStore

from helpers.delivery.address import UnknownAddress, find_address, publish_address, published_address, withdraw_address

KEY = "models/tiny/addresses/production.json"


@pytest.fixture
def store():
    return MemoryStore()


def test_an_address_is_found_while_its_service_runs(store):
    with published_address(store, "https://a.example", "tiny") as address:
        assert find_address(store, "tiny") == address
        assert json.loads(store.read(KEY).data) == {"url": "https://a.example", "since": address.since}
    with pytest.raises(UnknownAddress) as error:
        find_address(store, "tiny")
    assert str(error.value) == ("no service of 'tiny' says in memory: where it is; start one with the third notebook")


def test_the_one_that_started_last_counts_and_the_other_does_not_take_it_away(store):
    first = publish_address(store, "https://a.example", "tiny")
    second = publish_address(store, "https://b.example", "tiny")
    withdraw_address(store, first, "tiny")
    assert find_address(store, "tiny") == second
    withdraw_address(store, second, "tiny")
    withdraw_address(store, second, "tiny")
    assert store.list() == []


def test_aliases_have_addresses_of_their_own(store):
    publish_address(store, "http://127.0.0.1:8000", "tiny", "candidate")
    assert find_address(store, "tiny", "candidate").url == "http://127.0.0.1:8000"
    with pytest.raises(UnknownAddress):
        find_address(store, "tiny")
    with pytest.raises(ValueError, match="alias must match"):
        find_address(store, "tiny", "../x")


@pytest.mark.parametrize("url", ["", "ftp://a", "https://", "https://user:word@a", "javascript:x", "https://a\nb"])
def test_what_is_no_address_is_neither_published_nor_believed(store, url):
    with pytest.raises(ValueError, match="url must be http:// or https:// with a host"):
        publish_address(store, url, "tiny")
    store.write(KEY, json.dumps({"url": url, "since": ""}).encode(), if_generation=0)
    with pytest.raises(UnknownAddress, match=rf"{KEY} holds no address; remove it and start the service again"):
        find_address(store, "tiny")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"url": 1, "since": ""}', b"\xff"])
def test_what_cannot_be_read_is_no_address(store, data):
    store.write(KEY, data, if_generation=0)
    with pytest.raises(UnknownAddress, match="holds no address"):
        find_address(store, "tiny")
