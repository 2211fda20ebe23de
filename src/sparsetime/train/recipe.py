"""Recipes: small typed configurations of a training run, as TOML or JSON."""

import dataclasses
import json
import tomllib
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from sparsetime.codec import Codec
from sparsetime.train.errors import RecipeError

Method = Literal["dense", "spatial_l1", "delta"]
METHODS: tuple[str, ...] = get_args(Method)


@dataclass(frozen=True)
class Phase:
    """A stretch of the run; penalty, clips and batches are multiples of the recipe's.

    Attributes:
        name: for logs.
        share: share of the run's epochs; the shares of a recipe are scaled to sum to one.
        penalty: times ``Recipe.penalty`` is the weight of ``sparsetime.penalty`` in the loss.
        clip_length: times ``Recipe.clip_length`` is T, rounded, at least 2.
        batch_size: times ``Recipe.batch_size`` is the number of clips in a batch, rounded.
        lr: times ``Recipe.lr`` is the peak learning rate of the weights (not of classifier and steps).
        quantize: False lets every layer pass its values through unquantized (the dense warm-up).
    """

    name: str
    share: float = 1.0
    penalty: float = 1.0
    clip_length: float = 1.0
    batch_size: float = 1.0
    lr: float = 1.0
    quantize: bool = True


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the figures of a run; where and how fast it runs is not in here.

    Attributes:
        network: name in ``sparsetime.networks.names()``.
        data: folder with ``clips.csv`` or class folders, or the word ``generated``.
        method: ``dense`` (no penalty), ``spatial_l1`` (penalty on activations) or ``delta`` (on their change).
        weights: ImageNet weight file or the directory of an earlier run; None starts from random weights.
        start: ``refinement`` keeps a dense warm-up in front unless the weights are those of a trained run;
            ``vanilla`` trains with the penalty from the first epoch.
        phases: in order; when empty, ``resolve`` puts in those of the method (``default_phases``).
        epochs: of all phases together; with 0 the layers' steps are set from the training clips and nothing is trained.
        penalty: weight of the strong phase, unit-free; None for the method's own (``DEFAULT_PENALTY``).
        labels: weight of the task loss while layers quantize; 0 leaves it to `distill` alone what a network that
            knows its training clips by heart shall keep.
        distill: weight of the distance from the network before it was made sparse, see ``sparsetime.train.teacher``;
            None for 1 where that network was trained before, else 0.
        clip_length: frames in a training clip, T >= 2.
        batch_size: clips in a batch, over all processes.
        seed: of weights, clips, order and augmentation.
        stride: frames between two frames of a training clip.
        frames_per_video: frames seen of each video in one epoch, so that short and long clips see equally many.
        augment: crop and mirror training clips and change their brightness and contrast, the same for all frames of a
            clip; see ``sparsetime.video.Augment``.
        optimizer: ``adam``, ``adamw`` or ``sgd`` (momentum 0.9).
        lr, step_lr: peak learning rates of the weights, and of the quantizer's steps as a share of
            their size; lr None for 2e-4 on top of
            trained weights, 1e-3 from scratch.
        head_lr: of the classifier; None for ten times `lr` where it starts fresh on top of trained weights, else `lr`.
        weight_decay: of the weights; the steps have none.
        warmup: share of the run over which the learning rate rises; it then falls as a cosine.
        clip_gradient: largest norm of the gradient; 0 leaves it as it is.
        levels, percentile: a step starts at (percentile of the layer's activation) / levels; levels None for 16, with
            the codec ``hold``, whose error reaches a whole step, for 32; with ``hold`` and ``pixel`` and without
            training for 48.
        calibration_clips: training clips from which the steps are set.
        freeze_input_step: keep the step of the input as calibrated; trained with a small penalty it shrinks to
            nothing, and the camera's noise then makes the first layer dense.
        rule, granularity: of the quantizer, see ``sparsetime.sparsify``.
        codec: None for ``hold`` on top of trained weights, ``exact`` from scratch. Noise flips codes at their edges, so
            ``exact`` has to move the whole network before little changes; ``hold`` is still from the start. ``pixel``
            sends whole pixels, which cost a CPU less: for networks that will run on one.
        include, exclude: name patterns of the layers that become sparse.
        input_size: (H, W) for the network, None for its own.
        precision: ``32`` or ``bf16-mixed``.
        validate: share of the training groups held out to watch; 0 trains on all.
        patience: epochs of the last phase without a better accuracy on the held-out part before the run stops;
            0 never stops early.
        missing: ``skip`` goes on without videos that the list names but that are not there.
        allow: what is otherwise refused in a list, see ``sparsetime.video.ClipList.check``.
    """

    network: str
    data: str
    method: Method = "delta"
    weights: str | None = None
    start: Literal["refinement", "vanilla"] = "refinement"
    phases: tuple[Phase, ...] = ()
    epochs: int = 40
    penalty: float | None = None
    labels: float = 1.0
    distill: float | None = None
    clip_length: int = 4
    batch_size: int = 4
    seed: int = 0
    stride: int = 1
    frames_per_video: int = 16
    augment: bool = True
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float | None = None
    step_lr: float = 5e-3
    head_lr: float | None = None
    weight_decay: float = 0.0
    warmup: float = 0.05
    clip_gradient: float = 1.0
    levels: int | None = None
    percentile: float = 99.0
    calibration_clips: int = 8
    freeze_input_step: bool = True
    rule: Literal["dal", "lsq", "fixed"] = "dal"
    granularity: Literal["layer", "channel", "neuron"] = "layer"
    codec: Codec | None = None
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    input_size: tuple[int, int] | None = None
    precision: Literal["32", "bf16-mixed"] = "32"
    validate: float = 0.0
    patience: int = 0
    missing: Literal["error", "skip"] = "error"
    allow: tuple[Literal["class_in_one_split", "group_in_splits"], ...] = ()

    def __post_init__(self) -> None:
        _check(self)

    def replace(self, **changes: Any) -> "Recipe":
        """A copy with some fields changed, checked like a new one."""
        return dataclasses.replace(self, **changes)


#: Weight of the penalty in the strong phase.
DEFAULT_PENALTY: dict[str, float] = {"dense": 0.0, "spatial_l1": 100.0, "delta": 40.0}
#: With the codec ``hold``: the thresholds say what is sent, the penalty no more than nudges.
HOLD_PENALTY = 10.0


def default_phases(method: Method, *, warm_up: bool) -> tuple[Phase, ...]:
    """The phases of a method: with a penalty, first a strong one on long clips, then a weak one on short clips.

    arXiv 2107.07305 trains with T = 8 and a strong weight first, then with T = 2, four times the batch and a hundredth
    of that weight. Here the second phase has half the length, twice the batch and a quarter of the weight.

    Args:
        method: ``dense``, ``spatial_l1`` or ``delta``.
        warm_up: put a dense phase in front, which learns the task alone.
    """
    if method == "dense":
        return (Phase("dense", penalty=0.0),)
    front = (Phase("warm-up", 0.4, penalty=0.0, quantize=False),) if warm_up else ()
    weak = Phase("weak", 0.2, penalty=0.25, clip_length=0.5, batch_size=2.0)
    return (*front, Phase("strong", 0.4), weak)


def resolve(recipe: Recipe, *, trained: bool) -> Recipe:
    """Put in what the recipe leaves to the method: phases, penalty, rates, codec, levels, distillation.

    Args:
        recipe: as written.
        trained: the weights already solve this task (an earlier run on the same classes), so a refinement
            needs no warm-up.

    Raises:
        RecipeError: nothing to learn from, or nothing to set.
    """
    refined = recipe.weights is not None and recipe.start == "refinement"
    codec = recipe.codec or ("hold" if refined else "exact")
    holds = recipe.method == "delta" and codec in ("hold", "pixel")
    if recipe.epochs == 0 and not (trained and recipe.method == "delta"):
        raise RecipeError(
            "recipe: epochs = 0 sets the steps of a trained network and trains nothing; it takes method delta and the "
            "directory of an earlier run on the same classes as weights"
        )
    warm_up = recipe.start == "refinement" and not trained
    lr = recipe.lr or (1e-3 if recipe.weights is None else 2e-4)
    fresh_head = recipe.weights is not None and not trained
    penalty = HOLD_PENALTY if holds else DEFAULT_PENALTY[recipe.method]
    distill = 1.0 if refined and recipe.method != "dense" else 0.0
    distill = distill if recipe.distill is None else recipe.distill
    if not recipe.labels and not distill:
        raise RecipeError("recipe: with labels = 0 and distill = 0 there is nothing to learn; set one of them above 0")
    return recipe.replace(
        phases=recipe.phases or default_phases(recipe.method, warm_up=warm_up),
        penalty=penalty if recipe.penalty is None else recipe.penalty,
        lr=lr,
        distill=distill,
        codec=codec,
        levels=recipe.levels or _levels(recipe, codec),
        head_lr=lr * (10 if fresh_head else 1) if recipe.head_lr is None else recipe.head_lr,
    )


def _levels(recipe: Recipe, codec: Codec) -> int:
    if recipe.method != "delta" or codec in ("exact", "residual"):
        return 16
    return 48 if recipe.epochs == 0 else 32 if codec == "hold" else 16


@dataclass(frozen=True)
class Span:
    """One phase in figures.

    Attributes:
        name: of the phase.
        first, end: its epochs, first <= epoch < end.
        penalty: weight of the penalty in the loss.
        clip_length: T.
        batch_size: clips in a batch, over all processes.
        lr: multiple of the recipe's, for the weights.
        quantize: whether the layers quantize.
    """

    name: str
    first: int
    end: int
    penalty: float
    clip_length: int
    batch_size: int
    lr: float
    quantize: bool


def schedule(recipe: Recipe) -> tuple[Span, ...]:
    """Divide the epochs among the phases by their shares, by largest remainder.

    With fewer epochs than phases the phases that quantize come before the warm-up, so that one epoch of ``delta``
    is an epoch of delta training.

    Args:
        recipe: a resolved one.

    Raises:
        RecipeError: the recipe has no phases; see ``resolve``.
    """
    if not recipe.phases or recipe.penalty is None:
        raise RecipeError("schedule: the recipe leaves phases or penalty to the method; call resolve(recipe) first")
    total = sum(phase.share for phase in recipe.phases)
    exact = [recipe.epochs * phase.share / total for phase in recipe.phases]
    counts = [int(e) for e in exact]
    order = sorted(range(len(counts)), key=lambda i: (round(counts[i] - exact[i], 9), not recipe.phases[i].quantize, i))
    for i in order[: recipe.epochs - sum(counts)]:
        counts[i] += 1
    spans, first = [], 0
    for phase, count in zip(recipe.phases, counts, strict=True):
        penalty = recipe.penalty * phase.penalty
        if count:
            spans.append(
                Span(
                    name=phase.name,
                    first=first,
                    end=first + count,
                    penalty=penalty,
                    clip_length=max(2, round(recipe.clip_length * phase.clip_length)),
                    batch_size=max(1, round(recipe.batch_size * phase.batch_size)),
                    lr=phase.lr,
                    quantize=phase.quantize,
                )
            )
        first += count
    return tuple(spans)


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data, for JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return plain


def from_dict(data: dict[str, Any], where: str = "recipe") -> Recipe:
    """A recipe from plain data.

    Raises:
        RecipeError: an unknown key, a missing one, or a value of another type; names ``where`` and the key.
    """
    recipe: Recipe = _build(Recipe, data, where)
    return recipe


def read(path: Path) -> dict[str, Any]:
    """The plain data of a ``.toml`` or ``.json`` recipe file, not yet a Recipe: the command line adds to it.

    Raises:
        RecipeError: no such file, another suffix, or not readable as what its suffix says.
    """
    if not path.is_file():
        raise RecipeError(f"recipe: no file {path}")
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".toml":
            return tomllib.loads(text)
        if path.suffix == ".json":
            data = json.loads(text)
            if not isinstance(data, dict):
                raise RecipeError(f"recipe {path}: expected an object of keys and values, got {type(data).__name__}")
            return data
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise RecipeError(f"recipe {path}: {error}") from error
    raise RecipeError(f"recipe {path}: expected a .toml or .json file, got suffix {path.suffix!r}")


def _build(kind: type[Any], data: dict[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise RecipeError(f"{where}: unknown key {', '.join(map(repr, unknown))}; known are {', '.join(known)}")
    required = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]
    missing = [name for name in required if name not in data]
    if missing:
        raise RecipeError(f"{where}: key {', '.join(map(repr, missing))} is missing")
    return kind(**{key: _convert(hints[key], value, f"{where}, key {key!r}") for key, value in data.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    """The value as the annotated type: lists become tuples, integers floats; anything else is refused."""
    origin, args = typing.get_origin(hint), get_args(hint)
    if origin in (types.UnionType, typing.Union):  # Literal[...] | None is the latter
        if value is None and type(None) in args:
            return None
        return _convert(next(arg for arg in args if arg is not type(None)), value, where)
    if origin is Literal:
        if value in args and isinstance(value, str):
            return value
        raise RecipeError(f"{where}: expected one of {', '.join(map(repr, args))}, got {value!r}")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise RecipeError(f"{where}: expected a list, got {value!r}")
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise RecipeError(f"{where}: expected {len(args)} values, got {value!r}")
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if not isinstance(value, dict):
            raise RecipeError(f"{where}: expected a table, got {value!r}")
        return _build(hint, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise RecipeError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def _check(recipe: Recipe) -> None:
    if recipe.method not in METHODS:
        raise RecipeError(f"recipe: method is one of {', '.join(METHODS)}, got {recipe.method!r}")
    if recipe.clip_length < 2:
        raise RecipeError(
            f"recipe: clip_length must be 2 or more, since one frame has no change, got {recipe.clip_length}"
        )
    for name in ("batch_size", "stride", "frames_per_video", "calibration_clips"):
        if not getattr(recipe, name) > 0:
            raise RecipeError(f"recipe: {name} must be more than 0, got {getattr(recipe, name)}")
    for name in ("lr", "levels"):
        value = getattr(recipe, name)
        if value is not None and not value > 0:
            raise RecipeError(f"recipe: {name} must be more than 0, got {value}")
    for name in (
        "epochs",
        "penalty",
        "labels",
        "distill",
        "step_lr",
        "head_lr",
        "weight_decay",
        "clip_gradient",
        "patience",
        "seed",
    ):
        if not (getattr(recipe, name) or 0) >= 0:
            raise RecipeError(f"recipe: {name} must be 0 or more, got {getattr(recipe, name)}")
    for name in ("validate", "warmup"):
        if not 0 <= getattr(recipe, name) < 1:
            raise RecipeError(f"recipe: {name} is a share, 0 <= {name} < 1, got {getattr(recipe, name)}")
    if not 0 < recipe.percentile <= 100:
        raise RecipeError(f"recipe: percentile lies in (0, 100], got {recipe.percentile}")
    if recipe.patience and not recipe.validate:
        raise RecipeError("recipe: patience watches a held-out part of the training groups; set validate, e.g. 0.2")
    for phase in recipe.phases:
        if not (
            phase.share > 0 and phase.clip_length > 0 and phase.batch_size > 0 and phase.lr > 0 and phase.penalty >= 0
        ):
            raise RecipeError(
                f"recipe: phase {phase.name!r} needs share, clip_length, batch_size and lr above 0 and penalty of 0 or "
                f"more, got {phase}"
            )
