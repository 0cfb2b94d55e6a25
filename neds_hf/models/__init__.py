"""Model, configuration, processor and pipelines; importing this registers them with transformers."""

from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from neds_hf.models.configuration_neds import NEDSConfig
from neds_hf.models.modeling_neds import NEDSModel, NEDSOutput
from neds_hf.models.pipelines_neds import NeuralDecodingPipeline, NeuralEncodingPipeline
from neds_hf.models.processing_neds import NEDSProcessor

AutoConfig.register("neds", NEDSConfig)
AutoModel.register(NEDSConfig, NEDSModel)
AutoProcessor.register(NEDSConfig, NEDSProcessor)
PIPELINE_REGISTRY.register_pipeline("neural-encoding", NeuralEncodingPipeline, pt_model=AutoModel)
PIPELINE_REGISTRY.register_pipeline("neural-decoding", NeuralDecodingPipeline, pt_model=AutoModel)
# Else `pipeline` would take those of the model's folder, and ask for trust in them.
NEDSConfig.custom_pipelines = {}
# What `save_pretrained` writes also loads, with trust_remote_code=True, where this package is not installed.
NEDSConfig.register_for_auto_class()
NEDSModel.register_for_auto_class("AutoModel")
NEDSProcessor.register_for_auto_class()

__all__ = [
    "NEDSConfig",
    "NEDSModel",
    "NEDSOutput",
    "NEDSProcessor",
    "NeuralDecodingPipeline",
    "NeuralEncodingPipeline",
]
