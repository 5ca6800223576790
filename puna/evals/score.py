"""Scores with their intervals: what puna/score.py has, under the name that evaluation calls it by."""

from puna.score import change, proportion, ratio

__all__ = ["change", "proportion", "ratio"]
