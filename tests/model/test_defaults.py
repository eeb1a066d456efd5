"""Default dtype and device change nothing of what the model layer loads, makes and trains."""

import numpy as np
import pytest
import torch

from bitdance import BitDancePipeline, BitDanceT2IPipeline, patch_official, unpatch_official
from bitdance.data.augmentation import Augmentation
from bitdance.data.images import open_images, to_float
from bitdance.data.packed_dataset import PackedDataset
from bitdance.data.packed_writer import PackedWriter
from bitdance.evaluation.evaluate import evaluate
from bitdance.models.autoencoder.autoencoder import BinaryAutoencoder
from bitdance.sampling.image_decoder import ImageDecoder
from bitdance.training.autoencoder import AutoencoderTask
from bitdance.training.class_conditional import ClassConditionalTask
from bitdance.training.trainer import Trainer
from tests.defaults import FOREIGN, foreign_defaults
from tests.model.helpers.tiny import tiny_pipeline
from tests.model.helpers.tiny_images import write_data_set
from tests.model.integrations.test_patch_official import small
from tests.model.models.test_text_to_image import tiny
from tests.model.pipelines.test_text_to_image import SIZE, Words, release
from tests.model.training.test_training import assert_same, autoencoder_config, model_config


def _same_under(kind, function):
    wanted = function()
    with foreign_defaults(kind):
        made = function()
    assert_same(made, wanted)
    return made


@FOREIGN
def test_a_loaded_model_gives_the_same_pictures(kind, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path)
    tiny_pipeline(parallel_num=1).save_pretrained(tmp_path / "serial")

    def drawn(folder, dtype=torch.float32, **settings):
        pipeline = BitDancePipeline.from_pretrained(folder, dtype=dtype)
        assert {p.dtype for p in pipeline.model.parameters()} == {dtype}
        made = [
            pipeline([1, 3], seed=5, num_inference_steps=2, output_type=output, **settings).images
            for output in ("latent", "uint8")  # the second time from a graph
        ]
        assert pipeline([], output_type="uint8").images.shape[0] == 0
        return made

    _same_under(kind, lambda: drawn(tmp_path))
    _same_under(kind, lambda: drawn(tmp_path / "serial", guidance_scale=1.0))
    _same_under(kind, lambda: drawn(tmp_path, torch.bfloat16))
    _same_under(kind, lambda: drawn(tmp_path, use_kernels=False))


@FOREIGN
def test_a_model_loaded_before_gives_the_same_pictures_and_folder(kind, tmp_path):
    pipeline = tiny_pipeline()

    def again():
        packed = pipeline([2, 0], seed=1, num_inference_steps=2, output_type="latent").images
        images = to_float(pipeline.decode(packed, output_type="uint8"))
        vae = pipeline.model.vae
        codes = vae.encode(images)
        pipeline.save_pretrained(tmp_path)
        return [
            packed,
            codes,
            vae.encode(images, packed=True),
            vae.encode_list(list(images)),
            vae.decode(codes),
            ImageDecoder(vae)(codes),
            vae.decode_tiled(codes, tile_size=4),
            BitDancePipeline.from_pretrained(tmp_path).model.state_dict(),
        ]

    _same_under(kind, again)


@FOREIGN
def test_text_to_image_is_the_same(kind, tmp_path):
    release(tmp_path, tiny())

    def drawn():
        pipeline = BitDanceT2IPipeline.from_pretrained(tmp_path, tokenizer=Words())
        return [
            pipeline(["a dog", "snow"], num_inference_steps=2, output_type=output, **SIZE).images
            for output in ("latent", "uint8")
        ]

    _same_under(kind, drawn)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("idx"))


@FOREIGN
def test_training_is_the_same(kind, data, tmp_path):
    """Autoencoder and model from a seed, through a checkpoint, on images and on packed codes."""

    def trained(folder, config, task):
        for stop in (1, 2):
            trainer = Trainer(task(config), config, folder, progress=False)
            trainer.run(stop)
        state = trainer.task.module.state_dict()
        return [state, trainer._average, trainer._optimizer.state_dict()]

    def both(folder):
        config = autoencoder_config(data, steps=2, warmup=0, save_every=1)
        results = [trained(folder / "autoencoder", config, AutoencoderTask)]
        autoencoder = BinaryAutoencoder.from_pretrained(folder / "autoencoder")
        results.append(autoencoder.state_dict())
        images = open_images(data, 8)
        with PackedWriter(folder / "packed", tokens=16, channels=8) as writer:
            codes = autoencoder.encode(to_float(images.take(np.arange(60))), packed=True)
            writer.write(codes.flatten(1, 2).numpy(), images.labels)
        for name, path in (("images", data), ("packed", folder / "packed")):
            config = model_config(path, folder / "autoencoder", steps=2, warmup=0, save_every=1)
            results.append(trained(folder / name, config, ClassConditionalTask))
        return results

    wanted = both(tmp_path / "ordinary")
    with foreign_defaults(kind):
        made = both(tmp_path / "foreign")
    assert_same(made, wanted)


@FOREIGN
def test_data_is_the_same(kind, data, tmp_path):
    with PackedWriter(tmp_path / "packed", tokens=4, channels=8) as writer:
        writer.write(np.arange(24, dtype=np.uint8).reshape(6, 4, 1), np.arange(6))

    def read():
        packed = PackedDataset(tmp_path / "packed")
        pixels = Augmentation(3, flip=True, shift=1).take(open_images(data, 8), np.arange(9), 0)
        return [*packed[1], *packed.take(np.array([4, 2])), pixels, to_float(pixels)]

    _same_under(kind, read)


@FOREIGN
def test_an_evaluation_is_the_same(kind, data):
    pipeline = tiny_pipeline(num_classes=3)
    parts = [open_images(data, 8, split=split) for split in ("train", "test")]

    def evaluated():
        found, picture, _ = evaluate(
            pipeline, *parts, samples=6, num_inference_steps=1, epochs=1, progress=False
        )
        return [repr(found), torch.from_numpy(np.array(picture))]

    _same_under(kind, evaluated)


@FOREIGN
def test_the_authors_objects_are_the_same(kind):
    """What is replaced; what stays theirs follows PyTorch's defaults as they wrote it."""
    model = small()
    z = torch.randn(4, 4, 32)

    def drawn():
        patch_official(model)
        torch.manual_seed(3)
        with torch.no_grad():
            made = [model.head.sample(z, 2.0, 3)]
            for layer in model.layers:
                layer.attention.enable_kv_cache(2, 12)
            x = z[:2, :2]
            made.append(model.forward_model(x, model.attn_mask[:, :, :2, :2], 0, 2))
            made.append(model.forward_model(z[:2], None, 2, 6))
        unpatch_official(model)
        for layer in model.layers:
            layer.attention.k_cache = layer.attention.v_cache = None
        return made

    _same_under(kind, drawn)


def test_a_new_module_follows_the_defaults_as_those_of_pytorch_do():
    config = tiny_pipeline().config.autoencoder
    with foreign_defaults("bfloat16, within meta"):
        made = BinaryAutoencoder(config)
        named = BinaryAutoencoder(config, dtype=torch.float32, device="cpu")
    assert {(p.dtype, p.device.type) for p in made.parameters()} == {(torch.bfloat16, "meta")}
    assert {(p.dtype, p.device.type) for p in named.parameters()} == {(torch.float32, "cpu")}
