"""The weights that the package ships: half the size of those that a training leaves, the same decisions."""

from pathlib import Path
from typing import Any

from .._files import sha256_of, write_json
from ..data import ImageDataset
from ..zoo.weight_files import Precision, read_model, save_model
from .criterion import decisions

__all__ = ["LEAST_AGREEMENT", "ship"]

LEAST_AGREEMENT = 0.999


def ship(
    weights: Path, card: dict[str, Any], *, to: Path, test: ImageDataset, precision: Precision = "float16"
) -> dict[str, Any]:
    """Writes weights in another precision, without what only training reads, and their card beside them.

    The card names the precision and how many decisions survive it. Its clean accuracy becomes that of the
    shipped weights where `test` has as many images as it was measured on.

    Args:
        weights: The file in float32.
        card: Its card.
        to: The file to write; the card takes the same name with the ending ".json".
        test: Test images, on which the decisions of both files are compared.
        precision: Precision of the weights with two or more axes.

    Returns:
        The new card.

    Raises:
        ValueError: If fewer than 99.9 % of the decisions agree, or a weight does not fit the precision.
    """
    model = read_model(weights)
    before = decisions(model, test)
    to.with_suffix(".json").unlink(missing_ok=True)  # the card of what was shipped before
    save_model(model, to, precision=precision, for_inference=True)
    after = decisions(read_model(to), test)
    agreement = float((before == after).double().mean())
    if agreement < LEAST_AGREEMENT:
        to.unlink()
        raise ValueError(
            f"Expected at least {LEAST_AGREEMENT:.1%} of the decisions to agree with float32's, but "
            f"{agreement:.2%} of {len(test)} do in {precision}: ship another precision"
        )
    accuracy = {"value": float((after == test.labels).double().mean()), "images": len(test)}
    complete = card["clean_accuracy"]["images"] == len(test)
    shipped = {
        **card,
        "clean_accuracy": {**accuracy, "precision": precision}
        if complete
        else {**card["clean_accuracy"], "precision": "float32"},
        "stored": {
            "precision": precision,
            "agreement_with_float32": {"value": agreement, "images": len(test)},
            "clean_accuracy": accuracy,
        },
        "weights_sha256": sha256_of(to),
    }
    write_json(to.with_suffix(".json"), shipped)
    return shipped
