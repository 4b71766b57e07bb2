"""Graphs, topologies, placements, schedules, clocks, planners and the executor."""
