"""The distance from the network before it was made sparse."""

import pytest
import torch
from torch import Tensor, nn

import sparsetime
from sparsetime.train import Recipe, TrainingError
from sparsetime.train.recipe import resolve
from sparsetime.train.teacher import Teacher


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(2, 2, bias=False)
        self.classifier = nn.Sequential(nn.Dropout(0.0), nn.Linear(2, 3))
        with torch.no_grad():
            self.features.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x).relu())
        return out


CLIP = torch.tensor([[[1.0, 1.0], [3.0, 0.5]]])  # features (1, 2) and (3, 1)


def sparse(step: float) -> nn.Module:
    model = sparsetime.sparsify(Net(), CLIP[:, 0])
    for layer in sparsetime.delta_layers(model).values():
        nn.init.constant_(layer.step, step)
    return model


def test_distance_by_hand() -> None:
    model = sparse(1.0)
    for name, layer in sparsetime.delta_layers(model).items():
        if name.startswith("input"):
            nn.init.constant_(layer.step, 2**-10)
        else:
            nn.init.constant_(layer.step, 2.0)
    teacher = Teacher(model, "classifier")
    model(CLIP)
    # Multiples of 2: (1, 2) -> (0, 2), half rounding to even, and (3, 1) -> (4, 0); squares 1 + 0 + 1 + 1 of 15.
    torch.testing.assert_close(teacher.distance(CLIP), torch.tensor(3 / 15))


def test_the_teacher_does_not_learn_and_has_no_quantizers() -> None:
    model = sparse(2**-10)
    teacher = Teacher(model, "classifier")
    model(CLIP)
    assert teacher.distance(CLIP).item() < 1e-5  # the student's quantizers alone
    with torch.no_grad():
        dict(model.named_modules())["features"].weight.mul_(2.0)
    model(CLIP)
    distance = teacher.distance(CLIP)
    torch.testing.assert_close(distance, torch.tensor(1.0), rtol=1e-2, atol=0)  # 2 f against f, with small steps
    distance.backward()
    assert dict(model.named_modules())["features"].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in teacher.model.parameters())


def test_a_classifier_that_is_not_there_is_named() -> None:
    with pytest.raises(TrainingError, match="no module 'head'"):
        Teacher(sparse(0.1), "head")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"weights": "w.npz"}, 1.0),
        ({"weights": "w.npz", "method": "spatial_l1"}, 1.0),
        ({"weights": "w.npz", "distill": 0.25}, 0.25),
        ({"weights": "w.npz", "method": "dense"}, 0.0),
        ({"weights": "w.npz", "start": "vanilla"}, 0.0),
        ({}, 0.0),
    ],
)
def test_which_runs_have_a_teacher(changes: dict[str, object], expected: float) -> None:
    assert resolve(Recipe("small_cnn", "clips", **changes), trained=False).distill == expected  # type: ignore[arg-type]
