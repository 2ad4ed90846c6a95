"""Mistakes with the CLIP example end in one line that names the place."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

import clip_finetune
import pytest

from tests.examples.clip_runs import small


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "zip:x"], r"--data must be openmoji, csv:PATH, folder:PATH or tar:PATTERN; got 'zip:x'"),
        (["--data", "csv:missing.csv"], r"missing\.csv: .*No such file"),
        (["--data", "csv:columns.csv"], r"columns\.csv: no column caption; it has \['image', 'text'\]"),
        (["--data", "csv:empty.csv"], r"empty\.csv, line 3: image or caption is empty"),
        (["--data", "csv:none.csv"], r"none\.csv: no lines"),
        (["--data", "csv:comma.csv"], r"comma\.csv, line 2: more fields than columns; quote"),
        (["--data", "tar:zipped.tar"], r"zipped\.tar: "),
        (["--picture", "named.pn"], r"--picture must end in \.png, .* got named\.pn"),
        (["--picture", "/proc/named.png"], r"/proc/named\.png cannot be written"),
        (["--cache", "own.csv"], r"own\.csv.stems\.pt cannot be written"),
        (["--checkpoint", "own"], r"--checkpoint must be a file, and own is a folder"),
        (["--data", "folder:nowhere"], r"nowhere: no images \("),
        (["--data", "folder:silent"], r"silent.a\.txt: the caption is empty"),
        (["--data", "folder:garbled"], r"garbled.a\.txt: 'utf-8' codec can't decode"),
        (["--data", "tar:nowhere-*.tar"], r"nowhere-\*\.tar: no images in \.tar files"),
        (["--data", "tar:own.csv"], r"own\.csv: "),
        (["--data", "tar:mute.tar"], r"mute\.tar:x: no caption; put it into x\.txt"),
        (["--data", "folder:broken"], r"none of the .* images .* can be read: UnidentifiedImageError"),
        (["--model", "ViT-Q-99", "--pretrained", "openai"], r"open_clip cannot make ViT-Q-99 with weights openai"),
        (["--model", "ViT-B-32"], r"--model ViT-B-32 needs --pretrained, one of openai, laion400m_e31"),
        (["--model", "local-dir:nowhere"], r"open_clip cannot make local-dir:nowhere"),
        (["--image-blocks", "40"], r"between 0 and 17 blocks can be trained, got 40"),
        (["--text-layers", "-1"], r"between 0 and 6 layers can be trained, got -1"),
        (["--batch-size", "999"], r"--batch-size must lie between 2 and the 96 training concepts, got 999"),
        (["--held-out", "1"], r"a share of 1\.0 of 120 concepts leaves fewer than two"),
        (["--precision", "fp16"], r"--precision fp16 needs a CUDA device, got cpu"),
        (["--limit", "0"], r"--limit must be positive, got 0"),
        (["--dim", "0"], r"--dim must be positive, got 0"),
        (["--dropout", "1"], r"--dropout must lie in \[0, 1\), got 1\.0"),
        (["--prior", "1"], r"--prior must lie between 0 and 1, got 1\.0"),
        (["--lr", "inf"], r"--lr must be positive, got inf"),
        (["--stream", "--views", "2"], r"--views 2 are stored, and --stream stores nothing"),
        (["--pretrained", "openai"], r"--pretrained openai is of a model of open_clip; name it with --model"),
        (["--csv-separator", "::"], r"--csv-separator must be one character, got '::'"),
        (["--csv-img-key", "photo"], r"--csv-img-key, .* are of csv:PATH, not of 'openmoji'"),
        (["--device", "nowhere"], r"--device nowhere cannot be used here"),
        (["--checkpoint", "own.csv"], r"own\.csv is broken or no file of this example; remove it or name another"),
        (
            ["--model", "local-dir:residual", "--pretrained", "none", "--image-blocks", "1"],
            r"--image-blocks 1: open_clip cannot unlock the ModifiedResNet in part; 0 freezes all of it",
        ),
        (
            ["--model", "local-dir:tiny", "--pretrained", "none", "--image-blocks", "-1"],
            r"--image-blocks -1 must not be negative",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_end_in_one_line_that_names_the_place(own: Path, options: list[str], message: str):
    (own / "columns.csv").write_text("image,text\nx.png,a\n")
    (own / "empty.csv").write_text("image,caption\nx.png,a\ny.png,\n")
    (own / "none.csv").write_text("image,caption\n")
    (own / "comma.csv").write_text("image,caption\nx.png,a, b\n")
    with tarfile.open(own / "zipped.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x.png"))
    (own / "garbled").mkdir(exist_ok=True)
    (own / "garbled" / "a.txt").write_bytes(b"\xff\xfe\xfa")
    (own / "garbled" / "a.png").write_bytes(b"")
    for folder, name, content in (("silent", "a.txt", b" \n"), ("silent", "a.png", b""), ("broken", "a.png", b"no")):
        (own / folder).mkdir(exist_ok=True)
        (own / folder / name).write_bytes(content)
    for i in range(8):
        (own / "broken" / f"{i}.png").write_bytes(b"no image")
    with tarfile.open(own / "mute.tar", "w") as tar:
        member = tarfile.TarInfo("x.png")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"png"))
    with pytest.raises(SystemExit) as exit_:
        clip_finetune.main([*small(), *options])
    assert isinstance(exit_.value.code, str)
    assert exit_.value.code.startswith("error: ")
    assert "\n" not in exit_.value.code
    assert re.search(message, exit_.value.code), exit_.value.code
