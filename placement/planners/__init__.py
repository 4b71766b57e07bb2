"""Classical planners: manual configurations, heuristics and searches, all behind `plan(name, clock)`."""

from .plan import Plan
from .registry import MANUAL, PLANNERS, TIMED, expand, plan

__all__ = ["MANUAL", "PLANNERS", "TIMED", "Plan", "expand", "plan"]
