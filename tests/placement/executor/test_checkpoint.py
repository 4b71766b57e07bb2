import json
import shutil
from pathlib import Path

import pytest
import torch

from segue.placement.errors import SegueError
from segue.placement.executor import WorkerFailed, launch
from segue.placement.executor.checkpoint import plain_state
from tests.placement.executor import move_jobs
from tests.placement.executor.jobs import CASES, batch_of, plain
from tests.placement.executor.test_executor import cpu_devices

pytestmark = pytest.mark.timeout(400)
LIMIT_S = 150.0
STEPS = 7


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """Checkpoints of a run with dropout on three devices after steps 2, 3 and 4, and its losses up to the seventh."""
    folder = tmp_path_factory.mktemp("saved")
    at = [2, 3, 4]
    losses = launch(move_jobs.train_and_save, cpu_devices(3), cpu_devices(3), str(folder), "dropout", STEPS, at)[0]
    return folder, losses


@pytest.mark.parametrize("devices", [2, 1])
def test_a_run_goes_on_bit_for_bit_on_fewer_devices(saved: tuple, devices: int) -> None:
    folder, losses = saved
    topology = cpu_devices(devices)
    for result in launch(move_jobs.resume, topology, topology, str(folder), "dropout", STEPS, timeout_s=LIMIT_S):
        found = result["found"]
        assert (found.step, found.extra) == (4, {"after": 4})
        assert result["losses"] == losses[4:]
        assert (found.placement is None) == (devices < 3)


def test_the_last_checkpoints_are_kept_and_none_has_a_pickle(saved: tuple) -> None:
    folder, _ = saved
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-000003", "step-000004"]
    assert (folder / "latest").read_text() == "step-000004\n"
    files = list((folder / "step-000004").iterdir())
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert len(files) > 2, "each worker that owns anything writes its own file"


def test_a_checkpoint_goes_to_plain_pytorch_and_comes_back(tmp_path: Path) -> None:
    topology = cpu_devices(3)
    launch(move_jobs.train_and_save, topology, topology, str(tmp_path), "tied", 3, [3], timeout_s=LIMIT_S)
    torch.set_num_threads(1)
    build, _, loss_fn = CASES["tied"]
    model = build().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    model_state, optimizer_state = plain_state(tmp_path)
    model.load_state_dict(model_state)
    optimizer.load_state_dict(optimizer_state)
    assert optimizer.param_groups[0]["lr"] == 1e-2
    there = move_jobs.plain_step(model, optimizer, loss_fn, batch_of("tied", 3))
    expected = plain("tied")[0]
    assert there == pytest.approx(expected[3], rel=1e-6)
    back = launch(
        move_jobs.from_plain, topology, topology, "tied", model.state_dict(), optimizer.state_dict(), range(4, 5)
    )
    assert back[0] == pytest.approx(expected[4:5], rel=1e-6)


def test_a_full_disk_leaves_the_last_checkpoint_and_the_run_alone(tmp_path: Path) -> None:
    topology = cpu_devices(3)
    for result in launch(move_jobs.save_on_a_full_disk, topology, topology, str(tmp_path), timeout_s=LIMIT_S):
        in_a_file, at_the_end = result["messages"]
        assert "worker 1: " in in_a_file
        assert "worker 0: " in at_the_end
        for message in result["messages"]:
            assert "No space left on device" in message
            assert "\n" not in message
        assert result["listings"] == [["latest", "step-000001"]] * 2
        assert result["losses"] == pytest.approx(plain("branches")[0][:4], rel=1e-6)
        assert result["last"] == "step-000004"


@pytest.mark.parametrize("victim", [0, 2])
def test_a_worker_killed_while_it_writes_leaves_the_last_checkpoint(tmp_path: Path, victim: int) -> None:
    topology = cpu_devices(3)
    with pytest.raises(WorkerFailed, match=rf"worker {victim} \(cpu{victim}\) was killed by SIGKILL"):
        launch(move_jobs.die_while_saving, topology, topology, str(tmp_path), victim, timeout_s=LIMIT_S)
    assert (tmp_path / "latest").read_text() == "step-000001\n"
    result = launch(move_jobs.resume, cpu_devices(2), cpu_devices(2), str(tmp_path), "branches", 5)[0]
    assert result["found"].step == 1
    torch.set_num_threads(1)
    assert result["losses"] == pytest.approx(plain("branches")[0][1:], rel=1e-6)


def test_a_checkpoint_of_something_else_is_refused_and_nothing_has_changed(saved: tuple, tmp_path: Path) -> None:
    folder, _ = saved
    other = tmp_path / "other"
    launch(move_jobs.train_and_save, cpu_devices(1), cpu_devices(1), str(other), "frozen", 1, [1], timeout_s=LIMIT_S)
    spoilt, unknown = tmp_path / "spoilt", tmp_path / "unknown"
    for copy in (spoilt, unknown):
        shutil.copytree(folder / "step-000004", copy)
    for file in spoilt.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-20])
    record = json.loads((unknown / "checkpoint.json").read_text())
    (unknown / "checkpoint.json").write_text(json.dumps({**record, "format": "segue.checkpoint/9"}))
    astray = tmp_path / "astray"
    astray.mkdir()
    (astray / "latest").write_text("../../etc")
    folders = {
        "none": str(tmp_path / "nothing"),
        "other": str(other),
        "spoilt": str(spoilt),
        "unknown": str(unknown),
        "astray": str(astray),
    }
    wanted = {
        "none": "no checkpoint there",
        "other": "another model or optimizer",
        "spoilt": str(spoilt),
        "unknown": "segue.checkpoint/9",
        "astray": "../../etc",
    }
    for worker in launch(move_jobs.refuse, cpu_devices(2), cpu_devices(2), folders, timeout_s=LIMIT_S):
        for name, (message, untouched) in worker.items():
            assert wanted[name] in message
            assert "\n" not in message
            assert untouched
    with pytest.raises(SegueError, match="no checkpoint there"):
        plain_state(tmp_path / "nothing")


def test_a_tensor_comes_back_in_the_memory_order_that_it_had(tmp_path: Path) -> None:
    before, after = launch(move_jobs.keep_memory_order, cpu_devices(1), cpu_devices(1), str(tmp_path))[0]
    assert after == before
    assert before[1] == 1, "channels are innermost"
    plain_weights, _ = plain_state(tmp_path)
    assert plain_weights["right.0.weight"].stride() == before
