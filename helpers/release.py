"""A new image on Cloud Run, without a request to it before it has passed: ``python -m helpers.release --image IMAGE``.

The revision is deployed without traffic, smoke-tested at an address of its own, and then takes all traffic, where it is
tested once more. If either fails, the traffic stays with, or goes back to, the revision before, and the alias of the
registry goes back from the version.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from helpers.delivery.bundle import BundleError
from helpers.delivery.storage import StorageError, open_store
from helpers.registry import PRODUCTION, Registry, RegistryError
from helpers.smoke import PATIENCE_S, TOKEN, SmokeError, add_options, expected_bundle, smoke
from helpers.workspace import bucket_url, secret

TAG = "candidate"
WHO = "release"


class ReleaseError(RuntimeError):
    """gcloud failed, or says what was not expected; one sentence."""


class CloudRun:
    """One service of Cloud Run, by the gcloud command, which must be logged in and know the project."""

    def __init__(self, service: str, region: str) -> None:
        self.service, self.region = service, region

    def state(self) -> dict:
        """What ``status`` of the service holds: ``url``, and ``traffic`` with percent, revisionName, tag and url."""
        return json.loads(self._gcloud("services", "describe", self.service, "--format=json"))["status"]

    def serving(self) -> str:
        """The revision that gets most of the traffic."""
        shares = [share for share in self.state()["traffic"] if share.get("percent")]
        if not shares:
            raise ReleaseError(f"no revision of {self.service} gets traffic; apply deploy/service.yaml first")
        return max(shares, key=lambda share: share["percent"])["revisionName"]

    def deploy(self, image: str) -> tuple[str, str]:
        """A revision with `image` and no traffic: its name, and the address at which it alone answers."""
        self._gcloud("deploy", self.service, f"--image={image}", "--no-traffic", f"--tag={TAG}", "--quiet")
        for share in self.state()["traffic"]:
            if share.get("tag") == TAG:
                return share["revisionName"], share["url"]
        raise ReleaseError(f"{self.service} has no revision with the tag {TAG!r} after its deployment")

    def send_traffic(self, revision: str) -> None:
        """All of it to `revision`."""
        self._gcloud("services", "update-traffic", self.service, f"--to-revisions={revision}=100", "--quiet")

    def _gcloud(self, *arguments):
        command = ["gcloud", "run", *arguments, f"--region={self.region}"]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except FileNotFoundError:
            raise ReleaseError("gcloud is not installed; install the Google Cloud CLI and log in") from None
        except subprocess.CalledProcessError as error:
            last = (error.stderr.strip().splitlines() or ["it says nothing"])[-1]
            raise ReleaseError(f"{' '.join(command[:4])} failed: {last}") from error


def release(run: CloudRun, image: str, registry: Registry, version: str, *, patience: float = PATIENCE_S) -> str:
    """The sentence of the last smoke test, when the revision with `image` serves everybody.

    Args:
        version: that it must serve, or an alias; from it the alias ``production`` goes back if anything fails.

    Raises:
        SmokeError, ReleaseError: after all has been set back.
    """
    before, version = run.serving(), registry.find(version)
    moved = False
    try:
        with tempfile.TemporaryDirectory() as cache:
            bundle, token = expected_bundle(registry, version, Path(cache)), secret(TOKEN)
            revision, url = run.deploy(image)
            print(smoke(url, bundle, token=token, patience=patience), flush=True)
            moved = True
            run.send_traffic(revision)
            return smoke(run.state()["url"], bundle, token=token, patience=patience)
    except (SmokeError, ReleaseError, RegistryError, StorageError, BundleError, KeyboardInterrupt) as error:
        try:
            if moved:
                run.send_traffic(before)
        finally:
            _go_back(registry, version, str(error) or "interrupted")
        raise


def main(argv: Sequence[str] | None = None) -> int:
    """Releases what the command line names; 0 if it serves, 1 if what was before serves."""
    arguments = _parser().parse_args(argv)
    try:
        registry = Registry(open_store(bucket_url(arguments.bucket)), arguments.name)
        run = CloudRun(arguments.service, arguments.region)
        print(release(run, arguments.image, registry, arguments.version, patience=arguments.patience))
    except (SmokeError, ReleaseError, RegistryError, StorageError, BundleError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _go_back(registry, version, reason):
    alias = registry.alias()
    if alias and alias.version == version and alias.previous:
        moved = registry.rollback(reason=f"{version} sent back: {reason}", who=WHO, expected=alias.generation)
        print(f"{PRODUCTION} points to {moved.version} again", flush=True)


def _parser():
    parser = argparse.ArgumentParser(prog="python -m helpers.release", description="A new image on Cloud Run.")
    add = parser.add_argument
    add("--image", required=True, help="with its tag or digest, as it was pushed")
    add("--service", required=True, help="of Cloud Run, as deploy/service.yaml made it")
    add("--region", required=True, help="of the service")
    add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
