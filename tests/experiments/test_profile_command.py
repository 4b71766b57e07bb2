import argparse

import numpy as np
import pytest
import torch

from segue.experiments.planning_options import add_profile
from segue.experiments.profile_command import kind_table, profile_command
from segue.placement.capture import capture_program
from segue.placement.costs import Profile, roofline
from segue.placement.errors import SegueError
from segue.placement.gpus import GPUS
from segue.placement.graph import make_graph
from segue.placement.topology import Topology


def options(*arguments):
    parser = argparse.ArgumentParser()
    add_profile(parser.add_subparsers())
    return parser.parse_args(["profile", *arguments])


BAD = {
    "--batch-size 0": "--batch-size must be >= 1, got 0",
    "--repeats -2": "--repeats must be >= 1, got -2",
    "--sequence-length 0": "--sequence-length must be >= 1, got 0",
    "--batch-size 4 --microbatches 5": r"--microbatches must be at most --batch-size \(4\), got 5",
    "--device tpu": "--device 'tpu': expected cpu or cuda:N",
    "--device meta": "--device 'meta': expected cpu or cuda:N",
    "--device cuda:99": r"--device 'cuda:99': no such device; this machine has \d CUDA devices",
    "--out /no/such/folder/p.json": "--out /no/such/folder/p.json: /no/such/folder is not a folder",
    "--topology-out t.txt": "--topology-out t.txt: expected a name that ends in .yaml, .yml or .json",
    "--model transmogrifier": "model 'transmogrifier': no such model",
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_options_are_named_before_anything_is_measured(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SegueError, match=BAD[arguments]):
        profile_command(options(*arguments.split()))
    assert list(tmp_path.iterdir()) == []


GRAPH = make_graph(
    "g",
    [(0, 1), (1, 2)],
    kinds=["linear", "relu", "linear"],
    forward_flops=[1e9, 0, 3e9],
    backward_flops=[2e9, 0, 6e9],
    read_bytes=[1e6, 1e6, 0],
)


def test_the_table_adds_up_each_kind_and_says_what_it_achieves():
    profile = Profile(np.array([1.0, 0.5, 1.0]), np.array([2.0, 0.0, 2.0]), np.zeros(3), "measured")
    header, _, linear, relu, everything = kind_table(GRAPH, profile).splitlines()
    assert header.split() == ["kind", "ops", "share", "forward", "ms", "backward", "ms", "GFLOP/s", "GB/s"]
    assert linear.split() == ["linear", "2", "92.3", "%", "2000", "4000", "2", "0"]
    assert relu.split() == ["relu", "1", "7.7", "%", "500", "0", "0", "0"]
    assert everything.split()[:6] == ["all", "3", "100.0", "%", "2500", "4000"]


def test_a_known_product_is_held_against_its_roofline():
    half = roofline(GRAPH, GPUS["A10"])
    profile = Profile(2 * half.forward_s, 2 * half.backward_s, half.update_s, "measured", "A10")
    lines = kind_table(GRAPH, profile).splitlines()
    assert lines[0].endswith("of roofline")
    assert all(line.endswith("50 %") for line in lines[2:])


@pytest.mark.parametrize("model", ["mlp", "gpt"])
def test_a_profile_is_of_one_microbatch_and_fits_the_models_graph(model, tmp_path, capsys):
    from segue.experiments.zoo.example import build_example

    out = tmp_path / "p.json"
    sizes = {"image_size": 8, "sequence_length": 8}
    flags = ["--image-size", "8", "--sequence-length", "8"]
    arguments = ["--model", model, "--batch-size", "5", "--microbatches", "2", "--repeats", "1", "--device", "cpu"]
    assert profile_command(options(*arguments, *flags, "--out", str(out))) == 0
    example = build_example(model, 3, **sizes)
    graph = capture_program(example.step, (example.batch,), name=example.name, prefix="model.").graph
    profile = Profile.load(out, graph)
    assert profile.source == "measured"
    assert profile.model == ""
    assert (profile.forward_s > 0).all()
    text = capsys.readouterr().out
    assert f"{graph.num_ops} ops, one microbatch of 3 samples, measured on a CPU core" in text
    assert text.count("linear") >= 1


def test_the_machine_and_its_measured_links_are_written_when_asked(tmp_path):
    path = tmp_path / "lab.yaml"
    flags = ["--model", "mlp", "--image-size", "8", "--batch-size", "2", "--microbatches", "1", "--repeats", "1"]
    profile_command(options(*flags, "--out", str(tmp_path / "p.json"), "--topology-out", str(path)))
    topology = Topology.load(path)
    assert topology.name == "lab"
    if topology.num_devices > 1 and not torch.cuda.is_available():
        assert len({link.bandwidth_bytes_per_s for link in topology.links}) >= 1
        assert all(link.bandwidth_bytes_per_s != 2e9 for link in topology.links)
