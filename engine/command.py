"""How each command of the package ends: an error in a line with its hint, a closed pipe and an interrupt in silence."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

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


def reader_left(stream: TextIO, text: str = "") -> bool:
    """Write to a stream of this process; whether nobody reads it any more, as after `head`. It is then silenced."""
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        silence(stream)
        return True
    return False


def silence(stream: TextIO) -> None:
    """From now on what is written to this stream goes nowhere: Python would tell of a closed pipe at its end."""
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
