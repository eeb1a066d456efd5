"""Loading draws no random numbers and imports no compiler."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from bitdance import BitDancePipeline, BitDanceT2IPipeline
from bitdance.io import weights
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.models.loading.meta_device import build_on_meta
from tests.model.helpers.tiny import tiny_model, tiny_pipeline
from tests.model.models.test_text_to_image import tiny
from tests.model.pipelines.test_text_to_image import Words, release

ROOT = Path(__file__).parent.parent.parent

# In a process of its own: who imports PyTorch's compiler does so once.
LOAD = """
import json, sys
from bitdance import BitDancePipeline
steps = [("import", None)]
loaded = BitDancePipeline.from_pretrained(sys.argv[1])
def seen():
    return sorted({"sympy", "torch._dynamo", "torch._inductor"} & set(sys.modules))
after = [seen()]
loaded([0], num_inference_steps=2)
after.append(seen())
loaded.save_pretrained(sys.argv[2])
after.append(seen())
print(json.dumps(after))
"""


def test_nothing_of_the_compiler_is_imported(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LOAD, "fashion", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == [[], [], []]


def test_no_random_number_is_drawn(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    (tmp_path / "text").mkdir()
    release(tmp_path / "text", tiny())
    vae = tiny_model().vae
    (tmp_path / "autoencoder").mkdir()
    weights.write_tensors(tmp_path / "autoencoder" / "autoencoder.safetensors", vae.state_dict())
    (tmp_path / "autoencoder" / "autoencoder.json").write_text(json.dumps(vae.config.to_dict()))
    before = torch.get_rng_state()
    BitDancePipeline.from_pretrained(tmp_path / "model")
    BitDanceT2IPipeline.from_pretrained(tmp_path / "text", tokenizer=Words())
    BinaryAutoencoder.from_pretrained(tmp_path / "autoencoder")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_on_the_meta_device_has_all_parameters_but_no_values():
    model = tiny_model()
    bare = build_on_meta(lambda: type(model)(model.config), "a test")
    assert all(t.is_meta for t in bare.state_dict().values())
    shapes = {name: t.shape for name, t in bare.state_dict().items()}
    assert shapes == {name: t.shape for name, t in model.state_dict().items()}
    assert [p.requires_grad for p in bare.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]
