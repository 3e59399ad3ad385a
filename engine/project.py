"""Where the project's own files are: a checkout, or the data packed inside the installed package."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def is_checkout() -> bool:
    """Whether `conf/` lies beside the package, as in a clone or an editable install."""
    return (PACKAGE.parent / "conf" / "config.yaml").is_file()


def project_root() -> Path:
    """The checkout, or `engine/_data` of an installed wheel: the parent of conf/, prompts/, tasks/ and recordings/."""
    return PACKAGE.parent if is_checkout() else PACKAGE / "_data"


def conf_dir() -> Path:
    """The folder of the configuration tree."""
    return project_root() / "conf"


def resolve(path: str) -> Path:
    """The absolute path of a configured file or folder that belongs to the project.

    Absolute paths and `~` are taken as they are. A relative one is below the checkout; of an installed wheel it is
    packed data where that exists (prompts, tasks, recordings) and otherwise below the working directory (results).
    """
    given = Path(path).expanduser()
    if given.is_absolute():
        return given
    packed = project_root() / given
    return packed if is_checkout() or packed.exists() else Path.cwd() / given
