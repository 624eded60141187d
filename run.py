#!/usr/bin/env python3
"""Start here: `python run.py demo`, `python run.py serve`, `python run.py test`.

Needs nothing but Python 3.10 or newer: all that the commands use is set up, once, in `.local/` beside this file.
"""

import sys

if sys.version_info < (3, 10):
    sys.exit(
        "PureCC needs Python 3.10 or newer; this is Python %d.%d (%s)." % (sys.version_info[:2] + (sys.executable,))
    )

from purecc.launch.cli import main  # noqa: E402  (the version check comes first)

if __name__ == "__main__":
    sys.exit(main())
