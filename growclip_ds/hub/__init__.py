"""Hugging Face format: export, and loading of exported models.

`configuration_growclip`, `modeling_growclip` and `image_processing_growclip` are copied into exported folders
for `trust_remote_code`: they import torch, `transformers` and each other, nothing else of this package.
"""
