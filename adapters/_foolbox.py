"""Foolbox: `wrap_for_foolbox(model)` gives a `foolbox.models.Model` that its attacks take unchanged."""

import torch

from ..classifier import Classifier, GenerativeClassifier
from ..gradients import expectation

try:
    from foolbox.models import PyTorchModel
except ImportError as error:
    raise ImportError(
        "Expected Foolbox to be installed: pip install 'genrobust[foolbox]'", name="foolbox"
    ) from error

__all__ = ["wrap_for_foolbox"]


def wrap_for_foolbox(model: Classifier, eot: int = 1, *, seed: int = 0) -> PyTorchModel:
    """Wrap a classifier for Foolbox 3: bounds (0, 1), on the device where the model is.

    Args:
        model: A classifier of this package.
        eot: Draws of the model's noise per query. 1 attacks the model as it is (by default with fixed noise);
            above 1 every query is the log-mean-exp of fresh draws, which Foolbox's own EoT wrapper, averaging
            logits, does not give.
        seed: Of those draws.

    Raises:
        ImportError: If Foolbox is not installed.
        ValueError: If `eot` is below 1, or above 1 for a model without randomness.
    """
    if eot < 1:
        raise ValueError(f"Expected `eot` of at least 1, but got {eot}")
    if eot > 1:
        if not (isinstance(model, GenerativeClassifier) and model.randomized):
            raise ValueError(
                f"Expected `eot` of 1 for {type(model).__name__}, which draws no noise, but got {eot}"
            )
        model = expectation(model, eot, generator=torch.Generator().manual_seed(seed))
    return PyTorchModel(model, bounds=(0, 1), device=next(model.parameters()).device)
