"""A lifecycle node that is made of a parameter dataclass, starts by itself and can be mended."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, Protocol

from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.exceptions import ParameterException
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos_overriding_options import InvalidQosOverridesError

from foundationpose_trt.ros.parameters import (
    declare_fields,
    field_value,
    given_parameters,
    live_parameters,
    read,
    unknown_parameters,
)

# of every managed node beside those of its dataclass: name, default, description
OWN_PARAMETERS = (
    ('autostart', True, 'configure and activate at the start'),
    (
        'exit_on_failure', False, 'end the process, with status 2, if that fails at the start;'
        ' else the node stays unconfigured and may be mended',
    ),
)  # fmt: skip
WRONG_OVERRIDE = (ParameterException, InvalidQosOverridesError)  # what rclpy raises for one
SIGNAL_S = 0.1  # how long a signal may wait for the work of configure


class StopSignal(Protocol):
    """What a node asks of the process about its end."""

    requested: bool

    def end_at_once(self) -> None:
        """End the process, whatever runs."""


class ManagedNode(LifecycleNode):
    """Unconfigured -> configured (built, warm) -> active (subscribed), and back.

    kind: its parameter dataclass. siblings: those of other nodes in its process, whose parameters
    it passes over in silence. With parameter autostart (default true) `start` configures and
    activates; a configure that fails leaves the node unconfigured and says why, and may be tried
    again once the parameters were set. Raises ValueError naming a parameter of a wrong type or
    outside its limits.

    refusals: exceptions of _build that are no bugs. A subclass has _build (parameters are read),
    _begin, _end (returns False when something still runs) and _release.
    """

    refusals: tuple[type[BaseException], ...] = (
        ValueError, OSError, MemoryError, *WRONG_OVERRIDE,
    )  # fmt: skip

    def __init__(
        self, name: str, kind: type, siblings: Sequence[type] = (), **options: Any
    ) -> None:
        super().__init__(name, **options)
        self._kind = kind
        self._siblings = siblings
        self._live = live_parameters(kind)
        self._changed: set[str] = set()  # live parameters that are not yet in force
        self._nested: set[str] = set()  # parameters beside those of kind, read when configuring
        self.parameters: Any = None
        self.configured = self.active = False
        self.refusal = ''  # why the last configure failed
        self._bug: BaseException | None = None
        self._change_lock = threading.Lock()
        self.stop_request: StopSignal | None = None  # of the process, set by run_nodes
        self._own = {}
        for own, default, description in OWN_PARAMETERS:
            descriptor = ParameterDescriptor(description=description, read_only=True)
            self._own[own] = bool(self.declare_parameter(own, default, descriptor).value)
        declare_fields(self, kind, fixed=False)
        self._survive_wrong_transitions()
        self._warn_of_unknown()
        self.add_on_set_parameters_callback(self._on_set_parameters)

    def start(self) -> bool:
        """Configure and activate if autostart says so; False when configuring failed.

        Raises ValueError instead with exit_on_failure.
        """
        if not self._own['autostart']:
            self.get_logger().info('autostart is false: waiting to be configured and activated')
            return True
        self.trigger_configure()
        if self.configured:
            self.trigger_activate()
        if self.refusal and self._own['exit_on_failure']:
            raise ValueError(self.refusal)
        return not self.refusal

    def raise_bug(self) -> None:
        """Raise what a transition raised that was no refusal: a bug must not look alive."""
        if self._bug is not None:
            raise self._bug

    def _survive_wrong_transitions(self) -> None:
        """Answer a transition that the state does not allow, which ends rclpy's spin before 9.

        https://github.com/ros2/rclpy/issues/1209; its end on Humble and Jazzy was not backported.
        """
        service = self._service_change_state
        service.callback = surviving(service.callback, self.get_logger())

    # Transitions, called by rclpy in the executor's thread.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Read the parameters, build and warm up."""
        self.refusal = ''
        with self._noting_bugs():
            try:
                self.parameters = read(self, self._kind)
                self._apart(self._build)
            except self.refusals as error:
                self._refuse('configure', error)
                self._forget()
                return TransitionCallbackReturn.FAILURE
        self.configured = True
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Listen to the inputs."""
        self.refusal = ''
        with self._noting_bugs():
            try:
                self._begin()
            except (ValueError, RuntimeError, *WRONG_OVERRIDE) as error:
                self._end()
                self._refuse('activate', error)
                return TransitionCallbackReturn.FAILURE
        self.active = True
        return TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop listening; what is in work ends, and is not published if that takes too long."""
        self.active = False
        with self._noting_bugs():
            ended = self._end()
        if ended:
            return TransitionCallbackReturn.SUCCESS
        self.get_logger().error('a frame in work did not end')
        return TransitionCallbackReturn.ERROR

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything that configure made, on the GPU too."""
        with self._noting_bugs():
            self._forget()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """As deactivate and cleanup."""
        return self.on_error(state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and free everything; the node is unconfigured then, and may be configured again."""
        with self._noting_bugs():
            ended = self._end()
            self.active = False
            self._forget()
        return TransitionCallbackReturn.SUCCESS if ended else TransitionCallbackReturn.FAILURE

    @contextmanager
    def _noting_bugs(self) -> Iterator[None]:
        """Keep what a transition raises, which rclpy swallows, for raise_bug."""
        try:
            yield
        except BaseException as error:
            self._bug = error
            raise

    # What a subclass does.

    def _build(self) -> None:
        """Make everything that the parameters ask for."""
        raise NotImplementedError

    def _begin(self) -> None:
        """Start the worker and subscribe."""
        raise NotImplementedError

    def _end(self) -> bool:
        """Unsubscribe and stop the worker; False when it still runs."""
        raise NotImplementedError

    def _release(self) -> None:
        """Drop what _build made; called after a failed _build too."""
        raise NotImplementedError

    def _take_changes(self) -> set[str]:
        """Names of live parameters that changed, for the worker to apply between two frames."""
        with self._change_lock:
            changed, self._changed = self._changed, set()
        for name in sorted(changed):
            self.get_logger().info(f'{name} is now {getattr(self.parameters, name)}')
        return changed

    def _forget(self) -> None:
        self.configured = False
        self._release()

    def _apart(self, work: Callable[[], None]) -> None:
        """Do long work in another thread, so that this one, if it is the main one, sees signals.

        A signal ends the process at once then: the work may be one call of minutes.
        """
        stop = self.stop_request
        with ThreadPoolExecutor(1, 'configure') as pool:
            done = pool.submit(work)
            while not done.done():
                if stop is not None and stop.requested:
                    stop.end_at_once()
                wait([done], timeout=SIGNAL_S)
        done.result()

    def _refuse(self, transition: str, error: BaseException) -> None:
        self.refusal = str(error) or type(error).__name__
        if self._own['exit_on_failure']:
            return  # run_nodes says it
        name = self.get_fully_qualified_name()
        state = 'unconfigured' if transition == 'configure' else 'inactive'
        then = 'configure, and activate' if transition == 'configure' else 'activate'
        self.get_logger().error(
            f'cannot {transition}: {self.refusal}. The node is {state}: mend it (ros2 param set'
            f' {name} ...), then ros2 lifecycle set {name} {then}; what is given at the start'
            ' alone, as qos_overrides and types are, needs a new start'
        )

    def _warn_of_unknown(self) -> None:
        given = set(given_parameters(self)) - set(self._own)
        nested = {name for name in given if name.partition('.')[0] in self._nested_prefixes()}
        for line in unknown_parameters(given - nested, self._kind, self._siblings):
            self.get_logger().warning(line)

    def _nested_prefixes(self) -> set[str]:
        """Beginnings of names that are looked at when configuring."""
        return set()

    def _on_set_parameters(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        """Accept what fits: when configured live parameters only, checked against each other."""
        if self.parameters is None or not self.configured:
            return SetParametersResult(successful=True)  # read when configuring
        specs = {spec.name: spec for spec in dataclasses.fields(self._kind)}
        given = {
            p.name: field_value(specs[p.name], p.value) for p in parameters if p.name in specs
        }
        changes = {k: v for k, v in given.items() if getattr(self.parameters, k) != v}
        fixed = sorted(set(changes) - self._live | self._nested & {p.name for p in parameters})
        if fixed:
            return SetParametersResult(successful=False, reason=self._fixed_now(fixed[0]))
        try:
            changed = dataclasses.replace(self.parameters, **changes)
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        with self._change_lock:  # the worker may be taking them
            self.parameters = changed
            self._changed |= set(changes)
        return SetParametersResult(successful=True)

    def _fixed_now(self, name: str) -> str:
        node = self.get_fully_qualified_name()
        return (
            f'{name} is fixed while the node is configured: ros2 lifecycle set {node} deactivate,'
            f' then cleanup, set it, then configure and activate'
        )


def surviving(callback: Callable[[Any, Any], Any], logger: Any) -> Callable[[Any, Any], Any]:
    """Return a callback of change_state that answers no where rclpy raises RCLError."""

    def answer(request: Any, response: Any) -> Any:
        try:
            return callback(request, response)
        except rclpy_implementation.RCLError as error:
            logger.error(f'transition {request.transition.id} is not possible now: {error}')
            response.success = False
            return response

    return answer
