"""How each command of the package ends: an error in a line with its hint, a closed pipe and an interrupt in silence."""

from __future__ import annotations

import sys
from collections.abc import Callable

from engine.errors import EngineError

INTERRUPTED = 130


def exit_code(work: Callable[[], int], prefix: str = "") -> int:
    """What `work` returns; for an EngineError its own code, with its message, after `prefix`, and hint on stderr."""
    try:
        return work()
    except EngineError as error:
        sys.stderr.write(f"{prefix}{error}\n" + (f"{error.hint}\n" if error.hint else ""))
        return error.exit_code
    except BrokenPipeError:
        # The reader of a pipe, such as `head`, has seen enough.
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
