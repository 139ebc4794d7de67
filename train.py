"""Entry point of a checkout: `python train.py demo`, `python train.py --help`."""

from etude.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
