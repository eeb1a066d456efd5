"""The suite of flipped bits at a small size, and the registry of formats."""

from collections.abc import Callable
from pathlib import Path

from tests.reliability import file_flips
from tests.reliability.file_flips import Damage
from tests.reliability.files import formats, targets
from tests.reliability.files.box import scratch, staged
from tests.reliability.files.formats import Format, Unchecked, digest
from tests.reliability.files.sites import READS, sites

Load = Callable[[Path], bytes]

ELSEWHERE = {
    "bitdance.evaluation.features._inception": "weights of torch-fidelity, as a pickle",
    "bitdance.integrations.demo.reconstruction._pixels": "a picture that the page was given",
    "bitdance.integrations.demo.studio.reconstruct": "a picture that the page was given",
    "bitdance.io.files.lock": "opens what is not read",
    "bitdance.io.files.sync": "opens what is not read",
    "bitdance.io.npz.write_images": "a writer",
    "bitdance.models.loading.model_files.Repository": "files of a hub, as of a folder",
    "bitdance.pipelines.class_conditional.BitDancePipeline": "calls load_folder and load_file",
    "bitdance.pipelines.class_conditional._class_names": "a list of this package",
    "bitdance.pipelines.text_to_image.BitDanceT2IPipeline": "opens a release",
    "bitdance_kernels.binary.hamming_distance._index._new_file": "opens what is not read",
    "bitdance_kernels.binary.hamming_distance._index._remove_leftovers": "opens what is not read",
    "bitdance_kernels.binary.hamming_distance._index._sync_names": "opens what is not read",
    "bitdance_kernels.env_report._cpu_model": "a file of the system",
}
"""Code that reads files and has no format of its own, and why."""


def test_every_reader_of_the_library_has_a_format() -> None:
    registered = {reader for each in formats.registry() for reader in each.readers}
    registered |= {reader for each in targets.OWN for reader in each.readers}
    found = set(sites(READS, modes="r"))
    assert found - registered - ELSEWHERE.keys() == set(), "register a Format, or say why not"
    assert (registered | ELSEWHERE.keys()) - found == set(), "these read nothing any more"


def test_a_small_census() -> None:
    counts = file_flips.measure(0.002)
    assert counts["formats damaged"] == counts["bits flipped"] == counts["ends cut off"]
    assert counts["formats damaged"] == len(formats.registry())


def _bytes_of(folder: Path) -> bytes:
    return (folder / "a").read_bytes()


def _or(error: Exception) -> Load:
    """A reader that raises an error for all but the whole content."""

    def load(folder: Path) -> bytes:
        if _bytes_of(folder) == b"abc":
            return b"abc"
        raise error

    return load


TEXT, CODES = Unchecked("text", cuts=True), Unchecked("it has none")
ODD: dict[str, tuple[Load, dict[str, Unchecked], list[str]]] = {
    "silent": (_bytes_of, {}, ["it has silently another content"] * 3),
    "text": (_bytes_of, {"a": TEXT}, ["silent"] * 3),
    "codes": (_bytes_of, {"a": CODES}, ["silent"] * 2 + ["it has silently another content"]),
    "clear": (_or(ValueError("clear")), {}, ["error"] * 3),
    "another type": (_or(OSError("x")), {}, ["another error, OSError: x"] * 3),
    "a surprise": (_or(UnicodeDecodeError("ascii", b"a", 0, 1, "x")), {}, ["another error, U"] * 3),
    "memory": (_or(ValueError("cannot allocate 5 GB")), {}, ["it asks for more than"] * 3),
    "two lines": (_or(ValueError("a\nb")), {}, ["an error of several lines"] * 3),
}


def _outcomes() -> dict[str, list[str]]:
    """Of two flips and a cut of a file of three bytes, by the name of its reader."""
    damages = [Damage("flip", "a", 0), Damage("flip", "a", 23), Damage("cut", "a", 2)]
    found = {}
    for name, (load, unchecked, _) in ODD.items():
        each = Format(name, lambda folder: None, load, (ValueError,), unchecked)
        with scratch() as folder:
            (folder / "a").write_bytes(b"abc")
            found[name] = [outcome for _, outcome in file_flips.judge(each, folder, damages)]
    return found


def test_outcomes() -> None:
    found = staged(_outcomes)
    assert found.keys() == ODD.keys()
    for name, (_, _, expected) in ODD.items():
        assert all(map(str.startswith, found[name], expected)), (name, found[name])


def test_the_digest_tells_values_apart() -> None:
    values = [1, 1.0, "1", True, None, [1], [[1]], {"a": 1}, {1: "a"}, b"1", [1, 2]]
    assert len({digest(value) for value in values}) == len(values)
    assert digest([1]) == digest((1,))
