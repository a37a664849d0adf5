"""The command `foundationpose-trt`: finds the subcommand, reports bad input in one line."""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import foundationpose_trt

COMMANDS = (
    'demo', 'replay', 'make-scene', 'evaluate', 'evaluate-detector', 'compare', 'train', 'export',
    'calibrate', 'build', 'benchmark', 'monitor',
)  # fmt: skip
BAD_INPUT = 2  # exit status, as argparse's own for wrong arguments
INTERRUPTED = 130  # exit status of a program ended by SIGINT, by shell convention
REMEDIES = {  # for the optional packages of setup.py
    'torch': "pip install '.[gpu]' or '.[cpu]'",
    'onnx': 'pip install onnx onnxruntime',
    'onnxruntime': 'pip install onnx onnxruntime',
    'rclpy': "pip install '.[ros]', or source your ROS 2 installation",
    'diagnostic_msgs': "pip install '.[ros]', or sudo apt install ros-$ROS_DISTRO-diagnostic-msgs",
    'rich': 'pip install rich',
    'matplotlib': 'pip install matplotlib',
    'supervision': 'pip install supervision',
}


def _module_name(command: str) -> str:
    return command.replace('-', '_')


def _help_line(command: str) -> str:
    """Read HELP from the command's source: importing five modules for --help takes seconds."""
    source = Path(__file__).with_name(f'{_module_name(command)}.py').read_text(encoding='utf-8')
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'HELP':
            return str(ast.literal_eval(node.value))
    raise LookupError(f'tools/{_module_name(command)}.py has no HELP')


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """Build the parser; only the chosen command's module is imported and adds its arguments."""
    debug = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    debug.add_argument('--debug', action='store_true', help='show the traceback of an error')
    parser = argparse.ArgumentParser(
        prog='foundationpose-trt', description=foundationpose_trt.__doc__, parents=[debug]
    )
    version = f'%(prog)s {foundationpose_trt.__version__}'
    parser.add_argument('--version', action='version', version=version)
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for name in COMMANDS:
        line = _help_line(name)
        command = commands.add_parser(name, help=line, description=line, parents=[debug])
        if name == chosen:
            module = importlib.import_module(f'foundationpose_trt.tools.{_module_name(name)}')
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


def _report(error: Exception, remedy: str = '') -> int:
    line = ' '.join(f'{error} {remedy}'.split())
    print(f'foundationpose-trt: error: {line}', file=sys.stderr)
    return BAD_INPUT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Bad input (ValueError, OSError such as a missing file, a missing optional package) becomes one
    line on stderr and status 2; --debug raises it instead.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    chosen = next((word for word in words if not word.startswith('-')), None)
    try:
        options = build_parser(chosen).parse_args(words)
        return int(options.run(options))
    except (ValueError, OSError) as error:
        if '--debug' in words:
            raise
        return _report(error)
    except ModuleNotFoundError as error:
        if '--debug' in words or error.name not in REMEDIES:
            raise
        return _report(error, f': {REMEDIES[error.name]}')
    except KeyboardInterrupt:
        return INTERRUPTED
