"""Training objectives as Lightning modules, losses, augmentation."""

from ssl_methods.augment import DigitsViews, MedicalViews, NaturalViews, TwoViews
from ssl_methods.barlow_twins import BarlowTwins
from ssl_methods.byol import BYOL
from ssl_methods.dino import DINO
from ssl_methods.language_modelling import LanguageModelling
from ssl_methods.mae import MAE
from ssl_methods.method import Foundation, Inputs, Method, OptimizerFactory, StepOutput
from ssl_methods.moco_v3 import MoCoV3, info_nce
from ssl_methods.setting_checks import check_at_least, check_optimizer
from ssl_methods.simclr import SimCLR, nt_xent
from ssl_methods.simsiam import SimSiam
from ssl_methods.ssl_method import SSLMethod, TargetNetwork, Views
from ssl_methods.supervised import Supervised
from ssl_methods.vicreg import VICReg

__all__ = [
    "BYOL",
    "DINO",
    "MAE",
    "BarlowTwins",
    "DigitsViews",
    "Foundation",
    "Inputs",
    "LanguageModelling",
    "MedicalViews",
    "Method",
    "MoCoV3",
    "NaturalViews",
    "OptimizerFactory",
    "SSLMethod",
    "SimCLR",
    "SimSiam",
    "StepOutput",
    "Supervised",
    "TargetNetwork",
    "TwoViews",
    "VICReg",
    "Views",
    "check_at_least",
    "check_optimizer",
    "info_nce",
    "nt_xent",
]
