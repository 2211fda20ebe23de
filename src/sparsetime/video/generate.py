"""Labelled clips made by rule, with the exact answer to what changed; no file is read."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

Floats = npt.NDArray[np.float32]

_SHAPES = ("disc", "square", "triangle", "cross")
_TEXTURES = ("striped", "checked")
_VELOCITIES = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if dy or dx]  # pixels a frame


class GeneratedClips(Dataset[dict[str, Any]]):
    """A textured shape that moves over a textured ground, seen by a camera that may be noisy, flicker and shake.

    The class is the shape with its texture (``"disc striped"``, ...), so single frames show it; the way it moves says
    nothing about it. The noise-free picture of frame t at pixel p is

        s(t, p) = round(gain(t) * scene(t, p + shift(t))),   clip = round(s + noise * N(0, 1))   within 0..255

    where scene is the ground with the shape pasted at whole pixels, which moves by one velocity and bounces off the
    border.

    Args:
        count: number of clips; their classes take turns.
        seed: clip i depends on (seed, i) and on the other arguments alone.
        size: (H, W).
        length: frames of a clip.
        classes: how many of the eight classes.
        noise: standard deviation of the camera noise, in levels of 0..255, independent in pixel, channel and frame.
        flicker: standard deviation of the gain, around 1; one draw a frame.
        shake: largest shift of the camera in pixels; one draw a frame and direction.

    Items are ``{"clip": uint8 (T, 3, H, W), "label": int, "index": int, "changed": bool (T, H, W), "noisy": bool (T,
    H, W)}``: `changed` where the noise-free picture differs from the frame before in any channel, all of frame 0;
    `noisy` where it does not but the clip does, that is where noise alone made the change.
    """

    def __init__(
        self,
        count: int,
        *,
        seed: int = 0,
        size: tuple[int, int] = (64, 64),
        length: int = 8,
        classes: int = 8,
        noise: float = 2.0,
        flicker: float = 0.0,
        shake: int = 0,
    ) -> None:
        names = [f"{shape} {texture}" for texture in _TEXTURES for shape in _SHAPES]
        if not 2 <= classes <= len(names):
            raise ValueError(f"classes: expected 2 to {len(names)}, got {classes}")
        if min(size) < 24 or length < 1 or count < 0:
            raise ValueError(
                f"expected size >= 24, length >= 1, count >= 0; got size={size}, length={length}, count={count}"
            )
        if min(noise, flicker, shake) < 0:
            raise ValueError(f"expected noise, flicker, shake >= 0; got {noise}, {flicker}, {shake}")
        self.classes = tuple(names[:classes])
        self.count, self.seed, self.size, self.length = count, seed, size, length
        self.noise, self.flicker, self.shake = noise, flicker, shake

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.count:
            raise IndexError(f"index: expected 0 to {self.count - 1}, got {index}")
        rng = np.random.default_rng((self.seed, index))
        label = index % len(self.classes)
        clean = self._render(label, rng)
        clip = clean
        if self.noise:
            noise = rng.standard_normal(clean.shape, dtype=np.float32) * np.float32(self.noise)
            clip = np.clip(np.rint(clean + noise), 0, 255).astype(np.uint8)
        changed = _differs(clean)
        noisy = _differs(clip) & ~changed
        return {
            "clip": torch.from_numpy(clip).permute(0, 3, 1, 2).contiguous(),
            "label": label,
            "index": index,
            "changed": torch.from_numpy(changed),
            "noisy": torch.from_numpy(noisy),
        }

    def _render(self, label: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        """The noise-free clip, (T, H, W, 3)."""
        margin = self.shake
        height, width = self.size[0] + 2 * margin, self.size[1] + 2 * margin
        ground = _ground(height, width, rng)
        mask, surface = _shape(label, min(self.size), rng)
        side = len(mask)
        room = np.array([height - side, width - side])
        position = rng.integers(0, room + 1)
        velocity = rng.choice(_VELOCITIES)
        frames = np.empty((self.length, *self.size, 3), np.uint8)
        for t in range(self.length):
            scene = ground.copy()
            y, x = position
            np.copyto(scene[y : y + side, x : x + side], surface, where=mask[..., None])
            dy, dx = rng.integers(0, 2 * margin + 1, size=2)
            gain = 1 + self.flicker * rng.standard_normal()
            seen = scene[dy : dy + self.size[0], dx : dx + self.size[1]] * gain
            frames[t] = np.clip(np.rint(seen), 0, 255)
            position, velocity = _bounce(position + velocity, velocity, room)
        return frames


def digit_glyphs(count: int, *, seed: int = 0) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Small drawings of the ten digits, each stroke, slant, thickness and place a little different.

    Returns:
        glyphs (count, 8, 8) float32 in [0, 1]; labels (count,) int64, taking turns.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    return np.stack([_digit(int(label), rng) for label in labels]) if count else np.empty((0, 8, 8), np.float32), labels


def drift_clips(
    count: int,
    glyphs: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    seed: int = 0,
    length: int = 6,
    canvas: int = 12,
    noise: float = 0.02,
) -> tuple[Tensor, Tensor]:
    """Small pictures that drift over a still ground.

    The ground is drawn once a clip, uniform in [0, 0.3]; the glyph is pasted by the maximum at a whole-pixel
    position, which moves by a velocity in {-1, 0, 1}^2 in every second frame and stays inside; noise is normal, new
    in each frame, and nothing is clipped.

    Args:
        count: number of clips; clip i shows glyph i % M, so 2 M gives two renderings of each.
        glyphs: (M, h, w) in [0, 1], h and w at most `canvas`.
        labels: (M,) whole numbers.
        noise: standard deviation.

    Returns:
        clips (count, T, 1, canvas, canvas) float32, labels (count,) int64.

    Raises:
        ValueError: shapes that do not go together.
    """
    glyphs, labels = np.asarray(glyphs, np.float32), np.asarray(labels, np.int64)
    if glyphs.ndim != 3 or labels.shape != glyphs.shape[:1] or not len(labels) or max(glyphs.shape[1:]) > canvas:
        raise ValueError(
            f"expected glyphs (M, h, w), M >= 1, no larger than {canvas}, and labels (M,); "
            f"got {glyphs.shape}, {labels.shape}"
        )
    rng = np.random.default_rng(seed)
    height, width = glyphs.shape[1:]
    room = np.array([canvas - height, canvas - width])
    clips = np.empty((count, length, 1, canvas, canvas), np.float32)
    which = np.arange(count) % len(glyphs)
    for clip, glyph in zip(clips, glyphs[which], strict=True):
        ground = rng.uniform(0, 0.3, (canvas, canvas)).astype(np.float32)
        position = rng.integers(0, room + 1)
        velocity = rng.integers(-1, 2, size=2)
        for t in range(length):
            if t and t % 2 == 0:
                position = np.clip(position + velocity, 0, room)
            y, x = position
            frame = ground.copy()
            frame[y : y + height, x : x + width] = np.maximum(frame[y : y + height, x : x + width], glyph)
            clip[t, 0] = frame + noise * rng.standard_normal(frame.shape, dtype=np.float32)
    return torch.from_numpy(clips), torch.from_numpy(labels[which])


def _differs(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """(T, H, W, 3) -> (T, H, W): differs from the frame before in any channel; all of the first does."""
    differs = np.ones(frames.shape[:3], bool)
    differs[1:] = (frames[1:] != frames[:-1]).any(-1)
    return differs


def _ground(height: int, width: int, rng: np.random.Generator) -> Floats:
    """Patches of muted colour with a fine grain, (H, W, 3) in 60..130."""
    patches = rng.uniform(70, 120, (height // 16 + 2, width // 16 + 2, 3)).astype(np.float32)
    picture = np.kron(patches, np.ones((16, 16, 1), np.float32))
    y, x = rng.integers(0, 16, size=2)
    return picture[y : y + height, x : x + width] + rng.uniform(-10, 10, (height, width, 1)).astype(np.float32)


def _shape(label: int, extent: int, rng: np.random.Generator) -> tuple[npt.NDArray[np.bool_], Floats]:
    """Mask (S, S) and coloured surface (S, S, 3) of one shape, about two fifths of the picture wide."""
    side = int(rng.integers(round(0.35 * extent), round(0.45 * extent) + 1))
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    centre = (side - 1) / 2
    v, u = (y - centre) / (side / 2), (x - centre) / (side / 2)  # -1..1
    mask = (
        u**2 + v**2 <= 1,
        np.maximum(abs(u), abs(v)) <= 0.85,
        abs(u) <= (v + 1) / 2,
        (abs(u) <= 0.32) | (abs(v) <= 0.32),
    )[label % 4]
    period = int(rng.integers(5, 8))
    phase = rng.integers(0, period, size=2)
    rows, columns = ((y + phase[0]) % period < period / 2), ((x + phase[1]) % period < period / 2)
    light = rows if label < 4 else rows ^ columns
    bright = rng.uniform(200, 250, 3)
    dark = rng.uniform(0, 30, 3)
    return mask, np.where(light[..., None], bright, dark).astype(np.float32)


def _bounce(
    position: npt.NDArray[Any], velocity: npt.NDArray[Any], room: npt.NDArray[Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    outside = (position < 0) | (position > room)
    mirrored = np.where(position < 0, -position, 2 * room - position)
    return np.clip(np.where(outside, mirrored, position), 0, room), np.where(outside, -velocity, velocity)


# Strokes of the digits as lines of corner points (x to the right, y down, both in 0..1).
_STROKES: tuple[tuple[Sequence[tuple[float, float]], ...], ...] = (
    (((0.5, 0), (0.9, 0.25), (0.9, 0.75), (0.5, 1), (0.1, 0.75), (0.1, 0.25), (0.5, 0)),),
    (((0.25, 0.25), (0.55, 0), (0.55, 1)),),
    (((0.1, 0.2), (0.5, 0), (0.9, 0.25), (0.1, 1), (0.9, 1)),),
    (((0.1, 0.05), (0.85, 0.1), (0.45, 0.45), (0.9, 0.7), (0.5, 1), (0.1, 0.9)),),
    (((0.65, 1), (0.65, 0), (0.1, 0.65), (0.95, 0.65)),),
    (((0.9, 0), (0.2, 0), (0.15, 0.45), (0.7, 0.4), (0.9, 0.7), (0.6, 1), (0.1, 0.95)),),
    (((0.75, 0), (0.2, 0.45), (0.15, 0.8), (0.5, 1), (0.85, 0.8), (0.6, 0.5), (0.2, 0.65)),),
    (((0.1, 0), (0.9, 0), (0.4, 1)),),
    (
        (
            (0.5, 0.48),
            (0.15, 0.25),
            (0.5, 0),
            (0.85, 0.25),
            (0.5, 0.48),
            (0.1, 0.75),
            (0.5, 1),
            (0.9, 0.75),
            (0.5, 0.48),
        ),
    ),
    (((0.85, 0.35), (0.5, 0.5), (0.15, 0.25), (0.5, 0), (0.85, 0.2), (0.85, 0.35), (0.6, 1)),),
)


def _digit(label: int, rng: np.random.Generator) -> Floats:
    """One digit, (8, 8) in [0, 1]: full within half the thickness of a stroke's middle, fading over one pixel."""
    y, x = np.mgrid[0:8, 0:8] + 0.5
    pixels = np.stack([x, y], axis=-1).reshape(-1, 1, 2)
    slant, turn = rng.normal(0, 0.12, size=2)
    stretch = rng.uniform(0.8, 1.1, size=2)
    shape = np.array([[stretch[0] * np.cos(turn), -np.sin(turn) + slant], [np.sin(turn), stretch[1] * np.cos(turn)]])
    shift = rng.normal(0, 0.35, size=2)
    thickness = rng.uniform(0.45, 0.8)
    starts, ends = [], []
    for stroke in _STROKES[label]:
        points = np.array(stroke) + rng.normal(0, 0.04, (len(stroke), 2))
        points = (points - 0.5) * [4.6, 6.2] @ shape.T + 4 + shift
        starts.append(points[:-1])
        ends.append(points[1:])
    a, b = np.concatenate(starts), np.concatenate(ends)
    along = np.clip(((pixels - a) * (b - a)).sum(-1) / ((b - a) ** 2).sum(-1), 0, 1)
    distance = np.linalg.norm(pixels - (a + along[..., None] * (b - a)), axis=-1).min(-1)
    glyph: Floats = np.clip(thickness + 0.5 - distance, 0, 1).reshape(8, 8).astype(np.float32)
    return glyph
