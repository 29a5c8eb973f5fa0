"""Exports a trained model as a Hugging Face model folder, atomically."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors
from torch import Tensor
from transformers import PretrainedConfig

from growclip_ds.baselines.clip import FixedCLIP
from growclip_ds.checkpoint.weights_file import SafetensorsWriter
from growclip_ds.data.pictures import MEAN, STD
from growclip_ds.data.tokens import Tokenizer
from growclip_ds.errors import InputError
from growclip_ds.files import write_json, write_text
from growclip_ds.hub import configuration_growclip, image_processing_growclip, modeling_growclip
from growclip_ds.hub.card import model_card
from growclip_ds.hub.configuration_growclip import GrowCLIPConfig
from growclip_ds.hub.image_processing_growclip import GrowCLIPImageProcessor
from growclip_ds.hub.provenance import Provenance
from growclip_ds.model.growclip import GrowCLIP

MAX_SHARD_BYTES = 5_000_000_000  # per weights file, as the hub recommends

_CODE = (configuration_growclip, modeling_growclip, image_processing_growclip)
_CODE_FILES = {Path(str(module.__file__)).name: Path(str(module.__file__)) for module in _CODE}
_AUTO_MAP = {
    "AutoConfig": "configuration_growclip.GrowCLIPConfig",
    "AutoModel": "modeling_growclip.GrowCLIPModel",
    "AutoModelForZeroShotImageClassification": "modeling_growclip.GrowCLIPModel",
    "AutoImageProcessor": "image_processing_growclip.GrowCLIPImageProcessor",
}
_FILES = re.compile(
    r"README\.md|config\.json|preprocessor_config\.json|processor_config\.json|tokenizer\.json|tokenizer_config\.json"
    r"|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|__pycache__|"
    + "|".join(map(re.escape, _CODE_FILES))
)


def export(
    model: GrowCLIP | FixedCLIP,
    tokenizer: Tokenizer,
    output: Path,
    provenance: Provenance | None = None,
    licence: str = "unknown",
    replace: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a model as a folder that `transformers` loads.

    Args:
        model: the model in fp32: a GrowCLIP, or a FixedCLIP, which is exported as `transformers`' own `CLIPModel`.
        tokenizer: the tokenizer of the model's captions.
        output: the folder to create.
        provenance: what is known of the model's training, for the model card; None if nothing is.
        licence: licence of the weights, as the hub's identifier.
        replace: whether to replace an earlier export.
        max_shard_bytes: maximum size of a weights file; larger models are split into several, with an index.

    Raises:
        InputError: the folder exists (with `replace`: and is not an export), or cannot be written.
    """
    output = output.absolute()
    check_output(output, replace)
    partial = output.with_name(f".{output.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # left by an interrupted export
        partial.mkdir(parents=True)
        _write_all(partial, output.name, model, tokenizer, provenance or Provenance(), licence, max_shard_bytes)
        _appear(partial, output)
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error}; make room or name another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_output(output: Path, replace: bool) -> None:
    """Checks that an export may be written to a folder.

    Raises:
        InputError: something exists there that must not be replaced.
    """
    try:
        if not output.exists() or (output.is_dir() and not any(output.iterdir())):
            return
    except OSError as error:  # such as a name that is too long
        raise InputError(f"{output} cannot be written ({error.strerror}); name another folder") from error
    if not replace:
        raise InputError(f"{output} exists already; name another folder, or replace it (--force)")
    names = sorted(path.name for path in output.iterdir()) if output.is_dir() else [output.name]
    foreign = [name for name in names if not _FILES.fullmatch(name)]
    if foreign or "config.json" not in names:
        found = f"it holds {foreign[0]}" if foreign else "it has no config.json"
        raise InputError(f"{output} is not an exported model ({found}), so it is not replaced; name another folder")


def _write_all(
    folder: Path,
    name: str,
    model: GrowCLIP | FixedCLIP,
    tokenizer: Tokenizer,
    provenance: Provenance,
    licence: str,
    max_shard_bytes: int,
) -> None:
    tensors = {key: parameter.detach() for key, parameter in model.named_parameters()}
    parameters = sum(tensor.numel() for key, tensor in tensors.items() if key != "logit_scale")
    size = model.sizes.image_size
    if isinstance(model, GrowCLIP):
        _write_config(folder, _growclip_config(model, provenance))
        image_processor = GrowCLIPImageProcessor(size={"shortest_edge": size}, image_mean=MEAN, image_std=STD).to_dict()
        # config.json names the class. If it were named here too, `pipeline` would also look for a video processor, and
        # ask whether to trust its code.
        del image_processor["image_processor_type"]
        write_json(folder / "preprocessor_config.json", image_processor)
        for file in _CODE_FILES.values():
            shutil.copyfile(file, folder / file.name)
    else:
        _write_config(folder, _clip_config(model.config))
        write_json(folder / "preprocessor_config.json", _clip_image_processor(size))
        tensors["logit_scale"] = tensors["logit_scale"].reshape(())
    write_json(folder / "processor_config.json", {"processor_class": "CLIPProcessor"})
    _write_tokenizer(folder, tokenizer)
    _write_weights(folder, tensors, max_shard_bytes)
    write_text(folder / "README.md", model_card(name, provenance, licence, parameters, isinstance(model, GrowCLIP)))


def _growclip_config(model: GrowCLIP, provenance: Provenance) -> GrowCLIPConfig:
    return GrowCLIPConfig(
        **asdict(model.architecture),
        **asdict(model.sizes),
        end_of_text=model.end_of_text,
        growth=[step.to_json() for step in provenance.steps],
        architectures=["GrowCLIPModel"],
        auto_map=_AUTO_MAP,
        dtype="float32",
    )


def _clip_config(config: PretrainedConfig) -> PretrainedConfig:
    return type(config).from_dict(config.to_dict() | {"architectures": ["CLIPModel"], "dtype": "float32"})


def _write_config(folder: Path, config: PretrainedConfig) -> None:
    config.to_json_file(folder / "config.json")


def _clip_image_processor(size: int) -> dict[str, Any]:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }


def _write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Writes the tokenizer so that `transformers` tokenizes captions exactly as in training."""
    tokenizer.save(folder)
    config_file, file = folder / "tokenizer_config.json", folder / "tokenizer.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["padding_side"] = config["truncation_side"] = "right"
    config["model_input_names"] = ["input_ids", "attention_mask"]
    config["split_special_tokens"] = True  # "<|endoftext|>" written in a caption is ordinary text
    write_json(config_file, config)
    backend = tokenizers.Tokenizer.from_file(str(file))
    start, end = config["bos_token"], config["eos_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=[start, "$A", end],
        special_tokens=[(start, tokenizer.start_of_text), (end, tokenizer.end_of_text)],
    )
    backend.save(str(file))


def _write_weights(folder: Path, tensors: Mapping[str, Tensor], max_shard_bytes: int) -> None:
    shards = list(_shards(tensors, max_shard_bytes))
    total = len(shards)
    names = [f"model-{n:05d}-of-{total:05d}.safetensors" for n in range(1, total + 1)]
    if total == 1:
        names = ["model.safetensors"]
    for name, shard in zip(names, shards, strict=True):
        shapes = {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in shard.items()}
        with SafetensorsWriter(folder / name, shapes) as writer:
            for key, tensor in shard.items():
                writer.write(key, tensor)
    if total > 1:
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
            "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
        }
        write_json(folder / "model.safetensors.index.json", index)


def _shards(tensors: Mapping[str, Tensor], most: int) -> Iterator[dict[str, Tensor]]:
    """Splits tensors, in order, into files of at most `most` bytes; a larger tensor gets a file of its own."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if shard and size + tensor.nbytes > most:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


def _appear(partial: Path, output: Path) -> None:
    """Moves the finished folder into place; an earlier one stays until then, and is restored if the move fails."""
    if not output.exists():
        partial.replace(output)
        return
    old = partial.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    output.replace(old)
    try:
        partial.replace(output)
    except OSError:
        old.replace(output)
        raise
    shutil.rmtree(old, ignore_errors=True)
