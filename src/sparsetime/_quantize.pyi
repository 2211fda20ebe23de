"""Native training kernels, see native/quantize.h."""

def instruction_sets() -> list[str]: ...
def forward(
    x: int,
    value: int,
    inside: int,
    clips: int,
    frames: int,
    elements: int,
    q: float,
    low: float,
    high: float,
    threads: int,
    isa: str = "",
) -> float: ...
def backward(
    grad: int,
    value: int,
    inside: int,
    out: int,
    clips: int,
    frames: int,
    elements: int,
    weight: float,
    threads: int,
    isa: str = "",
) -> float: ...
def hold_forward(
    x: int,
    value: int,
    flags: int,
    clips: int,
    frames: int,
    elements: int,
    theta: float,
    low: float,
    high: float,
    threads: int,
    isa: str = ...,
) -> float: ...
def hold_backward(
    grad: int,
    value: int,
    flags: int,
    out: int,
    clips: int,
    frames: int,
    elements: int,
    weight: float,
    threads: int,
    isa: str = ...,
) -> None: ...
