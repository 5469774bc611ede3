"""Attacks as functions: those that the papers use and no toolkit has, one PGD, and anybody's own."""

from .distal import DistalBudget, DistalImages, distal_images
from .latent_descent import latent_descent
from .matching import l2_logit_matching, linf_logit_matching, logit_matching
from .multi_gradient import l2_multi_gradient, linf_multi_gradient, multi_gradient
from .overpowered import (
    OverpoweredBudget,
    OverpoweredPairs,
    l2_overpowered,
    linf_overpowered,
    overpowered,
    overpowered_pairs,
)
from .pgd import fgsm, l2_pgd, linf_pgd, loss_gradient, pgd
from .random_fgsm import random_fgsm
from .random_search import l2_random_search, linf_random_search, margin_search, random_search
from .registered import ATTACKS, OwnAttack, named_attack, register_attack
from .single_pixel import single_pixel
from .strongest import l2_strongest, linf_strongest, strongest, strongest_images
from .targeted_fgsm import FGSMPath, fgsm_path, iterated_fgsm
from .thresholds import fooling_attack, threshold_attack
from .variance_reduced import vr_igsm

__all__ = [
    "ATTACKS",
    "DistalBudget",
    "DistalImages",
    "FGSMPath",
    "OverpoweredBudget",
    "OverpoweredPairs",
    "OwnAttack",
    "distal_images",
    "fgsm",
    "fgsm_path",
    "fooling_attack",
    "iterated_fgsm",
    "l2_logit_matching",
    "l2_multi_gradient",
    "l2_overpowered",
    "l2_pgd",
    "l2_random_search",
    "l2_strongest",
    "latent_descent",
    "linf_logit_matching",
    "linf_multi_gradient",
    "linf_overpowered",
    "linf_pgd",
    "linf_random_search",
    "linf_strongest",
    "logit_matching",
    "loss_gradient",
    "margin_search",
    "multi_gradient",
    "named_attack",
    "overpowered",
    "overpowered_pairs",
    "pgd",
    "random_fgsm",
    "random_search",
    "register_attack",
    "single_pixel",
    "strongest",
    "strongest_images",
    "threshold_attack",
    "vr_igsm",
]
