"""pytorch-ood's real detectors reject for our classifiers, and its metrics read ours."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from gaussians import Gaussians, drawn
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from genrobust import SelectiveClassifier, as_classifier, load_dataset, load_model, verify
from genrobust.attacks import pgd
from genrobust.attacks.contest import contest
from genrobust.contract import Classifier, fingerprint
from genrobust.gradients import Estimated
from genrobust.selective import Detector, Evidence, LogitScores, calibrate_detector, save_detectors

detectors = pytest.importorskip("pytorch_ood.detector", reason="pytorch-ood is not installed")
pytest.importorskip("pyarrow")

from pytorch_ood import api  # noqa: E402
from pytorch_ood.benchmark import Benchmark  # noqa: E402
from pytorch_ood.metrics import OODMetrics  # noqa: E402

from genrobust.auditing import AuditBudget  # noqa: E402
from genrobust.auditing.running import audit  # noqa: E402
from genrobust.selective.pytorch_ood import OutlierDetector, OutlierScore  # noqa: E402

RATE = 0.05
OWN = ("MaxSoftmax", "EnergyBased", "MaxLogit", "Entropy", "GEN", "TemperatureScaling", "KLMatching", "SHE")
HIDDEN = ("Mahalanobis", "MahalanobisODIN", "ODIN", "ViM", "KNN", "ReAct")


class Network(nn.Module):
    """The digits CNN as anybody's network, which answers outside [0, 1] too, as ODIN asks it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner: Any = load_model("cnn", dataset="digits")

    def encode(self, x: Tensor) -> Tensor:
        features: Tensor = self.inner.features(x).flatten(1)
        return features

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner.head(self.encode(x))
        return logits


@pytest.fixture(scope="module")
def network() -> Network:
    return Network().eval()


@pytest.fixture(scope="module")
def training() -> tuple[Tensor, Tensor]:
    return load_dataset("digits", "train").stratified(1000, seed=0).batch(slice(None))


@pytest.fixture(scope="module")
def test_images() -> tuple[Tensor, Tensor]:
    return load_dataset("digits", "test").stratified(40, seed=0).batch(slice(None))


@pytest.fixture(scope="module")
def model(network: Network, training: tuple[Tensor, Tensor]) -> LogitScores:
    return LogitScores(as_classifier(network, training[0]))


def made(name: str, network: Network) -> api.Detector:
    head = network.inner.head
    match name:
        case "Mahalanobis" | "MahalanobisODIN" | "KNN":
            return getattr(detectors, name)(network.encode)
        case "SHE":
            return detectors.SHE(network.encode, head)
        case "ViM":
            return detectors.ViM(network.encode, d=8, w=head.weight, b=head.bias)
        case "ReAct":
            return detectors.ReAct(network.inner.features, lambda maps: head(maps.flatten(1)))
    return getattr(detectors, name)(network)


@pytest.fixture(scope="module")
def fitted(network: Network, training: tuple[Tensor, Tensor]) -> Callable[[str], api.Detector]:
    loader = DataLoader(TensorDataset(*training), batch_size=200)

    def fit(name: str) -> api.Detector:
        return made(name, network).fit(loader)

    return fit


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.getLogger("pytorch_ood").setLevel(logging.ERROR)
    yield
    logging.getLogger("pytorch_ood").setLevel(logging.NOTSET)


def selective_by(
    detector: api.Detector, model: LogitScores, training: tuple[Tensor, Tensor], **settings: Any
) -> SelectiveClassifier:
    score = OutlierScore(detector, training[0], **settings)
    return SelectiveClassifier(model, [calibrate_detector(score, model, *training, false_positive_rate=RATE)])


class Constant(api.Detector):  # type: ignore[misc]
    """Scores whatever it is told to."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        self.answer = answer

    def predict(self, x: Tensor) -> Any:
        return self.answer(x)


# Theirs as ours.


@pytest.mark.parametrize("name", [*OWN, *HIDDEN])
def test_scores_are_those_of_the_detector_itself(
    name: str, fitted: Any, model: LogitScores, training: Any, test_images: Any
) -> None:
    theirs = fitted(name)
    classifier = selective_by(theirs, model, training)
    (ours,) = classifier.detectors
    assert ours.differentiable == (name in OWN)
    images, _ = test_images
    expected = theirs.predict(images).detach().to(images)
    assert torch.equal(ours.scores(model, images, model(images).argmax(1)).detach(), expected)
    on_training = torch.cat([theirs.predict(part).detach() for part in training[0].split(256)]).to(images)
    flagged = int((on_training > ours.thresholds[0]).sum())
    assert flagged <= RATE * len(on_training)
    assert flagged >= RATE * len(on_training) - 2 or len(on_training.unique()) < len(on_training)
    prediction = classifier.predict(images)
    assert torch.equal(prediction.rejected, expected > ours.thresholds[0])
    assert torch.equal(prediction.labels[~prediction.rejected], model(images).argmax(1)[~prediction.rejected])
    assert classifier(images[:0]).shape == (0, 11)


def test_the_energy_score_is_the_marginal_of_logits(model: LogitScores, training: Any, fitted: Any) -> None:
    images, labels = training
    energy = OutlierScore(fitted("EnergyBased"), images)
    theirs = calibrate_detector(energy, model, images, labels)
    ours = calibrate_detector("marginal", model, images, labels)
    assert theirs.thresholds == pytest.approx(ours.thresholds, rel=1e-6)
    torch.testing.assert_close(
        theirs.scores(model, images[:9], labels[:9]), ours.scores(model, images[:9], labels[:9])
    )


def attacked(classifier: SelectiveClassifier, images: Tensor, labels: Tensor, *, steps: int = 20) -> Tensor:
    """Goes for an accepted error, through the rejection."""
    right_or_rejected = torch.zeros(len(images), dtype=torch.long)
    return pgd(
        contest(classifier, labels, classifier.num_classes),
        images,
        right_or_rejected,
        epsilon=0.25,
        norm="linf",
        steps=steps,
        step_size=0.03,
        random_start=False,
        loss="margin",
    )


def errors(classifier: SelectiveClassifier, x: Tensor, y: Tensor, found: Tensor) -> float:
    return float(verify(classifier, x, y, found, norm="linf", epsilon=0.25).success.float().mean())


@pytest.mark.parametrize("name", ["EnergyBased", "MaxLogit", "SHE"])
def test_an_attack_reaches_past_a_rejection_that_has_a_gradient(
    name: str, fitted: Any, model: LogitScores, training: Any, test_images: Any
) -> None:
    classifier = selective_by(fitted(name), model, training)
    images, labels = test_images
    blind = pgd(
        model, images, labels, epsilon=0.25, norm="linf", steps=20, step_size=0.03, random_start=False,
        until_fooled=True,
    )  # fmt: skip
    assert errors(classifier, images, labels, blind) < 0.5
    assert errors(classifier, images, labels, attacked(classifier, images, labels)) > 0.8


@pytest.mark.parametrize("name", ["MaxSoftmax", "EnergyBased", "GEN", "KLMatching", "SHE"])
def test_the_margin_rises_along_its_gradient_as_the_gradient_says(
    name: str, fitted: Any, model: LogitScores, training: Any
) -> None:
    classifier = selective_by(fitted(name), model, training)
    gray = 0.3 + 0.4 * torch.rand((4, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    leaf = gray.clone().requires_grad_()
    (slope,) = torch.autograd.grad(classifier.margins(leaf).sum(), leaf)
    direction = slope / slope.flatten(1).norm(dim=1)[:, None, None, None]
    ahead, behind = (classifier.margins(gray + step * direction).detach() for step in (5e-3, -5e-3))
    torch.testing.assert_close(ahead - behind, 1e-2 * slope.flatten(1).norm(dim=1), rtol=0.05, atol=1e-4)


def test_what_hides_its_gradient_gets_an_estimate(
    network: Network, model: LogitScores, training: Any, test_images: Any
) -> None:
    energy = detectors.EnergyBased(network.inner)  # which takes nothing outside [0, 1]
    hidden = Constant(lambda x: energy.predict(x).detach())
    images, labels = (part[:6] for part in test_images)
    own = selective_by(energy, model, training)
    seen, unseen = (
        selective_by(hidden, model, training, gradient=gradient)
        for gradient in (Estimated(pairs=20, sigma=0.02), "none")
    )
    slopes = []
    for part, has in ((own, True), (seen, True), (unseen, False)):
        leaf = images.clone().requires_grad_()
        margins = part.margins(leaf)
        assert margins.requires_grad == has
        assert part.detectors[0].differentiable == (part is own)
        if has:
            slopes.append(torch.autograd.grad(margins.sum(), leaf)[0].flatten(1))
    # 20 of 784 directions see about the square root of 20 / 784 of a gradient.
    assert float(torch.cosine_similarity(*slopes).mean()) > 0.1
    found = [errors(part, images, labels, attacked(part, images, labels)) for part in (own, seen, unseen)]
    assert found[0] >= found[1] > found[2] + 0.2


@pytest.mark.slow
def test_the_audit_sees_a_rejection_without_a_gradient(
    fitted: Any, model: LogitScores, training: Any, test_images: Any
) -> None:
    images, labels = (part[:12] for part in test_images)
    verdicts = {}
    for name, gradient in (("EnergyBased", None), ("Mahalanobis", "none")):
        classifier = selective_by(fitted(name), model, training, gradient=gradient)
        report = audit(
            classifier, images, labels, epsilon=0.1, checks=["rejection"], show_progress=False,
            budget=AuditBudget.fitting(classifier),
        )  # fmt: skip
        verdicts[name] = report.finding("rejection").measures[0]
    assert verdicts["EnergyBased"].value == 0
    assert verdicts["Mahalanobis"].value == 1


@pytest.mark.parametrize("name", ["Mahalanobis", "ViM", "KNN", "TemperatureScaling", "KLMatching"])
def test_what_was_fitted_is_in_the_fingerprint(
    name: str, fitted: Any, model: LogitScores, training: Any
) -> None:
    theirs = fitted(name)
    classifier = selective_by(theirs, model, training)
    before = fingerprint(classifier)
    assert before == fingerprint(classifier)
    changed = {"Mahalanobis": "mu", "ViM": "alpha", "KNN": "k", "TemperatureScaling": "t"}
    match name:
        case "KLMatching":
            next(iter(theirs.dists.values())).mul_(0.5)
        case "KNN" | "ViM" | "TemperatureScaling":
            setattr(theirs, changed[name], 2 * getattr(theirs, changed[name]))
        case _:
            theirs.mu[0, 0] += 1e-3
    assert fingerprint(classifier) != before


def test_the_weights_behind_a_function_are_in_the_fingerprint(
    model: LogitScores, training: Any, network: Network
) -> None:
    other = Network().eval()
    theirs = detectors.EnergyBased(lambda x: other(x))
    before = fingerprint(selective_by(theirs, model, training))
    with torch.no_grad():
        other.inner.head.bias[0] += 1.0
    assert fingerprint(selective_by(theirs, model, training)) != before


def test_a_detector_that_calls_backward_leaves_no_gradient(
    fitted: Any, model: LogitScores, training: Any, network: Network
) -> None:
    network.zero_grad(set_to_none=True)
    weight = network.inner.head.weight.requires_grad_()
    first = network.inner.features[0].weight.requires_grad_()
    weight.grad = torch.ones_like(weight)
    selective_by(fitted("MahalanobisODIN"), model, training).predict(training[0][:4])
    assert torch.equal(weight.grad, torch.ones_like(weight))
    assert first.grad is None
    weight.grad = None


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        (detectors.Mahalanobis(nn.Flatten()), "Mahalanobis to score the images, but: it is not fitted"),
        (detectors.EnergyBased(None), "EnergyBased to score the images"),
        (Constant(lambda x: x[:, 0]), r"one score per image, \(8,\), but got \(8, 28, 28\)"),
        (Constant(lambda x: [0.0] * len(x)), "but got list"),
        (Constant(lambda x: x.flatten(1).sum(1) / 0), "finite scores"),
        (Constant(lambda x: torch.rand(len(x))), "others in different calls"),
        (Constant(lambda x: x.flatten(1).sum(1) - x.sum()), "others in different batches"),
    ],
    ids=range(7),
)
def test_what_cannot_score(detector: api.Detector, message: str, training: Any) -> None:
    with pytest.raises(ValueError, match=message):
        OutlierScore(detector, training[0])


def test_what_is_no_detector(training: Any, fitted: Any, tmp_path: Any) -> None:
    with pytest.raises(TypeError, match="a detector of pytorch-ood, but got Linear"):
        OutlierScore(nn.Linear(2, 2), training[0])
    with pytest.raises(ValueError, match="`gradient` 'own', 'none' or an Estimated, but got 'all'"):
        OutlierScore(fitted("MaxSoftmax"), training[0], gradient="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a detector with a gradient, but ODIN has none"):
        OutlierScore(fitted("ODIN"), training[0], gradient="own")
    with pytest.raises(ValueError, match="at least 2 images"):
        OutlierScore(fitted("MaxSoftmax"), training[0][:1])
    score = OutlierScore(fitted("MaxSoftmax"), training[0])
    with pytest.raises(ValueError, match="evidence with a name for a file, but 'mine' has a OutlierScore"):
        save_detectors({"mine": Detector(evidence=score, thresholds=(0.0,))}, tmp_path / "detectors.json")
    with pytest.raises(ValueError, match="a name or an Evidence"):
        Detector(evidence=3, thresholds=(0.0,))  # type: ignore[arg-type]


# Ours as theirs.


@pytest.mark.parametrize("evidence", ["marginal", "logit", "kl", "distance"])
def test_our_scores_are_read_by_its_metrics(evidence: str) -> None:
    model = Gaussians()
    images, labels = drawn(model, 200)
    theirs = OutlierDetector(model, evidence)
    assert theirs.requires_fit == (evidence == "kl")
    if theirs.requires_fit:
        with pytest.raises(api.RequiresFittingException):
            theirs.predict(images)
    outliers = torch.rand((50, 1, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mixed = TensorDataset(torch.cat([images, outliers]), torch.cat([labels, -torch.ones(50).long()]))
    theirs.fit(DataLoader(mixed, batch_size=60))
    expected = calibrate_detector(evidence, model, images, labels)
    assert theirs.detector == expected
    decided = model(images).argmax(1)
    assert torch.equal(theirs(images), expected.scores(model, images, decided))
    metrics = OODMetrics().update(theirs(images), labels)
    found = metrics.update(theirs(outliers), -torch.ones(50)).compute()
    inside, outside = theirs(images), theirs(outliers)
    pairs = (outside[:, None] > inside).double() + 0.5 * (outside[:, None] == inside)
    assert found["AUROC"] == pytest.approx(float(pairs.mean()), abs=1e-9)
    again = OutlierDetector(model, expected)
    assert not again.requires_fit
    assert torch.equal(again.predict(outliers), outside)


class Digits(Benchmark):  # type: ignore[misc]
    """Digits against noise."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.ood_names = ["noise"]

    def train_set(self) -> TensorDataset:
        return TensorDataset(self.images, self.labels)

    def test_sets(self, known: bool = True, unknown: bool = True) -> list[TensorDataset]:
        del known, unknown
        noise = torch.rand(self.images.shape, generator=torch.Generator().manual_seed(1))
        return [TensorDataset(torch.cat([self.images, noise]), torch.cat([self.labels, -self.labels - 1]))]


def test_its_benchmark_takes_both(model: LogitScores, fitted: Any, test_images: Any, training: Any) -> None:
    benchmark = Digits(*test_images)
    ours = OutlierDetector(model, "marginal")
    theirs = fitted("EnergyBased")
    found = benchmark.evaluate([ours, theirs], loader_kwargs={"batch_size": 16})
    assert found[0]["AUROC"] == pytest.approx(found[1]["AUROC"], abs=1e-6)
    assert found[0]["AUROC"] > 0.5
    # And back: its score as our evidence as its detector.
    back = OutlierDetector(model, OutlierScore(theirs, training[0]))
    assert torch.allclose(back(test_images[0]), theirs(test_images[0]))


def test_an_encoding_detector_needs_a_fit(make_model: Any, images: Any) -> None:
    model = make_model("gmvae")
    clean, labels = images(model, 80), torch.arange(80) % 4
    theirs = OutlierDetector(model, "latent", per_class=True)
    theirs.fit(DataLoader(TensorDataset(clean, labels), batch_size=32))
    expected = calibrate_detector("latent", model, clean, labels, per_class=True)
    assert theirs.detector is not None
    assert theirs.detector.thresholds == pytest.approx(expected.thresholds, rel=1e-4)
    assert theirs(clean).shape == (80,)
    assert theirs.to("cpu") is theirs


def test_ours_that_cannot_be_theirs(network: Network, training: Any) -> None:
    classifier: Classifier = as_classifier(network, training[0])
    with pytest.raises(TypeError, match="LogitScores"):
        OutlierDetector(classifier, "marginal")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="GenerativeClassifier, but got WrappedModule"):
        SelectiveClassifier(classifier, [])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="images to fit on"):
        OutlierDetector(LogitScores(classifier), "kl").fit([])
    with pytest.raises(ValueError, match="a kind of evidence"):
        OutlierDetector(LogitScores(classifier), "marginl")
    selective = SelectiveClassifier(
        LogitScores(classifier), [Detector(evidence="marginal", thresholds=(0.0,))]
    )
    with pytest.raises(ValueError, match="does not reject"):
        LogitScores(selective)


def test_a_registered_evidence_is_a_name(model: LogitScores) -> None:
    class Brightness(Evidence):
        differentiable = False

        def scores(self, model: Any, x: Tensor, y: Tensor, *, references: Any, class_scores: Any) -> Tensor:
            del model, y, references, class_scores
            return x.mean((1, 2, 3))

    detector = Detector(evidence=Brightness(), thresholds=(0.5,))
    assert not detector.differentiable
    assert Detector(evidence="marginal", thresholds=(0.5,)).differentiable
    x = torch.stack([torch.zeros(1, 28, 28), torch.ones(1, 28, 28)])
    assert detector.flags(model, x, torch.zeros(2).long()).tolist() == [False, True]
