"""Exports of annotation tools in their own layouts, with content of our own: pictures of 8x6 pixels."""

import base64
import io
import json
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

SIZE = (6, 8)
"""Height and width of the pictures."""


def picture(path: Path, size: tuple[int, int] = SIZE, exif: int = 0) -> None:
    """Write a flat picture; `exif` is its orientation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size[::-1], (sum(map(ord, path.name)) % 256, 90, 60))
    marks = Image.Exif()
    if exif:
        marks[0x0112] = exif
    image.save(path, exif=marks)


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def box(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    """The corners of a box as COCO writes polygons."""
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def filled(shape: tuple[int, int], *boxes: tuple[int, int, int, int, int], ground: int = 0) -> np.ndarray:
    """A mask of boxes: value, x0, y0, x1, y1 each, in order."""
    mask = np.full(shape, ground, np.uint8)
    for value, x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = value
    return mask


def roboflow(root: Path) -> Path:
    """A COCO segmentation export of Roboflow: an upper category 0 without objects, images beside the JSON."""
    names = [("birds-UvCx", "none"), ("gull", "birds-UvCx"), ("tern", "birds-UvCx")]
    categories = [{"id": i, "name": name, "supercategory": above} for i, (name, above) in enumerate(names)]
    for split, stem in (("train", "a_jpg.rf.1b"), ("valid", "b_jpg.rf.2c"), ("test", "c_jpg.rf.3d")):
        picture(root / split / f"{stem}.jpg")
        images = [{"id": 0, "license": 1, "file_name": f"{stem}.jpg", "height": 6, "width": 8,
                   "date_captured": "2024-05-01T10:00:00+00:00"}]  # fmt: skip
        notes = [
            {"id": 0, "image_id": 0, "category_id": 1, "bbox": [1, 1, 5, 4], "area": 20, "iscrowd": 0,
             "segmentation": [box(1, 1, 6, 5)]},
            {"id": 1, "image_id": 0, "category_id": 2, "bbox": [2, 2, 2, 2], "area": 4, "iscrowd": 0,
             "segmentation": [box(2, 2, 4, 4)]},
        ]  # fmt: skip
        content = {"info": {"version": "3"}, "licenses": [], "categories": categories, "images": images,
                   "annotations": notes}  # fmt: skip
        write_json(root / split / "_annotations.coco.json", content)
    (root / "README.roboflow.txt").write_text("birds")
    return root


ROBOFLOW_MASK = filled(SIZE, (1, 1, 1, 6, 5), (2, 2, 2, 4, 4))


def cvat(root: Path) -> Path:
    """COCO 1.0 of CVAT: one subset `default`; a polygon of two parts, both kinds of run lengths, an empty image."""
    for stem in ("1", "2"):
        picture(root / f"images/{stem}.png")
    images = [{"id": i, "width": 8, "height": 6, "file_name": f"{i}.png", "license": 0, "flickr_url": "",
               "coco_url": "", "date_captured": 0} for i in (1, 2)]  # fmt: skip
    notes = [
        {"id": 1, "image_id": 1, "category_id": 2, "segmentation": [box(0, 0, 2, 2), box(6, 0, 8, 2)], "area": 8.0,
         "bbox": [0, 0, 8, 2], "iscrowd": 0, "attributes": {"occluded": False}},
        # columns of 6: two pixels down from (4, 0), then the whole last column
        {"id": 2, "image_id": 1, "category_id": 1, "segmentation": {"size": [6, 8], "counts": [26, 2, 14, 6]},
         "area": 8, "bbox": [4, 2, 4, 4], "iscrowd": 1, "attributes": {"occluded": False}},
        {"id": 3, "image_id": 1, "category_id": 1, "segmentation": compressed(filled(SIZE, (1, 0, 4, 3, 6))),
         "area": 6, "bbox": [0, 4, 3, 2], "iscrowd": 0},
    ]  # fmt: skip
    categories = [{"id": 1, "name": "Straße", "supercategory": ""}, {"id": 2, "name": "tree", "supercategory": ""}]
    content = {"licenses": [{"name": "", "id": 0, "url": ""}], "info": {}, "categories": categories,
               "images": images, "annotations": notes}  # fmt: skip
    write_json(root / "annotations/instances_default.json", content)
    return root


def compressed(mask: np.ndarray) -> dict[str, object]:
    """COCO's run lengths of a mask as JSON holds them."""
    from pycocotools import mask as rle_api

    rle = rle_api.encode(np.asfortranarray(mask))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def labelme(root: Path, name: str = "eins", **changes: object) -> Path:
    """A file of labelme on Windows, its picture in a neighbouring folder and embedded too."""
    picture(root / f"photos/{name}.jpg")
    shapes = [
        {"label": "house", "points": [[1, 1], [7, 1], [7, 5], [1, 5]], "shape_type": "polygon"},
        {"label": "door", "points": [[4, 4], [2, 2]], "shape_type": "rectangle"},  # drawn from below
        {"label": "ball", "points": [[6.5, 0.5], [6.5, 1.5]], "shape_type": "circle"},
        {"label": "__ignore__", "points": [[0, 5], [1, 5], [1, 6], [0, 6]], "shape_type": "polygon"},
        {"label": "_background_", "points": [[5, 4], [7, 4], [7, 5], [5, 5]], "shape_type": "polygon"},
    ]
    shapes = [{**shape, "group_id": None, "flags": {}, "description": ""} for shape in shapes]
    page = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": f"..\\photos\\{name}.jpg",
            "imageData": base64.b64encode(b"not read").decode(), "imageHeight": 6, "imageWidth": 8}  # fmt: skip
    write_json(root / f"labels/{name}.json", page | changes)
    return root


def packed(bits: np.ndarray, alpha: bool = False) -> str:
    """A bitmap as Supervisely writes it."""
    pixels = bits * np.uint8(255)
    if alpha:
        pixels = np.dstack([np.zeros((*bits.shape, 3), np.uint8), pixels])
    return base64.b64encode(zlib.compress(cv2.imencode(".png", pixels)[1].tobytes())).decode()


def supervisely(root: Path) -> Path:
    """A project of Supervisely: a polygon with a hole, bitmaps with their origin, a rectangle."""
    write_json(root / "meta.json", {
        "classes": [{"title": "field", "shape": "polygon", "color": "#0A14FF", "geometry_config": {}, "id": 1},
                    {"title": "pond", "shape": "bitmap", "color": "#FF0000", "id": 2}],
        "tags": [], "projectType": "images",
    })  # fmt: skip
    for dataset, stem in (("train", "x.y"), ("val", "z")):
        picture(root / dataset / f"img/{stem}.png")
        objects = [
            {"id": 11, "classTitle": "field", "geometryType": "polygon", "tags": [],
             "points": {"exterior": [[0, 0], [6, 0], [6, 6], [0, 6]], "interior": [[[2, 2], [4, 2], [4, 4], [2, 4]]]}},
            {"id": 12, "classTitle": "pond", "geometryType": "bitmap", "tags": [],
             "bitmap": {"data": packed(np.array([[1, 0], [1, 1]], bool), alpha=dataset == "val"), "origin": [6, 3]}},
            {"id": 13, "classTitle": "pond", "geometryType": "rectangle", "tags": [],
             "points": {"exterior": [[7, 0], [8, 1]], "interior": []}},
        ]  # fmt: skip
        page = {"description": "", "tags": [], "size": {"height": 6, "width": 8}, "objects": objects}
        write_json(root / dataset / f"ann/{stem}.png.json", page)
    write_json(root / "obj_class_to_machine_color.json", {})
    return root


def yolo(root: Path, line: str = "") -> Path:
    """YOLO's folders as Ultralytics has them, Windows' line ends, an image without an object."""
    for split, stem in (("train", "p"), ("train", "q"), ("val", "r")):
        picture(root / f"images/{split}/{stem}.jpg")
        label = root / f"labels/{split}/{stem}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        rows = ["1 0.125 0.5 0.5 0.5 0.5 1 0.125 1", "0 0 0 0.25 0 0.25 0.3333333 0 0.3333333"]
        text = "" if stem == "q" else "\r\n".join([*rows, *([line] if line else [])]) + "\r\n"
        label.write_bytes(text.encode())
    (root / "data.yaml").write_text("path: ../datasets/leaves\ntrain: images/train\nval: images/val\nnc: 2\n"
                                    "names:\n  0: leaf\n  1: stem\n")  # fmt: skip
    return root


def voc(root: Path, table: str = "class_names") -> Path:
    """VOC's folders: labelme2voc's palette PNGs with its list of classes, or CVAT's RGB with labelmap.txt."""
    mask = filled(SIZE, (1, 1, 1, 5, 5), (2, 2, 2, 4, 4), (255, 0, 0, 8, 1))
    colours = np.zeros((256, 3), np.uint8)
    colours[[1, 2, 255]] = (128, 0, 0), (0, 128, 0), (224, 224, 192)
    folder = "SegmentationClassPNG" if table == "class_names" else "SegmentationClass"
    for stem in ("k", "l"):
        picture(root / f"JPEGImages/{stem}.jpg")
        (root / folder).mkdir(exist_ok=True)
        image = Image.fromarray(mask)
        if table == "labelmap":
            image = Image.fromarray(colours[mask])
        else:
            image = image.convert("P")
            image.putdata(mask.reshape(-1).tolist())
            image.putpalette(colours.reshape(-1).tolist())
        image.save(root / folder / f"{stem}.png")
        xml = (f"<annotation><folder>JPEGImages</folder><filename>{stem}.jpg</filename><size><width>8</width>"
               "<height>6</height><depth>3</depth></size><segmented>1</segmented><object><name>cup</name><bndbox>"
               "<xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object></annotation>")  # fmt: skip
        (root / "Annotations").mkdir(exist_ok=True)
        (root / f"Annotations/{stem}.xml").write_text(xml)
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    if table == "class_names":
        (root / "class_names.txt").write_text("__ignore__\n_background_\ncup\nspoon\n")
        (lists / "train.txt").write_text("k\n")
        (lists / "val.txt").write_text("l\n")
    else:
        (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncup:128,0,0::\n"
                                           "spoon:0,128,0::\n")  # fmt: skip
        (lists / "default.txt").write_text("k\nl\n")
    return root


VOC_MASK = filled(SIZE, (1, 1, 1, 5, 5), (2, 2, 2, 4, 4), (255, 0, 0, 8, 1))


def class_masks(root: Path, by_folder: bool = False) -> Path:
    """One mask per class: NAME.CLASS.png, or CLASS/NAME.png; of 255, of 1, of RGB."""
    organ = filled(SIZE, (255, 1, 1, 6, 5))
    lesion = filled(SIZE, (1, 3, 2, 5, 4))
    for stem in ("s.1", "s.2"):
        picture(root / f"images/{stem}.png")
        for name, mask in (("organ", organ), ("lesion", lesion)):
            if (stem, name) == ("s.2", "lesion"):
                continue  # an image without a lesion
            path = root / (f"masks/{name}/{stem}.png" if by_folder else f"masks/{stem}.{name}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).convert("RGB" if name == "organ" else "L").save(path)
    return root


def colour_masks(root: Path) -> Path:
    """Kaggle's class_dict.csv beside RGB masks."""
    for stem in ("m", "n"):
        picture(root / f"images/{stem}.jpg")
        mask = np.zeros((*SIZE, 3), np.uint8)
        mask[1:3], mask[3:, 4:] = (60, 16, 152), (132, 41, 246)
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(root / f"masks/{stem}.png")
    (root / "class_dict.csv").write_text("name,r,g,b\r\nbuilding,60,16,152\r\nland,132,41,246\r\nBackground,0,0,0\r\n")
    return root


def parquet(root: Path, column: str = "label", names: bool = True) -> Path:
    """HuggingFace's image/mask Parquet, two row groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def png(pixels: np.ndarray) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        return stream.getvalue()

    mask = filled(SIZE, (7, 1, 1, 4, 3), (3, 0, 5, 8, 6), (255, 7, 0, 8, 1))
    cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    (root / "data").mkdir(parents=True)
    for split, count in (("train", 3), ("validation", 1)):
        rows = [{"bytes": png(np.full((*SIZE, 3), 20 * k + len(split), np.uint8)), "path": f"{split}{k}.png"}
                for k in range(count)]  # fmt: skip
        table = pa.table({"image": pa.array(rows, cell),
                          column: pa.array([{"bytes": png(mask), "path": None}] * count, cell)})  # fmt: skip
        pq.write_table(table, root / f"data/{split}-00000-of-00001.parquet", row_group_size=2)
    if names:
        write_json(root / "id2label.json", {"3": "sky", "7": "kite"})
    return root


PARQUET_MASK = filled(SIZE, (2, 1, 1, 4, 3), (1, 0, 5, 8, 6), (255, 7, 0, 8, 1))
