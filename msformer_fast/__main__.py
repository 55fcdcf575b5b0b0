"""``python -m msformer_fast``: the command line."""

from msformer_fast.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
