"""Objects in a bucket of Google Cloud Storage."""

import threading
import uuid
from contextlib import contextmanager

from helpers.delivery.objects import (
    Object,
    ObjectInfo,
    ObjectNotFound,
    PreconditionFailed,
    StorageUnavailable,
    Store,
    check_key,
    prefix_folder,
)

REQUEST_S = (5.0, 60.0)  # to connect, and between two reads
CHUNK_BYTES = 8 * 2**20  # of what is larger: it is sent in such parts, of which a lost connection costs the last


class GoogleStore(Store):
    """A bucket of Google Cloud Storage, or what lies under a prefix of it, with the application default credentials.

    ``STORAGE_EMULATOR_HOST`` names another endpoint, which is used without credentials.

    Args:
        patience_s: for the tries of one operation together, and for each answer.
    """

    def __init__(self, bucket: str, prefix: str, patience_s: float):
        self.url = f"gs://{bucket}/{prefix}".rstrip("/")
        self._bucket_name, self._prefix, self._patience_s = bucket, f"{prefix}/" if prefix else "", patience_s
        self._timeout = tuple(min(seconds, patience_s) for seconds in REQUEST_S)
        self._client, self._lock = None, threading.Lock()

    def read(self, key):
        check_key(key)
        with self._calls(key, "read") as (bucket, retry):
            blob = bucket.blob(self._prefix + key)
            # Retried as a whole: the library's own retry resumes a cut download and then compares no checksum.
            download = retry(blob.download_as_bytes)
            data = download(raw_download=True, checksum="crc32c", timeout=self._timeout, retry=None)
            return Object(data, int(blob.generation))

    def write(self, key, data, *, if_generation):
        check_key(key)
        attempt = uuid.uuid4().hex
        try:
            with self._calls(key, "write", if_generation) as (bucket, retry):
                # A fresh one: a used blob is pinned to its generation.
                blob = bucket.blob(self._prefix + key, chunk_size=CHUNK_BYTES)
                blob.metadata = {"attempt": attempt}
                blob.upload_from_string(
                    data, if_generation_match=if_generation, checksum="crc32c", timeout=self._timeout, retry=retry
                )
        except PreconditionFailed:
            # Where the reply to the first try was lost, the retry meets our own object.
            with self._calls(key, "read") as (bucket, retry):
                blob = bucket.get_blob(self._prefix + key, timeout=self._timeout, retry=retry)
            if blob is None or (blob.metadata or {}).get("attempt") != attempt:
                raise
        return int(blob.generation)

    def list(self, prefix=""):
        prefix_folder(prefix)
        with self._calls(prefix, "list") as (bucket, retry):
            fields = "items(name,size,generation),nextPageToken"
            pages = bucket.list_blobs(prefix=self._prefix + prefix, fields=fields, timeout=self._timeout, retry=retry)
            blobs = [*pages]
        found = [ObjectInfo(blob.name.removeprefix(self._prefix), blob.size, int(blob.generation)) for blob in blobs]
        return sorted((info for info in found if not info.key.endswith("/")), key=lambda info: info.key)

    def delete(self, key, *, if_generation):
        check_key(key)
        retried = []
        try:
            with self._calls(key, "delete", if_generation) as (bucket, retry):
                delete = retry(bucket.blob(self._prefix + key).delete, on_error=retried.append)
                delete(if_generation_match=if_generation, timeout=self._timeout, retry=None)
        except ObjectNotFound:
            if not retried:  # otherwise our own first try removed it, and its reply was lost
                raise

    def close(self):
        with self._lock:
            client, self._client = self._client, None
        if client:
            client.close()

    @contextmanager
    def _calls(self, key, verb, expected=None):
        """The bucket and how to retry a call; raises the library's errors as this module's."""
        from google.api_core import exceptions as api
        from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
        from google.cloud import storage
        from google.cloud.storage.exceptions import DataCorruption
        from google.cloud.storage.retry import DEFAULT_RETRY
        from requests import RequestException
        from urllib3.exceptions import HTTPError

        problem = f"cannot {verb} {self.url}/{key}"
        retry = DEFAULT_RETRY.with_delay(initial=0.1, maximum=8, multiplier=2).with_timeout(self._patience_s)
        try:
            with self._lock:
                self._client = self._client or storage.Client(project=None)
                bucket = self._client.bucket(self._bucket_name)
            yield bucket, retry
        except api.PreconditionFailed:
            raise self._conflict(key, expected) from None
        except api.NotFound as error:
            if verb in ("write", "list") or "bucket does not exist" in error.message:
                raise StorageUnavailable(
                    f"{problem}: there is no bucket {self._bucket_name!r}; check its name"
                ) from error
            raise self._absent(key) from None
        except DefaultCredentialsError as error:
            raise StorageUnavailable(
                f"{problem}: no Google credentials; run `gcloud auth application-default login`, or set "
                "GOOGLE_APPLICATION_CREDENTIALS to a service account's key file"
            ) from error
        except (api.Forbidden, api.Unauthorized, GoogleAuthError) as error:
            raise StorageUnavailable(f"{problem}: access refused; check the rights of this account: {error}") from error
        except (api.GoogleAPIError, RequestException, HTTPError, DataCorruption, ConnectionError) as error:
            raise StorageUnavailable(f"{problem}: {error}; check the network and try again") from error
