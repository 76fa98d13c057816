"""Tables of multiple-choice questions: what a row asks, and what is wrong with one."""

import base64
import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynllava_jax.cli.main import main
from dynllava_jax.cli.question_table import is_table, read_table
from dynllava_jax.demo.pictures import sample
from dynllava_jax.errors import InputError
from tests.cli.test_generate import KEYS

TITLES = ["index", "question", "hint", "A", "B", "C", "D", "answer", "image"]
LINES = st.text(st.characters(exclude_characters="\r"))
"""A file that is read as text has no carriage returns left."""
PICTURE = base64.b64encode(b"a picture").decode()


def table(*rows: list[str], titles: list[str] = TITLES) -> str:
    return "".join("\t".join(row) + "\n" for row in [titles, *rows])


def asked(text: str) -> list:
    assert is_table(text)
    return [question for _, question in read_table(text)]


def test_a_question_is_asked_as_llava_asks_it() -> None:
    rows = [
        ["241", "Which?", "A hint.", "one", "two", "nan", "four", "A", PICTURE],
        ["1000241", '"Two\nlines, ""quoted"""', "", "1", "NA", "", "", "A", "241"],
        ["x", "Say it.", "None", "", "", "", "", "", ""],
    ]
    assert asked(table(*rows)) == [
        {
            "question_id": 241,
            "text": "A hint.\nWhich?\nA. one\nB. two",
            "options": ["one", "two"],
            "option_char": ["A", "B"],
            "image": b"a picture",
        },
        {
            "question_id": 1000241,
            "text": 'Two\nlines, "quoted"\nA. 1',
            "options": ["1"],
            "option_char": ["A"],
            "image": b"a picture",
        },
        {"question_id": "x", "text": "Say it."},
    ]


def test_what_is_wrong_with_a_row_is_said_in_its_place() -> None:
    good = ["1", "Which?", "", "one", "two", "", "", "A", PICTURE]
    rows = [good, [*good, "more"], good[:3], [*good[:-1], "$$"], []]
    places = list(read_table(table(*rows)))
    assert [where for where, _ in places] == ["row 1", "row 2", "row 3", "row 4"]
    told = [str(question) for _, question in places if isinstance(question, InputError)]
    assert told == [
        "has 10 cells, where the first line has 9.",
        "has 3 cells, where the first line has 9.",
        "has a picture that is no base64: '$$'.",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("index\tquestion\tA\n1\tWhich?\tone\n", "without the column image"),
        ('index\tquestion\timage\n1\t"Which?\t\n2\tWho?\t\n', "is no table: unexpected end of data"),
    ],
)
def test_what_is_no_table_of_questions(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        list(read_table(text))


def test_json_lines_are_no_table() -> None:
    assert not is_table('{"question":\t"What?"}\n{"question": "a\tb"}\n')
    assert not is_table('[\t{"id": 4}]')
    assert not is_table("")


def test_the_longest_cell_of_others_stays_what_it_was() -> None:
    before = csv.field_size_limit()
    picture = base64.b64encode(bytes(200_000)).decode()
    (question,) = asked(table(["1", "Which?", "", "", "", "", "", "", picture]))
    assert question["image"] == bytes(200_000)
    assert csv.field_size_limit() == before


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0), LINES.filter(str.strip), st.binary(min_size=1)), min_size=1))
def test_nothing_of_a_written_table_is_lost(rows: list[tuple[int, str, bytes]]) -> None:
    written = io.StringIO()
    writer = csv.writer(written, delimiter="\t", lineterminator="\n")
    writer.writerow(["index", "question", "image"])
    writer.writerows([index, text, base64.b64encode(picture).decode()] for index, text, picture in rows)
    read = [(each["question_id"], each["text"], each["image"]) for each in asked(written.getvalue())]
    assert read == rows


@pytest.mark.usefixtures("one_load")
def test_answers_have_what_the_submission_needs(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "mmbench.tsv", tmp_path / "answers.jsonl"
    picture = base64.b64encode(sample("cat").path.read_bytes()).decode()
    pictures = {"7": picture, "8": "7", "9": PICTURE}
    rows = [[index, "Which?", "", "one", "two", "", "", "A", image] for index, image in pictures.items()]
    file.write_text(table(*rows))
    command = [
        "generate",
        "--model",
        str(checkpoint),
        "--batch",
        str(file),
        "--suffix",
        "A letter.",
        "--json",
        str(out),
    ]
    assert main([*command, "--max-new-tokens", "2"]) == 2
    assert "The image of 9 bytes" in capsys.readouterr().err
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    more = {"question_id": 8, "prompt": "Which?\nA. one\nB. two\nA letter.", "options": ["one", "two"]}
    more |= {"option_char": ["A", "B"]}
    assert [set(answer) for answer in answers] == [KEYS | more.keys()] * 2 + [{"error", *more}]
    assert answers[1].items() >= more.items()
    assert answers[0]["token_ids"] == answers[1]["token_ids"]
