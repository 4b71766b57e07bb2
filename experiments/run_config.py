"""`RunConfig`: everything that a run depends on, as it is written into the run folder."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from ..placement.discover import discover
from ..placement.errors import SegueError
from ..placement.files import check_fields, read_json, write_json
from ..placement.nvidia_smi import load_topology_text
from ..placement.presets import preset, presets
from ..placement.topology import Topology

FORMAT = "segue.run/1"
FILE = "config.json"


@dataclass(frozen=True)
class SlowDown:
    """From `step` on, `device` takes `factor` times as long."""

    device: str
    step: int
    factor: float

    @staticmethod
    def parse(text: str, topology: Topology, steps: int) -> "SlowDown":
        """Read `DEVICE@STEP:FACTOR`.

        Raises:
            SegueError: naming the part that is wrong.
        """
        try:
            device, rest = text.split("@")
            step, factor = rest.split(":")
            result = SlowDown(device, int(step), float(factor))
        except ValueError:
            raise SegueError(f"--slow {text!r}: expected DEVICE@STEP:FACTOR, such as dev2@100:3") from None
        if device not in topology.index:
            raise SegueError(f"--slow {text!r}: unknown device {device!r}; known: {', '.join(topology.index)}")
        if topology.devices[topology.index[device]].kind != "emulated":
            raise SegueError(f"--slow {text!r}: only emulated devices can be slowed")
        if not 0 <= result.step < steps:
            raise SegueError(f"--slow {text!r}: step must be between 0 and {steps - 1}")
        if not result.factor > 0 or result.factor == float("inf"):
            raise SegueError(f"--slow {text!r}: factor must be > 0")
        return result


@dataclass(frozen=True)
class RunConfig:
    """One training run.

    Attributes:
        model: zoo name or `path/to/file.py:function`.
        data: `digits` or `imagefolder:PATH`.
        topology: the devices, as a `segue.topology/1` record.
        start: a planner's name, or a placement file.
        agent: whether the policy decides; without it the run stays where it starts.
        steps: training steps.
        batch_size: samples a step.
        microbatches: parts that a batch is cut into.
        image_size: images are scaled to this many pixels a side.
        learning_rate: of AdamW.
        seed: of weights, order of the data, dropout and the policy's samples.
        slow: devices that become slower during the run.
        policy: file of pretrained weights; the shipped ones if empty.
        profile: file of op times to pace and plan with; measured if empty.
        evaluations: simulated placements for each decision.
        checkpoint_every: steps between checkpoints.
        run_dir: where everything is written.
        trace: steps whose measured timeline is written as a Perfetto trace.
        tensorboard: whether curves are written.
        approve: whether a person is asked before each move.
    """

    model: str
    data: str
    topology: dict[str, Any]
    start: str
    agent: bool
    steps: int
    batch_size: int
    microbatches: int
    image_size: int
    learning_rate: float
    seed: int
    slow: tuple[SlowDown, ...]
    policy: str
    profile: str
    evaluations: int
    checkpoint_every: int
    run_dir: str
    trace: tuple[int, ...] = ()
    tensorboard: bool = False
    approve: bool = False

    def devices(self) -> Topology:
        """The topology."""
        return Topology.from_record(self.topology, "topology")

    def save(self) -> None:
        """Write `config.json` into the run folder."""
        write_json(Path(self.run_dir) / FILE, {"format": FORMAT, **asdict(self)})

    @staticmethod
    def load(run_dir: str) -> "RunConfig":
        """Read the configuration of a run folder, which may have been moved.

        Raises:
            SegueError: if there is none, or it is malformed.
        """
        path = Path(run_dir) / FILE
        record = read_json(path, FORMAT)
        check_fields(record, ["format", *(f.name for f in fields(RunConfig))], [], str(path))
        del record["format"]
        try:
            slow = tuple(SlowDown(**row) for row in record.pop("slow"))
            trace = tuple(record.pop("trace"))
            return replace(RunConfig(**record, slow=slow, trace=trace), run_dir=run_dir)
        except TypeError as error:
            raise SegueError(f"{path}: {error}") from error


def parse_steps(text: str, steps: int) -> tuple[int, ...]:
    """Read step numbers such as `3,10-12`.

    Raises:
        SegueError: if it is no such list, or names a step that the run of `steps` does not have.
    """
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            chosen.update(range(int(first), int(last if dash else first) + 1) or [-1])
        except ValueError:
            raise SegueError(f"--trace {text!r}: expected steps as a comma list, FIRST-LAST or both: 3,10-12") from None
    for step in sorted(chosen):
        if not 0 <= step < steps:
            raise SegueError(f"--trace {text!r}: steps must be ascending, between 0 and {steps - 1}")
    return tuple(sorted(chosen))


def find_topology(spec: str) -> Topology:
    """A topology from a file (.yaml, .json, or .txt as `nvidia-smi topo -m` prints), a preset's name, or `auto`.

    `auto` is the GPUs if there are any, else four emulated devices.

    Raises:
        SegueError: if it is neither.
    """
    if spec == "auto":
        return discover() if torch.cuda.is_available() else preset("emulated-4")
    if spec in ("this-machine", "discover"):
        return discover()
    if Path(spec).suffix in (".yaml", ".yml", ".json"):
        return Topology.load(spec)
    if Path(spec).suffix == ".txt":
        return load_topology_text(spec)
    if spec not in presets():
        known = ", ".join(["auto", "this-machine", *presets()])
        raise SegueError(f"--topology {spec!r}: neither a .yaml, .json or .txt file nor one of {known}")
    return preset(spec)
