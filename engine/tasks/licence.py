"""Under which licence the source of a task may be passed on."""

from __future__ import annotations

import re

_TAG = re.compile(r"^#\s*SPDX-License-Identifier:\s*(\S.*?)\s*$", re.MULTILINE)
# "path" is missing: nobody but their author knows the terms of such files.
_COLLECTIONS = {"bundled": "Apache-2.0", "kernelbench": "MIT"}


def licence(source: str, collection: str) -> str | None:
    """The SPDX expression of a task's source: its own tag, else that of its collection (`task.source`), else None."""
    tag = _TAG.search(source)
    return tag[1] if tag else _COLLECTIONS.get(collection)
