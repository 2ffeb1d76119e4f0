"""What MLflow runs of a packed model: this file and an ONNX file, without the project that trained it.

It is copied into the model ("models from code"), and executed by MLflow wherever that is loaded. Nobody imports it.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

PIXELS = 64_000_000  # of an image, at most


class SegmentationModel(PythonModel):
    """Classes of every pixel: images RGB uint8 (B, H, W, 3) -> class ids uint8 (B, H, W)."""

    def load_context(self, context: Any) -> None:
        """Open the program, and read from it how it is meant to be used."""
        self.session = onnxruntime.InferenceSession(context.artifacts["program"], providers=["CPUExecutionProvider"])
        facts = {name: json.loads(text) for name, text in self.session.get_modelmeta().custom_metadata_map.items()}
        self.classes, self.window, self.stride = facts["classes"], facts["window"], facts["stride"]
        self.fill = np.array(facts["fill"], np.uint8)

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Class ids of each image, at its own size."""
        images = np.asarray(model_input)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
            raise ValueError(f"the input is {images.dtype} {images.shape}; allowed: RGB uint8 (B, H, W, 3)")
        if images.shape[1] * images.shape[2] > PIXELS:
            raise ValueError(f"an image of {images.shape[1]} x {images.shape[2]}; allowed: up to {PIXELS:,} pixels")
        return np.concatenate([self.probabilities(image).argmax(1).astype(np.uint8) for image in images[:, None]])

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """Of the classes (1, K, H, W): of the whole image, or averaged where windows overlap."""
        pixels = image.transpose(0, 3, 1, 2)
        if self.window is None:
            return self.run(pixels)
        height, width = pixels.shape[2:]
        pixels = self.padded(pixels)
        total = np.zeros((1, len(self.classes), *pixels.shape[2:]), np.float32)
        count = np.zeros(pixels.shape[2:], np.float32)
        for top in starts(pixels.shape[2], self.window[0], self.stride[0]):
            for left in starts(pixels.shape[3], self.window[1], self.stride[1]):
                part = np.s_[top : top + self.window[0], left : left + self.window[1]]
                total[:, :, *part] += self.run(pixels[:, :, *part])
                count[part] += 1
        return (total / count)[:, :, :height, :width]

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """The program on RGB uint8 (1, 3, h, w)."""
        return self.session.run(None, {"image": np.ascontiguousarray(pixels)})[0]

    def padded(self, pixels: np.ndarray) -> np.ndarray:
        """With the mean colour below and on the right, up to one window."""
        height, width = (max(side, least) for side, least in zip(pixels.shape[2:], self.window, strict=True))
        canvas = np.empty((1, 3, height, width), np.uint8)
        canvas[:] = self.fill[:, None, None]
        canvas[:, :, : pixels.shape[2], : pixels.shape[3]] = pixels
        return canvas


def starts(length: int, window: int, stride: int) -> Iterator[int]:
    """Where windows begin along one side; the last is flush with the border."""
    yield from range(0, length - window, stride)
    yield length - window


set_model(SegmentationModel())
