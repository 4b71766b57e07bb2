"""Bad input: one line, exit code 2, nothing started and nothing overwritten."""

from pathlib import Path

import pytest

from segue.experiments.cli import main

TOPOLOGY = """
format: segue.topology/1
devices:
  - {name: a, kind: emulated, memory_bytes: 1.0e9, speed: 0.3}
  - {name: b, kind: emulated, memory_bytes: 1.0e9, speed: 0.1}
"""
LINK = "links: [{{source: a, target: {target}, latency_s: 1.0e-4, bandwidth_bytes_per_s: {bandwidth}}}]\n"


def topology(folder: Path, text: str) -> str:
    path = folder / "topology.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--model", "incepton"], "incepton"),
        (["--model", "nowhere.py:build"], "nowhere.py"),
        (["--data", "digit"], "digit"),
        (["--data", "imagefolder:/nowhere"], "/nowhere"),
        (["--topology", "emulated-5"], "emulated-5"),
        (["--topology", "nowhere.yaml"], "nowhere.yaml"),
        (["--slow", "dev9@5:3"], "unknown device 'dev9'"),
        (["--slow", "dev1@5"], "DEVICE@STEP:FACTOR"),
        (["--slow", "dev1@5000:3"], "step must be between"),
        (["--slow", "dev1@5:0"], "factor must be > 0"),
        (["--steps", "0"], "--steps must be >= 1"),
        (["--microbatches", "100"], "--microbatches must be at most"),
        (["--batch-size", "5000", "--microbatches", "4"], "5000"),
        (["--learning-rate", "0"], "--learning-rate must be > 0"),
        (["--policy", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--resume", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_options_are_refused_in_one_line(
    arguments: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    assert main(["run", "--run-dir", str(run_dir), *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("segue: error: ")
    assert reason in error
    assert "\n" not in error
    assert not run_dir.exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (TOPOLOGY + LINK.format(target="b", bandwidth=-3), "link a->b: bandwidth must be > 0 bytes/s, got -3"),
        (TOPOLOGY + LINK.format(target="c", bandwidth=1e8), "link a->c: unknown device 'c'; known: a, b"),
        (TOPOLOGY.replace("name: b", "name: a") + "default_link: {latency_s: 0, bandwidth_bytes_per_s: 1}\n", "twice"),
        (TOPOLOGY, "link a->b: missing"),
        (TOPOLOGY.replace("emulated", "tpu", 1), "kind must be one of"),
        ("- nonsense", "expected an object"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_malformed_topology_is_named_with_its_field(
    text: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = topology(tmp_path, text)
    assert main(["run", "--topology", path, "--run-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip()
    assert path in error
    assert reason in error
    assert "\n" not in error


def test_a_run_folder_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious").write_text("mine")
    assert main(["run", "--run-dir", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
