from __future__ import annotations

import hashlib
import http.server
import json
import threading

import pytest
import tiny_squad
from toolchain.models import squad

from toolchain.errors import DatasetError


def written(characters):
    """Return the word that a row of bytes plus one stands for."""
    return bytes(int(byte) - 1 for byte in characters if byte).decode()


def test_words_are_runs_of_letters_and_digits_or_single_marks_with_their_places():
    text = "It's the 18th_of May,\n1999—Née."
    found = [text[start:end] for start, end in squad.tokenize(text)]
    assert found == ["It", "'", "s", "the", "18th", "_", "of", "May", ",", "1999", "—", "Née", "."]


def test_without_a_training_file_the_development_file_is_split_by_article_and_says_so(tmp_path):
    corpus = squad.load_squad(folder=tiny_squad.write(tmp_path, dev=16))
    assert "dev-v1.1.json alone, split by article (12 + 2 + 2): not the published split" in corpus.origin
    articles = [{q.identifier.partition("-")[0] for q in part} for part in (corpus.train, corpus.valid, corpus.test)]
    assert articles == [{str(i) for i in range(12)}, {"12", "13"}, {"14", "15"}]


def test_with_a_training_file_the_development_file_is_the_test(tmp_path):
    corpus = squad.load_squad(folder=tiny_squad.write(tmp_path, dev=2, train=16))
    dev = squad.load_squad(folder=tiny_squad.write(tmp_path / "dev", dev=8)).train
    assert {q.identifier for q in corpus.test} <= {q.identifier for q in dev}
    assert len({q.identifier.partition("-")[0] for q in corpus.valid}) == 2
    assert corpus.origin.startswith("SQuAD 1.1")
    assert "the files are not the published ones" in corpus.origin


def test_a_gold_answer_is_a_span_of_words_of_the_original_text(tmp_path):
    corpus = squad.load_squad(folder=tiny_squad.write(tmp_path))
    for question in (*corpus.train, *corpus.valid, *corpus.test):
        assert question.paragraph.span(question.first, question.last) == question.answers[0]
    assert any(question.last > question.first for question in corpus.train)  # New York


def test_an_answer_that_ends_inside_a_word_takes_the_whole_word(tmp_path):
    answers = [{"text": "ven ki", "answer_start": 10}]
    paragraph = {"context": "Once ele-even kings.", "qas": [{"id": "q", "question": "Who?", "answers": answers}]}
    content = {"data": [{"paragraphs": [paragraph]} for _ in range(3)]}
    (tmp_path / "dev-v1.1.json").write_text(json.dumps(content))
    (question,) = squad.load_squad(folder=tmp_path).train
    assert question.paragraph.span(question.first, question.last) == "even kings"


def test_a_network_sees_numbers_of_lower_case_words_and_bytes_of_the_written_ones(tmp_path):
    corpus = squad.load_squad(folder=tiny_squad.write(tmp_path))
    feeds = corpus.feeds(corpus.train[:3])
    question, characters = feeds["question"][:, 0], feeds["question_characters"][:, 0]
    words = [corpus.vocabulary[number] for number in question]
    person = corpus.train[0].identifier.split("-")[-1]
    assert words == ["where", "does", person.lower(), "live", "?"]
    assert written(characters[2]) == person
    lengths = [len(q.paragraph.forms) for q in corpus.train[:3]]
    assert feeds["paragraph"].shape == (max(lengths), 3)
    assert [(column > 0).sum() for column in feeds["paragraph"].T] == lengths


def test_the_vocabulary_is_counted_on_the_training_articles_and_can_be_cut(tmp_path):
    folder = tiny_squad.write(tmp_path)
    path = folder / "dev-v1.1.json"
    content = json.loads(path.read_text())
    content["data"][-1]["paragraphs"][0]["context"] += " Zebras."
    path.write_text(json.dumps(content))
    corpus = squad.load_squad(folder=folder)
    assert corpus.vocabulary[:2] == ("<pad>", "<unk>")
    assert "zebras" not in corpus.vocabulary
    last = corpus.test[0].paragraph.forms
    assert corpus.words[last][-2] == 1
    assert written(corpus.characters[last[-2]]) == "Zebras"
    assert len(squad.load_squad(folder=folder, vocabulary_size=3).vocabulary) == 5


def test_words_longer_than_the_table_of_bytes_are_cut(tmp_path):
    content = {"data": tiny_squad.articles(3)}
    content["data"][0]["paragraphs"][0]["context"] += " " + "é" * 20
    (tmp_path / "dev-v1.1.json").write_text(json.dumps(content))
    corpus = squad.load_squad(folder=tmp_path)
    longest = corpus.train[0].paragraph.forms[-1]
    assert written(corpus.characters[longest]) == "é" * 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: "no json", "dev-v1.1.json: not what SQuAD 1.1 is .*Download it again"),
        (lambda c: {"articles": []}, "dev-v1.1.json: not what SQuAD 1.1 is .KeyError: 'data'"),
        (lambda c: [1], "dev-v1.1.json: not what SQuAD 1.1 is"),
        (lambda c: {"data": c["data"][:2]}, "too few articles to split; expected at least 3"),
        (lambda c: _edit(c, "qas", None), "paragraph .*: not what SQuAD 1.1 is"),
        (lambda c: _question(c, "answers", []), "question 0-0-.*: 5 words and 0 answers; .*version 1.1"),
        (lambda c: _question(c, "question", " "), "question 0-0-.*: 0 words and 2 answers"),
        (lambda c: _question(c, "answers", [{"text": "Rome", "answer_start": -3}]), "is not at character -3"),
        (lambda c: _question(c, "answers", [{"text": " ", "answer_start": 4}]), "is not at character 4"),
        (lambda c: _question(c, "answers", [{"text": "Rome"}]), "paragraph .*KeyError: 'answer_start'"),
        (lambda c: {"data": [*c["data"][:2], {"paragraphs": []}]}, "a part without questions"),
    ],
)
def test_damaged_data_is_one_clear_line(tmp_path, change, message):
    content = change({"data": tiny_squad.articles(3)})
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "dev-v1.1.json").write_text(text)
    with pytest.raises(DatasetError, match=message) as raised:
        squad.load_squad(folder=tmp_path)
    assert "\n" not in str(raised.value)


def _edit(content, key, value):
    content["data"][0]["paragraphs"][0][key] = value
    return content


def _question(content, key, value):
    content["data"][0]["paragraphs"][0]["qas"][0][key] = value
    return content


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"dev-v1.1.json: cannot be read \(No such file .*leave it out to download"):
        squad.load_squad(folder=tmp_path)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve a small data set in place of the real one."""
    pooch = pytest.importorskip("pooch")
    source = tiny_squad.write(tmp_path / "served", train=16)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, directory=str(source), **options)

        def log_message(self, *_):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    monkeypatch.setattr(squad, "_URL", f"http://127.0.0.1:{running.server_port}/")
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache")
    yield source
    running.shutdown()
    running.server_close()


def test_both_files_are_downloaded_and_verified(server, monkeypatch):
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in server.iterdir()}
    monkeypatch.setattr(squad, "_SHA256", digests)
    corpus = squad.load_squad()
    assert corpus.origin == "SQuAD 1.1"
    assert len({question.identifier.partition("-")[0] for question in corpus.train}) == 14


def test_a_download_with_a_wrong_checksum_is_refused(server):
    with pytest.raises(DatasetError, match=r"train-v1.1.json: the download failed .*pass `--data DIR`"):
        squad.load_squad()
