"""Network parts: architectures, banks of K networks, and their fused forms."""

from .architectures import ARCHITECTURES, Architecture, Conv, architecture
from .banks import DecoderBank, DiscriminatorBank, EncoderBank, convolutional_features

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Conv",
    "DecoderBank",
    "DiscriminatorBank",
    "EncoderBank",
    "architecture",
    "convolutional_features",
]
