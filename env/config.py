"""`EnvConfig`: the sizes and weights of the environment."""

from dataclasses import dataclass, fields

from ..placement.errors import SegueError


@dataclass(frozen=True)
class EnvConfig:
    """Sizes that observations are padded to, and what a step is rewarded for.

    Attributes:
        max_groups: groups of ops; larger graphs are coarsened to this many.
        max_devices: devices; a topology with more is refused.
        max_edges: edges between groups; of more, those with the most bytes are shown.
        horizon: most moves in an episode.
        move_weight: reward taken for moving all parameters and optimizer state once.
        overflow_penalty: reward taken on entering a placement that overflows memory, up to twice this as it overflows by
            more, and given back on leaving it.

    Raises:
        SegueError: if a value is out of range.
    """

    max_groups: int = 32
    max_devices: int = 8
    max_edges: int = 96
    horizon: int = 16
    move_weight: float = 0.02
    overflow_penalty: float = 0.5

    @property
    def max_units(self) -> int:
        """Most units that can move: the groups' own, the ends of runs, and what each device holds."""
        return 4 * self.max_groups + min(self.max_groups, self.max_devices)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.type is float else 1
            if value < least:
                raise SegueError(f"EnvConfig: {field.name} must be >= {least}, got {value}")
