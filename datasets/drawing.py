"""Pictures for the bundled sample: textured shapes of VOC's classes in front of cluttered backgrounds."""

from dataclasses import dataclass

import cv2
import numpy as np

OUTLINES = ("ellipse", "box", "triangle", "star", "cross")
TEXTURES = ("stripes", "checks", "dots", "rings", "speckle")
HUES = 180
"""OpenCV's hues of 8 bits: half degrees."""


@dataclass(frozen=True)
class Thing:
    """One drawn object.

    Args:
        number: class 1..20, or 0 for a dull object, which belongs to the background.
        polygon: float32 (n, 2), x and y of the corners in pixels, within the image.
        mask: bool (H, W), the polygon filled.
        crowd: whether it is several objects drawn as one group.
    """

    number: int
    polygon: np.ndarray
    mask: np.ndarray
    crowd: bool = False


def draw_scene(
    rng: np.random.Generator,
    size: tuple[int, int],
    numbers: list[int],
    domain: str,
    crowd: int = 0,
    ground: np.ndarray | None = None,
) -> tuple[np.ndarray, list[Thing]]:
    """Draw dull objects, then crowds, then the others, largest first, so that the smaller hide the larger.

    Args:
        rng: all randomness.
        size: height and width, pixels.
        numbers: the objects' classes, 0..20.
        domain: "coco" or "voc"; backgrounds differ.
        crowd: class of a group of small objects, 0 for none.
        ground: float (H, W, 3) of 0..255, in place of the domain's background.

    Returns:
        The image, uint8 (H, W, 3) RGB, and the things in the order drawn.
    """
    image = _background(rng, size, domain) if ground is None else ground.copy()
    things = [_place(rng, size, number) for number in numbers] + ([_crowd(rng, size, crowd)] if crowd else [])
    things.sort(key=lambda thing: (thing.number > 0, not thing.crowd, -int(thing.mask.sum())))
    for thing in things:
        image[thing.mask] = _surface(rng, size, thing)[thing.mask]
    noisy = image * rng.uniform(0.8, 1.1) + rng.normal(0, 5 if domain == "voc" else 8, image.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), things


def _place(rng: np.random.Generator, size: tuple[int, int], number: int) -> Thing:
    """An object of 32-60 % of the shorter side (dull ones smaller), most of it in view."""
    radius = min(size) * (rng.uniform(0.32, 0.6) if number else rng.uniform(0.1, 0.25)) / 2
    kind = OUTLINES[(number - 1) * 2 % len(OUTLINES)] if number else str(rng.choice(OUTLINES))
    corners = _outline(kind) * radius * rng.uniform([0.85, 0.85], [1.15, 1.15])
    turn = rng.uniform(0, 2 * np.pi)
    corners = corners @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    centre = rng.uniform(0.2, 0.8, 2) * size[::-1]
    polygon = np.clip(corners + centre, 0, np.array(size[::-1]) - 1.0).astype(np.float32)
    return Thing(number, polygon, _filled(polygon, size))


def _crowd(rng: np.random.Generator, size: tuple[int, int], number: int) -> Thing:
    centre = rng.uniform(0.3, 0.7, 2) * size[::-1]
    mask = np.zeros(size, bool)
    for _ in range(6):
        member = _place(rng, size, number)
        near = (member.polygon - member.polygon.mean(0)) * 0.35 + centre + rng.normal(0, 0.08, 2) * size
        mask |= _filled(near.astype(np.float32), size)
    return Thing(number, member.polygon, mask, crowd=True)


def _filled(polygon: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    return cv2.fillPoly(mask, [np.round(polygon).astype(np.int32)], 1).astype(bool)


def _outline(kind: str) -> np.ndarray:
    """Corners of a shape about the origin, at most 1 away from it, (n, 2)."""
    if kind == "box":
        return np.array([[-0.85, -0.6], [0.85, -0.6], [0.85, 0.6], [-0.85, 0.6]])
    if kind == "cross":
        a, b = 0.35, 0.95
        x = [-a, a, a, b, b, a, a, -a, -a, -b, -b, -a]
        return np.stack([x, np.roll(x, -3)], axis=1)
    corners = {"ellipse": 24, "triangle": 3, "star": 10}[kind]
    angle = np.arange(corners) * 2 * np.pi / corners
    radius = np.where(np.arange(corners) % 2, 0.5, 1.0) if kind == "star" else np.ones(corners)
    return np.stack([np.cos(angle) * radius, np.sin(angle) * radius * (0.75 if kind == "ellipse" else 1)], axis=1)


def _surface(rng: np.random.Generator, size: tuple[int, int], thing: Thing) -> np.ndarray:
    """The colours of an object, float (H, W, 3): the class's texture mixes two tones of the class's hue."""
    kind = TEXTURES[(thing.number - 1) % len(TEXTURES)] if thing.number else str(rng.choice(TEXTURES))
    wavelength = rng.uniform(0.85, 1.15) * (6 + 2 * (thing.number % 4))
    pattern = _texture(rng, size, kind, wavelength, thing.polygon.mean(0))[..., None]
    hue = (thing.number - 1) * HUES / 20 + rng.normal(0, 2.0) if thing.number else rng.uniform(0, HUES)
    saturation = rng.uniform(0.7, 1.0) if thing.number else rng.uniform(0, 0.25)
    bright = rgb(hue, saturation, rng.uniform(0.75, 1.0))
    dark = rgb(hue + rng.normal(0, 2), saturation, rng.uniform(0.35, 0.5))
    return bright * pattern + dark * (1 - pattern)


def _texture(
    rng: np.random.Generator, size: tuple[int, int], kind: str, wavelength: float, centre: np.ndarray
) -> np.ndarray:
    """A pattern in 0..1, (H, W), turned about `centre` by a random angle."""
    if kind == "speckle":
        return noise(rng, size, wavelength / 3)
    turn = rng.uniform(0, np.pi)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    x, y = x - centre[0], y - centre[1]
    u = (np.cos(turn) * x + np.sin(turn) * y) * 2 * np.pi / wavelength
    v = (np.cos(turn) * y - np.sin(turn) * x) * 2 * np.pi / wavelength
    if kind == "stripes":
        return 0.5 + 0.5 * np.sin(u)
    if kind == "rings":
        return 0.5 + 0.5 * np.sin(np.hypot(u, v))
    if kind == "checks":
        return (np.sin(u / 1.5) * np.sin(v / 1.5) > 0).astype(np.float32)
    return (np.sin(u) + np.sin(v) > 0.8).astype(np.float32)


def noise(rng: np.random.Generator, size: tuple[int, int], grain: float) -> np.ndarray:
    """Smooth noise in 0..1, (H, W), with blobs of `grain` pixels."""
    coarse = rng.random((int(size[0] / grain) + 2, int(size[1] / grain) + 2), dtype=np.float32)
    return np.clip(cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC), 0, 1)


def _background(rng: np.random.Generator, size: tuple[int, int], domain: str) -> np.ndarray:
    """Dull clutter, float (H, W, 3): blotches in the COCO domain, a slope with grain in the VOC domain."""
    first, second = (rgb(rng.uniform(0, HUES), rng.uniform(0, 0.3), rng.uniform(0.2, 0.9)) for _ in range(2))
    if domain == "coco":
        mix = 0.6 * noise(rng, size, rng.uniform(10, 40)) + 0.4 * noise(rng, size, rng.uniform(2, 6))
    else:
        y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
        way = rng.normal(size=2) / np.array(size)
        mix = np.clip(0.5 + y * way[0] + x * way[1], 0, 1) * 0.8 + 0.2 * noise(rng, size, rng.uniform(2, 8))
    return first * mix[..., None] + second * (1 - mix[..., None])


def rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """Hue in half degrees, saturation and value 0..1 -> float RGB 0..255, (3,)."""
    pixel = np.array([[[hue % HUES, 255 * saturation, 255 * value]]]).astype(np.uint8)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)
