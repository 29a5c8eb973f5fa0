"""The fixed CLIP: its size, its starts, and that engines train it."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPModel

from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.baselines.clip import FixedCLIP, clip_config
from growclip_ds.baselines.spec import CLIPSpec
from growclip_ds.baselines.starts import continued, shrunk_and_perturbed
from growclip_ds.checkpoint.model_weights import spec_of
from growclip_ds.config.config import MS_CLIP, VIT_B_16
from growclip_ds.distributed import rank
from growclip_ds.errors import InputError
from growclip_ds.growth.inheritance import PIM
from growclip_ds.model.packed import pack
from growclip_ds.model.spec import GrowCLIPSpec, num_parameters
from growclip_ds.optim import Lamb
from growclip_ds.pipeline.phase import kernels_of
from growclip_ds.training.engine import Engine
from growclip_ds.training.iteration import train_iteration
from tests.group import Groups

SIZES = ModelSizes(60, 12, 32, 24)
CONFIG = clip_config(Architecture(0, 2, 1, 1, 2, 0), SIZES, end_of_text=59)
SPEC = CLIPSpec(CONFIG)
PAIRS = 12


def test_vit_b_16_is_as_large_as_the_papers() -> None:
    spec = CLIPSpec(clip_config(VIT_B_16, ModelSizes(), end_of_text=49407))
    assert round(num_parameters(spec) / 1e6, 1) == 149.6
    assert spec.architecture == VIT_B_16
    assert ModelSizes().parameters_of(MS_CLIP) == pytest.approx(127.26e6, abs=5e3)


def test_what_a_checkpoint_says_of_it_is_read_back() -> None:
    read = spec_of(json.loads(json.dumps(SPEC.describe() | {"growth_step": 2})))
    assert read is not None
    assert (read.kind, read.shapes) == ("clip", SPEC.shapes)
    assert (read.architecture, read.sizes, read.end_of_text) == (Architecture(0, 2, 1, 1, 2, 0), SIZES, 59)
    assert spec_of({"growth_step": 2}) is None


def test_attention_of_transformers_is_not_counted_among_our_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    growclip, device = GrowCLIPSpec(Architecture(0, 1, 1, 1, 1, 0), SIZES, 59), torch.device("cpu")
    for is_triton, kernels in ((True, ["triton", "triton and transformers'"]), (False, ["torch", "torch"])):
        monkeypatch.setattr("growclip_ds.pipeline.phase.uses_triton", lambda _, is_triton=is_triton: is_triton)
        assert [kernels_of(spec, device) for spec in (growclip, SPEC)] == kernels


def test_parameters_are_called_as_in_transformers() -> None:
    model, reference = FixedCLIP(CONFIG), CLIPModel(CONFIG)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes == {name: tuple(p.shape) or (1,) for name, p in reference.named_parameters()}
    assert (model.sizes, model.end_of_text) == (SIZES, 59)


@pytest.mark.parametrize("architecture", [Architecture(2, 1, 1, 1, 1, 0), Architecture(0, 1, 1, 1, 1, 1)])
def test_an_architecture_that_is_no_clips_is_refused(architecture: Architecture) -> None:
    with pytest.raises(ValueError, match="is not a CLIP's"):
        clip_config(architecture, SIZES, 59)


def test_new_weights_deviate_as_growclips_do() -> None:
    """Else the methods would differ in what they start from, too: `transformers` itself draws others."""
    blocks = {
        **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "attention.qkv"),
        "self_attn.out_proj": "attention.out",
        "mlp.fc1": "mlp.expand",
        "mlp.fc2": "mlp.contract",
    }
    names = {
        "text_model.embeddings.token_embedding.weight": "text.embedding.tokens",
        "text_model.embeddings.position_embedding.weight": "text.embedding.positions",
        "text_projection.weight": "text_head.projection.weight",
        "vision_model.embeddings.class_embedding": "image.embedding.class_token",
        "vision_model.embeddings.position_embedding.weight": "image.embedding.positions",
        "visual_projection.weight": "image_head.projection.weight",
        **{
            f"vision_model.encoder.layers.1.{ours}.weight": f"image.blocks.1.{own}.weight"
            for ours, own in blocks.items()
        },
        **{f"text_model.encoder.layers.0.{ours}.weight": f"text.blocks.0.{own}.weight" for ours, own in blocks.items()},
    }
    sizes, architecture = ModelSizes(300, 40, 128, 24), Architecture(0, 3, 4, 1, 2, 0)
    clip = dict(CLIPSpec(clip_config(architecture, sizes, end_of_text=299)).initial(0))
    growclip = dict(GrowCLIPSpec(architecture, sizes, 299).initial(0))
    for name, theirs in names.items():
        # The class token has no more than 256 elements.
        assert float(clip[name].std()) == pytest.approx(float(growclip[theirs].std()), rel=0.12), name
    assert float(clip["vision_model.embeddings.patch_embedding.weight"].std()) == pytest.approx(768**-0.5, rel=0.01)
    assert torch.equal(clip["logit_scale"], growclip["logit_scale"])


def test_a_token_that_clip_takes_for_another_cannot_end_captions() -> None:
    """Token 2 ends captions of many tokenizers; of `CLIPModel` it makes the largest token stand for the caption."""
    with pytest.raises(InputError, match=r"ends captions with token 2.*use another tokenizer.*or baselines\.model"):
        clip_config(Architecture(0, 1, 1, 1, 1, 0), SIZES, end_of_text=2)


def test_starts() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = dict(SPEC.initial("0/1/train"))
    old = {name: tensor + 1 for name, tensor in first.items()}
    assert torch.equal(torch.random.get_rng_state(), before)
    drawn = dict(SPEC.initial("0/2/train"))
    again = dict(SPEC.initial("0/2/train"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in drawn.items())
    matrix, norm = "text_model.encoder.layers.0.mlp.fc1.weight", "vision_model.pre_layrnorm.weight"
    assert not torch.equal(first[matrix], drawn[matrix])
    assert float(drawn["logit_scale"]) == pytest.approx(math.log(1 / 0.07), abs=1e-3)

    kept = dict(continued(SPEC, old.__getitem__))
    assert list(kept) == list(drawn)
    assert all(torch.equal(tensor, old[name]) for name, tensor in kept.items())

    shrunk = dict(shrunk_and_perturbed(SPEC, old.__getitem__, PIM(0.3, 0.001, 1.0, False), "0/2/train"))
    for name in (matrix, "vision_model.embeddings.class_embedding", "text_model.embeddings.token_embedding.weight"):
        assert torch.allclose(shrunk[name], 0.3 * old[name] + 0.001 * drawn[name])
    for name in (norm, "text_model.encoder.layers.0.mlp.fc1.bias", "logit_scale"):
        assert torch.equal(shrunk[name], old[name])
    blended = dict(shrunk_and_perturbed(SPEC, old.__getitem__, PIM(0.3, 0.001, 1.0, True), "0/2/train"))
    assert torch.allclose(blended[norm], 0.3 * old[norm] + 0.001)


def make_lamb(parameters: list[tuple[str, nn.Parameter]]) -> Lamb:
    return Lamb([p for _, p in parameters], lr=0.01, betas=(0.9, 0.999), eps=1e-6, weight_decay=1e-4)


def pairs() -> tuple[Tensor, list[list[int]]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(PAIRS, 3, 32, 32, generator=generator)
    return images, [[58, *torch.randint(0, 58, (3 + i % 5,), generator=generator).tolist(), 59] for i in range(PAIRS)]


def loss_of_transformers() -> float:
    """Of the initial weights on the same pairs, by `CLIPModel` itself."""
    model, (images, captions) = CLIPModel(CONFIG), pairs()
    model.load_state_dict(
        {n: t.reshape(model.state_dict()[n].shape) for n, t in SPEC.initial("0/1/train")}, strict=True
    )
    rows = torch.tensor([caption + [59] * (SIZES.context_length - len(caption)) for caption in captions])
    return model(input_ids=rows, pixel_values=images, return_loss=True).loss.item()


def train_on_rank(stage: int) -> tuple[list[float], dict[str, Tensor]]:
    """Four iterations on the same 12 pairs, all of them on the first rank."""
    ds_config = {
        "train_micro_batch_size_per_gpu": PAIRS,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": stage},
    }
    images, captions = pairs()
    mine = slice(0, PAIRS) if rank() == 0 else slice(0, 0)
    engine = Engine(lambda: FixedCLIP(CONFIG), make_lamb, ds_config)
    engine.load_masters(SPEC.initial("0/1/train"))
    batch = (images[mine].to(engine.device), pack(captions[mine]).to(engine.device))
    losses = [train_iteration(engine, [batch], 0.01).loss for _ in range(4)]
    masters = {name: tensor for name, tensor in engine.masters(lambda _: 0) if tensor is not None}
    engine.destroy()
    return losses, masters


def test_engines_train_it_alike_at_every_stage(group: Groups) -> None:
    """Also where a rank has no pairs: its gradients, all zero, have to come."""
    ((losses, masters),) = group(1).run(train_on_rank, 2)
    assert losses[0] == pytest.approx(loss_of_transformers(), rel=1e-5)
    assert losses[-1] < losses[0] - 0.2
    for stage in (1, 2, 3):
        (theirs, weights), _ = group(2).run(train_on_rank, stage)
        assert theirs == pytest.approx(losses, rel=1e-5)
        for name, tensor in masters.items():
            if not name.endswith("k_proj.bias"):  # their exact gradient is zero, and LAMB normalises the noise
                assert float((weights[name] - tensor).norm()) <= 1e-4 * float(tensor.norm()) + 1e-6, name
