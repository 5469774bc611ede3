"""Shapes checked at run time, real data on request, and models small enough to be tested in milliseconds."""

import functools
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any, get_args

import jaxtyping
import pytest
from beartype import beartype
from hypothesis import settings


def mentions_array(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(mentions_array, get_args(hint)))


def check_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """Has beartype check the hints that hold shapes, and those alone.

    jaxtyping decorates methods one by one: beartype then refuses `Self`, and every Protocol that is not made
    for `isinstance`. Every function is checked anew in every test, but not in the loops of that test: checks
    of what an optimiser repeats took a third of the time of all tests.
    """
    hints = function.__annotations__
    function.__annotations__ = {name: hint if mentions_array(hint) else Any for name, hint in hints.items()}
    checked = beartype(function)

    @functools.wraps(function)
    def counted(*arguments: Any, **settings: Any) -> Any:
        calls[function] = calls.get(function, 0) + 1
        if calls[function] == CHECKED_CALLS and (repeated := written(function)) is not None:
            repeated.__no_type_check__ = True
            unchecked.append(repeated)
        return checked(*arguments, **settings)

    return counted


CHECKED_CALLS = 20  # of a function, in a test
calls: dict[Callable[..., Any], int] = {}
unchecked: list[Any] = []


def written(copy: Callable[..., Any]) -> Any:
    """Finds the function of which jaxtyping gives checkers a copy; None if it is hidden."""
    found: Any = sys.modules.get(copy.__module__)
    for name in copy.__qualname__.split("."):
        found = inspect.getattr_static(found, name, None)
    match found:
        case staticmethod() | classmethod():
            found = found.__func__
        case property():
            found = found.fget
    return inspect.unwrap(found) if isinstance(found, FunctionType) else None


@pytest.fixture(autouse=True)
def checked_anew() -> None:
    """Has the shapes of every function checked again in every test."""
    calls.clear()
    while unchecked:
        vars(unchecked.pop()).pop("__no_type_check__", None)


# jaxtyping imports the checker by name; pytest's importlib mode gives a conftest none that can be imported.
sys.modules["genrobust_shape_checks"] = sys.modules[__name__]
jaxtyping.install_import_hook("genrobust", "genrobust_shape_checks.check_arrays")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # which would fight for the cores
    threads = max(1, torch.get_num_threads() // int(workers))
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of the processes that tests start

from genrobust import Purified, registry  # noqa: E402
from genrobust.inference import Codebook, InferenceBudget, KLPrior, LatentObjective, Posterior  # noqa: E402
from genrobust.models import (  # noqa: E402
    ABS,
    CNN,
    EABS,
    GMVAE,
    MLP,
    ABSConfig,
    BayesianMLP,
    BayesianMLPConfig,
    CNNConfig,
    ConditionalFlow,
    ConvNet,
    ConvNetConfig,
    DeepBayes,
    DeepBayesConfig,
    DiffusionBudget,
    DiffusionClassifier,
    DiffusionConfig,
    EABSConfig,
    FlowConfig,
    GMVAEConfig,
    MLPConfig,
    PixelCNN,
    PixelCNNConfig,
    PoolCNN,
    PoolCNNConfig,
    VaDEClassifier,
    VaDEConfig,
)
from genrobust.nets import Architecture  # noqa: E402
from genrobust.nets.architectures import Conv  # noqa: E402
from genrobust.nets.conditionals import ConditionalArchitecture  # noqa: E402
from genrobust.nets.denoisers import ConditionalDenoiser, DenoiserArchitecture  # noqa: E402
from genrobust.nets.pooling import PoolingArchitecture  # noqa: E402
from genrobust.purifiers import MADVAE, MADVAEConfig  # noqa: E402
from genrobust.randomness import FixedNoise, NoiseSource, isolated_rng  # noqa: E402

settings.register_profile("genrobust", deadline=None, max_examples=50)
settings.load_profile("genrobust")

NUM_CLASSES = 4

ARCHITECTURES = {
    "eabs": Architecture(
        input_shape=(1, 8, 8),
        latent_dim=3,
        encoder=(Conv(4, 3, 2, 1), Conv(6, 4)),
        decoder_stem=6,
        decoder=(Conv(6, 2), Conv(4, 2, 2), Conv(1, 2, 2)),
        discriminator=(8, 6),
        dropout=0.3,
    ),
    "abs": Architecture(
        input_shape=(3, 4, 4),
        latent_dim=2,
        encoder=(Conv(6, 3, 1, 1), Conv(5, 2, 2)),
        decoder=(Conv(6, 2), Conv(3, 2, 2)),
        discriminator=(8, 6),
        encoder_activation="elu",
        decoder_activation="elu",
        dropout=0.0,
    ),
}

SMALL_CONV_NET: dict[str, Any] = {
    "input_shape": (1, 8, 8),
    "input_dropout": 0.2,
    "convolutions": (Conv(4, 3, 1, 1), Conv(5, 3)),
    "pooled": (1,),
    "feature_dropout": 0.3,
    "hidden": (8,),
    "hidden_dropout": 0.5,
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips a `realdata` test whose file is not there."""
    for marker in item.iter_markers("realdata"):
        root = os.environ.get("GENROBUST_DATA")
        if not root:
            pytest.skip("GENROBUST_DATA is not set")
        for name in marker.args:
            if not (Path(root) / f"{name}.npz").is_file():
                pytest.skip(f"there is no {name}.npz in $GENROBUST_DATA")


@pytest.fixture
def registrations_taken_back() -> Iterator[None]:
    """Takes back what a test registers."""
    for known in registry._REGISTRIES:
        known.names()  # loads what is not the test's own
    kept = [(known, dict(known._entries)) for known in registry._REGISTRIES]
    plugins = dict(registry._plugins)
    yield
    for known, entries in kept:
        known._entries = entries
    registry._plugins.clear()
    registry._plugins.update(plugins)


@pytest.fixture
def unchecked_types() -> Iterator[None]:
    """Lets arguments of the wrong type reach the code, where the run checks annotations."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="session")
def architectures() -> dict[str, Architecture]:
    """Gives a tiny architecture with every kind of layer, and one without stem and dropout."""
    return ARCHITECTURES


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """Gives a function that makes a tiny model: `make_model("abs", seed=1, dtype=torch.float64, beta=2)`."""
    return _make_model


def _make_model(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any) -> nn.Module:
    inference = InferenceBudget(candidates=40, steps=4, learning_rate=0.1)
    abs_inference = InferenceBudget(
        candidates=40, drop_least_likely=0.1, encoder_proposal=False, steps=4, learning_rate=0.1, radius=5.0
    )
    conditional = ConditionalArchitecture(input_shape=(1, 7, 8), latent_dim=3, channels=(4, 4), hidden=(8,))
    pooling = PoolingArchitecture(input_shape=(1, 8, 8), latent_dim=5, channels=(4, 6), hidden=12)
    denoiser = DenoiserArchitecture(input_shape=(1, 7, 8), patch=2, channels=(4, 6), embedding=8)
    makers: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "cnn": (CNN, CNNConfig, {"architecture": ARCHITECTURES["eabs"]}),
        "abs": (
            ABS,
            ABSConfig,
            {"architecture": ARCHITECTURES["abs"], "inference": abs_inference, "alpha": 48.0},
        ),
        "conv-net": (ConvNet, ConvNetConfig, SMALL_CONV_NET),
        "bnn": (BayesianMLP, BayesianMLPConfig, {"input_shape": (1, 6, 6), "hidden": (9, 8)}),
        "deep-bayes": (DeepBayes, DeepBayesConfig, {"architecture": conditional}),
        "diffusion": (
            DiffusionClassifier,
            DiffusionConfig,
            {"architecture": denoiser, "inference": DiffusionBudget(levels=3)},
        ),
        "eabs": (EABS, EABSConfig, {"architecture": ARCHITECTURES["eabs"], "inference": inference}),
        "flow": (
            ConditionalFlow,
            FlowConfig,
            {"input_shape": (1, 8, 8), "patch": 2, "couplings": 4, "hidden": 4, "levels": 16},
        ),
        "gmvae": (GMVAE, GMVAEConfig, {"architecture": pooling, "alpha": 4.0, "encoder_variance": 0.05}),
        "pixelcnn": (
            PixelCNN,
            PixelCNNConfig,
            {"input_shape": (1, 8, 8), "patch": 2, "hidden": 4, "layers": 1, "mixtures": 2, "levels": 16},
        ),
        "mlp": (MLP, MLPConfig, {"input_shape": (1, 6, 6), "hidden": (9, 8)}),
        "purified": (
            _purified,
            MADVAEConfig,
            {"input_shape": (1, 8, 8), "latent_dim": 5, "channels": (4, 5, 6, 7)},
        ),
        "pool-cnn": (
            PoolCNN,
            PoolCNNConfig,
            {"input_shape": (2, 8, 9), "channels": (4, 5), "hidden": 8},
        ),
        "vade": (
            VaDEClassifier,
            VaDEConfig,
            {"architecture": ARCHITECTURES["eabs"], "variance": 0.1, "inference": inference},
        ),
    }
    if name == "flow" and find_spec("zuko") is None:
        pytest.skip("zuko is not installed")
    model_type, config_type, defaults = makers[name]
    with isolated_rng(seed):
        model = model_type(config_type(**{"num_classes": NUM_CLASSES, **defaults, **config}))
        _spread(model)
    return model.to(dtype)


def _purified(config: MADVAEConfig) -> Purified:
    return Purified(MADVAE(config), ConvNet(ConvNetConfig(num_classes=config.num_classes, **SMALL_CONV_NET)))


@torch.no_grad()
def _spread(model: nn.Module) -> None:
    """Moves weights and statistics as training does: classes apart, no normalisation an identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.7, 1.3)
            module.bias.normal_(0, 0.3)
        elif isinstance(module, nn.ConvTranspose2d):
            module.weight.mul_(2)
        elif isinstance(module, ConditionalDenoiser):  # whose blocks add nothing at first
            for block in (*module.before, *module.inside, *module.after):
                block.second.weight.normal_(0, 0.2)
        elif isinstance(module, ConditionalFlow):  # which begins as the identity
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.fixture(scope="session")
def images() -> Callable[..., Tensor]:
    """Gives a function that draws images for a model: `images(model, 5)`."""

    def draw(model: Any, count: int, *, seed: int = 0, dtype: torch.dtype | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand((count, *model.input_shape), generator=generator)
        return x.to(dtype or next(model.parameters()).dtype)

    return draw


ORACLE_BUDGET = InferenceBudget(candidates=30, encoder_proposal=False, steps=0)


class LinearDecoders(nn.Module):
    """Stands for a decoder bank: G_k(z) = A_k z + b_k, for which everything is known in closed form."""

    def __init__(self, matrices: Tensor, offsets: Tensor, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.matrices, self.offsets = nn.Parameter(matrices), nn.Parameter(offsets)
        self.image_shape = image_shape
        self.decoders = len(matrices)
        self.activations = math.prod(image_shape)

    def forward(self, z: Tensor) -> Tensor:
        pixels = torch.einsum("knd,bkd->bkn", self.matrices, z) + self.offsets
        return pixels.unflatten(2, self.image_shape)

    def for_inference(self) -> "LinearDecoders":
        return self

    def select(self, classes: Tensor) -> "LinearDecoders":
        return LinearDecoders(self.matrices.data[classes], self.offsets.data[classes], self.image_shape)


@dataclass(frozen=True)
class LinearGaussian:
    """The oracle: x = A_k z + b_k + noise of variance 1/2, z ~ N(0, I), and the model that strategies get.

    Its objective is ||x - A m - b||^2 + sum_d v_d (A^T A)_dd + beta KL[N(m, diag v) || N(0, I)].
    """

    decoders: LinearDecoders
    beta: float = 1.0
    variational: bool = False
    budget: InferenceBudget = ORACLE_BUDGET
    noise: NoiseSource = field(default_factory=lambda: FixedNoise(0))

    @property
    def objective(self) -> LatentObjective:
        matrices = self.decoders.matrices
        return LatentObjective(
            decoders=self.decoders,
            prior=KLPrior(),
            beta=self.beta,
            num_classes=len(matrices),
            latent_dim=matrices.shape[2],
            variational=self.variational,
        )

    def search(self, x: Tensor) -> list[Posterior]:
        return [start for start, _ in Codebook(self.objective, self.budget, like=x).search(x)]

    def recall(self, _: Tensor) -> None:
        return None

    def remember(self, x: Tensor, posterior: Posterior, losses: Tensor) -> None:
        pass

    @property
    def gram(self) -> Tensor:
        matrices = self.decoders.matrices.detach()
        return matrices.mT @ matrices

    def residual(self, x: Tensor) -> Tensor:
        """x - b_k, shape (B, K, N)."""
        return x.flatten(1)[:, None] - self.decoders.offsets.detach()

    def optimal_mean(self, x: Tensor) -> Tensor:
        """argmin_m, shape (B, K, D): (A^T A + beta/2 I) m = A^T (x - b)."""
        identity = torch.eye(self.gram.shape[-1], dtype=x.dtype)
        projected = torch.einsum("knd,bkn->bkd", self.decoders.matrices.detach(), self.residual(x))
        return torch.linalg.solve(self.gram + 0.5 * self.beta * identity, projected[..., None])[..., 0]

    def optimal_variance(self) -> Tensor:
        """argmin_v, shape (K, D): beta / (beta + 2 (A^T A)_dd)."""
        return self.beta / (self.beta + 2 * self.gram.diagonal(dim1=1, dim2=2))

    def expected_objective(self, x: Tensor, mean: Tensor, variance: Tensor | None = None) -> Tensor:
        """The objective without sampling error; without a variance, of a point that counts unit variance."""
        decoded = torch.einsum("knd,bkd->bkn", self.decoders.matrices.detach(), mean)
        loss = (self.residual(x) - decoded).square().sum(2) + 0.5 * self.beta * mean.square().sum(2)
        if variance is None:
            return loss
        spread = (variance * self.gram.diagonal(dim1=1, dim2=2)).sum(-1)
        return loss + spread + 0.5 * self.beta * (variance - 1 - variance.log()).sum(-1)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log N(x; b, A A^T + I/2), shape (B, K)."""
        matrices = self.decoders.matrices.detach()
        covariance = matrices @ matrices.mT + 0.5 * torch.eye(matrices.shape[1], dtype=x.dtype)
        marginal = torch.distributions.MultivariateNormal(self.decoders.offsets.detach(), covariance)
        return marginal.log_prob(x.flatten(1)[:, None])


@pytest.fixture(scope="session")
def linear_gaussian() -> Callable[..., LinearGaussian]:
    """Gives a function that makes an oracle of 3 classes, 2 latents and 4 x 4 pixels."""

    def make(
        *, orthogonal: bool = False, dtype: torch.dtype = torch.float64, seed: int = 0, **settings: Any
    ) -> LinearGaussian:
        generator = torch.Generator().manual_seed(seed)
        matrices = torch.randn((3, 16, 2), generator=generator, dtype=torch.float64)
        if orthogonal:
            matrices = torch.linalg.qr(matrices).Q * torch.tensor([0.5, 2.0])
        offsets = torch.rand((3, 16), generator=generator, dtype=torch.float64)
        decoders = LinearDecoders((0.4 * matrices).to(dtype), offsets.to(dtype), (1, 4, 4))
        return LinearGaussian(decoders, **settings)

    return make


@pytest.fixture(scope="session")
def linear_images() -> Tensor:
    """Gives five images for the oracle."""
    return torch.rand((5, 1, 4, 4), generator=torch.Generator().manual_seed(9), dtype=torch.float64)
