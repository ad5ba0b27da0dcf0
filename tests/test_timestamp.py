"""Notes that an RFC 3161 authority stamps: a real one, `openssl ts`, behind a small HTTP server on loopback."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificates

from otledger.errors import ConfigurationError
from otledger.witness import WitnessedNote, WitnessError, open_place, read_place
from otledger.witnessing import Outcome, witness
from tests.notary import Notary

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the program openssl")

SETTINGS = """
[ tsa ]
default_tsa = own
[ own ]
serial = {0}/serial
crypto_device = builtin
signer_cert = {0}/tsa.pem
signer_key = {0}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha512
ordering = yes
tsa_name = yes
ess_cert_id_alg = sha256
"""


def openssl(*args: object) -> None:
    subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True)


def make_ca(folder: Path) -> Path:
    """Make an authority's certificates. Gives the one that is trusted."""
    folder.mkdir()
    new = ("req", "-newkey", "rsa:2048", "-nodes", "-sha256")
    ca = ("-keyout", folder / "ca.key", "-out", folder / "ca.pem", "-subj", "/CN=CA of the tests", "-days", 30)
    openssl(*new, "-x509", *ca)
    openssl(*new, "-keyout", folder / "tsa.key", "-out", folder / "tsa.csr", "-subj", "/CN=TSA of the tests")
    (folder / "tsa.ext").write_text("extendedKeyUsage = critical,timeStamping\nkeyUsage = critical,digitalSignature\n")
    signed = ("-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-CAcreateserial", "-days", 30)
    files = ("-in", folder / "tsa.csr", "-out", folder / "tsa.pem", "-extfile", folder / "tsa.ext")
    openssl("x509", "-req", "-sha256", *files, *signed)
    (folder / "tsa.cnf").write_text(SETTINGS.format(folder))
    (folder / "serial").write_text("01\n")
    return folder / "ca.pem"


class Authority:
    """An authority that answers on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = folder / "ca.pem"
        self.asked: list[bytes] = []
        self.change: Callable[[bytes], bytes] = lambda response: response
        authority = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                query = self.rfile.read(int(self.headers["Content-Length"]))
                good = self.headers["Content-Type"] == "application/timestamp-query"
                response = authority.change(authority.reply(query)) if good else b""
                self.send_response(200 if good else 400)
                self.send_header("Content-Type", "application/timestamp-reply")
                self.end_headers()
                self.wfile.write(response)

            def log_message(self, *_: object) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/tsr"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def reply(self, query: bytes) -> bytes:
        self.asked.append(query)
        asked, answer = self.folder / "query", self.folder / "answer"
        asked.write_bytes(query)
        openssl("ts", "-reply", "-config", self.folder / "tsa.cnf", "-queryfile", asked, "-out", answer)
        return answer.read_bytes()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority's folder, made once."""
    folder = tmp_path_factory.mktemp("tsa") / "authority"
    make_ca(folder)
    return folder


@pytest.fixture
def authority(certificates: Path) -> Iterator[Authority]:
    made = Authority(certificates)
    yield made
    made.close()


@pytest.fixture
def notary(root: Path) -> Notary:
    made = Notary(root)
    made.sign()
    return made


@pytest.fixture
def place(authority: Authority, tmp_path: Path) -> str:
    return f"tsa+{authority.url}#{tmp_path / 'stamped'}"


def offer(notary: Notary, place: str, ca: Path | None) -> Outcome:
    (outcome,) = witness(notary.root, open_place(place, ca=ca), keys=[notary.key])
    return outcome


def kept(notary: Notary, place: str, ca: Path | None = None) -> WitnessedNote:
    return read_place(place, ca=ca)[notary.origin]


def test_each_note_is_stamped(notary: Notary, authority: Authority, place: str, tmp_path: Path) -> None:
    before = time.time_ns() - 10**9
    assert offer(notary, place, authority.ca).verdict == "first"
    notary.emit(3)
    note = notary.sign()
    assert offer(notary, place, authority.ca).verdict == "accepted"
    assert offer(notary, place, authority.ca).verdict == "unchanged"
    assert len(authority.asked) == 2
    entry = kept(notary, place, authority.ca)
    assert entry.note == note
    assert entry.stamp is not None
    assert entry.stamped is not None
    assert before <= entry.stamped <= time.time_ns()
    assert kept(notary, place).stamped is None
    assert note.encode() not in b"".join(authority.asked)
    assert [each.stamped is not None for each in open_place(place, ca=authority.ca).history(notary.origin)] == [
        True
    ] * 2
    # Without us: what the file holds is what openssl verifies.
    file = sorted((tmp_path / "stamped").rglob("0*.json"))[-1]
    stored = json.loads(file.read_bytes())
    (tmp_path / "note").write_text(stored["note"])
    (tmp_path / "token").write_bytes(base64.b64decode(stored["stamp"]["token"]))
    openssl("ts", "-verify", "-data", tmp_path / "note", "-in", tmp_path / "token", "-CAfile", authority.ca)


def test_the_authority_s_own_certificate_may_be_at_hand(
    notary: Notary, authority: Authority, place: str, tmp_path: Path
) -> None:
    """Then it is not asked for: openssl puts several in an order that strict readers refuse."""
    settings = authority.folder / "tsa.cnf"
    before = settings.read_text()
    settings.write_text(f"{before}certs = {authority.ca}\n")
    both = tmp_path / "both.pem"
    both.write_text(authority.ca.read_text() + (authority.folder / "tsa.pem").read_text())
    try:
        assert offer(notary, place, both).verdict == "first"
    finally:
        settings.write_text(before)
    entry = kept(notary, place, both)
    assert entry.stamped
    assert entry.stamp is not None
    for certificate in load_pem_x509_certificates(both.read_bytes()):
        assert certificate.public_bytes(Encoding.DER) not in entry.stamp.token
    stranger = make_ca(tmp_path / "stranger")
    with pytest.raises(WitnessError, match="does not hold"):
        read_place(place, ca=stranger)
    with pytest.raises(WitnessError, match="does not hold"):
        read_place(place, ca=stranger.with_name("tsa.pem"))


def test_a_stamp_of_another_authority_does_not_hold(
    notary: Notary, authority: Authority, place: str, tmp_path: Path
) -> None:
    stranger = make_ca(tmp_path / "stranger")
    with pytest.raises(WitnessError, match="does not hold"):
        offer(notary, place, stranger)
    assert not open_place(place).is_there()
    offer(notary, place, authority.ca)
    with pytest.raises(WitnessError, match="does not hold"):
        read_place(place, ca=stranger)
    with pytest.raises(ConfigurationError, match="no certificates"):
        read_place(place, ca=tmp_path / "none.pem")
    notary.emit(1)
    notary.sign()
    with pytest.raises(ConfigurationError, match="--tsa-ca"):
        offer(notary, place, None)


@pytest.mark.parametrize(
    "change",
    [
        lambda response: response[:-1] + bytes([response[-1] ^ 1]),
        lambda response: response[: len(response) // 2],
        lambda response: b"",
        lambda response: b"<html>not here</html>",
        # "rejection"
        lambda response: bytes.fromhex("30053003020102"),
    ],
)
def test_a_response_that_is_no_stamp_is_told(
    notary: Notary, authority: Authority, place: str, change: Callable[[bytes], bytes]
) -> None:
    authority.change = change
    with pytest.raises(WitnessError, match="does not hold"):
        offer(notary, place, authority.ca)
    assert not open_place(place).is_there()


def test_a_stamp_over_another_note_or_request_does_not_hold(
    notary: Notary, authority: Authority, place: str, tmp_path: Path
) -> None:
    saved: list[bytes] = []

    def save(response: bytes) -> bytes:
        saved.append(response)
        return saved[0]

    authority.change = save
    offer(notary, place, authority.ca)
    entry = kept(notary, place)
    notary.emit(1)
    notary.sign()
    with pytest.raises(WitnessError, match="does not hold"):
        offer(notary, place, authority.ca)
    # The same note, asked for again: an old stamp is not an answer to it.
    again = open_place(f"tsa+{authority.url}#{tmp_path / 'again'}", ca=authority.ca)
    with pytest.raises(WitnessError, match="does not hold"):
        again.put(entry)
    # And one that somebody else put beside a note.
    (file,) = (tmp_path / "stamped").rglob("0*.json")
    stored = json.loads(file.read_bytes())
    authority.change = lambda response: response
    stored["stamp"]["token"] = base64.b64encode(saved[1]).decode()
    file.write_text(json.dumps(stored))
    with pytest.raises(WitnessError, match="does not hold"):
        read_place(place, ca=authority.ca)
    file.write_text(json.dumps({**stored, "stamp": None}))
    with pytest.raises(WitnessError, match="no stamp"):
        read_place(place, ca=authority.ca)


def test_an_authority_that_does_not_answer_is_told(notary: Notary, authority: Authority, place: str) -> None:
    authority.close()
    with pytest.raises(WitnessError, match="no stamp"):
        offer(notary, place, authority.ca)
    assert not open_place(place).is_there()


def test_without_the_extra_it_says_what_to_install(
    notary: Notary, authority: Authority, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rfc3161_client", None)
    with pytest.raises(ConfigurationError, match="timestamp"):
        offer(notary, place, authority.ca)


def test_the_command(notary: Notary, authority: Authority, place: str) -> None:
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment["OTLEDGER_TSA_CA"] = str(authority.ca)
    command = [sys.executable, "-m", "otledger", "witness"]
    args = [place, "--root", str(notary.root), "--key", str(notary.key)]
    subprocess.run([*command, *args], env=environment, check=True, capture_output=True)
    done = subprocess.run([*command, "--list", place, "--json"], env=environment, check=True, capture_output=True)
    (entry,) = json.loads(done.stdout)["notes"]
    assert entry["stamped"]
