"""The suite of changed files at a small size."""

import random

import pytest

from tests.reliability import file_fuzz
from tests.reliability.files import mutations, targets
from tests.reliability.files.attacks import run_all
from tests.reliability.files.box import staged
from tests.reliability.files.formats import registry
from tests.reliability.files.formats_pictures import encoded


def test_a_few_inputs_and_attacks() -> None:
    figures = file_fuzz.measure(0.001)
    assert figures["inputs fuzzed"] >= len(targets.targets())
    assert figures["crafted attacks"] >= 60


@pytest.mark.nightly
@pytest.mark.parametrize(
    "form",
    # Tables of kernels come with the installed package: nobody hands over others.
    [each.name for each in registry() if each.name != "tables of kernels"],
)
def test_every_attack_on_a_format(form: str) -> None:
    assert staged(run_all, 1, form) > 0


@pytest.mark.parametrize("number", range(3))
def test_mutations_follow_from_the_seed_and_change_something(number: int) -> None:
    def changed(seed: object) -> list[bytes]:
        draws = random.Random(str(seed))
        return [
            mutations.json_bytes({"a": 1, "b": [1, {"c": "d"}]}, draws),
            mutations.havoc(b"some bytes of a file", draws),
            mutations.mutate_chunks(encoded("png"), draws),
            mutations.mutate_riff(encoded("webp"), draws),
            mutations.mutate_directory(encoded("tiff"), draws),
        ]

    assert changed(number) == changed(number)
    assert len({tuple(changed(f"{number} {i}")) for i in range(20)}) == 20
