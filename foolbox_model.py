"""Foolbox's zoo convention: `foolbox.zoo.get_model(url_of_this_repository)`, where genrobust is installed."""

from foolbox.models import Model

from genrobust import load_model, wrap_for_foolbox


def create(model: str = "eabs", dataset: str = "mnist", eot: int = 1) -> Model:
    """Give a model with shipped weights, wrapped for Foolbox.

    Args:
        model: Such as `"abs"`, `"eabs"` or `"cnn"`; see `genrobust models`.
        dataset: What it was trained on.
        eot: Draws of the model's noise per query.
    """
    return wrap_for_foolbox(load_model(model, dataset=dataset), eot=eot)
