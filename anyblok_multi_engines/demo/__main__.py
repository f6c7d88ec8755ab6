# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Run the demonstration; exit status 0 where all of it was as it should."""

from __future__ import annotations

import importlib.util
import signal
import sys
from types import FrameType


def main() -> int:
    """Run the demonstration, and return the exit status

    :rtype: 0; 1: something is missing, broken, or not as it should be; 130:
        interrupted
    """
    if importlib.util.find_spec("rich") is None:
        return failed(
            "rich isn't installed: pip install 'anyblok_multi_engines[demo]'"
        )

    # These end a program without its cleaning up.
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Not where nohup has it ignored.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, interrupt)

    from subprocess import SubprocessError

    from psycopg2 import Error

    from ..testing import ClusterError
    from .commands import DemoError
    from .results import facts
    from .screen import Screen
    from .story import tell

    screen = Screen()
    try:
        results = tell(screen)
    except KeyboardInterrupt:
        print("Interrupted; the servers are stopped", file=sys.stderr)
        return 130
    except (ClusterError, DemoError, Error, OSError, SubprocessError) as error:
        return failed(str(error) or type(error).__name__)

    found = list(facts(results))
    screen.results(results, found)
    if not all(fact.holds for fact in found):
        return failed("what is marked WRONG above isn't as it should be")

    return 0


def failed(why: str) -> int:
    """Say why the demonstration failed, and return its exit status

    :param why: a sentence
    """
    sys.stdout.flush()
    print(f"The demonstration failed: {why}", file=sys.stderr)
    return 1


def interrupt(number: int, frame: FrameType | None) -> None:
    """End as if it were interrupted from the terminal

    :param number: of the signal
    :param frame: where it came
    :exception: KeyboardInterrupt
    """
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
