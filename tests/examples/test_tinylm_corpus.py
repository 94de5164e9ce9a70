"""examples/tinylm/corpus.py: what is trained on, and what is held out."""

from __future__ import annotations

import corpus
import pytest


@pytest.fixture
def library(tmp_path):
    """A library of 60 files, which is enough for every split to have some."""
    for number in range(60):
        (tmp_path / f"module{number}.py").write_bytes(b"x = %d\r\n" % number)
    return tmp_path


def test_every_file_is_in_one_split(library):
    texts = corpus.read(library)
    files = [file for text in texts.values() for file in text.split(b"\0")[1:]]
    assert sorted(files) == sorted(b"x = %d\n" % number for number in range(60))
    assert len(texts["train"]) > len(texts["validation"]) + len(texts["test"])


def test_the_split_depends_on_the_path_alone(library):
    before = corpus.read(library)
    for path in library.glob("*.py"):
        path.write_bytes(path.read_bytes().replace(b"x", b"y"))
    (library / "newcomer.py").write_bytes(b"z = 0\n")
    after = corpus.read(library)
    after[corpus.split_of("newcomer.py")] = after[corpus.split_of("newcomer.py")].replace(b"\0z = 0\n", b"")
    assert after == {split: text.replace(b"x", b"y") for split, text in before.items()}
    assert corpus.split_of("textwrap.py") == "test"  # other tests measure the committed weights on it


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("test/secret.py", b"secret"),
        ("package/tests/deep/secret.py", b"secret"),
        ("site-packages/secret.py", b"secret"),
        ("encodings/secret.py", b"secret"),
        ("_sysconfigdata__linux.py", b"secret"),
        ("latin.py", b"secret \xe9"),  # not UTF-8
        ("binary.py", b"secret \0"),  # holds the byte that separates files
        ("secret.txt", b"secret"),
    ],
)
def test_what_is_no_library_source_is_left_out(library, name, text):
    (library / name).parent.mkdir(parents=True, exist_ok=True)
    (library / name).write_bytes(text)
    assert not any(b"secret" in split for split in corpus.read(library).values())


def test_a_library_without_source_is_an_error(tmp_path):
    (tmp_path / "module.pyc").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="has no .py files"):
        corpus.read(tmp_path)
