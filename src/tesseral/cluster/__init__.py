"""Clustering every mode of a tensor, network or hypergraph at once.

>>> from tesseral.datasets import make_block_tensor
>>> planted = make_block_tensor((30, 30, 30), 3, contrast=40, symmetric=True, random_state=0)
>>> model = DegreeCorrectedTensorBlockModel(3, symmetric=True).fit(planted.tensor)
>>> clustering_error_rate(planted.labels[0], model.labels_[0])
0.0
"""

from tesseral.cluster._data import Data, read
from tesseral.cluster._degree_corrected import DegreeCorrectedTensorBlockModel
from tesseral.cluster._diagnosis import ModeDiagnosis, diagnose
from tesseral.cluster._hosvd import SpectralTensorClustering
from tesseral.cluster._lloyd import HigherOrderLloyd
from tesseral.cluster._source import Grouping
from tesseral.cluster._stability import Stability, stability
from tesseral.cluster.metrics import clustering_error_rate

__all__ = [
    "Data",
    "DegreeCorrectedTensorBlockModel",
    "Grouping",
    "HigherOrderLloyd",
    "ModeDiagnosis",
    "SpectralTensorClustering",
    "Stability",
    "clustering_error_rate",
    "diagnose",
    "read",
    "stability",
]
