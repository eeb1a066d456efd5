"""The list of checksums of a sharded checkpoint, which other programs may have written."""

import pytest

from bitdance.io.files import CheckpointError
from bitdance.training import sharded_checkpoint


@pytest.mark.parametrize("text", ["{", "5", "[1]", '"ab"', "[" * 100_000, "{}"])
def test_what_is_no_list_of_checksums_is_damaged(tmp_path, text):
    (tmp_path / sharded_checkpoint.MARKER).write_text(text)
    with pytest.raises(CheckpointError, match="is damaged"):
        sharded_checkpoint._verify(tmp_path)
