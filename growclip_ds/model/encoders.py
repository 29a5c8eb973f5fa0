"""The image, text and shared encoders. All process packed tokens (T, d), at any depth and width up to their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growclip_ds.architecture import Architecture, ModelSizes
from growclip_ds.model.layers import MLP, Attention, Block, ElasticLayerNorm, ElasticLinear, leading_slice
from growclip_ds.model.packed import PackedTokens
from growclip_ds.model.stem import Stem
from growclip_kernels.packed_attention import Sequences


class ImageEmbedding(nn.Module):
    """Prepends the class token to the patches and adds position embeddings."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.empty(width))
        self.positions = nn.Parameter(torch.empty(tokens, width))

    def forward(self, patches: Tensor) -> Tensor:
        """(n, P, d) -> (n · (P + 1), d)."""
        n, _, width = patches.shape
        class_token = leading_slice(self.class_token, (width,)).expand(n, 1, width)
        tokens = torch.cat([class_token, patches], dim=1)
        return (tokens + self.positions[:, :width]).flatten(0, 1)


class TextEmbedding(nn.Module):
    """Token embeddings plus position embeddings, with positions counted from each caption's start."""

    def __init__(self, vocab_size: int, context_length: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(vocab_size, width))
        self.positions = nn.Parameter(torch.empty(context_length, width))

    def forward(self, text: PackedTokens, width: int) -> Tensor:
        """T ids -> (T, width)."""
        count = text.ids.numel()
        lengths = text.cu_seqlens.diff().long()
        starts = text.cu_seqlens[:-1].long().repeat_interleave(lengths, output_size=count)
        positions = torch.arange(count, device=starts.device) - starts
        return F.embedding(text.ids, self.tokens[:, :width]) + F.embedding(positions, self.positions[:, :width])


class ImageEncoder(nn.Module):
    """f of Section 3.2: the stem and a transformer."""

    def __init__(self, architecture: Architecture, sizes: ModelSizes) -> None:
        super().__init__()
        width = architecture.image_width
        self.stem = Stem(architecture.conv_layers, width)
        self.embedding = ImageEmbedding(sizes.image_tokens, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(architecture.image_blocks))

    def forward(self, images: Tensor, sequences: Sequences, architecture: Architecture) -> Tensor:
        """(n, 3, S, S) -> (n · tokens, image width)."""
        x = self.embedding(self.stem(images, architecture.conv_layers, architecture.image_width))
        for block in self.blocks[: architecture.image_blocks]:
            x = block(x, sequences)
        return x


class TextEncoder(nn.Module):
    """g of Section 3.2: a causal transformer."""

    def __init__(self, architecture: Architecture, sizes: ModelSizes) -> None:
        super().__init__()
        width = architecture.text_width
        self.embedding = TextEmbedding(sizes.vocab_size, sizes.context_length, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(architecture.text_blocks))

    def forward(self, text: PackedTokens, architecture: Architecture) -> Tensor:
        """T ids -> (T, text width)."""
        sequences, x = text.sequences, self.embedding(text, architecture.text_width)
        for block in self.blocks[: architecture.text_blocks]:
            x = block(x, sequences)
        return x


class ModalityNorm(nn.Module):
    """Layer norm with separate parameters per modality, whose tokens are contiguous in the stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.image = ElasticLayerNorm(width)
        self.text = ElasticLayerNorm(width)

    def forward(self, x: Tensor, modalities: dict[str, int]) -> Tensor:
        """(T, d) -> (T, d); `modalities`: the number of tokens of each modality, in the order of the stream."""
        parts = x.split(list(modalities.values()))
        normed = [self.get_submodule(name)(part) for name, part in zip(modalities, parts, strict=True)]
        return normed[0] if len(normed) == 1 else torch.cat(normed)


class SharedBlock(nn.Module):
    """A transformer block whose weights, except the norms, are shared between the modalities."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm = ModalityNorm(width)
        self.attention = Attention(width)
        self.mlp = MLP(width)
        self.mlp_norm = ModalityNorm(width)

    def forward(self, x: Tensor, modalities: dict[str, int], sequences: Sequences) -> Tensor:
        """(T, d) -> (T, d)."""
        x = x + self.attention(self.attention_norm(x, modalities), sequences)
        return x + self.mlp(self.mlp_norm(x, modalities))


class SharedEncoder(nn.Module):
    """h of Section 3.2: a transformer for both modalities, causal for captions and bidirectional for images."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SharedBlock(architecture.shared_width) for _ in range(architecture.shared_blocks))

    def forward(
        self, x: Tensor, modalities: dict[str, int], sequences: Sequences, architecture: Architecture
    ) -> Tensor:
        """(T, shared width) -> (T, shared width)."""
        for block in self.blocks[: architecture.shared_blocks]:
            x = block(x, modalities, sequences)
        return x


class Head(nn.Module):
    """Final norm and projection of the tokens that represent their sequences."""

    def __init__(self, width: int, embed_dim: int) -> None:
        super().__init__()
        self.norm = ElasticLayerNorm(width)
        self.projection = ElasticLinear(width, embed_dim, bias=False)
        self.embed_dim = embed_dim

    def forward(self, x: Tensor) -> Tensor:
        """(n, d) -> (n, e), L2-normalised in fp32."""
        features = self.projection(self.norm(x), self.embed_dim)
        return F.normalize(features.float(), dim=-1).to(features.dtype)
