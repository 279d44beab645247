"""What a run reads: folders, JSONL, CSV, tars and Parquet, row by row."""

from __future__ import annotations

import io
import json
import tarfile

import pytest

from iblip.export.errors import InputError, OptionError
from iblip.serving.bulk.rows import BulkRow, Shard, _of_folder, key_of, prompts_of, read_rows


def rows_of(path):
    return list(read_rows(path))


def test_a_folder_is_its_images_in_their_order_whatever_else_is_there(tmp_path):
    for name in ("b/2.PNG", "b/10.jpg", "a.webp", "notes.txt", "b/c/x.tiff"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    rows = rows_of(tmp_path)
    assert [row.id for row in rows] == ["a.webp", "b/10.jpg", "b/2.PNG", "b/c/x.tiff"]
    assert rows[1] == BulkRow(id="b/10.jpg", image=tmp_path / "b" / "10.jpg")
    assert read_rows(tmp_path).is_cheap


def test_jsonl_has_what_a_row_says_and_a_bad_line_is_a_row_too(tmp_path):
    lines = [
        {"image": "a.png"},
        {"image": ["a.png", "/b.png"], "prompt": ["What?", "Why?"], "id": 7, "label": "cat"},
        {"image": "data:image/png;base64,AA", "prompt": "What?", "options": {"n": 2}},
        "",
        "{",
        [1],
        {"prompt": "What?"},
        {"image": "c.png", "prompt": 3, "id": "c"},
    ]
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    first, second, third, *bad = rows_of(path)
    assert first == BulkRow(id="a.png", image=tmp_path / "a.png")
    assert (second.id, second.prompts) == ("7", ("What?", "Why?"))
    assert list(map(str, second.image)) == [str(tmp_path / "a.png"), "/b.png"]
    assert (third.image, third.options) == ("data:image/png;base64,AA", {"n": 2})
    assert [row.id for row in bad] == ["line 5", "line 6", "line 7", "c"]
    assert [str(row.fault).split(";")[0] for row in bad[1:]] == [
        "line 6 is not a JSON object: it is a list",
        "line 7: its image is None",
        "line 8: its prompt is 3",
    ]


@pytest.mark.parametrize(("name", "comma"), [("rows.csv", ","), ("rows.tsv", "\t")])
def test_csv_has_a_header(tmp_path, name, comma):
    path = tmp_path / name
    quoted = '"Is it red, or\nblue?"'
    lines = [["image", "prompt", "other"], ["a.png", quoted, "1"], ["b.png", "", "2"]]
    path.write_text("\ufeff" + "\n".join(comma.join(line) for line in lines))
    first, second = rows_of(path)
    assert (first.id, first.prompts) == ("a.png", ("Is it red, or\nblue?",))
    assert (second.image, second.prompts) == (tmp_path / "b.png", ())
    path.write_text("picture\na.png\n")
    with pytest.raises(InputError, match="has the columns picture; expected image"):
        rows_of(path)


def add(archive, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("name", ["rows.tar", "rows.tar.gz"])
def test_a_webdataset_is_samples_of_files_of_one_name(tmp_path, name):
    path = tmp_path / name
    with tarfile.open(path, "w:gz" if name.endswith("gz") else "w") as archive:
        add(archive, "x/1.jpg", b"one")
        add(archive, "x/1.json", b'{"prompt": "What?", "width": 3}')
        add(archive, "x/1.txt", b"a caption")
        add(archive, "2.left.png", b"left")
        add(archive, "2.right.png", b"right")
        add(archive, "2.prompt.txt", b"Which?\n")
        add(archive, "3.txt", b"no image")
        add(archive, "4.jpg", b"four")
        add(archive, "4.json", b"[")
    first, second, third, fourth = rows_of(path)
    assert first == BulkRow(id="x/1", image=b"one", prompts=("What?",))
    assert second == BulkRow(id="2", image=[b"left", b"right"], prompts=("Which?",))
    assert "3: its image is None" in str(third.fault)
    assert "4 is not a JSON object" in str(fourth.fault)
    assert not read_rows(path).is_cheap


def test_a_tar_that_is_cut_off_is_said(tmp_path):
    path = tmp_path / "rows.tar"
    with tarfile.open(path, "w") as archive:
        add(archive, "1.jpg", b"x" * 5000)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"rows\.tar is not a tar, or is cut off"):
        rows_of(path)


def test_parquet_has_images_as_bytes_or_as_hugging_face_writes_them(tmp_path):
    reason = "pyarrow is not installed, or needs numpy 2"
    pa = pytest.importorskip("pyarrow", reason=reason, exc_type=ImportError)
    parquet = pytest.importorskip("pyarrow.parquet", reason=reason, exc_type=ImportError)
    path = tmp_path / "rows.parquet"
    struct = {"bytes": b"one", "path": "one.jpg"}
    table = pa.table({"image": [struct, None], "id": ["a", None], "label": [1, 2]})
    parquet.write_table(table, path)
    first, second = rows_of(path)
    assert first == BulkRow(id="a", image=b"one")
    assert (second.id, "its image is None" in str(second.fault)) == ("row 2", True)
    parquet.write_table(pa.table({"image": [b"x"] * 200, "prompt": ["Why?"] * 200}), path)
    assert [row.id for row in rows_of(path)] == [f"row {number}" for number in range(1, 201)]
    parquet.write_table(pa.table({"picture": [b"x"]}), path)
    with pytest.raises(InputError, match="has the columns picture; expected image"):
        rows_of(path)


def test_an_input_of_another_kind_is_refused(tmp_path):
    (tmp_path / "rows.xml").write_text("")
    with pytest.raises(InputError, match=r"is none of \.jsonl, .* nor a folder of images"):
        read_rows(tmp_path / "rows.xml")
    with pytest.raises(InputError, match="there is no folder or file"):
        read_rows(tmp_path / "nothing")


def test_shards_part_the_rows_by_their_ids():
    rows = [BulkRow(id=f"{number}.jpg") for number in range(1000)]
    parts = [[row.id for row in rows if Shard.parse(f"{i}/4").has(row)] for i in range(1, 5)]
    assert sorted(one for part in parts for one in part) == sorted(row.id for row in rows)
    assert all(200 < len(part) < 300 for part in parts)
    for text in ("0/4", "5/4", "1", "a/4", "1/0"):
        with pytest.raises(OptionError, match="shard"):
            Shard.parse(text)


def test_a_rows_own_prompts_come_before_those_of_all():
    assert prompts_of(BulkRow(id="a", prompts=("Own?",)), ["All?"]) == ("Own?",)
    assert prompts_of(BulkRow(id="a"), ["All?", "Too?"]) == ("All?", "Too?")
    assert len({key_of("a", "b"), key_of("ab", ""), key_of("", "ab"), key_of("b", "a")}) == 4


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("latin.csv", b"image,prompt\na.png,na\xefve\n", r"latin\.csv is not UTF-8; save it"),
        ("cut.tgz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x01", r"cut\.tgz is not a tar"),
    ],
)
def test_a_file_that_is_damaged_is_said(tmp_path, name, content, match):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=match):
        rows_of(path)


def test_csv_may_have_images_of_any_length(tmp_path):
    path = tmp_path / "rows.csv"
    image = "data:image/png;base64," + "A" * 300_000
    path.write_text(f'image,prompt\n"{image}",What?\n')
    assert rows_of(path) == [BulkRow(id="line 2", image=image, prompts=("What?",))]


def test_a_folder_that_cannot_be_read_is_said(tmp_path):
    with pytest.raises(InputError, match="nowhere cannot be read"):
        list(_of_folder(tmp_path / "nowhere"))


def test_an_id_that_is_not_unicode_has_a_shard():
    row = BulkRow(id="\udcff.png")
    assert sum(Shard(index=index, count=3).has(row) for index in (1, 2, 3)) == 1
