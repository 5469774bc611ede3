"""What stands for a part that a file leaves out because only training reads it."""

from typing import final

from torch import Tensor, nn

__all__ = ["Absent"]


@final
class Absent(nn.Module):
    """Takes the place of a part that inference never reads; whatever reads it is told so.

    Args:
        name: The part, such as "encoders".
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, *inputs: Tensor) -> Tensor:
        """Raises the error.

        Raises:
            ValueError: Always.
        """
        del inputs
        raise ValueError(
            f"Expected a model with its {self.name}, but its file leaves that part out, because inference as "
            "published never reads it: train the model with `genrobust train`"
        )
