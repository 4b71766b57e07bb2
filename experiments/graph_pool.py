"""`GraphPool`: captured models and published profiles that a policy is trained on, and those it never sees."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..placement.captured import capture_any
from ..placement.costs import ROOFLINE_FLOPS_PER_S
from ..placement.errors import SegueError
from ..placement.graph import Graph, make_graph
from .zoo.example import build_example

_SMALL = "hidden_size=512,num_attention_heads=8"

# Family -> what `build_example` builds, for a microbatch of so many samples.
TRAINING: dict[str, tuple[tuple[str, int], ...]] = {
    "resnet": (
        ("resnet50", 4),
        ("resnet", 8),
        ("hf:resnet,depths=[2,2,2,2],layer_type=basic", 8),
        ("hf:bit,depths=[2,2,4,2]", 4),
    ),
    "vgg": (("vgg16", 4),),
    "mlp": (("mlp", 16),),
    "seq2seq": (("lstm-seq2seq", 8),),
    "gpt": (("gpt", 4), ("hf:gpt2,n_layer=4", 2), ("hf:gpt2,n_layer=8,n_embd=512,n_head=8", 4)),
    "bert": (
        ("bert", 4),
        ("hf:roberta,num_hidden_layers=3", 4),
        ("hf:bert,num_hidden_layers=8,hidden_size=256,intermediate_size=1024,num_attention_heads=4", 8),
    ),
    "distilbert": (("hf:distilbert", 4),),
    "electra": (("hf:electra,num_hidden_layers=5", 4),),
    "deberta": ((f"hf:deberta-v2,num_hidden_layers=3,{_SMALL},intermediate_size=2048", 4),),
    "mpnet": (("hf:mpnet,num_hidden_layers=4", 4),),
    "fnet": (("hf:fnet,num_hidden_layers=5", 4),),
    "bart": (("hf:bart,encoder_layers=3,decoder_layers=3", 2),),
    "marian": (("hf:marian,encoder_layers=2,decoder_layers=4,d_model=512", 4),),
    "moe": (("moe", 4),),
    "mixtral": (
        (
            f"hf:mixtral,num_hidden_layers=2,{_SMALL},intermediate_size=1024,num_key_value_heads=4,num_local_experts=4",
            2,
        ),
    ),
    "recommender": (("recommender", 64),),
    "llama": (
        ("hf:llama,num_hidden_layers=4,hidden_size=1024,intermediate_size=2816,num_attention_heads=16", 2),
        (f"hf:llama,num_hidden_layers=2,{_SMALL},intermediate_size=1536", 4),
    ),
    "mistral": ((f"hf:mistral,num_hidden_layers=3,{_SMALL},intermediate_size=1792,num_key_value_heads=4", 2),),
    "bloom": (("hf:bloom,n_layer=4,hidden_size=512,n_head=8", 2),),
    "gpt_neox": ((f"hf:gpt_neox,num_hidden_layers=4,{_SMALL},intermediate_size=2048", 2),),
    "phi": ((f"hf:phi,num_hidden_layers=4,{_SMALL},intermediate_size=2048", 2),),
    "opt": (("hf:opt,num_hidden_layers=5", 2),),
    "vit": (("hf:vit,num_hidden_layers=4", 4), ("hf:deit,num_hidden_layers=6", 4), ("hf:beit,num_hidden_layers=4", 4)),
    "swin": (("hf:swin,depths=[2,2,2]", 4),),
    "segformer": (("hf:segformer", 4),),
    "poolformer": (("hf:poolformer", 4),),
    "mobilevit": (("hf:mobilevit", 4),),
    "convnext": (("hf:convnext", 4), ("hf:convnextv2,depths=[2,2,4,2]", 4)),
    "mobilenet": (("hf:mobilenet_v1", 8), ("hf:mobilenet_v2", 8)),
    "regnet": (("hf:regnet", 4),),
    "pvt": (("hf:pvt", 4),),
}
HELD_OUT: dict[str, tuple[tuple[str, int], ...]] = {
    "inception": (("inception-v3", 4), ("inception", 8)),
    "unet": (("unet", 4),),
    "t5": (("hf:t5,num_layers=3", 4), ("hf:t5,num_layers=6,d_model=768,d_ff=3072", 2)),
}
HELD_OUT_PROFILES = ("gnmt", "resnext50")


@dataclass(frozen=True)
class GraphPool:
    """Graphs by family.

    Attributes:
        training: for training and for choosing settings.
        held_out: for evaluation alone.
    """

    training: Mapping[str, Sequence[Graph]]
    held_out: Mapping[str, Sequence[Graph]]


def load_pool(folder: str | PathLike, profiles: str | PathLike = "") -> GraphPool:
    """Capture the models, or read them from `folder` where they have been captured before.

    Args:
        folder: cache of graph files.
        profiles: folder of published GPU profiles (JSON of nodes with `fw_ms`, `bw_ms`, `act_bytes`, `param_bytes`);
            without it the pool has none.

    Raises:
        SegueError: if a model cannot be captured or a file is malformed.
    """
    kept = Path(folder)
    kept.mkdir(parents=True, exist_ok=True)
    everything = [
        (spec, batch) for family in (TRAINING, HELD_OUT) for specs in family.values() for spec, batch in specs
    ]
    graphs = {spec: _graph(kept, spec, batch) for spec, batch in tqdm(everything, unit="model", leave=False)}
    training = {family: [graphs[spec] for spec, _ in specs] for family, specs in TRAINING.items()}
    held_out = {family: [graphs[spec] for spec, _ in specs] for family, specs in HELD_OUT.items()}
    if profiles:
        read = {file.stem: read_profile(file) for file in sorted(Path(profiles).glob("*.json"))}
        training["profiles"] = [graph for name, graph in read.items() if name not in HELD_OUT_PROFILES]
        held_out["profiles"] = [graph for name, graph in read.items() if name in HELD_OUT_PROFILES]
    return GraphPool(training, held_out)


def _graph(folder: Path, spec: str, batch: int) -> Graph:
    name = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in spec)
    file = folder / f"{name}-{batch}.json"
    if not file.exists():
        example = build_example(spec, batch, image_size=64, sequence_length=64, device="meta")
        capture_any(example.step, (example.batch,), name=spec, prefix="model.").graph.save(file)
    return Graph.load(file)


def read_profile(path: str | PathLike) -> Graph:
    """A published profile as a graph whose roofline on the reference core gives the profiled times.

    Raises:
        SegueError: if the file lacks a field or has a cycle.
    """
    try:
        record = json.loads(Path(path).read_text())
        nodes = {node["id"]: node for node in record["nodes"]}
        order = _topological(list(nodes), [tuple(edge) for edge in record["edges"]], str(path))
        position = {name: place for place, name in enumerate(order)}

        def column(field: str) -> np.ndarray:
            return np.array([float(nodes[name][field]) for name in order])

        output = column("act_bytes")
        return make_graph(
            str(record["name"]),
            [(position[source], position[target]) for source, target in record["edges"]],
            len(order),
            names=order,
            kinds=[str(nodes[name]["op"]).partition("(")[0] for name in order],
            forward_flops=1e-3 * column("fw_ms") * ROOFLINE_FLOPS_PER_S,
            backward_flops=1e-3 * column("bw_ms") * ROOFLINE_FLOPS_PER_S,
            output_bytes=output,
            saved_bytes=output,
            parameter_bytes=column("param_bytes"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SegueError(f"{path}: not a GPU profile: {type(error).__name__}: {error}") from error


def _topological(names: list[str], edges: Sequence[tuple[str, ...]], where: str) -> list[str]:
    """Names so that every edge runs forward, the given order kept where it can be."""
    missing = {name: 0 for name in names}
    readers: dict[str, list[str]] = {name: [] for name in names}
    for source, target in edges:
        missing[target] += 1
        readers[source].append(target)
    ready = [name for name in reversed(names) if not missing[name]]
    order: list[str] = []
    while ready:
        name = ready.pop()
        order.append(name)
        for reader in reversed(readers[name]):
            missing[reader] -= 1
            if not missing[reader]:
                ready.append(reader)
    if len(order) < len(names):
        raise SegueError(f"{where}: edges: form a cycle")
    return order
