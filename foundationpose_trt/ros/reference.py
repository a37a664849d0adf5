"""Writes config/*.yaml and docs/reference.md from the code, or checks that they are current.

python -m foundationpose_trt.ros.reference [--check | --write] [--root CHECKOUT]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from foundationpose_trt.ros.reference_config import config_file, config_path
from foundationpose_trt.ros.reference_document import DOCUMENT, document
from foundationpose_trt.ros.reference_parameters import KINDS

CHECKOUT = Path(__file__).resolve().parents[2]
COMMAND = 'python -m foundationpose_trt.ros.reference'
STALE, NO_CHECKOUT = 1, 2


def generated() -> dict[str, str]:
    """Return the content of each file by its path in the checkout.

    Raises ValueError when descriptions and nodes do not agree.
    """
    return {**{config_path(node): config_file(node) for node in KINDS}, DOCUMENT: document()}


def stale(root: Path, files: Mapping[str, str]) -> list[str]:
    """Return which files of a checkout are missing or say something else."""
    return [
        name
        for name, content in files.items()
        if not (root / name).is_file() or (root / name).read_text(encoding='utf-8') != content
    ]


def write(root: Path, files: Mapping[str, str]) -> None:
    """Write files into a checkout."""
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(content, encoding='utf-8')


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    options = parser().parse_args(arguments)
    if not (options.root / 'package.xml').is_file():
        sys.stderr.write(f'{options.root} is no checkout of this package: give one with --root\n')
        return NO_CHECKOUT
    # the nodes that are looked at are nobody else's business
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    files = generated()
    changed = stale(options.root, files)
    if options.write:
        write(options.root, {name: files[name] for name in changed})
        sys.stdout.write(f'written: {", ".join(changed) or "nothing, all is current"}\n')
    elif changed:
        sys.stderr.write(f'stale: {", ".join(changed)}; run {COMMAND} --write\n')
        return STALE
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(prog=COMMAND, description='Keeps files written from code.')
    action = made.add_mutually_exclusive_group()
    action.add_argument(
        '--check', action='store_true', help='status 1 and their names if files are stale; default'
    )
    action.add_argument('--write', action='store_true', help='write the files that are stale')
    made.add_argument('--root', type=Path, default=CHECKOUT, help='the checkout; default: this')
    return made


if __name__ == '__main__':
    raise SystemExit(main())
