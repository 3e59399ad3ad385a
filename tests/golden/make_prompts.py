"""Rewrites tests/golden/prompts from the templates: python -m tests.golden.make_prompts. Read the diff afterwards."""

from __future__ import annotations

from pathlib import Path

from tests.golden.prompt_cases import cases, show

FOLDER = Path(__file__).parent / "prompts"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    wanted = {f"{name}.txt": show(role, context) for name, (role, context) in cases().items()}
    for stale in FOLDER.glob("*.txt"):
        if stale.name not in wanted:
            stale.unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
