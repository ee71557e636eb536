"""How closely the units of a state follow simple features of the characters that a model reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from elman.analysis_results import Unit
from elman.character_features import features

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Reading:
    """The values of units while a model read a text.

    Attributes:
        model: the model's name.
        digest: the digest of its bundle.
        units: the units.
        texts: the text of each step; joined, they are the text as far as the model knows it.
        values: the values of the units after each step, in the order of `units`; float32 arrays if numpy is installed.
    """

    model: str
    digest: str
    units: tuple[Unit, ...]
    texts: list[str]
    values: Sequence[Sequence[float] | NDArray[np.float32]]


@dataclass(frozen=True)
class Correlation:
    """The correlation of a unit with a feature.

    Attributes:
        feature: the name of the feature; see `elman.character_features`.
        unit: the index of the unit in `Reading.units`.
        coefficient: Pearson's, from -1 to 1.
    """

    feature: str
    unit: int
    coefficient: float


def best_units(reading: Reading, count: int) -> list[Correlation]:
    """Find the units with the strongest correlation, positive or negative, with each feature.

    A step of several characters has the features of its last one. A step without a character, such as the begin token
    and all but the last byte of a character, is left out.

    Args:
        reading: the values of all units.
        count: the number of units for each feature.

    Returns:
        The correlations by feature, the strongest first; features and units that do not change are left out.
    """
    import numpy as np

    steps = [index for index, text in enumerate(reading.texts) if text]
    if not steps:
        return []
    ends = np.cumsum([len(reading.texts[step]) for step in steps]) - 1
    values = np.stack([np.asarray(reading.values[step], dtype=np.float32) for step in steps])
    found: list[Correlation] = []
    for name, feature in features("".join(reading.texts)).items():
        coefficients = correlations(values, np.array(feature)[ends])
        order = np.argsort(-np.abs(coefficients), kind="stable")[:count]
        found += [Correlation(name, int(unit), float(coefficients[unit])) for unit in order if coefficients[unit]]
    return found


def correlations(values: NDArray[np.float32], feature: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's correlation of each unit with a feature.

    `numpy.corrcoef` would copy all values in double precision and correlate all pairs of units.

    Args:
        values: [steps, units].
        feature: [steps].

    Returns:
        [units], from -1 to 1; 0 if one of the two does not change or is not finite.
    """
    import numpy as np

    centred = feature - feature.mean()
    means = values.mean(axis=0, dtype=np.float64)
    found = np.zeros(values.shape[1])
    for unit, mean in enumerate(means):
        deviations = values[:, unit] - mean
        size = math.sqrt(float(deviations @ deviations) * float(centred @ centred))
        if size > 0 and math.isfinite(size) and np.ptp(values[:, unit]) > 0:
            found[unit] = float(deviations @ centred) / size
    return found
