import pytest
import torch

from genrobust.adapters._targets import nearest_start
from genrobust.verification import Norm


@pytest.mark.parametrize(
    ("norm", "expected", "distances"),
    [
        ("l2", [2, 1], [0.5, 1.0]),
        ("linf", [2, 0], [0.5, 1.0]),
        ("l1", [2, 1], [0.5, 1.0]),
        ("l0", [2, 1], [1.0, 1.0]),
    ],
)
def test_the_nearest_usable_image_is_taken(norm: Norm, expected: list[int], distances: list[float]) -> None:
    images = torch.zeros(3, 1, 1, 2)
    images[1, 0, 0, 0] = 1.0
    pool = torch.tensor([[0.0, 0.1], [0.0, 0.0], [0.0, 0.5], [1.0, 1.0]]).view(4, 1, 1, 2)
    usable = torch.tensor([[False, False, True, True], [True, True, True, False], [False] * 4])
    points, lengths = nearest_start(images, pool, usable, norm=norm)
    assert torch.equal(points[:2], pool[expected])
    assert lengths.tolist() == pytest.approx([*distances, torch.inf])
