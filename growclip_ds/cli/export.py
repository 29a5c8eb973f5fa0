"""`growclip export`: write a trained model as a Hugging Face model folder."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from growclip_ds.cli.output import STANDARD_OUTPUT, check_place, put_json
from growclip_ds.errors import InputError


def add_export_command(parser: argparse.ArgumentParser) -> None:
    """Adds the description and arguments to the command's parser."""
    parser.description = (
        "Writes a trained model as a Hugging Face model folder: weights, configuration, tokenizer, image processor, "
        "the model's code and a model card. transformers loads it after `import growclip_ds`, or without this package "
        "with trust_remote_code=True; a baseline's CLIP becomes a plain CLIPModel."
    )
    parser.epilog = (
        "Examples:\n\n"
        "  growclip export runs/mine exported/mine --license cc-by-4.0\n"
        "  growclip export runs/mine exported/step-2 --step 2"
    )
    parser.add_argument("model", type=Path, metavar="RUN", help="a run, or a checkpoint of one")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the new folder")
    parser.add_argument("--step", type=int, metavar="N", help="growth step of the run (default: the newest trained)")
    parser.add_argument(
        "--tokenizer", metavar="NAME", help="folder or name of a tokenizer (default: that beside the model)"
    )
    parser.add_argument(
        "--license",
        default="unknown",
        metavar="ID",
        help="licence of the weights, as the hub's identifier, such as apache-2.0 or cc-by-nc-4.0 (default: unknown)",
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier export at OUTPUT")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write what was exported, and from where, to a file; - prints it"
    )
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> int:
    licence = options.license.lower()
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise InputError(f"--license {options.license!r} is not a licence identifier; give one such as apache-2.0")

    from growclip_ds.evaluation.subject import find_subject
    from growclip_ds.hub.export import check_output, export
    from growclip_ds.hub.provenance import read_provenance

    check_place(options.json)
    check_output(options.output, options.force)
    subject = find_subject(options.model, options.step)
    model = subject.load()
    tokenizer = subject.tokenizer(options.tokenizer, model.sizes, model.end_of_text)
    provenance = read_provenance(subject)
    export(model, tokenizer, options.output, provenance, licence, options.force)
    parameters = sum(tensor.numel() for name, tensor in model.named_parameters() if name != "logit_scale")
    if options.json is not None:
        values = {"output": str(options.output.absolute()), "model": str(subject.folder), "weights": subject.digest}
        values |= {"growth_step": subject.growth_step, "parameters": parameters, "license": licence}
        put_json(options.json, values | {"growth": [step.to_json() for step in provenance.steps]})
    if options.json != STANDARD_OUTPUT:
        print(f"{options.output}: {parameters / 1e6:.2f} M parameters of {subject.folder}")
    return 0
