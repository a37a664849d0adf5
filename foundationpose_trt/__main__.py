"""Run the command line as `python -m foundationpose_trt`."""

from foundationpose_trt.tools.cli import main

if __name__ == '__main__':
    raise SystemExit(main())
