"""Worked by hand from the official definition: evaluate-v1.1.py of Rajpurkar et al."""

from __future__ import annotations

import numpy as np
import pytest
from toolchain.models.squad import Paragraph, Question
from toolchain.models.squad_scores import MAX_ANSWER_WORDS, best_spans, exact_match, f1, normalise, score


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Denver Broncos!", "denver broncos"),
        ("an apple, a day", "apple day"),
        ("U.S.", "us"),
        ("theatre", "theatre"),  # an article is a word of its own
        ("a-b", "ab"),  # punctuation goes before articles do, so this `a` is none
        ("The", ""),
        ("— dash", "— dash"),  # punctuation is ASCII's
    ],
)
def test_answers_are_normalised_as_the_official_script_does(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("prediction", "gold", "em", "overlap"),
    [
        ("the Broncos", "Broncos", 1.0, 1.0),
        ("Denver Broncos", "Broncos", 0.0, 2 / 3),  # precision 1/2, recall 1
        ("in the city of New York", "New York City", 0.0, 0.75),  # in city of new york: 3 of 5, 3 of 3
        ("to be or not to be", "to be", 0.0, 0.5),  # a bag counts: 2 of 6, 2 of 2
        ("1998", "1999", 0.0, 0.0),
        ("", "x", 0.0, 0.0),
        ("the", "a", 1.0, 0.0),  # both empty: equal, and no word in common
    ],
)
def test_exact_match_and_f1_of_one_answer(prediction, gold, em, overlap):
    assert exact_match(prediction, gold) == em
    assert f1(prediction, gold) == pytest.approx(overlap)


def question(identifier, *answers):
    empty = Paragraph(text="", offsets=np.zeros((0, 2), np.int32), forms=np.zeros(0, np.int32))
    return Question(identifier=identifier, paragraph=empty, forms=empty.forms, answers=answers, first=0, last=0)


def test_a_question_scores_the_best_over_its_gold_answers():
    scores = score({"q": "Denver Broncos"}, [question("q", "Broncos", "the Denver Broncos", "Denver")])
    assert (scores.exact_match, scores.f1) == (100.0, 100.0)


def test_a_missing_prediction_scores_zero():
    scores = score({"q": "Rome"}, [question("q", "Rome"), question("other", "Paris")])
    assert (scores.exact_match, scores.f1) == (50.0, 50.0)


def test_the_likeliest_span_ends_at_or_after_its_first_word_and_before_padding():
    start = np.array([[0.0, 1.0], [5.0, 0.0], [1.0, 9.0]], np.float32)  # [T, B]
    end = np.array([[9.0, 0.0], [0.0, 2.0], [2.0, 9.0]], np.float32)
    assert best_spans(start, end, [3, 2]) == [(0, 0), (0, 1)]  # 0 + 9 beats 5 + 2; 5 + 9 would end before it begins


def test_a_span_is_no_longer_than_answers_are():
    start, end = np.zeros((2, 60, 1), np.float32)
    start[3], end[50], end[10] = 5.0, 5.0, 1.0
    ((first, last),) = best_spans(start, end, [60])
    assert (first, last) == (3, 10)
    assert last - first < MAX_ANSWER_WORDS
