"""What becomes of a process's output: whole lines, bounded memory, no harm to a terminal, a disk that may be full."""

import random
from pathlib import Path

import pytest

from stack.logs import MAX_FILE_BYTES, MAX_LINE_BYTES, RETRY_S, TAIL_LINES, LineSplitter, LogFile, ProcessLog, printable


def test_lines_are_the_same_however_the_bytes_arrive() -> None:
    text = "one\ntwo é 漢字\r\nbar 10%\rbar 20%\n\nlast".encode()
    whole = LineSplitter()
    expected = whole.feed(text) + whole.flush()
    assert expected == ["one", "two é 漢字", "bar 10%", "bar 20%", "last"]
    dice = random.Random(7)
    for _ in range(200):
        splitter, lines, rest = LineSplitter(), [], text
        while rest:
            cut = dice.randint(1, 5)
            lines += splitter.feed(rest[:cut])
            rest = rest[cut:]
        lines += splitter.flush()
        assert lines == expected


def test_a_line_without_an_end_is_cut_and_never_held_whole() -> None:
    splitter = LineSplitter()
    lines = [line for _ in range(100) for line in splitter.feed(b"x" * 50_000)]
    assert all(len(line) == MAX_LINE_BYTES for line in lines)
    assert len("".join(lines)) + len(splitter.flush()[0]) == 5_000_000


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"\x1b[31mred\x1b[0m", "red"),
        (b"\x1b]0;title\x07after", "after"),
        (b"a\x00b\x07c", "a\ufffdb\ufffdc"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"\x1b", "\ufffd"),
        ("\u2028x\x9b31m".encode(), "\ufffdx\ufffd31m"),
        (b"tab\tstays  ", "tab\tstays"),
    ],
)
def test_nothing_that_steers_a_terminal_gets_through(raw: bytes, shown: str) -> None:
    assert printable(raw) == shown


def test_any_bytes_give_printable_text() -> None:
    dice = random.Random(3)
    for _ in range(300):
        text = printable(dice.randbytes(200).replace(b"\n", b""))
        assert all(char.isprintable() or char in "\t\ufffd\xa0" or ord(char) > 127 for char in text)
        assert "\x1b" not in text


def test_a_full_disk_is_told_once_and_writing_goes_on_when_there_is_room(tmp_path: Path) -> None:
    now, told = [0.0], list[str]()
    path = tmp_path / "x.log"
    path.symlink_to("/dev/full")
    log = LogFile(path, told.append, lambda: now[0])
    for _ in range(5):
        log.write(b"lost\n")
    now[0] = RETRY_S + 1
    log.write(b"lost\n")
    path.unlink()
    log.write(b"too early\n")
    now[0] = 2 * RETRY_S + 2
    log.write(b"kept\n")
    log.close()
    assert path.read_bytes() == b"kept\n"
    assert len(told) == 2
    assert "No space left on device" in told[0]
    assert told[1].endswith(f"{6 * 5 + 10} bytes were not kept")


def test_a_log_that_cannot_be_opened_is_told_once(tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "logs").write_text("a file where a folder is meant")
    log = LogFile(tmp_path / "logs" / "x.log", told.append)
    log.write(b"1\n")
    log.write(b"2\n")
    assert len(told) == 1


def test_a_log_turns_over_and_keeps_one_older(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    log = LogFile(path, pytest.fail)
    block = b"y" * (1024 * 1024)
    for _ in range(2 * MAX_FILE_BYTES // len(block) + 3):
        log.write(block)
    log.close()
    assert path.stat().st_size == 3 * len(block)
    assert (tmp_path / "x.log.1").stat().st_size == MAX_FILE_BYTES
    assert len(list(tmp_path.iterdir())) == 2


def test_the_last_lines_are_kept_without_the_empty_ones(tmp_path: Path) -> None:
    seen: list[str] = []
    log = ProcessLog(LogFile(tmp_path / "x.log", pytest.fail), seen.extend)
    log.feed("".join(f"{n}\n\n" for n in range(50)).encode() + b"half")
    log.end()
    log.file.close()
    assert list(log.tail) == [*(str(n) for n in range(51 - TAIL_LINES, 50)), "half"]
    assert len(seen) == 51
