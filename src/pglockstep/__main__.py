"""``python -m pglockstep`` is the ``pglockstep`` command."""

from pglockstep.cli.main import main

if __name__ == "__main__":
    main()
