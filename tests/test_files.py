"""Files and folders appear whole or not at all."""

from pathlib import Path

import pytest

from bishare.files import atomic_file, atomic_folder, write_bytes, write_text


def test_text_and_bytes_arrive_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "er" / "a.txt", "ä\n")
    write_bytes(tmp_path / "b", b"\x00\xff")
    assert (tmp_path / "deep" / "er" / "a.txt").read_bytes() == "ä\n".encode()
    assert (tmp_path / "b").read_bytes() == b"\x00\xff"


def test_writing_replaces_an_earlier_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "a long text")
    write_text(tmp_path / "a", "short")
    assert (tmp_path / "a").read_text() == "short"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def fail_half_way(path: Path, *, single_writer: bool) -> None:
    with atomic_file(path, single_writer=single_writer) as file:
        file.write(b"ne")
        raise RuntimeError("half way")


def fail_in_a_folder(path: Path) -> None:
    with atomic_folder(path) as folder:
        (folder / "a").write_text("text")
        raise RuntimeError("half way")


@pytest.mark.parametrize("single_writer", [False, True])
def test_failed_write_leaves_the_old_file(tmp_path: Path, single_writer: bool) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way(tmp_path / "a", single_writer=single_writer)
    assert (tmp_path / "a").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_failed_rename_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_text(tmp_path / "a", "text")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_the_old_file_stands_while_writing(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with atomic_file(tmp_path / "a") as file:
        file.write(b"new")
        file.flush()
        assert (tmp_path / "a").read_text() == "old"
    assert (tmp_path / "a").read_text() == "new"


def test_data_is_on_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    rename = Path.replace

    def renamed(self: Path, target: Path) -> Path:
        order.append("rename")
        return rename(self, target)

    monkeypatch.setattr("os.fsync", lambda number: order.append("fsync"))
    monkeypatch.setattr(Path, "replace", renamed)
    write_text(tmp_path / "a", "text")
    assert order == ["fsync", "rename", "fsync"]


def test_single_writer_replaces_leftovers_of_a_kill(tmp_path: Path) -> None:
    (tmp_path / ".a.part").write_text("left by a kill")
    with atomic_file(tmp_path / "a", single_writer=True) as file:
        file.write(b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_a_folder_appears_with_its_content(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "deep" / "out") as folder:
        (folder / "a").write_text("text")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "a").read_text() == "text"


def test_an_empty_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("text")
    assert (tmp_path / "out" / "a").read_text() == "text"


def test_a_full_folder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("text")
    with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "mine").read_text() == "text"
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="half way"):
        fail_in_a_folder(tmp_path / "out")
    assert not list(tmp_path.iterdir())
