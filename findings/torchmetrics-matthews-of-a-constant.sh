#!/usr/bin/env bash
# torchmetrics 1.9.0: Matthews' correlation of a constant binary prediction is not 0.
#
# A model that predicts one class for every sentence knows nothing, and scikit-learn gives its predictions a Matthews
# correlation of 0. torchmetrics gives another value, which depends on the share of the classes: 0.0256 for the 721
# positive labels of 1,043, 0.2582 for 5 of 20. With labels of one class too, the value is 1 or -1. The same predictions
# as a task of three classes give 0.
#
# Seen with torch 2.13.0 and scikit-learn 1.7.2:
#   0.0256 0.2582 -1.0 | three classes 0.0 | scikit-learn 0.0
# For users: bishare's val/matthews is 0 there (bishare/training/classification.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 torchmetrics==1.9.0 scikit-learn==1.7.2 2>/dev/null
found=$("$folder/env/bin/python" - <<'PYTHON'
import torch
from sklearn.metrics import matthews_corrcoef as of_sklearn
from torchmetrics.functional import matthews_corrcoef


def constant(number: int, positive: int, predicted: int, **task: object) -> float:
    labels = (torch.arange(number) < positive).long()
    return matthews_corrcoef(torch.full((number,), predicted), labels, **task).item()


binary = [constant(1043, 721, 1, task="binary"), constant(20, 5, 0, task="binary"), constant(8, 8, 0, task="binary")]
labels = [1] * 721 + [0] * 322
print(
    *(f"{value:.4f}".rstrip("0").removesuffix(".") if value % 1 else f"{value:.1f}" for value in binary),
    "| three classes", constant(1043, 721, 1, task="multiclass", num_classes=3),
    "| scikit-learn", float(of_sklearn(labels, [1] * 1043)),
)
PYTHON
)
echo "$found"
[ "$found" = "0.0256 0.2582 -1.0 | three classes 0.0 | scikit-learn 0.0" ]
