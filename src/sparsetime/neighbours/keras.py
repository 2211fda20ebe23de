"""The delta activation layer for Keras 3, on any of its backends; the paper's own was a Keras layer.

    model = keras.Sequential([
        keras.layers.TimeDistributed(keras.layers.Conv2D(16, 3)),     # (N, T, H, W, C)
        DeltaActivation("relu", step=0.1, penalty_weight=1e-3),
        ...
    ])

It needs no PyTorch unless that is Keras' backend.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

try:
    import keras
    from keras import ops
except ImportError as error:
    raise ImportError("needs Keras 3 and one of its backends: pip install 'sparsetime[keras]'") from error

__all__ = ["DeltaActivation"]

Rule = Literal["dal", "fixed"]
Granularity = Literal["layer", "channel", "neuron"]

_FLOOR = 1e-8  # smallest step, as in sparsetime.quantize: below it codes would overflow
_FLOOR_HALF = 2.0**-14
_CLAMPS = {"identity": (-math.inf, math.inf), "relu": (0.0, math.inf), "relu6": (0.0, 6.0)}


@keras.saving.register_keras_serializable(package="sparsetime")
class DeltaActivation(keras.layers.Layer):
    """Activation and quantizer with a learned step; in training the change over time is penalised.

        O(t) = Q(f(X(t))),   Q(a) = n q,   n = round(a / q),   q = |step|             [arXiv 2107.07305]
        d O / d a = 1,   d O / d step = -n sign(step)
        loss += penalty_weight * mean over n, t >= 2, elements of |O(t) - O(t-1)|

    The values, gradients and penalty of `sparsetime.DeltaActivation` with the codec `exact` and the rules `dal` and
    `fixed`. Takes and gives clips, (N, T, ...); the first frame is in no penalty.

    Args:
        activation: f: "identity", "relu", "relu6", or a function of a tensor (one that Keras can save, if the model is
            to be saved).
        step: initial step, positive.
        rule: "dal", the negated gradient above; or "fixed", the step is not trained.
        granularity: one step for the layer, for each channel, or for each neuron.
        penalty_weight: 0 adds no loss. `sparsetime.objective` says how to weigh layers against each other.
        data_format: "channels_last" or "channels_first", where the channels are; None for Keras' setting. (N, T, F)
            has them last.

    Raises:
        ValueError: an argument out of range; or a call on what is no clip.
    """

    def __init__(
        self,
        activation: str | Callable[[Any], Any] = "relu",
        *,
        step: float = 1 / 16,
        rule: Rule = "dal",
        granularity: Granularity = "layer",
        penalty_weight: float = 0.0,
        data_format: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        for value, allowed, what in (
            (rule, get_args(Rule), "rule"),
            (granularity, get_args(Granularity), "granularity"),
            (data_format, (None, "channels_last", "channels_first"), "data_format"),
        ):
            if value not in allowed:
                raise ValueError(
                    f"DeltaActivation: {what} must be one of {', '.join(map(str, allowed))}, got {value!r}"
                )
        if isinstance(activation, str) and activation not in _CLAMPS:
            raise ValueError(
                f"DeltaActivation: activation {activation!r} is not in {sorted(_CLAMPS)}; pass a function, "
                "keras.activations.get(name) for those of Keras"
            )
        if not (math.isfinite(step) and step > 0) or penalty_weight < 0:
            raise ValueError(
                f"DeltaActivation: expected a step > 0 and a penalty_weight >= 0, got {step} and {penalty_weight}"
            )
        self.activation = activation
        self.initial_step = float(step)
        self.rule: Rule = rule
        self.granularity: Granularity = granularity
        self.penalty_weight = float(penalty_weight)
        self.data_format = data_format or keras.config.image_data_format()
        self.supports_masking = True

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if len(input_shape) < 3:
            raise ValueError(
                f"DeltaActivation: expected clips (N, T, ...), got shape {tuple(input_shape)}. A layer that works on "
                "frames goes into keras.layers.TimeDistributed."
            )
        frame = tuple(input_shape[2:])
        shape: tuple[int | None, ...] = ()
        if self.granularity == "neuron":
            shape = frame
        elif self.granularity == "channel":
            first = self.data_format == "channels_first" and len(frame) > 1
            shape = (frame[0], *(1,) * (len(frame) - 1)) if first else (frame[-1],)
        if None in shape:
            raise ValueError(
                f"DeltaActivation: steps per {self.granularity} need the frame's shape, got {tuple(input_shape)}"
            )
        self.step = self.add_weight(
            name="step",
            shape=shape,
            initializer=keras.initializers.Constant(self.initial_step),
            trainable=self.rule != "fixed",
        )
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        a = self._activate(inputs)
        magnitude = ops.abs(self.step)
        # In float16 the floor itself is 0: its smallest normal number is larger.
        floor = _FLOOR if keras.backend.standardize_dtype(magnitude.dtype) != "float16" else _FLOOR_HALF
        q = ops.stop_gradient(ops.maximum(magnitude, floor))
        code = ops.stop_gradient(ops.round(a / q))
        # What a term gives is in its own stop_gradient; the bracket behind is zero, and carries the gradient.
        value = code * q + (a - ops.stop_gradient(a)) - code * (magnitude - ops.stop_gradient(magnitude))
        if training and self.penalty_weight and inputs.shape[1] != 1:
            change = value[:, 1:] - value[:, :-1]
            # |change| whose gradient is 0 where nothing changed, which is almost everywhere; that of `abs` is 1 in jax.
            self.add_loss(self.penalty_weight * ops.mean(change * ops.stop_gradient(ops.sign(change))))
        return value

    def _activate(self, x: Any) -> Any:
        if not isinstance(self.activation, str):
            return self.activation(x)
        if self.activation == "identity":
            return x
        low, high = _CLAMPS[self.activation]
        # Backends disagree about the gradient of a clamp at its bounds; here it is 0, as PyTorch's ReLU has it.
        inside = ops.logical_and(x > low, x < high)
        return ops.where(inside, x, ops.stop_gradient(ops.clip(x, low, high)))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        activation = self.activation
        return {
            **super().get_config(),
            "activation": activation
            if isinstance(activation, str)
            else keras.saving.serialize_keras_object(activation),
            "step": self.initial_step,
            "rule": self.rule,
            "granularity": self.granularity,
            "penalty_weight": self.penalty_weight,
            "data_format": self.data_format,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DeltaActivation:
        activation = config["activation"]
        if not isinstance(activation, str):
            config = {**config, "activation": keras.saving.deserialize_keras_object(activation)}
        return cls(**config)
