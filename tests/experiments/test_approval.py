import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from segue.agent.controller import Decision
from segue.experiments.approval import Questions, answer_file, read_answer
from segue.experiments.run_files import PROPOSAL, RunFiles

MOVES = {"conv": ["slow", "fast"], "relu": ["slow", "fast"], "loss": ["fast", "slow"]}


def proposal(step: int) -> Decision:
    return Decision(step, "propose", "predicted 30% shorter steps", ops_moved=3, bytes_moved=2.0**20, moves=MOVES)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[RunFiles]:
    files = RunFiles(tmp_path)
    yield files
    files.close()


@pytest.fixture
def terminal() -> Iterator[tuple[int, TextIO]]:
    """What is typed at a terminal, and the terminal."""
    typed, end = os.openpty()
    with os.fdopen(end) as read:
        yield typed, read
    os.close(typed)


def put_the_question(files: RunFiles, terminal: TextIO) -> Questions:
    """Ask for the answer to a proposal before step 7."""
    questions = Questions(files.folder, terminal)
    files.decision(proposal(7))
    questions.poll()
    return questions


def pipe() -> TextIO:
    read, write = os.pipe()
    os.close(write)
    return os.fdopen(read)


def test_a_proposal_is_put_once_and_says_what_would_move(files: RunFiles, capsys: pytest.CaptureFixture[str]) -> None:
    questions = Questions(files.folder, pipe())
    questions.poll()
    assert capsys.readouterr().err == ""
    files.decision(proposal(7))
    questions.poll()
    said = capsys.readouterr().err
    assert "before step 7 the agent would move 3 ops (1.0 MiB; slow -> fast: 2, fast -> slow: 1)" in said
    assert "predicted 30% shorter steps" in said
    assert f"echo yes > {answer_file(files.folder, 7)}" in said
    questions.poll()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("word", "means"), [("y", True), ("Yes", True), ("n", False), ("no", False)])
def test_what_is_typed_is_the_answer(
    files: RunFiles, terminal: tuple[int, TextIO], word: str, means: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    typed, read = terminal
    questions = put_the_question(files, read)
    assert "move? [y/n]" in capsys.readouterr().err
    assert read_answer(files.folder, 7) is None
    os.write(typed, f"{word}\n".encode())
    questions.poll()
    assert read_answer(files.folder, 7) is means
    assert read_answer(files.folder, 8) is None


def test_what_was_typed_before_the_question_is_no_answer(files: RunFiles, terminal: tuple[int, TextIO]) -> None:
    typed, read = terminal
    questions = Questions(files.folder, read)
    os.write(typed, b"yes\n")
    files.decision(proposal(7))
    questions.poll()
    questions.poll()
    assert read_answer(files.folder, 7) is None


def test_an_answer_that_is_neither_yes_nor_no_is_asked_for_again(
    files: RunFiles, terminal: tuple[int, TextIO], capsys: pytest.CaptureFixture[str]
) -> None:
    typed, read = terminal
    questions = put_the_question(files, read)
    os.write(typed, b"perhaps\n")
    questions.poll()
    assert "'perhaps' is neither yes nor no" in capsys.readouterr().err
    assert read_answer(files.folder, 7) is None
    answer_file(files.folder, 7).write_text("no\n")
    questions.poll()
    assert read_answer(files.folder, 7) is False


def test_a_terminal_that_is_closed_leaves_the_files(
    files: RunFiles, terminal: tuple[int, TextIO], capsys: pytest.CaptureFixture[str]
) -> None:
    typed, read = terminal
    questions = put_the_question(files, read)
    os.write(typed, b"\x04")
    questions.poll()
    assert "echo yes" in capsys.readouterr().err
    questions.poll()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("action", ["move", "decline", "withdraw", "stay"])
def test_a_proposal_that_is_decided_on_is_no_question_any_more(
    files: RunFiles, action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = Questions(files.folder, pipe())
    files.decision(proposal(7))
    files.decision(Decision(8, "warn", "dev0 is nearly full"))
    assert (files.folder / PROPOSAL).exists()
    files.decision(Decision(9, action, ""))
    questions.poll()
    assert capsys.readouterr().err == ""


def test_what_an_earlier_run_left_is_no_answer(files: RunFiles, capsys: pytest.CaptureFixture[str]) -> None:
    files.decision(proposal(7))
    answer_file(files.folder, 7).write_text("yes")
    Questions(files.folder, pipe()).poll()
    assert capsys.readouterr().err == ""
    assert read_answer(files.folder, 7) is None
