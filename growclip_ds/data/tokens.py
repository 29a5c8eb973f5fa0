"""Tokenizes captions into packed tokens, with CLIP's tokenizer or one trained on the run's own captions."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from growclip_ds.errors import InputError
from growclip_ds.files import write_json, write_text
from growclip_ds.model.packed import PackedTokens, pack

START_OF_TEXT = "<|startoftext|>"
END_OF_TEXT = "<|endoftext|>"

_SMALLEST_VOCABULARY = 256 + 2  # one token per byte, start and end of text


class Tokenizer:
    """A fast `transformers` tokenizer that packs captions: start of text, tokens, end of text.

    Holds only the Rust backend, so that data loading workers, to which it is pickled, need not import `transformers`.

    Args:
        backend: the `backend_tokenizer` of a `transformers` tokenizer; it is copied.
        start_of_text: token put before every caption.
        end_of_text: token put after every caption.
        context_length: maximum tokens per caption, including both of these.

    Attributes:
        vocab_size: number of rows that a token embedding needs, the largest id + 1.
        start_of_text: id of the start token.
        end_of_text: id of the end token.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, start_of_text: str, end_of_text: str, context_length: int
    ) -> None:
        self.context_length = context_length
        self._special_tokens = (start_of_text, end_of_text)
        self._adopt(backend.to_str())

    def __call__(self, captions: Sequence[str]) -> PackedTokens:
        """Tokenizes captions; longer ones are truncated, keeping the end-of-text token."""
        room = self.context_length - 2
        encodings = self._backend.encode_batch_fast(list(captions), add_special_tokens=False)
        return pack([[self.start_of_text, *encoding.ids[:room], self.end_of_text] for encoding in encodings])

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, which `AutoTokenizer` can load too.

        A new folder appears atomically; in an existing one, each file does.

        Raises:
            OSError: the folder cannot be written.
        """
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        start, end = self._special_tokens
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": start,
            "eos_token": end,
            "pad_token": end,
            "unk_token": end,
            "model_max_length": self.context_length,
        }
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            temporary.chmod(0o755)
            # Not by the library, whose error for a full disk is not an OSError, and which does not fsync.
            write_text(temporary / "tokenizer.json", self._backend.to_str(pretty=True))
            write_json(temporary / "tokenizer_config.json", config)
            if folder.is_dir():
                for file in temporary.iterdir():
                    file.replace(folder / file.name)
            else:
                temporary.replace(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "context_length": self.context_length,
            "special_tokens": self._special_tokens,
            "backend": self._backend.to_str(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.context_length = state["context_length"]
        self._special_tokens = state["special_tokens"]
        self._adopt(state["backend"])

    def _adopt(self, serialised: str) -> None:
        self._backend = tokenizers.Tokenizer.from_str(serialised)
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = True  # "<|endoftext|>" written in a caption is ordinary text
        self.start_of_text, self.end_of_text = map(self._id, self._special_tokens)
        self.vocab_size = max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    def _id(self, token: str) -> int:
        number = self._backend.token_to_id(token)
        if number is None:
            raise ValueError(f"the tokenizer has no {token!r}")
        return number


def load_tokenizer(name_or_path: str | os.PathLike[str], context_length: int) -> Tokenizer:
    """Loads a tokenizer: one written by `Tokenizer.save`, or any fast one of the hub, such as CLIP's.

    Args:
        name_or_path: a folder (CLIP's `vocab.json` and `merges.txt` are enough), or a hub name such as
            `openai/clip-vit-base-patch32`.
        context_length: maximum tokens per caption, including start and end of text.

    Raises:
        InputError: there is no such tokenizer, it cannot be fetched, is not a fast one, or has no start-of-text or
            end-of-text token.
    """
    # Slow to import, and not needed by workers.
    from transformers import AutoTokenizer, CLIPTokenizerFast  # type: ignore[attr-defined]

    folder = Path(name_or_path)
    is_bare_clip = (folder / "vocab.json").is_file() and not (folder / "tokenizer_config.json").is_file()
    try:
        loaded = (CLIPTokenizerFast if is_bare_clip else AutoTokenizer).from_pretrained(str(name_or_path))
    except Exception as error:  # the hub client, the JSON parser and the tokenizers library each raise their own
        if folder.exists():
            remedy = "the folder must hold tokenizer.json and tokenizer_config.json, or vocab.json and merges.txt"
        else:
            remedy = (
                "there is no such folder, and no tokenizer of that name could be fetched from the Hugging Face hub; "
                "correct the name, or copy the tokenizer's files into a folder and give its path"
            )
        raise InputError(f"tokenizer '{name_or_path}' cannot be loaded: {remedy} ({_first_line(error)})") from error
    if not loaded.is_fast or not loaded.bos_token or not loaded.eos_token:
        raise InputError(
            f"tokenizer '{name_or_path}' ({type(loaded).__name__}) cannot be used: it must be a fast one with a "
            "start-of-text and an end-of-text token; use CLIP's, or train one"
        )
    return Tokenizer(loaded.backend_tokenizer, loaded.bos_token, loaded.eos_token, context_length)


def train_tokenizer(captions: Iterable[str], vocab_size: int, context_length: int) -> Tokenizer:
    """Trains a byte-level BPE on lower-cased captions; the same captions give the same tokenizer.

    The last two ids are start of text and end of text, in this order.

    Args:
        captions: the texts to train on.
        vocab_size: maximum size of the vocabulary, including these two; too few captions do not fill it.
        context_length: maximum tokens per caption, including these two.

    Raises:
        InputError: `vocab_size` is too small for one token per byte.
    """
    if vocab_size < _SMALLEST_VOCABULARY:
        raise InputError(f"vocab_size is {vocab_size}, but a byte-level BPE needs at least {_SMALLEST_VOCABULARY}")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(captions, trainer)
    backend.add_special_tokens([START_OF_TEXT, END_OF_TEXT])
    specials = [(token, backend.token_to_id(token)) for token in (START_OF_TEXT, END_OF_TEXT)]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{START_OF_TEXT} $A {END_OF_TEXT}", special_tokens=specials
    )
    return Tokenizer(backend, START_OF_TEXT, END_OF_TEXT, context_length)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
