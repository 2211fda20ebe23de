"""The papers behind what a run used."""

from collections.abc import Iterable
from dataclasses import dataclass

from sparsetime.report.runs import Run


@dataclass(frozen=True)
class Paper:
    """A reference: who, when, what, where, and a link."""

    authors: str
    year: int
    title: str
    venue: str
    link: str


DELTA = Paper(
    "A. Yousefzadeh, M. Sifalakis",
    2021,
    "Training for temporal sparsity in deep neural networks, application in video processing",
    "arXiv 2107.07305",
    "https://arxiv.org/abs/2107.07305",
)
LSQ = Paper(
    "S. K. Esser, J. L. McKinstry, D. Bablani, R. Appuswamy, D. S. Modha",
    2020,
    "Learned step size quantization",
    "ICLR 2020, arXiv 1902.08153",
    "https://arxiv.org/abs/1902.08153",
)
NEUROBENCH = Paper(
    "J. Yik et al.",
    2025,
    "The NeuroBench framework for benchmarking neuromorphic computing algorithms and systems",
    "Nature Communications 16, arXiv 2304.04640",
    "https://arxiv.org/abs/2304.04640",
)
ENERGY = Paper(
    "M. Horowitz",
    2014,
    "Computing's energy problem (and what we can do about it)",
    "ISSCC 2014",
    "https://doi.org/10.1109/ISSCC.2014.6757323",
)
MOBILENET_V1 = Paper(
    "A. G. Howard et al.",
    2017,
    "MobileNets: efficient convolutional neural networks for mobile vision applications",
    "arXiv 1704.04861",
    "https://arxiv.org/abs/1704.04861",
)
MOBILENET_V2 = Paper(
    "M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L.-C. Chen",
    2018,
    "MobileNetV2: inverted residuals and linear bottlenecks",
    "CVPR 2018, arXiv 1801.04381",
    "https://arxiv.org/abs/1801.04381",
)
RESNET = Paper(
    "K. He, X. Zhang, S. Ren, J. Sun",
    2016,
    "Deep residual learning for image recognition",
    "CVPR 2016, arXiv 1512.03385",
    "https://arxiv.org/abs/1512.03385",
)
JHMDB = Paper(
    "H. Jhuang, J. Gall, S. Zuffi, C. Schmid, M. J. Black",
    2013,
    "Towards understanding action recognition",
    "ICCV 2013",
    "https://doi.org/10.1109/ICCV.2013.396",
)
HMDB51 = Paper(
    "H. Kuehne, H. Jhuang, E. Garrote, T. Poggio, T. Serre",
    2011,
    "HMDB: a large video database for human motion recognition",
    "ICCV 2011",
    "https://doi.org/10.1109/ICCV.2011.6126543",
)
UT_INTERACTION = Paper(
    "M. S. Ryoo, J. K. Aggarwal",
    2010,
    "UT-Interaction dataset, ICPR contest on semantic description of human activities",
    "SDHA 2010",
    "https://cvrc.ece.utexas.edu/SDHA2010/Human_Interaction.html",
)
UCF101 = Paper(
    "K. Soomro, A. R. Zamir, M. Shah",
    2012,
    "UCF101: a dataset of 101 human actions classes from videos in the wild",
    "arXiv 1212.0402",
    "https://arxiv.org/abs/1212.0402",
)

# The start of a network's name; the first that fits.
NETWORKS: dict[str, Paper] = {
    "mobilenet_v2": MOBILENET_V2,
    "mobilenet_v1": MOBILENET_V1,
    "resnet": RESNET,
}
# A part of a data set's name.
DATA: dict[str, tuple[Paper, ...]] = {
    "jhmdb": (JHMDB, HMDB51),
    "hmdb51": (HMDB51,),
    "ut_interaction": (UT_INTERACTION,),
    "ucf101": (UCF101,),
}


def papers_for(runs: Iterable[Run]) -> dict[Paper, list[str]]:
    """The papers behind some runs, each with what it is there for, in the order of this file's tables."""
    found: dict[Paper, list[str]] = {}

    def add(paper: Paper, reason: str) -> None:
        reasons = found.setdefault(paper, [])
        if reason not in reasons:
            reasons.append(reason)

    runs = list(runs)
    add(DELTA, "delta activations, the penalty on change, the spatial L1 baseline")
    for run in runs:
        if run.method == "delta" and run.config.get("rule") == "lsq":
            add(LSQ, "quantizer rule lsq")
    for run in runs:
        for start, paper in NETWORKS.items():
            if run.network.lower().replace("-", "_").startswith(start):
                add(paper, f"network {run.network}")
                break
    for run in runs:
        for part, papers in DATA.items():
            if part in run.data.lower().replace("-", "_"):
                for paper in papers:
                    add(paper, f"data set {run.data}")
    evaluations = [evaluation for run in runs for evaluation in run.evaluations.values()]
    if any(evaluation.get("neurobench") for evaluation in evaluations):
        add(NEUROBENCH, "definitions of ActivationSparsity and SynapticOperations")
    if any(evaluation.get("energy") for evaluation in evaluations):
        add(ENERGY, "energy per operation")
    return found
