"""Who published a bundle: an Ed25519 signature (RFC 8032) over its manifest, where keys are configured.

Publishers name the file of a private key in ``SUITE_SIGNING_KEY``, servers that of the public key in
``SUITE_PUBLIC_KEY``; both PEM. To make a pair::

    (umask 077 && openssl genpkey -algorithm ed25519 -out signing.pem)
    openssl pkey -in signing.pem -pubout -out public.pem
"""

import os
from pathlib import Path

from helpers.workspace import read_private

SIGNING_KEY, PUBLIC_KEY = "SUITE_SIGNING_KEY", "SUITE_PUBLIC_KEY"
SIGNATURE_BYTES = 64


class SignatureError(ValueError):
    """A signature that is absent or not by the configured key, or a key file that holds no such key."""


def sign(data: bytes) -> bytes | None:
    """The signature of `data`, 64 bytes; None where no signing key is configured.

    Raises:
        SignatureError: if the file holds no private Ed25519 key.
        OSError: if it cannot be read, or others may read it.
    """
    path = os.environ.get(SIGNING_KEY, "").strip()
    if not path:
        return None
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(read_private(SIGNING_KEY, path).encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # not chained: it may quote the file
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(f"{SIGNING_KEY}: {path} must hold a private Ed25519 key in PEM, without a password")
    return key.sign(data)


def verify(data: bytes, signature: bytes | None) -> None:
    """Returns if `signature` of `data` is by the configured public key, or none is configured.

    Raises:
        SignatureError: if not, naming the key, or if the file holds no public Ed25519 key.
    """
    path = os.environ.get(PUBLIC_KEY, "").strip()
    if not path:
        return
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(Path(path).read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"{PUBLIC_KEY}: {path} cannot be read as a public key in PEM: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(f"{PUBLIC_KEY}: {path} must hold a public Ed25519 key in PEM")
    if signature is None:
        raise SignatureError(f"it is not signed, and {PUBLIC_KEY} ({path}) asks for it; publish it with {SIGNING_KEY}")
    try:
        key.verify(signature, data)
    except InvalidSignature:
        raise SignatureError(f"its signature is not by the key in {PUBLIC_KEY} ({path}), or it was altered") from None
