from __future__ import annotations

import hashlib
import http.server
import sys
import threading

import numpy as np
import pooch
import pytest
from toolchain.models import benchmark_texts, python_docs, text, words

from toolchain.errors import DatasetError


@pytest.fixture(scope="module")
def documents():
    return python_docs.python_documents()


@pytest.fixture
def read_once(documents, monkeypatch):
    monkeypatch.setattr(text, "python_documents", lambda: documents)


@pytest.fixture
def pydocs(read_once):
    return text.load_corpus("pydocs", vocabulary_size=8000)


def test_the_embedded_text_is_large_and_real(pydocs):
    total = len(pydocs.train) + len(pydocs.valid) + len(pydocs.test)
    assert 300_000 < total < 900_000
    assert len(pydocs.vocabulary) == 8001
    assert len(pydocs.train) / total == pytest.approx(0.90, abs=0.02)
    assert len(pydocs.valid) / total == pytest.approx(0.05, abs=0.02)
    words = [pydocs.vocabulary[i] for i in pydocs.train]
    assert "the" in words
    assert "iterable" in words
    assert f"{sys.version_info[0]}.{sys.version_info[1]}" in pydocs.origin


def test_reading_the_documentation_imports_nothing(pydocs):
    assert not {"this", "antigravity", "turtle"} & set(sys.modules)


def test_the_same_seed_gives_the_same_text_and_another_seed_another_order(read_once):
    first, again = (text.load_corpus("pydocs", max_tokens=20_000, seed=3) for _ in range(2))
    other = text.load_corpus("pydocs", max_tokens=20_000, seed=4)
    assert first.vocabulary_hash == again.vocabulary_hash
    np.testing.assert_array_equal(first.train, again.train)
    assert first.vocabulary_hash != other.vocabulary_hash
    assert len(first.train) + len(first.valid) + len(first.test) < 60_000


def test_whole_documents_are_dealt_out():
    documents = [[f"d{i}"] * 10 for i in range(100)]
    splits = text._split_documents(documents)
    assert [len(split) for split in splits] == [900, 50, 50]
    assert len(set(splits[0]) | set(splits[1]) | set(splits[2])) == 100
    assert not set(splits[0]) & set(splits[1])


def test_words_numbers_and_marks_are_tokens():
    assert words.tokenize("It's 2x_faster.\n\n  Née 10") == [
        *("it", "'", "s", "2", "x", "_", "faster", ".", "<eos>"),
        *("née", "10", "<eos>"),
    ]


def test_the_vocabulary_is_counted_on_the_training_part_only(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("b b a " * 30 + "zebra")
    corpus = text.load_corpus("text", text=path)
    assert corpus.vocabulary == ("<unk>", "b", "a")
    assert corpus.test[-2] == 0
    assert text.load_corpus("text", text=path, vocabulary_size=1).vocabulary == ("<unk>", "b")


def test_columns_are_read_from_top_to_bottom():
    np.testing.assert_array_equal(text.batch_columns(np.arange(7, dtype=np.int32), 3), [[0, 2, 4], [1, 3, 5]])
    with pytest.raises(DatasetError, match=r"5 tokens cannot fill 3 columns of two; expected at least 6"):
        text.batch_columns(np.arange(5, dtype=np.int32), 3)


@pytest.mark.parametrize("content", ["", "word", "word " * 500])
def test_a_text_with_one_word_is_refused(tmp_path, content):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(DatasetError, match=r"a.txt: .* expected at least two different words.*longer text"):
        text.load_corpus("text", text=tmp_path / "a.txt")


def test_a_text_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"latin.txt: not UTF-8 at byte 2"):
        text.load_corpus("text", text=tmp_path / "latin.txt")
    with pytest.raises(DatasetError, match=r"gone.txt: cannot be read \(No such file"):
        text.load_corpus("text", text=tmp_path / "gone.txt")
    with pytest.raises(DatasetError, match=r"cannot be read \(Is a directory"):
        text.load_corpus("text", text=tmp_path)
    with pytest.raises(DatasetError, match=r"Pass `--text FILE`"):
        text.load_corpus("text")


def treebank(folder, monkeypatch):
    """Write a small treebank and make its checksums the expected ones."""
    digests = {}
    for name in ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"):
        content = " the <unk> of N \n a <unk> of N \n"
        (folder / name).write_text(content)
        digests[name] = hashlib.sha256(content.encode()).hexdigest()
    monkeypatch.setattr(benchmark_texts, "PTB_SHA256", digests)


def test_a_treebank_line_ends_with_eos_and_unk_is_word_0(tmp_path, monkeypatch):
    treebank(tmp_path, monkeypatch)
    corpus = text.load_corpus("ptb", folder=tmp_path)
    assert [corpus.vocabulary[i] for i in corpus.valid] == [
        "the",
        "<unk>",
        "of",
        "N",
        "<eos>",
        "a",
        "<unk>",
        "of",
        "N",
        "<eos>",
    ]
    assert corpus.valid[1] == 0


def test_a_folder_with_a_wrong_or_missing_file_is_refused(tmp_path, monkeypatch):
    treebank(tmp_path, monkeypatch)
    (tmp_path / "ptb.valid.txt").write_text("other")
    with pytest.raises(DatasetError, match=r"ptb.valid.txt: wrong checksum.*--text FILE"):
        text.load_corpus("ptb", folder=tmp_path)
    (tmp_path / "ptb.valid.txt").unlink()
    with pytest.raises(DatasetError, match=r"ptb.valid.txt: cannot be read .*Check `--data DIR`"):
        text.load_corpus("ptb", folder=tmp_path)
    with pytest.raises(DatasetError, match=r"wiki.train.tokens: cannot be read"):
        text.load_corpus("wikitext-2", folder=tmp_path)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine, in the place of the real one; `answers` maps a path to (length, body)."""
    answers: dict[str, tuple[int, bytes]] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            length, body = answers[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setattr(benchmark_texts, "_PTB_URL", f"http://127.0.0.1:{running.server_port}/")
        monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache")
        yield answers
        running.shutdown()


def test_a_download_is_verified_and_kept(server, tmp_path, monkeypatch):
    treebank(tmp_path, monkeypatch)
    for name in benchmark_texts.PTB_SHA256:
        body = (tmp_path / name).read_bytes()
        server[f"/{name}"] = (len(body), body)
    first = text.load_corpus("ptb")
    server.clear()  # whoever asks again gets a KeyError and no answer
    np.testing.assert_array_equal(text.load_corpus("ptb").train, first.train)


def test_an_interrupted_download_is_one_clear_error_and_leaves_nothing(server, tmp_path):
    server["/ptb.train.txt"] = (1000, b"only the beginn")
    with pytest.raises(DatasetError, match=r"the download failed .*Run the command again.*--data DIR") as error:
        text.load_corpus("ptb")
    assert "\n" not in str(error.value)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_download_with_a_wrong_checksum_is_refused_and_leaves_nothing(server, tmp_path):
    server["/ptb.train.txt"] = (7, b"another")
    with pytest.raises(DatasetError, match=r"ptb.train.txt: the download failed \(ValueError.*expected sha256:fcea"):
        text.load_corpus("ptb")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_an_unknown_corpus_is_named():
    with pytest.raises(DatasetError, match=r"brown: no such corpus; expected one of pydocs, ptb"):
        text.load_corpus("brown")


def test_no_paragraph_of_the_test_text_stands_in_the_training_text() -> None:
    corpus = text.load_corpus("pydocs")
    end = corpus.vocabulary.index("<eos>")

    def paragraphs(tokens: np.ndarray) -> set[tuple[int, ...]]:
        return {tuple(part.tolist()) for part in np.split(tokens, np.flatnonzero(tokens == end) + 1) if len(part)}

    train, test = paragraphs(corpus.train[:-1]), paragraphs(corpus.test[:-1])
    assert len(test) > 100
    assert not train & test
