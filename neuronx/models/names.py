"""Which models are known by name, and the names that others give them."""

import re
from collections.abc import Mapping
from types import ModuleType

from neuronx.models import bart, gpt, llama, opt, t5, whisper
from neuronx.models.sizes import find
from neuronx.models.whole import WHOLE

__all__ = ["DECODERS", "MODELS", "resolve"]

DECODERS = (opt, gpt, llama, t5, bart, whisper)
_MODULES: tuple[ModuleType, ...] = (*DECODERS, *WHOLE)
# Every published size and the module it is written in.
MODELS: Mapping[str, ModuleType] = {name: module for module in _MODULES for name in module.SIZES}
# Models of the same shapes; others' variants of them are meant as well.
_SAME_AS: Mapping[str, str] = {
    "bge-reranker-base": "xlm-roberta-base",
    "bge-reranker-large": "xlm-roberta-large",
    "bge-reranker-v2-m3": "bge-m3",
    "biobert-base-cased": "bert-base-cased",
    "bloomz-560m": "bloom-560m",
    "bloomz-7b1": "bloom-7b1",
    "codebert-base": "roberta-base",
    "codegemma-2b": "gemma-2b",
    "codegemma-7b": "gemma-7b",
    "deepseek-r1-distill-llama-70b": "llama-3.1-70b",
    "deepseek-r1-distill-llama-8b": "llama-3.1-8b",
    "deepseek-r1-distill-qwen-14b": "qwen2.5-14b",
    "deepseek-r1-distill-qwen-32b": "qwen2.5-32b",
    "deepseek-r1-distill-qwen-7b": "qwen2.5-7b",
    "dialogpt-large": "gpt2-large",
    "dialogpt-medium": "gpt2-medium",
    "dialogpt-small": "gpt2",
    "finbert": "bert-base-uncased",
    "gemma-1.1-2b": "gemma-2b",
    "gemma-1.1-7b": "gemma-7b",
    "granite-3.2-2b": "granite-3.1-2b",
    "granite-3.2-8b": "granite-3.1-8b",
    "graphcodebert-base": "roberta-base",
    "legal-bert-base-uncased": "bert-base-uncased",
    "llama-guard-3-1b": "llama-3.2-1b",
    "llama-guard-3-8b": "llama-3.1-8b",
    "mathstral-7b": "mistral-7b-v0.3",
    "mistral-large": "mistral-large-123b",
    "msmarco-distilbert-base": "distilbert-base-uncased",
    "multilingual-e5-base": "xlm-roberta-base",
    "multilingual-e5-large": "xlm-roberta-large",
    "open-llama-13b": "llama-13b",
    "open-llama-7b": "llama-7b",
    "opt-iml-1.3b": "opt-1.3b",
    "opt-iml-30b": "opt-30b",
    "phi-1": "phi-1.5",
    "phi-3.5-mini": "phi-3-mini-128k",
    "qwen2-0.5b": "qwen2.5-0.5b",
    "qwen2-1.5b": "qwen2.5-1.5b",
    "qwen2-72b": "qwen2.5-72b",
    "qwen2-7b": "qwen2.5-7b",
    "qwen2.5-coder-0.5b": "qwen2.5-0.5b",
    "qwen2.5-coder-1.5b": "qwen2.5-1.5b",
    "qwen2.5-coder-14b": "qwen2.5-14b",
    "qwen2.5-coder-32b": "qwen2.5-32b",
    "qwen2.5-coder-3b": "qwen2.5-3b",
    "qwen2.5-coder-7b": "qwen2.5-7b",
    "qwen2.5-math-1.5b": "qwen2.5-1.5b",
    "qwen2.5-math-72b": "qwen2.5-72b",
    "qwen2.5-math-7b": "qwen2.5-7b",
    "qwq-32b": "qwen2.5-32b",
    "smollm-1.7b": "smollm2-1.7b",
    "smollm-135m": "smollm2-135m",
    "smollm-360m": "smollm2-360m",
    "t0-3b": "flan-t5-xl",
    "t0pp": "flan-t5-xxl",
    "t5-v1-1-base": "flan-t5-base",
    "t5-v1-1-large": "flan-t5-large",
    "t5-v1-1-small": "flan-t5-small",
    "t5-v1-1-xl": "flan-t5-xl",
    "t5-v1-1-xxl": "flan-t5-xxl",
    "twitter-roberta-base": "roberta-base",
    "vicuna-13b": "llama-2-13b",
    "vicuna-33b": "llama-30b",
    "vicuna-7b": "llama-2-7b",
    "yi-1.5-34b": "yi-34b",
    "yi-1.5-6b": "yi-6b",
    "yi-1.5-9b": "yi-9b",
    "zephyr-7b": "mistral-7b",
}
# Other whole names of the same shapes, and short ones that mean only one of them.
_ALSO_CALLED: Mapping[str, str] = {
    "albert-base": "albert-base-v2",
    "all-distilroberta-v1": "distilroberta-base",
    "all-minilm-l12-v1": "all-minilm-l12-v2",
    "all-mpnet-base-v2": "mpnet-base",
    "all-roberta-large-v1": "roberta-large",
    "aya-23-35b": "c4ai-command-r-v01",
    "bert-base": "bert-base-uncased",
    "bert-base-ner": "bert-base-cased",
    "bert-large": "bert-large-uncased",
    "bge-base-en": "bert-base-uncased",
    "bge-base-en-v1.5": "bert-base-uncased",
    "bge-base-zh": "bert-base-chinese",
    "bge-base-zh-v1.5": "bert-base-chinese",
    "bge-large-en": "bert-large-uncased",
    "bge-large-en-v1.5": "bert-large-uncased",
    "bge-large-zh": "bge-large-zh-v1.5",
    "bge-small-en": "all-minilm-l12-v2",
    "bge-small-en-v1.5": "all-minilm-l12-v2",
    "bloom": "bloom-176b",
    "bloomz": "bloom-176b",
    "clip": "clip-vit-base-patch32",
    "command-r": "c4ai-command-r-v01",
    "distilbert": "distilbert-base-uncased",
    "distilbert-base": "distilbert-base-uncased",
    "distilroberta": "distilroberta-base",
    "e5-base": "bert-base-uncased",
    "e5-base-v2": "bert-base-uncased",
    "e5-large": "bert-large-uncased",
    "e5-large-v2": "bert-large-uncased",
    "e5-small": "all-minilm-l12-v2",
    "e5-small-v2": "all-minilm-l12-v2",
    "electra-base": "electra-base-discriminator",
    "electra-large": "electra-large-discriminator",
    "gpt-neox": "gpt-neox-20b",
    "gte-base": "bert-base-uncased",
    "gte-large": "bert-large-uncased",
    "gte-small": "all-minilm-l12-v2",
    "mistral-7b-instruct-v0.3": "mistral-7b-v0.3",
    "mistral-nemo-base-2407": "mistral-nemo-12b",
    "mistral-nemo-instruct-2407": "mistral-nemo-12b",
    "mobilenet-v2": "mobilenet-v2-1.0-224",
    "mobilenetv2": "mobilenet-v2-1.0-224",
    "ms-marco-minilm-l-12-v2": "all-minilm-l12-v2",
    "ms-marco-minilm-l-6-v2": "all-minilm-l6-v2",
    "ms-marco-minilm-l12-v2": "all-minilm-l12-v2",
    "ms-marco-minilm-l6-v2": "all-minilm-l6-v2",
    "multi-qa-minilm-l6-cos-v1": "all-minilm-l6-v2",
    "multi-qa-mpnet-base-cos-v1": "mpnet-base",
    "multi-qa-mpnet-base-dot-v1": "mpnet-base",
    "mxbai-embed-large-v1": "bert-large-uncased",
    "paraphrase-minilm-l6-v2": "all-minilm-l6-v2",
    "paraphrase-mpnet-base-v2": "mpnet-base",
    "paraphrase-multilingual-minilm-l12-v2": "multilingual-e5-small",
    "paraphrase-multilingual-mpnet-base-v2": "xlm-roberta-base",
    "phi-1-5": "phi-1.5",
    "phi-4": "phi-4-14b",
    "resnext101": "resnext101-32x8d",
    "resnext50": "resnext50-32x4d",
    "snowflake-arctic-embed-l": "bert-large-uncased",
    "snowflake-arctic-embed-m": "bert-base-uncased",
    "snowflake-arctic-embed-s": "all-minilm-l12-v2",
    "snowflake-arctic-embed-xs": "all-minilm-l6-v2",
    "starchat-beta": "starcoder-15b",
    "starcoder": "starcoder-15b",
    "starcoderbase": "starcoder-15b",
    "starcoderplus": "starcoder-15b",
    "uae-large-v1": "bert-large-uncased",
    "unet": "unet-224",
    "unet-carvana": "unet-224",
    "vit-base": "vit-base-patch16-224",
    "vit-large": "vit-large-patch16-224",
}


def resolve(name: str) -> str:
    """The catalog's name of a model as others write it: any case, its owner before it, another variant of the
    same shapes behind it ("meta-llama/Meta-Llama-3-8B-Instruct"), dashes left out or put in ("resnet-50").

    Raises:
      CompileError: none is meant.
    """
    words = re.split(r"[-_ ]+", name.lower().rpartition("/")[2].removeprefix("meta-"))
    also, spelled = _spelled(_ALSO_CALLED), _spelled({known: known for known in MODELS} | _SAME_AS)
    starts = ("".join(words[:count]) for count in range(len(words), 0, -1))
    meant = also.get("".join(words)) or next((spelled[start] for start in starts if start in spelled), name)
    find(MODELS, meant)
    return meant


def _spelled(names: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("-", ""): known for name, known in names.items()}
