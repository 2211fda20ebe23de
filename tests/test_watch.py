"""Linear operations are seen and described however they are called; what is not described is named."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsetime.fanout import LinearOp, fanout
from sparsetime.watch import LinearCall, OpNames, WatchLinear


def watched(function: Callable[[], Any]) -> tuple[list[LinearCall], list[str]]:
    calls: list[LinearCall] = []
    uncounted: list[str] = []
    with torch.no_grad(), WatchLinear(calls.append, uncounted.append):
        function()
    return calls, uncounted


X1, X2, X3 = torch.ones(2, 4, 9), torch.ones(2, 4, 9, 8), torch.ones(2, 4, 9, 8, 7)


@pytest.mark.parametrize(
    ("function", "op"),
    [
        (lambda: nn.Linear(8, 5)(X2), LinearOp("linear", (5, 8))),
        (lambda: F.linear(input=X2, weight=torch.ones(5, 8)), LinearOp("linear", (5, 8))),
        (lambda: nn.LazyLinear(5)(X2), LinearOp("linear", (5, 8))),
        (lambda: nn.Conv1d(4, 6, 3)(X1), LinearOp("conv", (6, 4, 3), (1,), (0,), (1,), (7,), 1)),
        (
            lambda: nn.Conv2d(4, 6, (3, 1), (2, 1), (1, 0), (2, 1), 2)(X2),
            LinearOp("conv", (6, 2, 3, 1), (2, 1), (1, 0), (2, 1), (4, 8), 2),
        ),
        (lambda: nn.Conv3d(4, 6, 2)(X3), LinearOp("conv", (6, 4, 2, 2, 2), (1,) * 3, (0,) * 3, (1,) * 3, (8, 7, 6), 1)),
        (
            lambda: F.conv2d(X2, torch.ones(8, 1, 3, 3), None, 2, padding=1, groups=4),
            LinearOp("conv", (8, 1, 3, 3), (2, 2), (1, 1), (1, 1), (5, 4), 4),
        ),
        (
            lambda: torch.conv2d(X2, weight=torch.ones(6, 4, 1, 1), stride=[3]),
            LinearOp("conv", (6, 4, 1, 1), (3, 3), (0, 0), (1, 1), (3, 3), 1),
        ),
        (
            lambda: F.conv2d(X2, torch.ones(6, 4, 3, 3), padding="same"),
            LinearOp("conv", (6, 4, 3, 3), (1, 1), (1, 1), (1, 1), (9, 8), 1),
        ),
        (
            lambda: F.conv2d(X2, torch.ones(6, 4, 3, 3), padding="valid"),
            LinearOp("conv", (6, 4, 3, 3), (1, 1), (0, 0), (1, 1), (7, 6), 1),
        ),
        (
            lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, 2, True, 1)(X2),
            LinearOp("conv_transpose", (4, 3, 3, 3), (2, 2), (1, 1), (1, 1), (18, 16), 2),
        ),
        (
            lambda: F.conv_transpose1d(X1, torch.ones(4, 2, 3), dilation=2),
            LinearOp("conv_transpose", (4, 2, 3), (1,), (0,), (2,), (13,), 1),
        ),
    ],
)
def test_descriptions(function: Callable[[], Any], op: LinearOp) -> None:
    calls, uncounted = watched(function)
    assert [call.op for call in calls] == [op]
    assert uncounted == []


A, V = torch.ones(2, 3, 3), torch.ones(3)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda: A @ A, "matmul"),
        (lambda: torch.matmul(A, A), "matmul"),
        (lambda: A.matmul(A), "matmul"),
        (lambda: torch.linalg.matmul(A, A), "matmul"),
        (lambda: A[0].mm(A[0]), "mm"),
        (lambda: torch.bmm(A, A), "bmm"),
        (lambda: A.bmm(A), "bmm"),
        (lambda: torch.baddbmm(A, A, A), "baddbmm"),
        (lambda: torch.addbmm(A[0], A, A), "addbmm"),
        (lambda: torch.addmm(A[0], A[0], A[0]), "addmm"),
        (lambda: A[0].addmm(A[0], A[0]), "addmm"),
        (lambda: torch.mv(A[0], V), "mv"),
        (lambda: torch.dot(V, V), "dot"),
        (lambda: torch.inner(A, A), "inner"),
        (lambda: torch.tensordot(A, A, dims=[[2], [1]]), "tensordot"),
        (lambda: torch.linalg.multi_dot([A[0], A[0]]), "multi_dot"),
        (lambda: torch.einsum("bij,bjk->bik", A, A), "einsum"),
        (lambda: nn.Bilinear(3, 3, 2)(A[0], A[0]), "bilinear"),
        (lambda: F.scaled_dot_product_attention(A, A, A), "scaled_dot_product_attention"),
        (lambda: nn.MultiheadAttention(3, 1).eval()(A, A, A), "multi_head_attention_forward"),
        (lambda: nn.LSTM(3, 4)(A), "lstm"),
        (lambda: nn.GRU(3, 4)(A), "gru"),
        (lambda: nn.RNN(3, 4)(A), "rnn_tanh"),
        (lambda: nn.LSTMCell(3, 4)(A[0]), "lstm_cell"),
        (lambda: nn.GRUCell(3, 4)(A[0]), "gru_cell"),
        (lambda: nn.RNNCell(3, 4)(A[0]), "rnn_tanh_cell"),
        (lambda: torch.outer(V, V), "outer"),
        (lambda: V.outer(V), "outer"),
        (lambda: torch.addr(A[0], V, V), "addr"),
        (lambda: torch.vdot(V, V), "vdot"),
        (lambda: torch.linalg.vecdot(A, A), "vecdot"),
        (lambda: torch.kron(V, V), "kron"),
        pytest.param(
            *(lambda: torch.chain_matmul(A[0], A[0]), "chain_matmul"),
            marks=pytest.mark.filterwarnings("ignore:torch.chain_matmul is deprecated"),
        ),
        (lambda: torch.cdist(A, A), "cdist"),
        (lambda: torch.linalg.matrix_power(A, 2), "matrix_power"),
        (lambda: A[0].clone().addmm_(A[0], A[0]), "addmm"),
        (lambda: V.clone().addmv_(A[0], V), "addmv"),
        (lambda: A.clone().baddbmm_(A, A), "baddbmm"),
        (lambda: torch.sparse.mm(A[0].to_sparse(), A[0]), "sparse_mm"),
        (lambda: torch.ops.aten.mm(A[0], A[0]), "mm"),
        (lambda: torch.ops.aten.conv2d(X2, torch.ones(5, 4, 3, 3)), "conv2d"),
        (lambda: torch.ops.aten.conv2d.default(X2, torch.ones(5, 4, 3, 3)), "conv2d"),
        (
            lambda: torch._convolution(
                X2, torch.ones(5, 4, 1, 1), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, False, False, False, False
            ),
            "convolution",
        ),
        (lambda: F.linear(V, A[0]), "linear"),  # no batch
        (lambda: nn.Conv2d(2, 4, 1)(A), "conv2d"),  # no batch
        (lambda: F.conv_transpose1d(A[0], torch.ones(3, 1, 1)), "conv_transpose1d"),
    ],
)
def test_what_cannot_be_described_is_named(function: Callable[[], Any], name: str) -> None:
    assert watched(function) == ([], [name])


def test_additions_products_and_pooling_are_no_linear_operations() -> None:
    norm, pool = nn.BatchNorm2d(4).eval(), nn.AvgPool2d(2)
    assert watched(lambda: pool(norm(X2 * 2 + X2)).softmax(1).mean()) == ([], [])


@pytest.mark.parametrize(
    "pad",
    [
        lambda x: F.pad(x, (0, 1, 0, 1)),
        lambda x: F.pad(x, pad=(2, 1, 3, 0), mode="constant", value=0.0),
        lambda x: F.pad(x, (1, 2)),
        nn.ZeroPad2d((0, 1, 2, 0)),
    ],
)
@pytest.mark.parametrize("groups", [1, 4])
def test_zeros_around_a_convolution_belong_to_it(pad: Callable[[Tensor], Tensor], groups: int) -> None:
    """Padding that is not symmetric is written apart; its zeros cause no products either."""
    weight, options = torch.ones(8, 4 // groups, 3, 3), {"stride": 2, "padding": 1, "groups": groups}
    (call,), _ = watched(lambda: F.conv2d(pad(X2), weight, **options))
    assert call.x is X2
    x = X2.double().clone().requires_grad_()
    F.conv2d(pad(x), weight.double(), **options).sum().backward()
    assert x.grad is not None
    assert torch.equal(torch.from_numpy(fanout(call.op, (4, 9, 8))), x.grad[0])


@pytest.mark.parametrize(
    "pad",
    [
        lambda x: F.pad(x, (0, 1), value=1.0),
        lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda x: F.pad(x, (-1, 1)),
        lambda x: F.pad(x, (0, 0, 0, 0, 0, 0)),
    ],
)
def test_other_padding_is_input(pad: Callable[[Tensor], Tensor]) -> None:
    padded: list[Tensor] = []
    (call,), _ = watched(lambda: F.conv2d(padded.append(pad(X2)) or padded[0], torch.ones(8, 4, 3, 3)))
    assert call.x is padded[0]
    assert call.op.padding == (0, 0)


@pytest.mark.parametrize("inference", [False, True])
def test_what_is_written_into_after_padding_is_no_padding(inference: bool) -> None:
    weight = torch.ones(8, 4, 3, 3)

    def written(into_source: bool) -> Callable[[], Tensor]:
        def run() -> Tensor:
            x = X2.clone()
            y = F.pad(x, (1, 1, 1, 1))
            (x if into_source else y).sub_(1)
            return F.conv2d(y, weight)

        return run

    with torch.inference_mode(inference):
        for into_source in (False, True):
            (call,), _ = watched(written(into_source))
            assert (call.x.shape, call.op.padding) == ((2, 4, 11, 10), (0, 0))
        (call,), _ = watched(lambda: F.conv2d(F.pad(X2, (1, 1, 1, 1)), weight))
        assert (call.x.shape, call.op.padding) == ((2, 4, 9, 8), (1, 1))


def test_a_padded_tensor_that_something_else_reads() -> None:
    (call,), _ = watched(lambda: F.linear(F.pad(X2, (0, 1)), torch.ones(5, 9)))
    assert call.x.shape == (2, 4, 9, 9)
    (call,), _ = watched(lambda: F.conv2d(torch.relu(F.pad(X2, (0, 1))), torch.ones(8, 4, 3, 3)))
    assert call.x.shape == (2, 4, 9, 9)


def test_outputs_are_shown_with_their_functions() -> None:
    seen = []
    with WatchLinear(lambda call: None, on_output=lambda function, output: seen.append((function, output))):
        y = torch.relu(V)
    assert seen[-1][0] is torch.relu
    assert seen[-1][1] is y


def test_results_are_those_without_watching() -> None:
    network = nn.Sequential(
        nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 6, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)
    )
    with WatchLinear(lambda call: None):
        got = network(X2)
    assert torch.equal(got, network(X2))


def test_compiled_modules_are_seen_and_stay_compiled() -> None:
    module, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), torch.randn(2, 3, 8, 8)
    compiled_parts = 0

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        nonlocal compiled_parts
        compiled_parts += 1
        return graph.forward

    compiled = torch.compile(module, backend=count)
    for _ in range(2):
        calls: list[LinearCall] = []
        with WatchLinear(calls.append):
            compiled(x)
        assert [call.op.weight_shape for call in calls] == [(4, 3, 3, 3), (2, 4, 1, 1)]
        compiled(x)
        assert compiled_parts == 1


def test_names_are_those_of_the_weights_and_count_their_calls() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Linear(3, 3))
            self.weight = nn.Parameter(torch.ones(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.block(self.block(F.linear(x, self.weight))), self.weight * 2)

    net = Net()
    names = OpNames(net)
    for _ in range(2):
        names.restart()
        calls, _ = watched(lambda: net(A))
        assert [names(call) for call in calls] == ["weight", "block.0", "block.0#2", "linear (3, 3)"]
