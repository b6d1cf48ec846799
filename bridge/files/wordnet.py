"""WordNet databases: the machine's own, and the folders that users add."""

from pathlib import Path

from .folders import OFF, home, local_folders, register

WORDNETS = register("wordnet")
INSTALLED = "installed"
INSTALLED_WORDNETS = ("/usr/share/wordnet", "/usr/local/WordNet-3.0/dict")
"""Where Debian's and Ubuntu's package wordnet-base and WordNet's own installer put the database."""


def wordnet_names() -> list[str]:
    """The machine's own database, and the local folders."""
    return [OFF, INSTALLED, *sorted(local_folders(WORDNETS))]


def wordnet_folder(name: str) -> Path:
    """Folder of a name from `wordnet_names`. Raises FileNotFoundError that says how to get one."""
    if name == INSTALLED:
        found = next((path for path in map(Path, INSTALLED_WORDNETS) if path.is_dir()), None)
    else:
        found = local_folders(WORDNETS).get(name)
    if found is None:
        raise FileNotFoundError(
            f'there is no WordNet database "{name}"; on Debian and Ubuntu install the package wordnet-base, '
            f"elsewhere put the folder dict of WordNet 3.0 (wordnet.princeton.edu) into {home(WORDNETS)}"
        )
    return found
