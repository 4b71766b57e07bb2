"""How workers are started, and how they find each other and their devices."""

import importlib
import multiprocessing
import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from segue.placement.errors import SegueError
from segue.placement.executor import WorkerFailed, launch, launch_script, topology_of_run
from segue.placement.executor.run_topology import _Seat, order_by_host
from segue.placement.presets import preset
from segue.placement.topology import Device, Topology, uniform_links
from tests.processes import children, workers_of

pytestmark = pytest.mark.timeout(300)
LIMIT_S = 100.0


def hosts(*names: str) -> Topology:
    devices = tuple(Device(f"gpu{i}", "cuda", 1e9, host=name, index=i) for i, name in enumerate(names))
    return Topology("several", devices, uniform_links([d.name for d in devices], 1e-4, 1e9))


def seats(*places: tuple[int, str]) -> list[_Seat]:
    return [_Seat(node, host) for node, host in places]


def listening() -> set[str]:
    """Addresses at which this process waits for connections, as the kernel writes them."""
    inodes = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(link)
        except OSError:  # the one that lists the folder
            continue
        if target.startswith("socket:"):
            inodes.add(target[8:-1])
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                addresses.add(fields[1].split(":")[0])
    return addresses


def look_around() -> tuple[Topology, set[str]]:
    dist.barrier()
    return topology_of_run(), listening()


def test_workers_find_the_topology_and_listen_only_on_loopback() -> None:
    topology = preset("emulated-2")
    for found, addresses in launch(look_around, topology, timeout_s=LIMIT_S):
        assert found == topology
        assert addresses == {f"{int.from_bytes(socket.inet_aton('127.0.0.1'), 'little'):08X}"}


def wait_for_ever(folder: Path) -> None:
    (folder / str(dist.get_rank())).touch()
    time.sleep(600)


def start_and_wait(folder: Path) -> None:
    launch(wait_for_ever, preset("emulated-2"), folder, timeout_s=LIMIT_S)


def test_the_workers_of_a_killed_process_end(tmp_path: Path) -> None:
    process = multiprocessing.get_context("forkserver").Process(target=start_and_wait, args=(tmp_path,))
    process.start()
    assert process.pid is not None
    deadline = time.monotonic() + LIMIT_S
    while len(list(tmp_path.iterdir())) < 2:
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    everyone = [*workers_of(process.pid), *children(process.pid)]
    assert len(everyone) >= 3
    process.kill()
    process.join()
    while any(Path(f"/proc/{pid}").exists() for pid in everyone):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.usefixtures("ctrl_c_interrupts")
@pytest.mark.parametrize("moment", ["before", "after"])
def test_ctrl_c_while_the_workers_start_leaves_none(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The package's `launch` is the function.
    module = importlib.import_module("segue.placement.executor.launch")
    start = module.start_processes

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)

    def interrupted(*args: Any, **options: Any) -> Any:
        if moment == "before":
            interrupt()
        context = start(*args, **options)
        if moment == "after":
            interrupt()
        return context

    monkeypatch.setattr(module, "start_processes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        launch(wait_for_ever, preset("emulated-2"), tmp_path, timeout_s=LIMIT_S)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not multiprocessing.active_children()


def leave(code: int) -> None:
    dist.barrier()
    if dist.get_rank() == 1:
        raise SystemExit(code)
    dist.barrier()


def test_a_worker_that_leaves_with_an_exit_code_is_named() -> None:
    with pytest.raises(WorkerFailed, match=r"worker 1 \(dev1\) ended with exit code 7") as caught:
        launch(leave, preset("emulated-2"), 7, timeout_s=LIMIT_S)
    assert caught.value.exit_code == 7
    assert caught.value.worker == 1


def test_each_worker_gets_the_next_device_of_its_host() -> None:
    topology = hosts("a", "b", "a")
    ordered = order_by_host(topology, seats((0, "b"), (1, "a"), (1, "a")))
    assert [device.name for device in ordered.devices] == ["gpu1", "gpu0", "gpu2"]
    assert set(ordered.links) == set(topology.links)


def test_hosts_of_other_names_are_taken_in_the_order_of_torchruns_nodes() -> None:
    ordered = order_by_host(hosts("left", "right", "left"), seats((0, "x"), (0, "x"), (1, "y")))
    assert [device.name for device in ordered.devices] == ["gpu0", "gpu2", "gpu1"]


def test_a_host_with_too_few_workers_is_named() -> None:
    with pytest.raises(SegueError, match=r"host a has 2 devices, but 1 workers run on a; start one for each"):
        order_by_host(hosts("a", "a", "b"), seats((0, "a"), (1, "b"), (1, "b")))
    with pytest.raises(SegueError, match=r"hosts a, b, but workers run on x$"):
        order_by_host(hosts("a", "b"), seats((0, "x"), (0, "x")))


def test_devices_of_one_host_stay_in_their_order() -> None:
    topology = hosts("a", "a")
    assert order_by_host(topology, seats((0, "x"), (1, "y"))) is topology


def test_a_script_that_is_not_there_or_needs_more_hosts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SegueError, match="no such file"):
        launch_script(str(tmp_path / "none.py"), [], preset("emulated-2"))
    script = tmp_path / "script.py"
    script.write_text("")
    with pytest.raises(SegueError, match=r"hosts host0, host1; start on each of them: torchrun --nnodes 2"):
        launch_script(str(script), [], preset("hosts-2x4-a100"))


def test_a_script_lives_and_ends_as_one_that_python_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import atexit, ctypes, multiprocessing, os, sys, threading, time\n"
        "import helper, numpy, torch\n"
        "if os.environ['RANK'] == '0':\n"
        "    print(__name__, sys.argv, helper.NAME, multiprocessing.current_process().name, os.getcwd())\n"
        "    print(torch.get_num_threads(), os.environ['SEGUE_TEST'], end=' ')\n"
        "    atexit.register(print, 'last')\n"
        "    threading.Thread(target=lambda: (time.sleep(0.3), print('after'))).start()\n"
        "    print('before')\n"
        "    ctypes.CDLL(None).puts(b'from C')\n"
        "open(os.path.join(sys.argv[1], 'draw-' + os.environ['RANK']), 'w').write(str(numpy.random.rand()))\n"
        "os._exit(0) if os.environ['RANK'] == '1' else sys.exit()\n"
    )
    (tmp_path / "helper.py").write_text("NAME = 'helper'\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGUE_TEST", "seen")
        launch_script(str(script), [str(tmp_path)], preset("emulated-2"))
    first, *others = capfd.readouterr().out.splitlines()
    assert first == f"__main__ {[str(script), str(tmp_path)]} helper MainProcess {Path.cwd()}"
    assert sorted(others) == ["1 seen before", "after", "from C", "last"]
    assert others.index("after") < others.index("last")
    draws = {path.read_text() for path in tmp_path.glob("draw-*")}
    assert len(draws) == 2


def test_a_script_that_says_why_it_ends_is_quoted(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import os, sys, time\nsys.exit('no paper') if os.environ['RANK'] == '1' else time.sleep(60)\n")
    with pytest.raises(WorkerFailed, match=r"worker 1 \(dev1\) ended with exit code 1:\nno paper$"):
        launch_script(str(script), [], preset("emulated-2"))


def test_emulated_devices_may_pretend_to_be_on_several_hosts(tmp_path: Path) -> None:
    topology = preset("emulated-2")
    devices = tuple(replace(device, host=f"host{i}") for i, device in enumerate(topology.devices))
    script = tmp_path / "script.py"
    script.write_text("import os, sys, pathlib\npathlib.Path(sys.argv[1], os.environ['RANK']).touch()\n")
    launch_script(str(script), [str(tmp_path)], replace(topology, devices=devices))
    assert (tmp_path / "0").exists()
    assert (tmp_path / "1").exists()
