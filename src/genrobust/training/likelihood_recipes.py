"""The recipes of the models that know their likelihood exactly."""

from collections.abc import Callable

from ..data import DatasetInfo
from ..models.flow import ConditionalFlow, FlowConfig
from ..models.pixelcnn import PixelCNN, PixelCNNConfig
from ..zoo.registered import Recipe, register_model
from .schedules import SCHEDULES

__all__: list[str] = []

# Neither paper trains for a CPU; these are our schedules where `schedules` has none.
_TRAINING = {"epochs": 100, "batch_size": 64, "learning_rate": 2e-3, "halve_every": 30, "noise_std": 0.0}


def _trained(name: str) -> Callable[[DatasetInfo], Recipe]:
    return lambda info: Recipe(training=dict(SCHEDULES.get((name, info.name), _TRAINING)))


def _side(info: DatasetInfo, most: int) -> int:
    """Returns the greatest power of 2 up to `most` that divides height and width."""
    _, height, width = info.input_shape
    side = most
    while height % side or width % side:
        side //= 2
    return side


@register_model("flow", classes={ConditionalFlow: FlowConfig}, recipe=_trained("flow"))
def _flow(info: DatasetInfo) -> ConditionalFlow:
    return ConditionalFlow(
        FlowConfig(
            num_classes=info.num_classes, input_shape=info.input_shape, patch=_side(info, 4), hidden=32
        )
    )


@register_model("pixelcnn", classes={PixelCNN: PixelCNNConfig}, recipe=_trained("pixelcnn"))
def _pixelcnn(info: DatasetInfo) -> PixelCNN:
    """Builds a network that predicts squares of 2 x 2 pixels, which takes a quarter of the time."""
    return PixelCNN(
        PixelCNNConfig(
            num_classes=info.num_classes,
            input_shape=info.input_shape,
            patch=_side(info, 2),
            hidden=32,
            layers=2,
        )
    )
