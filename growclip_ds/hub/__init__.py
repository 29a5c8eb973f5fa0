"""Models in Hugging Face format, both ways.

`configuration_growclip`, `modeling_growclip` and `image_processing_growclip` are what an exported folder carries along
for `trust_remote_code`: they import torch, `transformers` and each other, nothing else of this package.
"""
