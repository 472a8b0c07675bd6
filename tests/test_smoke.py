"""The smoke test of a deployment: a real server with the right version passes, and nothing else does."""

import shutil

import pytest
from served import serve

from helpers import smoke as module
from helpers.registry import UnknownModel
from helpers.smoke import SmokeError, expected_bundle, main, smoke
from helpers.workspace import ROOT


@pytest.fixture
def bundle(shop, tmp_path):
    return expected_bundle(shop.registry, "production", tmp_path)


def arguments(url, shop, *more):
    return [url, "--bucket", (shop.folder / "store").as_uri(), "--name", "tiny", "--patience", "2", *more]


def test_the_right_version_with_the_right_answers_passes_in_one_sentence(shop, capsys):
    with serve(shop) as server:
        assert main(arguments(server.url, shop)) == 0
        found = capsys.readouterr().out
        assert found == f"{server.url} is ready, serves version {shop.good}, and answers 4 golden images as it must\n"


def test_another_version_does_not_pass(shop, capsys):
    with serve(shop) as server:
        assert main(arguments(server.url, shop, "--version", shop.other)) == 1
        assert f"it serves '{shop.good}' and not version {shop.other!r}" in capsys.readouterr().err


def test_wrong_answers_under_the_right_version_do_not_pass(shop, bundle, tmp_path):
    forged = shutil.copytree(bundle.path, tmp_path / "forged")
    other = shop.models[1].bundle.path
    shutil.copy(other / "golden.npz", forged / "golden.npz")
    pretended = type(bundle)(forged, bundle.manifest, bundle.labels)
    with serve(shop) as server, pytest.raises(SmokeError, match=r"must answer golden image \d+ with 200 and 'class_"):
        smoke(server.url, pretended, patience=2)


def test_a_service_that_drains_does_not_pass(shop, bundle):
    with serve(shop) as server:
        server.app.state.draining = True
        with pytest.raises(SmokeError, match="/health/ready says 503"):
            smoke(server.url, bundle, patience=0.5)


def test_nothing_at_the_address_does_not_pass(bundle):
    with pytest.raises(SmokeError, match=r"is not what was deployed after 0\.5 s"):
        smoke("http://127.0.0.1:9", bundle, patience=0.5)


def test_an_interrupted_command_ends_quietly_with_130(shop, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "smoke", interrupt)
    assert main(arguments("http://127.0.0.1:9", shop)) == 130
    assert capsys.readouterr() == ("", "")


def test_the_token_of_the_environment_is_sent(shop, monkeypatch, capsys):
    sent = []

    class Spy(module.Client):
        def __init__(self, url, token, **options):
            super().__init__(url, token, **options)
            sent.append(self._session.headers["Authorization"])

    monkeypatch.setattr(module, "Client", Spy)
    monkeypatch.setenv(module.TOKEN, "t0ken")
    with serve(shop) as server:
        assert main(arguments(server.url, shop)) == 0
    assert sent == ["Bearer t0ken"]
    assert "t0ken" not in "".join(capsys.readouterr())


def test_while_nothing_is_in_production_the_bundle_of_the_repository_is_expected(shop, tmp_path):
    empty = type(shop.registry)(shop.registry.store, "nothing-yet")
    assert expected_bundle(empty, "production", tmp_path).path == ROOT / "model"
    with pytest.raises(UnknownModel):
        expected_bundle(empty, "candidate", tmp_path)
