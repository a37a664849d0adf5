"""The parameters of the nodes as rows, for the parameter files and docs/reference.md."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import Field, dataclass, fields, is_dataclass
from typing import Any

from foundationpose_trt.ros import detector_node, player_node, tracker_node
from foundationpose_trt.ros.detector_parameters import DetectorParameters
from foundationpose_trt.ros.managed_node import OWN_PARAMETERS
from foundationpose_trt.ros.player_parameters import PlayerParameters
from foundationpose_trt.ros.tracker_parameters import ObjectParameters, TrackerParameters

TRACKER, DETECTOR = tracker_node.NODE_NAME, detector_node.NODE_NAME
PLAYER = player_node.NODE_NAME
KINDS = {
    TRACKER: TrackerParameters,
    DETECTOR: DetectorParameters,
    PLAYER: PlayerParameters,
}
MANAGED = (TRACKER, DETECTOR)
LIVE, FIXED, AT_START = 'live', 'fixed', 'start'
PLAIN = re.compile('[a-z_]{3,}')
NO_STRINGS = ('true', 'false', 'yes', 'off', 'null', 'inf', 'nan')  # to some reader of YAML


@dataclass(frozen=True)
class ParameterRow:
    """One parameter of a node. change: LIVE, FIXED or AT_START, when it may be set."""

    name: str
    default: Any
    description: str
    unit: str = ''
    limits: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()
    change: str = FIXED

    def allowed(self) -> str:
        """Return unit and range, or the choices; '' when anything of its type will do."""
        parts = [self.unit] if self.unit else []
        if self.limits:
            parts.append('..'.join(number(limit) for limit in self.limits))
        if self.choices:
            parts.append('one of ' + ', '.join(choice or '""' for choice in self.choices))
        return ', '.join(parts)

    def default_text(self) -> str:
        """Return the default as YAML has it."""
        return '[]' if self.default == () else yaml_value(self.default)


def parameter_groups(node: str) -> list[tuple[str, list[ParameterRow]]]:
    """Return all parameters of a node in groups with headings: its own first."""
    kind = KINDS[node]
    shared = inherited(kind)
    own = [row for row in rows_of(kind) if row.name not in shared]
    groups = [('', own)]
    if shared:
        common = [row for row in rows_of(kind) if row.name in shared]
        groups.append(('of every node on a camera', common))
    if node in MANAGED:
        groups.append(('of every lifecycle node, only at its start', managed_rows()))
    return groups


def object_rows() -> list[ParameterRow]:
    """Return the parameters that tracker_node has of each of several objects."""
    return rows_of(ObjectParameters)


def rows_of(kind: type) -> list[ParameterRow]:
    """Return the fields of a parameter dataclass."""
    return [_row(spec) for spec in fields(kind)]


def managed_rows() -> list[ParameterRow]:
    """Return what a managed node has beside its dataclass."""
    return [
        ParameterRow(name, default, description, change=AT_START)
        for name, default, description in OWN_PARAMETERS
    ]


def inherited(kind: type) -> set[str]:
    """Names of the fields that a dataclass has from others."""
    bases: Sequence[type] = kind.__mro__[1:]
    return {spec.name for base in bases if is_dataclass(base) for spec in fields(base)}


def yaml_value(value: bool | int | float | str) -> str:
    """Return a default so that YAML reads the same value of the same type."""
    if isinstance(value, bool):
        return 'true' if value else 'false'
    if isinstance(value, float):
        mantissa, e, exponent = repr(value).partition('e')
        return mantissa + ('' if '.' in mantissa else '.0') + e + exponent  # else an int to YAML
    if isinstance(value, str) and (value in NO_STRINGS or not PLAIN.fullmatch(value)):
        return json.dumps(value)
    return str(value)


def number(value: float) -> str:
    """Return a limit in as few characters as it can be read from: 0.5, 60000, 1e-6."""
    if isinstance(value, int):
        return str(value)
    return re.sub(r'e([+-])0*', lambda match: 'e' + match[1].strip('+'), f'{value:g}')


def _row(spec: Field[Any]) -> ParameterRow:
    metadata = spec.metadata
    return ParameterRow(
        spec.name, spec.default, metadata['description'], metadata['unit'], metadata['limits'],
        metadata['choices'], LIVE if metadata['live'] else FIXED,
    )  # fmt: skip
