"""How far counts lie from what chance gives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def sigmas(seen: Any, trials: int, probability: Any) -> Any:
    """How many standard deviations binomial counts lie from their mean."""
    return np.max(np.abs(seen - trials * probability) / np.sqrt(trials * probability * (1 - probability)))


def chi_square_sigmas(seen: np.ndarray, expected: np.ndarray) -> float:
    """How many standard deviations a chi-square statistic lies above its mean."""
    degrees = len(seen) - 1
    return float((((seen - expected) ** 2 / expected).sum() - degrees) / math.sqrt(2 * degrees))
