"""Arms: each way of answering the held-out rows, one beside the other."""

from luthier.evaluation.arms.anchors import Majority, Tfidf
from luthier.evaluation.arms.base import Arm, ArmResult, Rows
from luthier.evaluation.arms.prompted import VARIANTS, PromptArm
from luthier.evaluation.arms.tuned import Classifier, Tuned

__all__ = ["VARIANTS", "Arm", "ArmResult", "Classifier", "Majority", "PromptArm", "Rows", "Tfidf", "Tuned"]
