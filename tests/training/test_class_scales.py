"""The scales of Binary ABS are those that labels were drawn with."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from genrobust.training.class_scales import fitted_class_scales


def test_scales_are_recovered_from_labels_that_they_drew(make_model: Callable[..., Any]) -> None:
    model = make_model("abs", dtype=torch.float64).binarized().with_inference(candidates=20, steps=0)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((4000, *model.input_shape), generator=generator, dtype=torch.float64)
    true = torch.tensor([1.05, 0.97, 0.94, 1.04], dtype=torch.float64)
    labels = torch.multinomial((5 * true * model(x).detach()).softmax(1), 1, generator=generator)[:, 0]
    found = torch.tensor(fitted_class_scales(model, x, labels), dtype=torch.float64)
    assert float(found.mean()) == pytest.approx(1.0)
    assert float((found - true).abs().max()) < 0.02
    assert float((found - true).abs().max()) < float((1 - true).abs().max()) / 2


def test_a_model_with_scales_has_none_to_fit(make_model: Callable[..., Any]) -> None:
    model = make_model("abs").binarized(class_scales=(1.0,) * 4)
    with pytest.raises(ValueError, match="a model without `class_scales`"):
        fitted_class_scales(model, torch.rand(2, *model.input_shape), torch.tensor([0, 1]))
