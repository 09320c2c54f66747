#!/usr/bin/env bash
# datasets 5.2.0: one number among texts in a later JSON file puts quotation marks around every text of that file.
#
# The types of a JSON data set come from its first file. Where a later file holds a number in a column of texts, each
# text of that file is given back as JSON, quotation marks included. There is no warning and no error: a model trained
# on the column learns to answer in quotation marks.
#
# Seen with Python 3.11, two files of 20 rows, one of the 40 answers a number:
#   20 answers as written, 19 in quotation marks, the number as the text '33'
# For users: bishare reads the files of a local folder itself and names the file and the row (docs/data.md).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet datasets==5.2.0 2>/dev/null
export HF_HOME="$folder/cache" HF_DATASETS_DISABLE_PROGRESS_BARS=1
found=$("$folder/env/bin/python" - "$folder/set" <<'PYTHON'
import json
import sys
from pathlib import Path

import datasets

folder = Path(sys.argv[1])
folder.mkdir()
rows = [{"question": f"Count to {n}.", "answer": f"to {n}"} for n in range(40)]
rows[33]["answer"] = 33
for number in range(2):
    lines = "".join(json.dumps(row) + "\n" for row in rows[20 * number : 20 * number + 20])
    (folder / f"train-{number}.jsonl").write_text(lines)
answers = list(datasets.load_dataset(str(folder), split="train")["answer"])
as_written = sum(answer == f"to {n}" for n, answer in enumerate(answers))
quoted = sum(answer == f'"to {n}"' for n, answer in enumerate(answers))
print(f"{as_written} answers as written, {quoted} in quotation marks, the number as the text {answers[33]!r}")
PYTHON
)
echo "$found"
[ "$found" = "20 answers as written, 19 in quotation marks, the number as the text '33'" ]
