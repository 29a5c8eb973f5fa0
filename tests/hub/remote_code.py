"""What a user without this package does with an exported folder. Run by a test, in a process of its own.

Arguments: a folder with the inputs, expected features and the file that the results go into, then exported folders.
"""

from __future__ import annotations

import builtins
import json
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path


class Block(MetaPathFinder):
    """Makes this program's packages impossible to import."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in ("growclip_ds", "growclip_kernels"):
            raise ModuleNotFoundError(f"{fullname} is not installed here")


def main() -> None:
    sys.meta_path.insert(0, Block())
    asked = []
    builtins.input = lambda prompt="": asked.append(prompt) or "n"
    import torch
    from PIL import Image
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

    data, *folders = map(Path, sys.argv[1:])
    inputs = load_file(data / "inputs.safetensors")
    answers = []
    for folder in map(str, folders):
        model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
        expected = load_file(f"{folder}.expected")
        with torch.no_grad():
            outputs = model(**inputs)
        for name in ("image_embeds", "text_embeds"):
            torch.testing.assert_close(outputs[name], expected[name], rtol=0, atol=1e-5)
        answers.append(type(model).__name__)
    folder = str(folders[0])
    assert AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type == "growclip"
    picture = Image.open(data / "picture.png")
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    labels = ["red thing", "green thing"]
    batch = processor(text=labels, images=picture, padding=True, return_tensors="pt")
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        scores = model(**batch).logits_per_image.softmax(dim=-1)[0].tolist()
    classify = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)
    found = {one["label"]: one["score"] for one in classify(picture, labels, hypothesis_template="{}")}
    assert all(abs(found[label] - score) < 1e-5 for label, score in zip(labels, scores, strict=True)), (found, scores)
    model.save_pretrained(data / "saved")  # brings its code along
    processor.save_pretrained(data / "saved")
    again = AutoModel.from_pretrained(data / "saved", trust_remote_code=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits_per_image, model(**batch).logits_per_image)
    AutoProcessor.from_pretrained(data / "saved", trust_remote_code=True)
    assert not asked
    assert not [name for name in sys.modules if name.startswith("growclip")]
    (data / "answer.json").write_text(json.dumps({"models": answers, "scores": found}))


if __name__ == "__main__":
    main()
