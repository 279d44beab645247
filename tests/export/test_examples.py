import json

import pytest

from iblip.export.errors import InputError
from iblip.export.examples import EXAMPLES, read_examples


def write(directory, rows):
    lines = (json.dumps(row) for row in rows)
    (directory / EXAMPLES).write_text("\n".join(lines), encoding="utf-8")


def row(number):
    return {"id": number, "image": f"{number}.png", "prompt": "What is it?", "answer": "a 7"}


def test_a_limit_is_spread_over_the_whole_file(tmp_path):
    write(tmp_path, [row(number) for number in range(100)])
    assert [e.name for e in read_examples(tmp_path, limit=4)] == ["0", "33", "66", "99"]


def test_images_lie_beside_the_file(tmp_path):
    write(tmp_path, [row(1)])
    (example,) = read_examples(tmp_path)
    assert example.image == tmp_path / "1.png"
    assert example.is_right(" a 7\n")
    assert not example.is_right("A 7")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no"),
        ("", "is empty"),
        ("{", "is malformed"),
        ('{"id": 1}', r"is malformed: line 1 has no 'image'\. Expected a JSON object a line"),
        ("[1]", "is malformed"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path, text, message):
    if text is not None:
        (tmp_path / EXAMPLES).write_text(text)
    with pytest.raises(InputError, match=message):
        read_examples(tmp_path)
