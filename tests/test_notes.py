"""Signed notes are those of C2SP, by its published vectors and by those of Go; and nothing else passes."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otledger.errors import LedgerError
from otledger.notes import (
    MAX_NOTE,
    Commitment,
    Note,
    NoteError,
    SignerKey,
    VerifierKey,
    origin_of,
    read_commitment,
)

# The tests of golang.org/x/mod/sumdb/note.
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETER_PRIVATE = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
BY_PETER = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
ENOCH = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
BY_ENOCH = "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"
# The example of c2sp.org/signed-note.
FOO = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
BY_FOO = (
    "This is an example message.\n\n"
    "— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)
# Go's checksum database, 2024-09-23.
GOLANG = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
GOLANG_HEAD = (
    "go.sum database tree\n30055305\nmXfgRcJ0bG0j3CPdKwgGWtUzBUbX67saZGRmFuJGGsM=\n\n"
    "— sum.golang.org Az3grpgEild5qw7+5dtV13Kf1C2Xurm8q4fhdxvcsDHnqNTaxL2AFjBY+2TyGKevucFcAAlWFJJYle3EJlDCrQ+y3A8=\n"
)


def parsed(note: str, *keys: str) -> str:
    """The text of a note, if one of the keys has signed it."""
    read = Note.parse(note)
    assert read.signer_of(map(VerifierKey.parse, keys)) is not None
    return read.text


# The published vectors


@pytest.mark.parametrize("text", [PETER, ENOCH, FOO, GOLANG])
def test_a_verifier_key_comes_back_as_it_was(text: str) -> None:
    key = VerifierKey.parse(text)
    assert str(key) == text
    assert key.id.hex() == text.split("+")[1]
    assert VerifierKey.parse(f"  {text}\n") == key


def test_a_private_key_comes_back_and_has_its_public_key() -> None:
    key = SignerKey.parse(PETER_PRIVATE)
    assert key.text() == PETER_PRIVATE
    assert str(key.verifier) == PETER
    assert PETER_PRIVATE.split("+", 4)[4] not in repr(key)


def test_a_signature_is_the_published_one_byte_for_byte() -> None:
    assert SignerKey.parse(PETER_PRIVATE).sign(TEXT) == f"{TEXT}\n{BY_PETER}"


def test_the_published_notes_are_right() -> None:
    assert parsed(f"{TEXT}\n{BY_PETER}", PETER) == TEXT
    assert parsed(f"{TEXT}\n{BY_ENOCH}", ENOCH) == TEXT
    assert parsed(f"{TEXT}\n{BY_PETER}{BY_ENOCH}", ENOCH) == TEXT
    assert parsed(f"{TEXT}\n{BY_PETER}{BY_ENOCH}", FOO, ENOCH, PETER) == TEXT
    assert parsed(BY_FOO, FOO) == "This is an example message.\n"
    both = Note.parse(f"{TEXT}\n{BY_PETER}{BY_ENOCH}")
    assert both.key_ids() == ("c74f20a3", "af0cfe78")


def test_go_s_checksum_database_is_read() -> None:
    text = parsed(GOLANG_HEAD, GOLANG)
    root = base64.b64decode("mXfgRcJ0bG0j3CPdKwgGWtUzBUbX67saZGRmFuJGGsM=")
    assert Commitment.parse(text) == Commitment("go.sum database tree", 30055305, root)
    assert Commitment.parse(text).text() == text
    # Its origin is not its key's name, and such a key is not believed about a ledger.
    with pytest.raises(NoteError, match="for another origin"):
        read_commitment(GOLANG_HEAD, [VerifierKey.parse(GOLANG)])


# What is not right does not pass


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        PETER.replace("c74f20a3", "c74f20a4"),
        PETER.replace("c74f20a3", "C74F20A3"),
        PETER.replace("PeterNeumann", "PeterNeumanm"),
        PETER.replace("PeterNeumann", ""),
        PETER.replace("PeterNeumann", "Peter Neumann"),
        PETER[:-1],
        PETER[:-4],
        PETER + "AAAA",
        PETER.replace("+ARpc", "+ASpc"),
        PETER.replace("+ARpc", "+BRpc"),
        PETER.replace("/", "_"),
        PETER.replace("+", " "),
        PETER_PRIVATE,
        f"{PETER}\n{ENOCH}",
    ],
)
def test_what_is_no_verifier_key_is_refused(text: str) -> None:
    with pytest.raises(NoteError) as caught:
        VerifierKey.parse(text)
    assert isinstance(caught.value, LedgerError)


@pytest.mark.parametrize(
    "text",
    [
        "",
        PETER,
        PETER_PRIVATE.replace("c74f20a3", "c74f20a4"),
        PETER_PRIVATE.replace("PRIVATE", "PUBLIC"),
        PETER_PRIVATE.replace("PeterNeumann", "PeterNeumanm"),
        PETER_PRIVATE[:-4],
        PETER_PRIVATE[:-2] + "x",
        PETER_PRIVATE.replace("+AYEK", "+AZEK"),
    ],
)
def test_what_is_no_private_key_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(NoteError) as caught:
        SignerKey.parse(text)
    assert "FALVFGyNh" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "a\u2003b"])
def test_a_key_needs_a_name(name: str) -> None:
    with pytest.raises(NoteError, match="no name for a key"):
        SignerKey.new(name)


@pytest.mark.parametrize(
    "note",
    [
        "",
        "\n",
        "\n\n",
        TEXT,
        TEXT + BY_PETER,
        f"{TEXT}\n",
        f"{TEXT}\n{BY_PETER[:-1]}",
        f"{TEXT}\n{BY_PETER}\n",
        f"{TEXT}\n{BY_PETER}more\n",
        f"{TEXT}\n{BY_PETER.replace('—', '-')}",
        f"{TEXT}\n{BY_PETER.replace('— ', '—')}",
        f"{TEXT}\n{BY_PETER.replace('PeterNeumann ', '')}",
        f"{TEXT}\n{BY_PETER.replace(' x08', '  x08')}",
        f"{TEXT}\n{BY_PETER.replace('=', '')}",
        f"{TEXT}\n— PeterNeumann AAAA\n",
        f"{TEXT}\n— PeterNeumann x08go/==\n",
        f"a\0b\n\n{BY_PETER}",
        f"a\tb\n\n{BY_PETER}",
        f"a\rb\n\n{BY_PETER}",
        f"{'x' * MAX_NOTE}\n\n{BY_PETER}",
    ],
)
def test_what_is_no_note_is_refused(note: str) -> None:
    with pytest.raises(NoteError):
        Note.parse(note)


def test_a_signature_counts_for_its_text_and_its_key_alone() -> None:
    peter, enoch = VerifierKey.parse(PETER), VerifierKey.parse(ENOCH)
    right = Note.parse(f"{TEXT}\n{BY_PETER}")
    assert right.is_signed_by(peter)
    assert not right.is_signed_by(enoch)
    assert not Note.parse(f"{TEXT}\n{BY_ENOCH}").is_signed_by(peter)
    for text in (TEXT.upper(), f" {TEXT}", f"{TEXT}\n", f"{TEXT}x\n", "x\n"):
        assert not Note.parse(f"{text}\n{BY_PETER}").is_signed_by(peter)
    # By the same key under another name, and another's under this name and id.
    assert not right.is_signed_by(VerifierKey("Peter", peter.public))
    forged = BY_ENOCH.replace("EnochRoot rwz+eA", "PeterNeumann x08goz")
    assert not Note.parse(f"{TEXT}\n{forged}").is_signed_by(peter)
    # Two signatures of one key: which of them is meant?
    assert not Note.parse(f"{TEXT}\n{BY_PETER}{BY_PETER}").is_signed_by(peter)


@settings(max_examples=300)
@given(st.integers(0, len(f"{TEXT}\n{BY_PETER}") - 1), st.characters())
def test_no_changed_note_is_signed(at: int, char: str) -> None:
    whole = f"{TEXT}\n{BY_PETER}"
    changed = whole[:at] + char + whole[at + 1 :]
    try:
        note = Note.parse(changed)
    except NoteError:
        return
    if note.is_signed_by(VerifierKey.parse(PETER)):
        # Base64 has bits at its end that say nothing.
        assert (note.text, note.signatures) == (TEXT, Note.parse(whole).signatures)


@settings(max_examples=300)
@given(st.text(max_size=200))
def test_no_text_is_more_than_no_note(text: str) -> None:
    for read in (Note.parse, Commitment.parse, VerifierKey.parse, SignerKey.parse):
        for each in (text, f"{text}\n\n{BY_PETER}", f"x\n1\n{text}\n", f"x+{text}", f"PRIVATE+KEY+{text}"):
            try:
                read(each)
            except NoteError:
                continue


# Checkpoints


@given(
    st.text(st.characters(exclude_categories=["Cc", "Cs", "Z"], exclude_characters="+"), min_size=1, max_size=30),
    st.integers(0, 10**18 - 1),
    st.binary(min_size=32, max_size=32),
    st.lists(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20), max_size=3),
)
def test_a_commitment_comes_back_signed(name: str, size: int, root: bytes, extensions: list[str]) -> None:
    key = SignerKey(name, b"\1" * 32)
    commitment = Commitment(name, size, root, tuple(extensions))
    assert Commitment.parse(commitment.text()) == commitment
    assert read_commitment(key.sign(commitment.text()), [key.verifier]) == (commitment, key.verifier)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x\n",
        "x\n1\n",
        "\n1\n{root}\n",
        "x\n\n{root}\n",
        "x\n01\n{root}\n",
        "x\n+1\n{root}\n",
        "x\n-1\n{root}\n",
        "x\n1 \n{root}\n",
        "x\n١\n{root}\n",
        "x\n1e3\n{root}\n",
        "x\n1000000000000000000\n{root}\n",
        "x\n1\n{root}",
        "x\n1\n{root}\n\n",
        "x\n1\n{root}\n\nmore\n",
        "x\n1\n{root}AAAA\n",
        "x\n1\nAAAA\n",
        "x\n1\n\n",
    ],
)
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(NoteError, match="no checkpoint"):
        Commitment.parse(text.format(root=base64.b64encode(b"\1" * 32).decode()))


def test_a_commitment_is_believed_of_its_own_key_alone() -> None:
    name = origin_of("0192-a")
    assert name == "otledger/0192-a"
    key, other = SignerKey.new(name), SignerKey.new(origin_of("0192-b"))
    text = Commitment(name, 5, b"\1" * 32).text()
    assert read_commitment(key.sign(text), [other.verifier, key.verifier])[1] == key.verifier
    with pytest.raises(NoteError, match=f"is not signed by the key given, but by {key.verifier.id.hex()}"):
        read_commitment(key.sign(text), [other.verifier])
    with pytest.raises(NoteError, match="not signed"):
        read_commitment(key.sign(text), [])
    with pytest.raises(NoteError, match="has signed for another origin"):
        read_commitment(other.sign(text), [other.verifier])
    with pytest.raises(NoteError, match="no checkpoint"):
        read_commitment(key.sign("hello\n"), [key.verifier])


@pytest.mark.parametrize("text", ["x", "x\0\n", "x\ty\n", ""])
def test_what_could_not_be_read_is_not_signed(text: str) -> None:
    with pytest.raises(NoteError):
        SignerKey.new("x").sign(text)
