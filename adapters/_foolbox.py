"""Foolbox: `wrap_for_foolbox(model)` gives a `foolbox.models.Model` that its attacks take unchanged."""

from ..classifier import Classifier
from ..views import Output, attack_view

try:
    from foolbox.models import PyTorchModel
except ImportError as error:
    raise ImportError(
        "Expected Foolbox to be installed: pip install 'genrobust[foolbox]'", name="foolbox"
    ) from error

__all__ = ["wrap_for_foolbox"]


def wrap_for_foolbox(
    model: Classifier, eot: int = 1, *, output: Output = "logits", seed: int = 0
) -> PyTorchModel:
    """Wrap a classifier for Foolbox 3: bounds (0, 1), on the device where the model is.

    Args:
        model: A classifier of this package.
        eot: Draws of the model's noise per query. 1 attacks the model as it is (by default with fixed noise);
            above 1 every query is the log-mean-exp of fresh draws, which Foolbox's own EoT wrapper, averaging
            logits, does not give.
        output: `"logits"`, `"probabilities"`, or `"decisions"` (for decision-based attacks: the majority of
            draws that are the same at every query).
        seed: Of those draws.

    Raises:
        ImportError: If Foolbox is not installed.
        ValueError: If `eot` is below 1, or above 1 for a model without randomness.
    """
    view = attack_view(model, eot=eot, output=output, seed=seed)
    return PyTorchModel(view, bounds=(0, 1), device=next(model.parameters()).device)


wrap = wrap_for_foolbox
