"""GrowCLIP: a CLIP-like model whose layers can run at the size of any candidate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.model.encoders import Head, ImageEncoder, SharedEncoder, TextEncoder
from growclip_ds.model.initial import initial_tensor
from growclip_ds.model.layers import leading_slice
from growclip_ds.model.packed import PackedTokens, pack_padded
from growclip_kernels.packed_attention import SequenceGroup, Sequences


class GrowCLIP(nn.Module):
    """A CLIP-like model: image, text and shared encoders, and a learnable temperature (Section 3.2).

    A supernet is simply the largest candidate: the `architecture` argument of its methods runs a smaller one on leading
    slices of its weights.

    Args:
        architecture: the model's architecture.
        vocab_size, context_length, image_size, embed_dim: see `ModelSizes`.
        end_of_text: id of the token whose feature represents the caption; the largest id of the vocabulary if None.
        initialise: whether to initialise the weights, seeded from torch's global generator; False leaves them
            uninitialised, to be loaded.
    """

    def __init__(
        self,
        architecture: Architecture,
        vocab_size: int = 49408,
        context_length: int = 77,
        image_size: int = 224,
        embed_dim: int = 512,
        end_of_text: int | None = None,
        initialise: bool = True,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.sizes = ModelSizes(vocab_size, context_length, image_size, embed_dim)
        self.end_of_text = vocab_size - 1 if end_of_text is None else end_of_text
        self.logit_scale = nn.Parameter(torch.empty(1))  # a logarithm; (1,), since DeepSpeed takes no scalars
        self.image = ImageEncoder(architecture, self.sizes)
        self.text = TextEncoder(architecture, self.sizes)
        self.shared = SharedEncoder(architecture)
        self.image_head = Head(architecture.image_output_width, embed_dim)
        self.text_head = Head(architecture.text_output_width, embed_dim)
        if initialise and not self.logit_scale.is_meta:
            seed = int(torch.randint(2**62, ()))
            shapes = architecture.parameter_shapes(self.sizes)
            self.load_tensors({n: initial_tensor(n, s, architecture, seed) for n, s in shapes.items()})

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies every parameter's value from `tensors`, by name."""
        for name, parameter in self.named_parameters():
            parameter.copy_(tensors[name])

    def forward(
        self, images: Tensor, input_ids: PackedTokens | Tensor, architecture: Architecture | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Image and text features, and the logit scale.

        Args:
            images: (n, 3, S, S), normalised.
            input_ids: n captions, packed or as padded rows (n, length), each ending at its first end-of-text token.
            architecture: the candidate to run as; the model's own if None.

        Returns:
            image_features (n, e) and text_features (n, e), L2-normalised, and logit_scale (1,).

        Raises:
            ValueError: the architecture is larger than this model in some dimension, or a padded row has no end.
        """
        architecture = self._candidate(architecture)
        text = self._packed(input_ids)
        image_sequences = self.image_sequences(images)
        image_stream = self.image(images, image_sequences, architecture)
        text_stream = self.text(text, architecture)
        if architecture.shared_blocks:
            stream = torch.cat([self.enter_shared(s, architecture.shared_width) for s in (image_stream, text_stream)])
            modalities = {"image": image_stream.shape[0], "text": text_stream.shape[0]}
            stream = self.shared(stream, modalities, image_sequences.followed_by(text.sequences), architecture)
            image_stream, text_stream = stream.split(list(modalities.values()))
        image_features = self.image_head(self.class_tokens(image_stream))
        text_features = self.text_head(self.last_tokens(text_stream, text))
        # The bf16 parameter already has steps of 1.6 %; its exponential in bf16 would be rounded once more.
        at_least_fp32 = torch.promote_types(self.logit_scale.dtype, torch.float32)
        return image_features, text_features, self.logit_scale.to(at_least_fp32).exp()

    def encode_image(self, images: Tensor, architecture: Architecture | None = None) -> Tensor:
        """(n, 3, S, S) -> (n, e), L2-normalised."""
        architecture = self._candidate(architecture)
        sequences = self.image_sequences(images)
        stream = self.image(images, sequences, architecture)
        if architecture.shared_blocks:
            stream = self.enter_shared(stream, architecture.shared_width)
            stream = self.shared(stream, {"image": stream.shape[0]}, sequences, architecture)
        return self.image_head(self.class_tokens(stream))

    def encode_text(self, input_ids: PackedTokens | Tensor, architecture: Architecture | None = None) -> Tensor:
        """n captions, packed or padded -> (n, e), L2-normalised."""
        architecture = self._candidate(architecture)
        text = self._packed(input_ids)
        stream = self.text(text, architecture)
        if architecture.shared_blocks:
            stream = self.enter_shared(stream, architecture.shared_width)
            stream = self.shared(stream, {"text": stream.shape[0]}, text.sequences, architecture)
        return self.text_head(self.last_tokens(stream, text))

    def extract(self, architecture: Architecture) -> GrowCLIP:
        """Extracts a candidate as a separate model, with copies of the leading slices.

        Raises:
            ValueError: the architecture is larger than this model in some dimension.
        """
        architecture = self._candidate(architecture)
        weights = dict(self.named_parameters())
        shapes = architecture.parameter_shapes(self.sizes)
        model = self.empty_like(architecture).to(self.logit_scale)
        model.load_tensors({name: leading_slice(weights[name], shape) for name, shape in shapes.items()})
        return model

    def empty_like(self, architecture: Architecture) -> GrowCLIP:
        """A model of another architecture with the same sizes and end of text, its weights uninitialised."""
        return GrowCLIP(architecture, **asdict(self.sizes), end_of_text=self.end_of_text, initialise=False)

    def image_sequences(self, images: Tensor) -> Sequences:
        """The sequence boundaries of images (n, 3, S, S), for attention."""
        n, length = images.shape[0], self.sizes.image_tokens
        cu_seqlens = torch.arange(n + 1, dtype=torch.int32, device=images.device) * length
        return Sequences(cu_seqlens, (SequenceGroup(n, n * length, length, causal=False),))

    @staticmethod
    def enter_shared(stream: Tensor, width: int) -> Tensor:
        """(T, d) -> (T, shared width): a narrower stream is padded with zero channels."""
        return F.pad(stream, (0, width - stream.shape[1]))

    def class_tokens(self, stream: Tensor) -> Tensor:
        """(n · tokens, d) -> (n, d): the first token of each image."""
        return stream[:: self.sizes.image_tokens]

    @staticmethod
    def last_tokens(stream: Tensor, text: PackedTokens) -> Tensor:
        """(T, d) -> (n, d): the end-of-text tokens."""
        return stream[text.cu_seqlens[1:].long() - 1]

    def _candidate(self, architecture: Architecture | None) -> Architecture:
        """The architecture to run as; the model's own if None.

        Raises:
            ValueError: it is larger than this model in some dimension; missing layers would silently be skipped.
        """
        if architecture is None:
            return self.architecture
        if not self.architecture.covers(architecture):
            raise ValueError(f"{architecture} is not part of {self.architecture}")
        return architecture

    def _packed(self, input_ids: PackedTokens | Tensor) -> PackedTokens:
        return input_ids if isinstance(input_ids, PackedTokens) else pack_padded(input_ids, self.end_of_text)
