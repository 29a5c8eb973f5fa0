"""The model card of an exported model: README.md, whose YAML header the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from huggingface_hub import EvalResult, ModelCardData

from growclip_ds.evaluation.report import FIGURES, mean
from growclip_ds.hub.provenance import Provenance
from growclip_ds.monitor.words import LEGEND, SYMBOLS, grown
from growclip_ds.results import ClassificationResult, RetrievalResult

TASK = "zero-shot-image-classification"


def model_card(name: str, provenance: Provenance, licence: str, parameters: int, is_growclip: bool) -> str:
    """The text of README.md.

    Args:
        name: name of the model, which is the folder's.
        provenance: what is known of the model's training.
        licence: licence of the weights, as the hub's identifier.
        parameters: number of parameters, without the temperature.
        is_growclip: whether the model is a GrowCLIP rather than a CLIP of fixed size.
    """
    sections = [
        f"---\n{_header(name, provenance, licence, is_growclip)}\n---",
        f"# {name}",
        _introduction(parameters, is_growclip),
        *_growth(provenance),
        *_data(provenance),
        "## Evaluation",
        *_evaluation(provenance),
        "## Use",
        _use(name, is_growclip),
        "## Licence",
        _licence(licence, is_growclip),
    ]
    return "\n\n".join(sections) + "\n"


def _header(name: str, provenance: Provenance, licence: str, is_growclip: bool) -> str:
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=result.dataset,
            dataset_name=result.dataset,
            metric_type="accuracy",
            metric_name="top-1",
            metric_value=round(result.top1, 2),
        )
        for result in provenance.results
        if isinstance(result, ClassificationResult)
    ]
    return ModelCardData(
        license=licence,
        library_name="transformers",
        pipeline_tag=TASK,
        tags=["growclip" if is_growclip else "clip", "vision", "contrastive-learning"],
        model_name=name,
        eval_results=results or None,
    ).to_yaml(line_break="\n")


def _introduction(parameters: int, is_growclip: bool) -> str:
    millions = f"{parameters / 1e6:.2f} million parameters"
    if not is_growclip:
        return f"A CLIP with {millions}, trained by GrowCLIP-DS as a baseline of fixed size."
    return (
        f"A GrowCLIP with {millions}: a contrastive language-image model whose architecture can grow with its data "
        "(*GrowCLIP: Data-aware Automatic Model Growing for Large-scale Contrastive Language-Image Pre-training*, "
        "ICCV 2023), trained by GrowCLIP-DS."
    )


def _growth(provenance: Provenance) -> Iterator[str]:
    if not provenance.steps:
        return
    yield "## Growth"
    rows, before = [], None
    for step in provenance.steps:
        growth = grown(step.architecture, before) if before else ""
        rows.append((step.step, step.architecture, growth, f"{step.parameters / 1e6:.2f} M", f"{step.samples:,}"))
        before = step.architecture
    yield _table(("step", "architecture", "grew in", "parameters", "image-text pairs"), rows)
    if before is not None:
        yield f"Architectures are ({', '.join(SYMBOLS)}): {LEGEND}."


def _data(provenance: Provenance) -> Iterator[str]:
    if not provenance.subsets:
        return
    yield "## Training data"
    rows = [(name, f"{samples:,}") for name, samples in provenance.subsets]
    total = sum(samples for _, samples in provenance.subsets)
    yield _table(("subset", "image-text pairs"), [*rows, ("all", f"{total:,}")])


def _evaluation(provenance: Provenance) -> Iterator[str]:
    classification = [result for result in provenance.results if isinstance(result, ClassificationResult)]
    retrieval = [result for result in provenance.results if isinstance(result, RetrievalResult)]
    if not provenance.results:
        yield "Not evaluated."
    if classification:
        yield "Zero-shot classification, percent:"
        yield _classification(classification)
    if retrieval:
        yield "Zero-shot retrieval, percent (i→t: image to text, t→i: text to image):"
        yield _retrieval(retrieval)


def _classification(results: Sequence[ClassificationResult]) -> str:
    rows = [
        (result.dataset, f"{result.samples:,}", *(f"{getattr(result, figure):.1f}" for figure in FIGURES))
        for result in results
    ]
    averages = mean(results)
    if averages is not None and len(results) > 1:
        rows.append((f"mean of {len(results)}", "", *(f"{averages[figure]:.1f}" for figure in FIGURES)))
    return _table(("set", "images", "top-1", "top-5", "mean per class"), rows)


def _retrieval(results: Sequence[RetrievalResult]) -> str:
    heads = [f"{direction} R@{k}" for direction in ("i→t", "t→i") for k in results[0].image_to_text]
    rows = []
    for result in results:
        recalls = (*result.image_to_text.values(), *result.text_to_image.values())
        counts = (f"{result.pictures:,}", f"{result.captions:,}")
        rows.append((result.dataset, *counts, *(f"{recall:.1f}" for recall in recalls)))
    return _table(("set", "images", "captions", *heads), rows)


def _use(name: str, is_growclip: bool) -> str:
    trust = ", trust_remote_code=True" if is_growclip else ""
    code = f"""\
```python
from PIL import Image
from transformers import AutoModel, AutoProcessor

folder = "{name}"  # this folder, or the model's name on the hub
model = AutoModel.from_pretrained(folder{trust})
processor = AutoProcessor.from_pretrained(folder{trust})

captions = ["a photo of a cat", "a photo of a dog"]
inputs = processor(text=captions, images=Image.open("picture.jpg"), padding=True, truncation=True, return_tensors="pt")
print(model(**inputs).logits_per_image.softmax(dim=-1))
```

or `pipeline("zero-shot-image-classification", model=folder{trust})`."""
    if not is_growclip:
        return code
    return (
        f"With transformers 5:\n\n{code} After `import growclip_ds`, `trust_remote_code` can be omitted. "
        "`get_image_features` and `get_text_features` return the features as `pooler_output`, L2-normalised."
    )


def _licence(licence: str, is_growclip: bool) -> str:
    weights = "The licence of the weights was not stated" if licence == "unknown" else f"Weights: {licence}"
    return f"{weights}. Code (`*_growclip.py`): Apache-2.0." if is_growclip else f"{weights}."


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table whose first column is left-aligned, and the others right-aligned."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
