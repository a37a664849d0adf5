"""A frozen dataclass to declared, described, checked ROS parameters, and back."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, Field, field, fields
from typing import Any, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter

Parameters = TypeVar('Parameters')
# what Isaac ROS calls ours, understood at the start where ours was not given; the other names that
# both have mean the same (shared research, ros_peers.md 1a)
ISAAC_NAMES = {'min_depth_m': 'min_depth', 'max_depth_m': 'max_depth'}
OTHERS_PARAMETERS = ('use_sim_time', 'qos_overrides.', 'start_type_description_service')


def parameter(
    default: bool | int | float | str | tuple[str, ...],
    description: str,
    unit: str = '',
    limits: tuple[float, float] | None = None,
    choices: tuple[str, ...] = (),
    live: bool = False,
) -> Any:
    """Return a dataclass field that is one ROS parameter.

    default: () for a list of strings, empty unless it is given. limits: inclusive, in the
    parameter's own unit; choices: the strings allowed; live: may be set while the node runs.
    """
    metadata = {
        'description': description,
        'unit': unit,
        'limits': limits,
        'choices': choices,
        'live': live,
    }
    return field(default=default, metadata=metadata)


def declare(node: Node, kind: type[Parameters]) -> Parameters:
    """Declare every field of a parameter dataclass on a node and return the values in force.

    All but the live ones are read-only: fixed when the node starts. Raises ValueError naming the
    parameter, its value and what is allowed.
    """
    declare_fields(node, kind)
    return read(node, kind)


def declare_fields(node: Node, kind: type, prefix: str = '', fixed: bool = True) -> None:
    """Declare every field of a parameter dataclass on a node, once.

    prefix: goes before every name, with a dot. fixed: all but the live ones are read-only; else
    it is the node's to refuse what comes at the wrong time. Raises ValueError naming the
    parameter, its value and what is allowed.
    """
    for spec in fields(kind):
        name = prefixed(prefix, spec.name)
        if not node.has_parameter(name):
            _declare_one(node, name, spec, fixed and not spec.metadata['live'])


def read(node: Node, kind: type[Parameters], prefix: str = '') -> Parameters:
    """Return the values in force of a dataclass whose fields were declared.

    Raises what the dataclass raises: ValueError naming the parameter.
    """
    values = {}
    for spec in fields(kind):  # type: ignore[arg-type]
        values[spec.name] = field_value(spec, current(node, prefixed(prefix, spec.name)))
    return kind(**values)


def current(node: Node, name: str) -> Any:
    """Return the value of a declared parameter; None for a list that was not given."""
    try:
        return node.get_parameter(name).value
    except ParameterException:  # declared without a value
        return None


def field_value(spec: Field[Any], value: Any) -> Any:
    """Return what ROS holds for a field as the dataclass has it."""
    return tuple(value or ()) if isinstance(spec.default, tuple) else value


def prefixed(prefix: str, name: str) -> str:
    """Return the ROS name of a field."""
    return f'{prefix}.{name}' if prefix else name


def check_values(parameters: Any) -> None:
    """Check the values of a parameter dataclass against its limits and choices.

    Call it from __post_init__. Raises ValueError naming the parameter.
    """
    for spec in fields(parameters):
        value, limits = getattr(parameters, spec.name), spec.metadata['limits']
        choices = spec.metadata['choices']
        if choices and value not in choices:
            words = ', '.join(choice or "'' (empty)" for choice in choices)
            raise ValueError(f"{spec.name} is '{value}', must be one of {words}")
        if limits and not (math.isfinite(value) and limits[0] <= value <= limits[1]):
            unit = f' {spec.metadata["unit"]}' if spec.metadata['unit'] else ''
            raise ValueError(
                f'{spec.name} is {value}{unit}, must be {limits[0]:g}..{limits[1]:g}{unit}'
            )


def live_parameters(kind: type) -> set[str]:
    """Names of the parameters that may be set while the node runs."""
    return {spec.name for spec in fields(kind) if spec.metadata['live']}


def unknown_parameters(
    given: Iterable[str], kind: type, siblings: Sequence[type] = ()
) -> list[str]:
    """Explain parameters that were given but that the node does not have, one line each.

    ROS ignores those without a word, so a misspelt name would leave the default in force.
    siblings: of other nodes that share the process and its arguments; theirs are not unknown.
    """
    known = [spec.name for one in (kind, *siblings) for spec in fields(one)]
    known += [alias for name, alias in ISAAC_NAMES.items() if name in known]
    lines = []
    for name in sorted(given):
        if name in known or name.startswith(OTHERS_PARAMETERS):
            continue
        close = difflib.get_close_matches(name, known, n=1)
        hint = f'did you mean {close[0]}?' if close else f'known are {", ".join(known)}'
        lines.append(f'parameter {name} is unknown and has no effect: {hint}')
    return lines


def given_parameters(node: Node) -> list[str]:
    """Return the names given to a node by command line, file or launch, declared or not."""
    # rclpy has no public way to list overrides without declaring them (Humble to Lyrical)
    return list(node._parameter_overrides)


def describe(spec: Field[Any], read_only: bool = True) -> ParameterDescriptor:
    """Return the ROS descriptor of a field made with `parameter`."""
    limits, choices = spec.metadata['limits'], spec.metadata['choices']
    unit = f' [{spec.metadata["unit"]}]' if spec.metadata['unit'] else ''
    descriptor = ParameterDescriptor(
        name=spec.name,
        description=spec.metadata['description'] + unit,
        additional_constraints=f'one of {", ".join(choices)}' if choices else '',
        read_only=read_only,
    )
    if limits and isinstance(spec.default, int):
        descriptor.integer_range = [
            IntegerRange(from_value=int(limits[0]), to_value=int(limits[1]), step=1)
        ]
    elif limits:
        descriptor.floating_point_range = [
            FloatingPointRange(from_value=float(limits[0]), to_value=float(limits[1]), step=0.0)
        ]
    return descriptor


def _declare_one(node: Node, name: str, spec: Field[Any], read_only: bool) -> None:
    if spec.default is MISSING:
        raise TypeError(f'{spec.name} has no default: make it with parameter()')
    is_list = isinstance(spec.default, tuple)
    # the type of an empty list cannot be told from its value
    default = Parameter.Type.STRING_ARRAY if is_list else spec.default
    given = node._parameter_overrides
    alias = ISAAC_NAMES.get(name)
    if alias in given and name not in given:
        default = given[alias].value
    try:
        node.declare_parameter(name, default, describe(spec, read_only))
    except ParameterException as error:
        raise ValueError(f'parameter {name}: {error}; {_allowed(spec)}') from error
    if is_list and not read_only and current(node, name) is None:
        # rclpy answers `ros2 param dump`, which asks for all, with nothing where one has no value
        node.set_parameters([Parameter(name, Parameter.Type.STRING_ARRAY, [])])


def _allowed(spec: Field[Any]) -> str:
    limits, choices = spec.metadata['limits'], spec.metadata['choices']
    allowed = f', {limits[0]:g}..{limits[1]:g}' if limits else ''
    allowed += f', one of {", ".join(choices)}' if choices else ''
    is_list = isinstance(spec.default, tuple)
    wanted = 'a list of strings' if is_list else type(spec.default).__name__
    example = ' (write 1.0, not 1)' if isinstance(spec.default, float) else ''
    return f'it must be {wanted}{example}{allowed}'
