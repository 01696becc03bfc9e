"""A user's own images: which files of a folder count.

listing = list_images(Path("images/train"))
print(listing.summary())  # 2 classes: cat 600, dog 580; passed over: 13 .gif, 1 hidden folder
"""

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from training.cli import InputError

ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".pbm", ".pgm", ".ppm", ".pnm", ".tif", ".tiff", ".webp")
SYSTEM = {"__macosx", "$recycle.bin", "system volume information", "lost+found", "@eadir"}  # folders of no user's
MOST_NAMED = 10  # classes in a line


class Listing(NamedTuple):
    """The images below root/CLASS/, at any depth, by class, folder and name."""

    root: Path
    classes: list[str]  # in the order of their folders' names; bytes that are not UTF-8 are written \\xe9
    paths: list[str]
    labels: list[int]  # of each path, its place among the classes
    sizes: list[int]  # of each file, bytes
    passed_over: Counter  # what is there besides, by kind

    def counts(self) -> dict[str, int]:
        """Images of each class."""
        found = Counter(self.labels)
        return {name: found[label] for label, name in enumerate(self.classes)}

    def names(self) -> list[str]:
        """Of each image, its path from the data set's folder on: train/cat/1.png."""
        begin = len(str(self.root)) + 1
        return [readable(f"{self.root.name}/{path[begin:].replace(os.sep, '/')}") for path in self.paths]

    def summary(self) -> str:
        """One line: the classes with their numbers of images, and what was passed over."""
        counts = self.counts()
        named = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:MOST_NAMED])
        more = f" and {len(counts) - MOST_NAMED} more" if len(counts) > MOST_NAMED else ""
        plural = "class" if len(counts) == 1 else "classes"
        return f"{len(counts)} {plural}: {named}{more}{self.besides()}"

    def besides(self) -> str:
        """ "; passed over: 13 .gif", or nothing."""
        kinds = ", ".join(f"{count} {kind}{'s' * (count > 1 and kind[0] != '.')}"
                          for kind, count in sorted(self.passed_over.items()))  # fmt: skip
        return f"; passed over: {kinds}" if kinds else ""


def readable(name: str) -> str:
    """A name from the file system as text: bytes that are not UTF-8 are written \\xe9.

    An é is one character, whether the folder was made on a Mac, which writes an e and an accent, or elsewhere.
    """
    return unicodedata.normalize("NFC", os.fsencode(name).decode(errors="backslashreplace"))


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM


def list_images(root: Path, all_classes: bool = False) -> Listing:
    """Finds the images below root/CLASS/. Hidden and system folders are passed over, and no folder is visited twice.

    Args:
        all_classes: each of them must have an image.
    Raises:
        InputError: there is no such folder, or no image in it.
    """
    wanted = f"{root} must hold a folder of images for each class"
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except FileNotFoundError as error:
        raise InputError(f"{wanted}: it is not there; --data_dir= names where it lies") from error
    listing = Listing(root, [], [], [], [], Counter())
    seen = {_identity(root)}
    for entry in entries:
        if not entry.is_dir():
            image = entry.name.lower().endswith(ENDINGS) and not is_hidden(entry.name)
            listing.passed_over["unsorted image" if image else _kind(entry.name)] += 1
        elif _is_new(entry.path, seen, listing.passed_over):
            listing.classes.append(readable(entry.name))
            for path in _files(entry.path, seen, listing.passed_over):
                _add(listing, path)
    empty = [name for name, count in listing.counts().items() if not count]
    if not listing.paths or (empty and all_classes):
        what = f"no image in {', '.join(empty[:MOST_NAMED])}" if empty else "there is none"
        raise InputError(f"{wanted}: {what}{listing.besides()}; images end in {', '.join(ENDINGS)}")
    return listing


def _files(folder: str, seen: set, passed_over: Counter) -> Iterator[str]:
    """All files below a folder, by folder and name."""

    def fail(error: OSError):
        raise error

    found = []
    for here, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        folders[:] = [name for name in sorted(folders) if _is_new(os.path.join(here, name), seen, passed_over)]
        found.append((here, files))
    for here, files in sorted(found):
        yield from (os.path.join(here, name) for name in sorted(files))


def _is_new(folder: str, seen: set, passed_over: Counter) -> bool:
    """Whether to visit a folder: it is not hidden, nor was it visited under another name."""
    if is_hidden(os.path.basename(folder)):
        passed_over["hidden folder"] += 1
        return False
    identity = _identity(folder)
    if identity in seen:
        passed_over["repeated folder"] += 1
        return False
    seen.add(identity)
    return True


def _identity(folder: str | Path) -> str:
    return os.path.realpath(folder)


def _add(listing: Listing, path: str):
    """Adds a file of the latest class, if it is an image."""
    name = os.path.basename(path)
    if is_hidden(name) or not name.lower().endswith(ENDINGS):
        listing.passed_over[_kind(name)] += 1
        return
    try:
        status = os.stat(path)
    except FileNotFoundError:
        listing.passed_over["broken link"] += 1
        return
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        listing.passed_over["special file"] += 1
        return
    listing.paths.append(path)
    listing.labels.append(len(listing.classes) - 1)
    listing.sizes.append(status.st_size)


def _kind(name: str) -> str:
    """Of a file that is no image, for people."""
    if is_hidden(name):
        return "hidden file"
    return readable(os.path.splitext(name)[1].lower()) or "extensionless file"
