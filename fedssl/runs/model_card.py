"""Model card of an exported encoder of images: use, data, worth beside baselines, and cost."""

from __future__ import annotations

from typing import Any

from fedssl.data.images import ImageData
from fedssl.runs.baselines import caution
from fedssl.runs.results import KNN, LINEAR, PER_CLASS, cost_table, quality_table
from fedssl.training.endings import UNFINISHED, shortfall

USE = """\
---
library_name: timm
tags: [image-feature-extraction, self-supervised-learning]
---

# {title}

```python
encoder = timm.create_model("local-dir:FOLDER", pretrained=True, num_classes=0)
```

Size and normalisation of its input are in `config.json`. If that has `"stem": "small"`, `linear_eval.TimmEncoder` of
fedssl loads the folder, and timm does not.
"""
YOURS = "What the images show, and who may use them, is for you to add. So is a licence: none is claimed."


def model_card(results: dict[str, Any], data: ImageData) -> str:
    """Write the card of a run's encoder, in Markdown with the head that the Hugging Face hub reads.

    It names the data set and counts its images; paths, names of clients and licences are left to the user.

    Args:
        results: Results of the run.
        data: Images that it was trained on.
    """
    trained = " ".join(str(results[key]) for key in ("scheme", "method", "encoder"))
    parts = [USE.format(title=trained)]
    if lacks := shortfall(results):
        parts.append(f"**{UNFINISHED}**: {lacks}.\n")
    clients = f", divided among {results['clients']} clients" if "clients" in results else ""
    parts.append(f"## Data\n\n{data.trained_on}{clients}. {YOURS}\n")
    if "not_evaluated" in results:
        parts.append(f"## Worth\n\nNot evaluated, as {results['not_evaluated']}.\n")
    else:
        quality = "\n".join(quality_table(results, (KNN, LINEAR, PER_CLASS), "").markdown())
        where = f"{results['test_images']:,} test images (data set `{data.eval_dataset}`), after training."
        parts.append(f"## Worth\n\n{where} {caution(results)}\n\n{quality}\n")
    if "down_bytes_per_client" in results:
        cost = cost_table(results, "")
        table = "\n".join(cost.markdown())
        parts.append(f"## Cost of a device\n\nOver {results['rounds']} rounds; {cost.caption}.\n\n{table}\n")
    made = f"fedssl {results['versions'].get('fedssl', '')}, commit {results['commit'] or 'unknown'}"
    return "\n".join([*parts, f"Made by {made}, seed {results['seed']}.\n"])
