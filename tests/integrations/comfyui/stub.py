"""ComfyUI as far as nodes see it: its modules, its folders, its own nodes for images."""

import importlib.util
import os
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.integrations.comfyui.executor import Executor

FOLDER = Path(__file__).parents[3] / "integrations" / "comfyui"


class InterruptProcessingException(BaseException):
    """The user has cancelled the workflow; no ``Exception``, as in ComfyUI."""


class ProgressBar:
    """Without ComfyUI's limit on updates a second, which depends on the clock."""

    hook = None

    def __init__(self, total, node_id=None):
        self.total, self.current, self.node_id = total, 0, node_id

    def update_absolute(self, value, total=None, preview=None):
        self.total = self.total if total is None else total
        self.current = min(value, self.total)
        if type(self).hook is not None:
            type(self).hook(self.current, self.total, preview)

    def update(self, value):
        self.update_absolute(self.current + value)


class ComfyUI:
    """An installation in a folder.

    Attributes:
        base: its folder, with ``models``, ``input``, ``output`` and ``custom_nodes``.
        nodes: classes of nodes by name.
        names: titles of nodes by name.
        progress: updates of progress bars: value, total and preview.
        on_progress: called at each of them.
        freed: calls of ``free_memory``.
    """

    def __init__(self, base):
        self.base = Path(base)
        for name in ("models", "input", "output", "custom_nodes"):
            (self.base / name).mkdir(parents=True)
        self.progress, self.freed, self.on_progress = [], [], lambda *_: None
        self.nodes, self.names = {}, {}
        self._interrupted = False
        self.management = self._model_management()
        self.paths = self._folder_paths()
        utils = types.ModuleType("comfy.utils")
        utils.ProgressBar = type("ProgressBar", (ProgressBar,), {"hook": self._hook})
        comfy = types.ModuleType("comfy")
        comfy.model_management, comfy.utils = self.management, utils
        self._modules = {
            "comfy": comfy, "comfy.utils": utils, "comfy.model_management": self.management,
            "folder_paths": self.paths,
        }  # fmt: skip
        self.executor = Executor(self.nodes, self.management)
        self.nodes.update(SaveImage=_save_image(self.paths), LoadImage=_load_image(self.paths))

    def install(self, monkeypatch):
        """Put the modules where nodes import them from."""
        for name, module in self._modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        return self

    def copy_nodes(self, monkeypatch, folder=FOLDER):
        """Copy a folder of nodes into ``custom_nodes`` and import it, under its path as name."""
        target = self.base / "custom_nodes" / "bitdance"
        shutil.copytree(folder, target, ignore=shutil.ignore_patterns("__pycache__"))
        name = str(target).replace(".", "_x_")
        spec = importlib.util.spec_from_file_location(name, target / "__init__.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        self.nodes.update(module.NODE_CLASS_MAPPINGS)
        self.names.update(module.NODE_DISPLAY_NAME_MAPPINGS)
        self._imported = name

    def module(self, name):
        """A module of the folder of nodes."""
        return sys.modules[f"{self._imported}.{name}"]

    def run(self, prompt):
        """The outcome of a workflow; ``progress`` is that of this run."""
        self.progress.clear()
        return self.executor.run(prompt)

    def interrupt(self):
        """What the button for it does."""
        self._interrupted = True

    @property
    def _hook(self):
        def hook(value, total, preview):
            self.management.throw_exception_if_processing_interrupted()
            self.progress.append((value, total, preview))
            self.on_progress(value, total, preview)

        return staticmethod(hook)

    def _model_management(self):
        module = types.ModuleType("comfy.model_management")

        def interrupt_current_processing(value=True):
            self._interrupted = value

        def throw_exception_if_processing_interrupted():
            if self._interrupted:
                self._interrupted = False
                raise InterruptProcessingException

        module.InterruptProcessingException = InterruptProcessingException
        module.interrupt_current_processing = interrupt_current_processing
        module.throw_exception_if_processing_interrupted = throw_exception_if_processing_interrupted
        module.get_torch_device = lambda: torch.device("cpu")
        module.intermediate_device = lambda: torch.device("cpu")
        module.should_use_bf16 = lambda device=None: device is not None and device.type == "cuda"
        module.minimum_inference_memory = lambda: 1e9
        module.free_memory = lambda needed, device: self.freed.append((needed, device))
        return module

    def _folder_paths(self):
        module, folders = types.ModuleType("folder_paths"), {}
        module.models_dir = str(self.base / "models")

        def add_model_folder_path(name, path):
            folders.setdefault(name, [])
            if path not in folders[name]:
                folders[name].append(path)

        def get_annotated_filepath(name):
            folder, path = self.base / "input", (self.base / "input" / name).resolve()
            if not path.is_relative_to(folder.resolve()):
                raise ValueError(f"Invalid file path: {name!r}")
            return str(path)

        def exists_annotated_filepath(name):
            path = (self.base / "input" / name).resolve()
            return path.is_relative_to((self.base / "input").resolve()) and path.exists()

        def get_save_image_path(prefix, folder):
            subfolder, name = os.path.split(os.path.normpath(prefix))
            full = Path(folder, subfolder).resolve()
            if not full.is_relative_to(Path(folder).resolve()):
                raise Exception("Saving image outside the output folder is not allowed.")
            full.mkdir(parents=True, exist_ok=True)
            taken = [p.name[len(name) + 1 :].split("_")[0] for p in full.glob(f"{name}_*")]
            count = max([int(number) for number in taken if number.isdecimal()], default=0)
            return str(full), name, count + 1, subfolder, prefix

        module.add_model_folder_path = add_model_folder_path
        module.get_folder_paths = lambda name: list(folders[name])
        module.get_input_directory = lambda: str(self.base / "input")
        module.get_output_directory = lambda: str(self.base / "output")
        module.get_annotated_filepath = get_annotated_filepath
        module.exists_annotated_filepath = exists_annotated_filepath
        module.get_save_image_path = get_save_image_path
        return module


def _save_image(paths):
    class SaveImage:
        RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "save_images", "image", True

        @classmethod
        def INPUT_TYPES(cls):
            prefix = ("STRING", {"default": "ComfyUI"})
            return {"required": {"images": ("IMAGE",), "filename_prefix": prefix}}

        def save_images(self, images, filename_prefix):
            folder, name, count, subfolder, _ = paths.get_save_image_path(
                filename_prefix, paths.get_output_directory()
            )
            shown = []
            for i, image in enumerate(images):
                file = f"{name}_{count + i:05}_.png"
                array = np.clip(255.0 * image.numpy(), 0, 255).astype(np.uint8)
                Image.fromarray(array).save(Path(folder, file))
                shown.append({"filename": file, "subfolder": subfolder, "type": "output"})
            return {"ui": {"images": shown}}

    return SaveImage


def _load_image(paths):
    class LoadImage:
        RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE", "MASK"), "load_image", "image"

        @classmethod
        def INPUT_TYPES(cls):
            files = sorted(os.listdir(paths.get_input_directory()))
            return {"required": {"image": (files, {"image_upload": True})}}

        def load_image(self, image):
            with Image.open(paths.get_annotated_filepath(image)) as opened:
                array = np.asarray(opened.convert("RGB"), np.float32) / 255.0
            mask = torch.zeros(1, 64, 64, dtype=torch.float32, device="cpu")
            return torch.from_numpy(array)[None], mask

    return LoadImage
