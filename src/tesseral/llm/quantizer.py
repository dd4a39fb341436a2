"""Our checkpoint format under transformers: its configuration and its quantizer."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.quantizers import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from tesseral._errors import CheckpointError
from tesseral.llm.attention_interface import IMPLEMENTATION
from tesseral.llm.layouts import blocks_of, open_block
from tesseral.llm.native_modules import use_native_modules
from tesseral.quantization.block import replace_with_quantized
from tesseral.quantization.config import VERSION, QuantizationConfig

METHOD = "tesseral"
"""Value of ``quant_method`` in the ``quantization_config`` of a checkpoint."""


@register_quantization_config(METHOD)
class TesseralConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """A :class:`QuantizationConfig` as transformers carries it in ``config.json``.

    Raises
    ------
    CheckpointError
        If the version is an older one; ``tesseral migrate`` rewrites it.
    ParameterError
        If a key or the version is unknown.
    """

    def __init__(self, quant_method: str = METHOD, **values: Any) -> None:
        self.quant_method = quant_method
        version = values.get("version", VERSION)
        if isinstance(version, int) and 0 < version < VERSION:
            raise CheckpointError(
                f"the checkpoint has version {version} of the format, and {VERSION} is read: "
                "`tesseral migrate OLD NEW` rewrites it."
            )
        self.settings = QuantizationConfig.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"quant_method": self.quant_method, **self.settings.to_dict()}


@register_quantizer(METHOD)
class TesseralQuantizer(HfQuantizer):  # type: ignore[misc]
    """Puts our modules in place of a model's linear layers before weights are loaded."""

    requires_calibration = True
    quantization_config: TesseralConfig

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        del kwargs
        install(model, self.quantization_config.settings)
        model.set_attn_implementation(IMPLEMENTATION)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        del kwargs
        use_native_modules(model)

    def update_weight_conversions(self, weight_conversions: list[Any], *_: Any) -> list[Any]:
        """Return no conversions: our checkpoints name every tensor as the module that holds it."""
        del weight_conversions
        return []

    def is_serializable(self) -> bool:
        """Say that a quantised model can be saved again."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Say that packed weights cannot be trained."""
        return False


def install(model: PreTrainedModel, config: QuantizationConfig) -> None:
    """Replace the linear layers of every block by empty quantised ones."""
    for index, block in enumerate(blocks_of(model)):
        layout, shape = open_block(block, model.config.model_type)
        with torch.device(next(block.parameters()).device):
            replace_with_quantized(block, layout, shape, config.in_block(index))


def mark_quantized(model: PreTrainedModel, config: QuantizationConfig) -> None:
    """Tell transformers that a model whose blocks were replaced is in our format."""
    description = TesseralConfig(**config.to_dict())
    model.hf_quantizer = TesseralQuantizer(description, pre_quantized=True)
    model.config.quantization_config = description
    # or it would be saved under the names that the original had on disk
    model._weight_conversions = []
    model.is_quantized = True
    model.quantization_method = METHOD


def save(
    model: PreTrainedModel, state: dict[str, Tensor], config: QuantizationConfig, path: Path
) -> None:
    """Write a quantised model whose tensors lie elsewhere, such as in files.

    Parameters
    ----------
    model : transformers model
        The original; of its weights nothing is read.
    state : dict of str to tensor
        All tensors of the quantised model, named as the modules that hold them.
    config : QuantizationConfig
        How it was quantised.
    path : Path
        Directory to write to.
    """
    mark_quantized(model, config)
    # transformers would ask it for all tensors of the model instead of taking ours
    model.hf_quantizer = None
    model.save_pretrained(path, state_dict=state)
