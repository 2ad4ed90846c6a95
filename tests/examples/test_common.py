"""Checkpoints of the examples: whole or not there, named when they are of something else."""

from __future__ import annotations

import ast
from pathlib import Path

import common
import pytest
import torch
from torch import nn

SETTINGS = {"seed": 0, "lr": 0.1, "data": "digits"}


def kept(path: Path) -> dict[str, nn.Module]:
    """A checkpoint of one arm at `path`, and what it holds."""
    stateful = {"model": nn.Linear(3, 2)}
    common.Checkpoint(path, SETTINGS).save("arm", stateful, step=7, seconds=1.5)
    return stateful


def test_what_was_kept_comes_back_whole(tmp_path: Path):
    before, after = kept(tmp_path / "made" / "run.pt"), {"model": nn.Linear(3, 2)}
    again = common.Checkpoint(tmp_path / "made" / "run.pt", SETTINGS)
    assert again.restore("arm", after) == (7, 1.5)
    assert again.restore("other", after) == (0, 0.0)
    assert torch.equal(after["model"].weight, before["model"].weight)
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["run.pt"], "no side file is left"


def test_a_write_that_fails_leaves_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "run.pt"
    kept(path)
    before = path.read_bytes()

    def full(content: object, file: Path) -> None:
        Path(file).write_bytes(b"half")
        raise RuntimeError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ValueError, match=r"run\.pt cannot be written: no space left"):
        kept(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def foreign(path: Path, how: str) -> None:
    kept(path)
    whole = path.read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "text":
        path.write_text("accuracy 0.9\n")
    elif how == "pickled module":
        torch.save(nn.Linear(2, 2), path)
    elif how == "state_dict":
        torch.save(nn.Linear(2, 2).state_dict(), path)
    elif how == "list":
        torch.save([1, 2], path)
    else:
        torch.save({"settings": None, "arms": {}}, path)


@pytest.mark.parametrize("how", ["empty", "truncated", "text", "pickled module", "state_dict", "list", "settings"])
def test_a_file_of_something_else_is_named_in_one_line(how: str, tmp_path: Path):
    foreign(tmp_path / "run.pt", how)
    message = r"^error: .*run\.pt [^\n]* remove it or name another [^\n]*$"
    with pytest.raises(SystemExit, match=message), common.one_line_errors():
        common.Checkpoint(tmp_path / "run.pt", SETTINGS)


def test_another_model_under_the_same_settings_is_named(tmp_path: Path):
    kept(tmp_path / "run.pt")
    checkpoint = common.Checkpoint(tmp_path / "run.pt", SETTINGS)
    with pytest.raises(ValueError, match=r"run\.pt does not fit"):
        checkpoint.restore("arm", {"model": nn.Linear(4, 2)})
    with pytest.raises(ValueError, match=r"run\.pt does not fit"):
        checkpoint.restore("arm", {"optimizer": torch.optim.SGD(nn.Linear(4, 2).parameters())})


def test_other_settings_are_named_one_by_one(tmp_path: Path):
    kept(tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"run\.pt was written with") as caught:
        common.Checkpoint(tmp_path / "run.pt", {"seed": 1, "lr": 0.1, "data": "letters", "epochs": 3})
    message = str(caught.value)
    assert "with 'seed': 0, not with 'seed': 1" in message
    assert "with 'data': 'digits', not with 'data': 'letters'" in message
    assert "with 'epochs': None, not with 'epochs': 3" in message
    assert "lr" not in message


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"run\.pt cannot be written"):
        common.Checkpoint(tmp_path / "file" / "run.pt", SETTINGS)
    with pytest.raises(ValueError, match=r"is a folder; name a file"):
        common.Checkpoint(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match=r"--picture must end in .* got .*named\.pn"):
        common.check_picture(tmp_path / "named.pn")


def test_data_that_changed_are_named(tmp_path: Path):
    path, images = tmp_path / "run.pt", torch.arange(6, dtype=torch.uint8).reshape(1, 2, 3)
    first = common.Checkpoint(path, SETTINGS)
    first.same_data(common.digest(images, ["a.png"]))
    first.save("arm", {}, step=1, seconds=0.0)
    common.Checkpoint(path, SETTINGS).same_data(common.digest(images.clone(), ["a.png"]))
    for other in [(images + 1, ["a.png"]), (images.reshape(1, 3, 2), ["a.png"]), (images, ["a.png", "b.png"])]:
        with pytest.raises(ValueError, match=r"run\.pt .*data: the checkpoint's differ from the given ones"):
            common.Checkpoint(path, SETTINGS).same_data(common.digest(*other))
    with pytest.raises(ValueError, match=r"run\.pt .*data: the checkpoint's differ from the given ones"):
        common.same_settings(path, {"contents": "1"}, {"contents": "2"})


def test_examples_share_three_files_and_import_no_other_example() -> None:
    folder = Path(common.__file__).parent
    names = {path.stem for path in folder.glob("*.py")}
    for path in folder.glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        found |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
        own = {name for name in names if name.startswith("clip_")} if path.stem.startswith("clip_") else set()
        assert found & names <= {"common", "images", "openmoji"} | own, path.name
