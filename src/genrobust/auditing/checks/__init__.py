"""The checks of an audit, in the order of the report: each is a function from a subject to a finding."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from ..findings import Finding
from ..subject import Subject
from .active import active_test
from .answers import answers
from .black_box import black_box
from .defence import defence
from .differences import differences
from .draws import draws
from .effort import effort
from .expectation import expectation_converged
from .gradient_noise import gradient_noise
from .indicators import indicators
from .radius import radius
from .rejection import rejection
from .saturation import saturation
from .strength import strength
from .surrogates import surrogates
from .transfer import transfer
from .zero_gradient import zero_gradient

__all__ = ["CHECKS"]

CHECKS: Mapping[str, Callable[[Subject], Finding]] = MappingProxyType(
    {
        "answers": answers,
        "zero gradient": zero_gradient,
        "saturation": saturation,
        "differences": differences,
        "gradient noise": gradient_noise,
        "strength": strength,
        "black box": black_box,
        "effort": effort,
        "radius": radius,
        "indicators": indicators,
        "active test": active_test,
        "transfer": transfer,
        "surrogates": surrogates,
        "draws": draws,
        "expectation": expectation_converged,
        "rejection": rejection,
        "defence": defence,
    }
)
