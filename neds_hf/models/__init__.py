"""Model, configuration and processor; importing this registers them with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoProcessor

from neds_hf.models.configuration_neds import NEDSConfig
from neds_hf.models.modeling_neds import NEDSModel, NEDSOutput
from neds_hf.models.processing_neds import NEDSProcessor

AutoConfig.register("neds", NEDSConfig)
AutoModel.register(NEDSConfig, NEDSModel)
AutoProcessor.register(NEDSConfig, NEDSProcessor)
# What `save_pretrained` writes also loads, with trust_remote_code=True, where this package is not installed.
NEDSConfig.register_for_auto_class()
NEDSModel.register_for_auto_class("AutoModel")
NEDSProcessor.register_for_auto_class()

__all__ = ["NEDSConfig", "NEDSModel", "NEDSOutput", "NEDSProcessor"]
