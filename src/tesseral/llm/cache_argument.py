"""What transformers calls the argument of a model, and its output, that is a cache."""

from dataclasses import fields

from transformers.modeling_outputs import BaseModelOutputWithPast

CACHE = fields(BaseModelOutputWithPast)[1].name
"""``past_key_values``, or ``cache`` from transformers 5.24 on."""
