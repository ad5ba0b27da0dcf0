"""A witness's place whose notes an RFC 3161 authority has stamped: a folder that holds each note with its token.

The authority learns the SHA-256 of the note and nothing else. Needs the extra `timestamp`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from otledger.errors import ConfigurationError
from otledger.witnesses.folder import FolderPlace
from otledger.witnesses.kept import RefusedNote, Stamp, WitnessedNote, WitnessError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from rfc3161_client import TimeStampRequest, TimeStampResponse

TIMEOUT = 30.0
"""How long the authority may take, in seconds."""
MOST = 1 << 20
"""The longest response that is read, in bytes."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class TimestampPlace:
    """A folder of notes that the authority at `address` stamps; `ca`: certificates, PEM, that its own must lead to."""

    def __init__(self, address: str, folder: Path, ca: Path | None) -> None:
        if not address.startswith(("http://", "https://")):
            raise ConfigurationError(
                f"no address of a timestamping authority: {address[:200]!r}; it is http://… or https://…"
            )
        self.address = address
        self.ca = ca
        self._folder = FolderPlace(folder)

    def __str__(self) -> str:
        return f"tsa+{self.address}#{self._folder}"

    def is_there(self) -> bool:
        """Tell whether there is such a folder."""
        return self._folder.is_there()

    def origins(self) -> list[str]:
        """Give the chains of which there is a note, sorted."""
        return self._folder.origins()

    def newest(self, origin: str) -> WitnessedNote | None:
        """Give the note that the folder has of a chain; with `ca` its token is checked, and its time given."""
        entry = self._folder.newest(origin)
        return None if entry is None else self._stamped(entry)

    def history(self, origin: str) -> Iterator[WitnessedNote]:
        """Give all the notes that were accepted, the oldest first. Raises `WitnessError` where one is missing."""
        return map(self._stamped, self._folder.history(origin))

    def put(self, entry: WitnessedNote) -> bool:
        """Have the note stamped, and make it the newest if its number is the next one; else give False."""
        if self.ca is None:
            raise ConfigurationError(
                f"{self}: whose stamps are right? Give the authority's certificates (PEM): --tsa-ca or OTLEDGER_TSA_CA"
            )
        token = self._ask(entry.note.encode())
        return self._folder.put(replace(entry, stamp=Stamp(self.address, token)))

    def refuse(self, origin: str, refused: RefusedNote) -> None:
        """Keep a refused note, once."""
        self._folder.refuse(origin, refused)

    def refused(self, origin: str) -> tuple[RefusedNote, ...]:
        """Give the refused notes of a chain, oldest first."""
        return self._folder.refused(origin)

    def _ask(self, note: bytes) -> bytes:
        client = _client()
        builder = client.TimestampRequestBuilder().data(note).hash_algorithm(client.HashAlgorithm.SHA256)
        # What is at hand need not be sent, in whatever order the authority's program puts it.
        request = builder.cert_request(cert_request=self._certificates()[1] is None).build()
        headers = {"Content-Type": "application/timestamp-query", "Accept": "application/timestamp-reply"}
        try:
            with urlopen(Request(self.address, request.as_bytes(), headers), timeout=TIMEOUT) as response:
                token: bytes = response.read(MOST)
        except (URLError, OSError) as error:
            why = getattr(error, "reason", error)
            raise WitnessError(f"{self.address}: no stamp: {why}; the note is not accepted, try again") from None
        self._check(token, note, request)
        return token

    def _stamped(self, entry: WitnessedNote) -> WitnessedNote:
        if self.ca is None:
            return entry
        if entry.stamp is None:
            raise WitnessError(f"{self._folder}: note {entry.number} of {entry.origin} has no stamp")
        return replace(entry, stamped=self._check(entry.stamp.token, entry.note.encode(), None))

    def _check(self, token: bytes, note: bytes, request: TimeStampRequest | None) -> int:
        """Give the time that a token states, if it is one over the note that leads to our certificates."""
        client = _client()
        builder = client.VerifierBuilder.from_request(request) if request is not None else client.VerifierBuilder()
        roots, own = self._certificates()
        for certificate in roots:
            builder = builder.add_root_certificate(certificate)
        if own is not None:
            builder = builder.tsa_certificate(own)
        try:
            response: TimeStampResponse = client.decode_timestamp_response(token)
            builder.build().verify_message(response, note)
            stated: timedelta = response.tst_info.gen_time - _EPOCH
        except (client.VerificationError, ValueError) as error:
            why = f"{self.address}: the stamp does not hold: {error}"
            raise WitnessError(f"{why}; see the certificates in {self.ca}, and who answers there") from None
        return (stated.days * 86_400 + stated.seconds) * 10**9 + stated.microseconds * 1000

    def _certificates(self) -> tuple[list[Certificate], Certificate | None]:
        """Give the certificates that are believed, and the authority's own if that is among them."""
        from cryptography.x509 import load_pem_x509_certificates

        assert self.ca is not None
        try:
            given = load_pem_x509_certificates(self.ca.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{self.ca}: no certificates (PEM) can be read there: {error}") from None
        own = [each for each in given if _stamps(each)]
        return [each for each in given if each not in own] or own, own[0] if own else None


def _stamps(certificate: Certificate) -> bool:
    """Tell whether a certificate is one that stamps are signed with."""
    from cryptography.x509 import ExtendedKeyUsage, ExtensionNotFound
    from cryptography.x509.oid import ExtendedKeyUsageOID

    try:
        usage = certificate.extensions.get_extension_for_class(ExtendedKeyUsage).value
    except (ExtensionNotFound, ValueError):
        return False
    return ExtendedKeyUsageOID.TIME_STAMPING in usage


def _client() -> Any:
    try:
        import rfc3161_client
    except ImportError:
        raise ConfigurationError("stamps need the extra timestamp: pip install 'otledger[timestamp]'") from None
    return rfc3161_client
