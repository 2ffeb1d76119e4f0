"""A model's card: what it was trained on, how good it is and under which protocol, what it costs, how to run it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.base.machine import cpu_model
from pipelines.recipes.model import how, meta_model
from pipelines.recipes.recipe import Recipe
from pipelines.runs.checkpoint import Checkpoint
from pipelines.runs.folder import RunFolder, StageFolder
from pipelines.runs.record import read_record
from pipelines.serving.program import OPSET
from pipelines.serving.running import Agreement
from segmodels.cost import measure
from segmodels.inference import Inference, protocol

FLICKR = "images under their Flickr users' terms"
# As the data's publishers say it; None where they say nothing that we know of. Not legal advice.
LICENCES: dict[str, str | None] = {
    "voc12": f"{FLICKR} (VOC's page); annotations: none stated",
    "voc12_aug": f"{FLICKR} (VOC's page); annotations of SBD: none stated",
    "coco_voc": f"{FLICKR}; COCO's annotations CC BY 4.0",
    "coco_instances": f"{FLICKR}; COCO's annotations CC BY 4.0",
    "coco_panoptic": f"{FLICKR}; COCO's annotations CC BY 4.0",
    "cocostuff10k": f"{FLICKR}; COCO-Stuff's annotations CC BY 4.0",
    "cocostuff164k": f"{FLICKR}; COCO-Stuff's annotations CC BY 4.0",
    "ade20k": "images for non-commercial research and education; annotations BSD 3-Clause",
    "cityscapes": "Cityscapes' own terms: non-commercial use only",
    "pascal_context59": f"{FLICKR} (VOC's page); annotations: none stated",
    "pascal_context60": f"{FLICKR} (VOC's page); annotations: none stated",
    "lip": "LIP's page: non-commercial research only",
    "mapillary": "Mapillary Vistas' Research Use License: non-commercial",
    "camvid": None,
    "camvid_full": None,
    "siftflow": None,
}
UNKNOWN = "not known: ask who published the data"
SAMPLE = "the bundled sample: drawn by this project, MIT as its code"


@dataclass(frozen=True)
class Scores:
    """What was measured of the weights: mIoU and IoU per class, 0 to 1, None for an absent class; on what, and how."""

    miou: float
    iou: Sequence[float | None]
    protocol: str
    step: int


def scores_of(checkpoint: Checkpoint, place: StageFolder | None) -> Scores | None:
    """The validation of exactly these weights, from the record of their stage; without a record, their mIoU alone."""
    step, best = checkpoint.step, checkpoint.progress
    for line in read_record(place.record)[0] if place and place.record.exists() else []:
        if line["kind"] == "val" and line["step"] == step and "iou" in line:
            return Scores(line["miou"], line["iou"], how(checkpoint.recipe), step)
    known = best.best if best.best_step == step and best.best >= 0 else None
    return None if known is None else Scores(known, (), how(checkpoint.recipe), step)


def place_of(path: Path) -> StageFolder | None:
    """The stage that a checkpoint lies in; None where it was copied out of its run."""
    for folder in (path.parent, path.parent.parent):
        if RunFolder(folder.parent).recipe.is_file() and StageFolder(folder).about.is_file():
            return StageFolder(folder)
    return None


@dataclass(frozen=True)
class Written:
    """A file that was written of a checkpoint: its format, what it gives, how it agrees with the model, further lines.

    `least` is of a side, in pixels; `inference` is how it predicts an image: at scale 1, by windows where it must.
    """

    file: str
    form: str
    output: str
    inference: Inference
    agreement: Agreement
    least: int
    more: Sequence[str] = ()


def model_card(checkpoint: Checkpoint, place: StageFolder | None, written: Written) -> str:
    """The card as Markdown.

    Args:
        checkpoint: whose weights were written.
        place: the stage that it lies in; None where it was copied out of its run.
        written: the file.
    """
    recipe = checkpoint.recipe
    parts = [
        [f"# {recipe.name or 'model'}: {recipe.head['name']} on {recipe.backbone.name}"],
        [
            f"Semantic segmentation into {len(checkpoint.classes)} classes; weights of stage {checkpoint.stage}, step "
            f"{checkpoint.step:,}. Made by context-heads."
        ],
        ["## Scores", *score_lines(checkpoint, scores_of(checkpoint, place), written)],
        ["## In and out", *in_and_out(checkpoint, written)],
        ["## Data", *data_lines(checkpoint, place)],
        ["## Cost", *cost_lines(recipe, len(checkpoint.classes), written)],
        ["## How to run it", *HOW[written.form](written)],
        ["## Limits", *LIMITS],
    ]
    return "\n\n".join("\n".join(part) if part[0].startswith("# ") else "\n\n".join(part) for part in parts) + "\n"


LIMITS = (
    "It knows the classes above and no others: every pixel gets one of them, whatever it shows. Scores hold for images "
    "like those that it was scored on. It was not tested for use where a wrong pixel can harm anybody.",
)


def in_and_out(checkpoint: Checkpoint, written: Written) -> list[str]:
    """What the file takes and gives."""
    window = meta_model(checkpoint.recipe, 2).program_window
    size = f"H and W of {written.least} pixels or more"
    if window is not None:
        size = f"H x W = {window[0]} x {window[1]}, the training crop, to which this program is bound"
    count = len(checkpoint.classes)
    gives = {
        "classes": "`classes`: uint8 `(B, H, W)`, class ids",
        "probabilities": f"`probabilities`: float32 `(B, {count}, H, W)`, summing up to 1 over classes",
    }
    lines = ["The weights alone; `segmodels.load` makes a model of them that takes images."]
    if written.form != "safetensors":
        lines = [
            f"In: `image`, uint8 `(B, 3, H, W)`, RGB as it is in the file, for any B and {size}. Normalisation is "
            "inside; nothing is to be scaled or subtracted.",
            f"Out: {gives[written.output]}.",
            f"Whole images: {protocol(written.inference)}. Probabilities are averaged where windows overlap."
            if written.inference.window
            else "Whole images: in one pass.",
        ]
    return lines


def data_lines(checkpoint: Checkpoint, place: StageFolder | None) -> list[str]:
    """The rows of the stages up to the checkpoint's, and the licences of their data as far as they are known."""
    recipe = checkpoint.recipe
    last = [stage.name for stage in recipe.stages].index(checkpoint.stage)
    table = ["| stage | trained on | rows | sha256 of the rows | validated on |", "|---|---|---|---|---|"]
    names: dict[str, None] = {}
    for stage in recipe.stages[: last + 1]:
        params = known(place.path.parent / stage.name if place else None)
        rows, digest = (params.get(f"shards.train.{key}", "not noted") for key in ("rows", "hash"))
        table.append(f"| {stage.name} | {stage.train} | {rows} | {str(digest)[:16]} | {stage.val or '–'} |")
        names |= dict.fromkeys(str(uri).rstrip("/").split("/")[-2] if "/" in str(uri) else "own data"
                               for uri in (stage.train, stage.val) if uri)  # fmt: skip
    origin = f"the trunk started from `{recipe.backbone.weights}`" if recipe.backbone.weights else "from random weights"
    licences = [f"- {name}: {licence_of(recipe, name)}" for name in names]
    return [
        "\n".join(table),
        f"Start: {origin}.",
        "Licences, as far as this project knows them; the publisher's word counts:",
        "\n".join(licences),
    ]


def known(stage: Path | None) -> Mapping[str, Any]:
    """What a stage's folder notes of its rows."""
    about = StageFolder(stage).about if stage else None
    return json.loads(about.read_text())["params"] if about and about.is_file() else {}


def licence_of(recipe: Recipe, benchmark: str) -> str:
    """Of a benchmark's data, in words."""
    if recipe.data == Recipe.data:
        return SAMPLE
    return LICENCES.get(benchmark, UNKNOWN) or UNKNOWN


def score_lines(checkpoint: Checkpoint, found: Scores | None, written: Written) -> list[str]:
    """mIoU with its protocol, and each class; or that nothing was measured."""
    stage = next(stage for stage in checkpoint.recipe.stages if stage.name == checkpoint.stage)
    own = protocol(written.inference)
    classes = class_table(checkpoint, found.iou if found else ())
    if found is None:
        return [
            f"These weights were not scored in their training. The file predicts with: {own}.",
            *written.more,
            classes,
        ]
    lines = [
        f"mIoU **{found.miou * 100:.2f} %** on {stage.val}, {found.protocol}, every row of it, at step {found.step}."
    ]
    lines += [] if found.protocol == own else [f"The file predicts with: {own}. Its own score under that may differ."]
    lines += (
        [] if found.iou else ["IoU of each class is not in the checkpoint; `python -m pipelines.evaluate` measures it."]
    )
    return [*lines, *written.more, classes]


def class_table(checkpoint: Checkpoint, iou: Sequence[float | None]) -> str:
    """Id, name and colour of each class, and its IoU where that is known."""
    shown = ["absent" if value is None else f"{value * 100:.2f}" for value in iou] or ["–"] * len(checkpoint.classes)
    colours = ["#" + "".join(f"{value:02x}" for value in colour) for colour in checkpoint.palette]
    rows = enumerate(zip(checkpoint.classes, colours, shown, strict=True))
    head = ["| id | class | colour | IoU % |", "|---|---|---|---|"]
    return "\n".join([*head, *(f"| {i} | {' | '.join(row)} |" for i, row in rows)])


def cost_lines(recipe: Recipe, classes: int, written: Written) -> list[str]:
    """Parameters, operations, and the times that were measured when the file was written."""
    cost = measure(meta_model(recipe, classes), recipe.view.crop)
    size = "x".join(map(str, cost.size))
    return [
        f"{cost.parameters / 1e6:.2f} M parameters (the auxiliary head of the training among them); "
        f"{cost.macs / 1e9:.2f} GMACs at {size} ({cost.convention}).",
        f"As it was written, on {cpu_model()}: "
        + "; ".join(" ".join(line.split()) for line in written.agreement.lines())
        + ".",
    ]


def onnx_how(written: Written) -> list[str]:
    """Python and C++, by onnxruntime."""
    return [
        f"ONNX, opset {OPSET}. Classes and colours are in its metadata too.",
        f"""```python
import json, numpy, onnxruntime                      # pip install onnxruntime numpy pillow
from PIL import Image

session = onnxruntime.InferenceSession("{written.file}")
image = numpy.asarray(Image.open("street.jpg").convert("RGB")).transpose(2, 0, 1)[None]
{written.output} = session.run(None, {{"image": image}})[0]
names = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
```""",
        f"""```cpp
#include <onnxruntime_cxx_api.h>

Ort::Env env;
Ort::Session session(env, "{written.file}", Ort::SessionOptions());
std::array<int64_t, 4> shape{{1, 3, height, width}};   // rgb: std::vector<uint8_t>, all red, then green, then blue
auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
auto image = Ort::Value::CreateTensor<uint8_t>(memory, rgb.data(), rgb.size(), shape.data(), shape.size());
const char *in[] = {{"image"}}, *out[] = {{"{written.output}"}};
auto result = session.Run(Ort::RunOptions(), in, &image, 1, out, 1);
const auto *{written.output} = result[0].GetTensorData<{"uint8_t" if written.output == "classes" else "float"}>();
```""",
    ]


def torch_how(written: Written) -> list[str]:
    """Python, by PyTorch alone."""
    return [
        "PyTorch's exported program: it needs PyTorch, and nothing of this project. For C++, write `--format onnx`.",
        f"""```python
import json, torch

extra = {{"facts.json": ""}}
program = torch.export.load("{written.file}", extra_files=extra).module()
{written.output} = program(image)                    # torch.uint8, (B, 3, H, W)
names = json.loads(extra["facts.json"])["classes"]
```""",
    ]


def weights_how(written: Written) -> list[str]:
    """Python, with this project's models."""
    return [
        "Weights without code, and without what only training needs; recipe, classes and colours are in the metadata. "
        "In a checkout of context-heads:",
        f"""```python
import segmodels

model = segmodels.load("{written.file}")
mask = model.predict("street.jpg")
```""",
    ]


HOW = {"onnx": onnx_how, "torch": torch_how, "safetensors": weights_how}
