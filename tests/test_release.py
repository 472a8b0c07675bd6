"""A release on Cloud Run, with a stand-in for gcloud that keeps a service's traffic, and real servers behind it."""

import json
import os
import sys

import pytest
from served import open_shop, serve

from helpers.release import CloudRun, ReleaseError, main

GCLOUD = """#!{python}
import json, pathlib, sys
path = pathlib.Path({path!r})
state, arguments = json.loads(path.read_text()), sys.argv[1:]
state["calls"].append(arguments)
named = dict(part[2:].split("=", 1) for part in arguments if part.startswith("--") and "=" in part)
failure = state["fail"] if state["fail"] in " ".join(arguments) else ""
if arguments[1] == "deploy" and not failure:
    assert "--no-traffic" in arguments
    state["traffic"].append({{"revisionName": "new", "tag": named["tag"], "url": state["new_url"]}})
if "update-traffic" in arguments and not failure:
    revision, percent = named["to-revisions"].split("=")
    state["traffic"] = [entry for entry in state["traffic"] if not entry.get("percent")]
    state["traffic"].append({{"revisionName": revision, "percent": int(percent)}})
path.write_text(json.dumps(state))
if failure:
    sys.exit("ERROR: (gcloud.run) no permission")
if "describe" in arguments:
    print(json.dumps({{"status": {{"url": state["url"], "traffic": state["traffic"]}}}}))
"""


@pytest.fixture
def shop(tmp_path):
    """A store of its own: releases move the alias. The other version is in production, the good one before it."""
    shop = open_shop(tmp_path)
    shop.registry.promote(shop.other, reason="test")
    return shop


@pytest.fixture
def gcloud(tmp_path, monkeypatch):
    """``gcloud(new, service)`` puts the stand-in on the PATH: what a new revision and the service answer at."""
    path, folder = tmp_path / "gcloud.json", tmp_path / "bin"
    folder.mkdir()
    (folder / "gcloud").write_text(GCLOUD.format(python=sys.executable, path=str(path)))
    (folder / "gcloud").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def start(new_url="", url="", fail="nothing"):
        traffic = [{"revisionName": "old", "percent": 100}]
        state = {"traffic": traffic, "calls": [], "new_url": new_url, "url": url, "fail": fail}
        path.write_text(json.dumps(state))
        return lambda: json.loads(path.read_text())

    return start


def release(shop):
    store = (shop.folder / "store").as_uri()
    options = ["--image", "r/p/suite:1", "--service", "cifar100", "--region", "europe-west1", "--patience", "1"]
    return main([*options, "--bucket", store, "--name", "tiny"])


def serving(state):
    return [entry["revisionName"] for entry in state()["traffic"] if entry.get("percent")]


def test_a_good_revision_gets_all_traffic_after_it_passed(shop, gcloud, capsys):
    with serve(shop, shop.models[1]) as server:
        state = gcloud(server.url, server.url)
        assert release(shop) == 0
    assert serving(state) == ["new"]
    assert shop.registry.alias().version == shop.other
    assert capsys.readouterr().out.count("as it must") == 2
    assert [part for call in state()["calls"] for part in call if "image" in part] == ["--image=r/p/suite:1"]
    assert all("--region=europe-west1" in call for call in state()["calls"])


def test_a_bad_revision_gets_none_and_the_alias_goes_back(shop, gcloud, capsys):
    with serve(shop, shop.models[0]) as server:
        state = gcloud(server.url, server.url)
        assert release(shop) == 1
    assert serving(state) == ["old"]
    assert not [call for call in state()["calls"] if "update-traffic" in call]
    alias = shop.registry.alias()
    assert (alias.version, alias.who) == (shop.good, "release")
    assert f"it serves '{shop.good}' and not version '{shop.other}'" in alias.reason
    assert "is not what was deployed" in capsys.readouterr().err


def test_what_fails_with_all_the_traffic_loses_it_again(shop, gcloud):
    with serve(shop, shop.models[1]) as good, serve(shop, shop.models[0]) as bad:
        state = gcloud(good.url, bad.url)
        assert release(shop) == 1
    assert serving(state) == ["old"]
    assert [call for call in state()["calls"] if "--to-revisions=new=100" in call]
    assert shop.registry.alias().version == shop.good


def test_a_deployment_that_fails_sets_the_alias_back_and_says_the_last_line_of_gcloud(shop, gcloud, capsys):
    state = gcloud(fail="deploy")
    assert release(shop) == 1
    assert serving(state) == ["old"]
    assert shop.registry.alias().version == shop.good
    assert capsys.readouterr().err == "error: gcloud run deploy cifar100 failed: ERROR: (gcloud.run) no permission\n"


def test_an_alias_that_somebody_moved_meanwhile_is_left_alone(shop, gcloud, monkeypatch):
    gcloud(fail="deploy")
    deploy = CloudRun.deploy

    def moved_meanwhile(run, image):
        shop.registry.promote(shop.nan, reason="somebody else")
        return deploy(run, image)

    monkeypatch.setattr(CloudRun, "deploy", moved_meanwhile)
    assert release(shop) == 1
    assert shop.registry.alias().version == shop.nan


def test_without_gcloud_the_next_step_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ReleaseError, match="install the Google Cloud CLI"):
        CloudRun("cifar100", "europe-west1").state()


def test_a_service_that_was_never_applied_is_refused(gcloud, monkeypatch):
    gcloud()
    monkeypatch.setattr(CloudRun, "state", lambda run: {"traffic": []})
    with pytest.raises(ReleaseError, match=r"apply deploy/service\.yaml first"):
        CloudRun("cifar100", "europe-west1").serving()
