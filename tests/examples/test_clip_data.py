"""Pairs as people have them: CSVs, folders and shards, and what makes two pairs one concept."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path

import clip_data
import clip_finetune
import pytest
from clip_data import Columns


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def captions(source: str, columns: Columns = clip_data.DETECTED) -> list[tuple[str, str]]:
    """Of every pair the name of its image and its caption."""
    return [(Path(p.place).name, p.caption) for p in clip_data.load(source, 32, None, columns)]


# -------------------------------------------------------------------------------------------------------------- CSVs
WANTED = [("a.png", "a cat, asleep"), ("b.png", "a dog")]


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ('image,caption\na.png,"a cat, asleep"\nb.png,a dog\n', Columns()),
        ("filepath\ttitle\na.png\ta cat, asleep\nb.png\ta dog\n", Columns()),
        ("caption;image\na cat, asleep;a.png\na dog;b.png\n", Columns()),
        ('filepath,title\r\na.png,"a cat,\r\nasleep"\r\n\r\nb.png,a dog\r\n', Columns()),
        ("title\timage\ncat\ta.png", Columns(separator="\t")),
        ("photo|text\na.png|a cat, asleep\nb.png|a dog\n", Columns("photo", "text", "|")),
        ("path\ttext\tcaption\na.png\ta cat, asleep\tx\nb.png\ta dog\tx\n", Columns("path", "text")),
        ('image\tcaption\na.png\ta "cat"', Columns()),
    ],
    ids=["default", "open_clip", "semicolons", "quoted line break", "separator", "options", "keys", "inner quotes"],
)
@pytest.mark.parametrize("mark", ["utf-8", "utf-8-sig"])
def test_a_csv_is_read_by_its_header_or_by_the_options(text: str, columns: Columns, mark: str, here: Path):
    (here / "pairs.csv").write_bytes(text.encode(mark))
    found = captions("csv:pairs.csv", columns)
    if len(found) == 1:
        assert found[0] in (("a.png", "cat"), ("a.png", 'a "cat"'))
    else:
        assert found == WANTED


def test_paths_are_relative_to_the_csv(here: Path):
    (here / "data").mkdir()
    (here / "data" / "pairs.csv").write_text(f"image,caption\nimages/a.png,a\n./images/../b.png,b\n{here}/c.png,c\n")
    places = [p.place for p in clip_data.load("csv:data/pairs.csv", 32, None)]
    assert places == [str(Path("data/images/a.png")), str(Path("data/b.png")), str(here / "c.png")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image,caption\na.png,a\nb.png,caf\xe9\n", r"pairs\.csv, line 3: 'utf-8' codec can't decode byte 0xe9"),
        (b"\xef\xbb\xbfimage,caption\na.png,\xff\n", r"pairs\.csv, line 2: 'utf-8' codec can't decode"),
        (b'image,caption\na.png,a\nb.png,"open\nc.png,c\n', r"pairs\.csv, line 3: .* is a quote open"),
        (b"photo,caption\na.png,a\n", r"no column image; it has \['photo', 'caption'\]; --csv-img-key"),
        (b"photo\ttext\na.png\ta\n", r"no column image and caption; it has \['photo', 'text'\]"),
        (b"image\tcaption\na.png\ta\tb\n", r"pairs\.csv, line 2: more fields than columns; quote"),
        (b"image,caption\na.png\n", r"pairs\.csv, line 2: image or caption is empty"),
        (b"", r"pairs\.csv: no column image and caption; it has None"),
    ],
)
def test_a_csv_that_cannot_be_read_is_named_with_its_line(content: bytes, message: str, here: Path):
    (here / "pairs.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        clip_data.load("csv:pairs.csv", 32, None)


def test_a_column_that_is_named_twice_is_refused(here: Path):
    (here / "pairs.csv").write_text("image,caption,caption\na.png,a,b\n")
    with pytest.raises(ValueError, match=r"pairs\.csv: .* name caption twice"):
        clip_data.load("csv:pairs.csv", 32, None)


def test_options_of_a_csv_are_of_a_csv(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ValueError, match=r"--csv-img-key, .* are of csv:PATH, not of 'folder:x'"):
        clip_data.load("folder:x", 32, None, Columns(image="photo"))
    args = clip_finetune.parse(["--csv-separator", r"\t", "--csv-img-key", "photo", "--csv-caption-key", "text"])
    assert (args.csv_img_key, args.csv_caption_key, args.csv_separator) == ("photo", "text", "\t")


# ----------------------------------------------------------------------------------------------------- folders, shards
def test_a_folder_holds_what_is_not_hidden(here: Path):
    for name in ("A.JPG", "b_c.png", "._A.JPG", ".hidden/d.png", "deep/e.Tiff"):
        path = here / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (here / "own" / "A.TXT").write_bytes("\ufeffa cat\n in two lines".encode())
    assert captions("folder:own") == [("A.JPG", "a cat in two lines"), ("b_c.png", "b c"), ("e.Tiff", "e")]


def shard(path: Path, **members: str | bytes | object) -> None:
    """A tar file; what is no text or bytes is written as JSON. `a__txt` is the member a.txt."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            data = data if isinstance(data, bytes) else json.dumps(data).encode()
            member = tarfile.TarInfo(name.replace("__", ".").replace("macos_", "._"))
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"a__txt": "a cat", "a__json": {"caption": "other", "group": "animals"}}, ["a cat"]),
        ({"a__txt": "a cat", "a__json": {"url": "http://x"}}, ["a cat"]),
        ({"a__txt": "a cat", "a__json": {"caption": None}}, ["a cat"]),
        ({"a__txt": " \n", "a__json": {"caption": "a cat"}}, ["a cat"]),
        ({"a__txt": "\ufeffa cat\nasleep"}, ["a cat asleep"]),
        ({"a__json": b"\xef\xbb\xbf" + b'{"caption": "a cat"}'}, ["a cat"]),
        ({"a__json": {"caption": ["a cat", None, "an animal", " ", "a cat"]}}, ["a cat", "an animal"]),
        ({"a__txt": "a cat", "a__json": None}, ["a cat"]),
        ({"a__txt": "a cat", "a__seg__png": b"mask", "a__cls__txt": "7"}, ["a cat"]),
        ({"a__json": {"caption": "a cat", "concept": None}}, ["a cat"]),
        ({"a__TXT": "a cat"}, ["a cat"]),
        ({"a__txt": "a cat", "macos_a__png": b"\0", "macos_a__txt": b"\xff\xff"}, ["a cat"]),
    ],
    ids=lambda value: "" if isinstance(value, list) else " ".join(value),
)
def test_a_shard_says_what_its_texts_say(members: dict[str, object], expected: list[str], here: Path):
    shard(here / "x.tar", a__PNG=b"png", **members)
    pairs = clip_data.load("tar:x.tar", 32, None)
    assert [p.caption for p in pairs] == expected
    assert {p.place for p in pairs} == {"x.tar:a.PNG"}
    assert {p.concept for p in pairs} == {expected[0]}
    assert {p.group for p in pairs} == ({"animals"} if "group" in str(members) else {""})


def test_null_captions_are_skipped_and_counted(here: Path, capsys: pytest.CaptureFixture[str]):
    members = {f"{name}__png": b"png" for name in "abcde"}
    captions = {"a": None, "b": "a cat", "c": [], "d": [None, ""], "e": float("nan")}
    shard(here / "x.tar", **members, **{f"{name}__json": {"caption": value} for name, value in captions.items()})
    assert [p.caption for p in clip_data.load("tar:x.tar", 32, None)] == ["a cat"]
    said = capsys.readouterr().err
    assert said == "skipped 4 of 5 images, whose caption is null or empty: x.tar:a.png to x.tar:e.png\n"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, r"x\.tar:a: no caption; put it into a\.txt"),
        ({"a__json": {"text": "a cat"}}, r"x\.tar:a: no caption; put it into a\.txt"),
        ({"a__json": {"caption": {"en": "a cat"}}}, r"x\.tar:a: a caption is a text, or a list of texts; got \{'en'"),
        ({"a__json": {"caption": 7}}, r"x\.tar:a: a caption is a text, or a list of texts; got 7"),
        ({"a__json": {"caption": True}}, r"x\.tar:a: a caption is a text, or a list of texts; got True"),
        ({"a__json": ["a cat"]}, r"x\.tar:a: the \.json must hold an object such as .* got \['a cat'\]"),
        ({"a__json": b'"a cat"'}, r"x\.tar:a: the \.json must hold an object such as .* got 'a cat'"),
        ({"a__json": b"null"}, r"x\.tar:a: no caption; put it into a\.txt"),
        ({"a__json": b"{"}, r"x\.tar:a: Expecting"),
        ({"a__txt": b"caf\xe9"}, r"x\.tar:a: 'utf-8' codec can't decode"),
        ({"a__json": {"caption": None}}, r"x\.tar: no captions in \.tar files"),
    ],
)
def test_a_shard_that_says_nothing_is_named(members: dict[str, object], message: str, here: Path):
    shard(here / "x.tar", a__png=b"png", **members)
    with pytest.raises(ValueError, match=message):
        clip_data.load("tar:x.tar", 32, None)


# ----------------------------------------------------------------------------------------------------------- concepts
def coco(here: Path, images: int, shared: str = "") -> list[clip_data.Pair]:
    """Five captions an image, a line each; the fifth may be the same for all images."""
    with (here / "coco.csv").open("w", newline="") as file:
        rows = [
            (f"{i}.jpg", f"image {i}, way {k}" if k < 4 or not shared else shared)
            for i in range(images)
            for k in range(5)
        ]
        csv.writer(file).writerows([("image", "caption"), *rows])
    return clip_data.load("csv:coco.csv", 32, None)


def test_five_captions_of_an_image_are_one_concept(here: Path):
    pairs = coco(here, 40)
    train, test = clip_data.hold_out(pairs, 0.25, seed=0)
    assert len(test) == 5 * 10
    assert not {pairs[i].place for i in train} & {pairs[i].place for i in test}
    args = clip_finetune.parse(["--epochs", "3", "--batch-size", "10"])
    seen = set()
    for batch, _ in clip_finetune.steps_of(pairs, train, args):
        assert len({pairs[i].place for i in batch}) == len(batch) == 10
        seen |= {pairs[i].caption for i in batch}
    assert len(seen) > 50, "an epoch draws one of five captions, another one each time"


def test_images_that_share_a_caption_or_a_concept_are_one_concept_too(here: Path):
    assert len({p.concept for p in coco(here, 6, shared="a photo")}) == 1
    (here / "own.csv").write_text("image,caption,concept\na,x,cat\na,y,pet\nb,z,pet\nc,x,dog\nd,w,cow\n")
    assert [p.concept for p in clip_data.load("csv:own.csv", 32, None)] == ["cat", "cat", "cat", "dog", "cow"]


def test_one_image_by_other_paths_is_one_concept(here: Path):
    (here / "a.png").write_bytes(b"")
    (here / "link.png").symlink_to("a.png")
    (here / "folder").mkdir()
    (here / "folder" / "link.png").symlink_to("../a.png")
    (here / "own.csv").write_text(f"image,caption\na.png,x\n{here}/a.png,y\nlink.png,z\nfolder/link.png,w\nb.png,v\n")
    assert [p.concept for p in clip_data.load("csv:own.csv", 32, None)] == ["x", "x", "x", "x", "v"]
    assert len({p.concept for p in clip_data.load("folder:.", 32, None)}) == 1


def test_a_folder_that_links_to_itself_is_read_once(here: Path):
    (here / "own" / "deep").mkdir(parents=True)
    (here / "own" / "a.png").write_bytes(b"")
    (here / "own" / "deep" / "again").symlink_to(here / "own")
    assert captions("folder:own") == [("a.png", "a")]


def test_an_image_with_a_dot_in_its_name_is_said(here: Path, capsys: pytest.CaptureFixture[str]):
    shard(here / "x.tar", a__png=b"png", a__txt="a cat", **{"b__v1__png": b"png", "b__v1__txt": "a dog"})
    assert captions("tar:x.tar") == [("x.tar:a.png", "a cat")]
    assert "skipped 1 images, such as x.tar:b.v1.png" in capsys.readouterr().err
