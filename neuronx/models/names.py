"""Which models are known by name, and the names that others give them."""

import re
from collections.abc import Mapping
from types import ModuleType

from neuronx.models import bloom, gpt2, gptj, llama, opt, t5
from neuronx.models.sizes import find
from neuronx.models.whole import WHOLE

__all__ = ["DECODERS", "MODELS", "resolve"]

DECODERS = (opt, gpt2, gptj, bloom, llama, t5)
_MODULES: tuple[ModuleType, ...] = (*DECODERS, *WHOLE)
# Every published size and the module it is written in.
MODELS: Mapping[str, ModuleType] = {name: module for module in _MODULES for name in module.SIZES}
# Other whole names of the same shapes, and short ones that mean only one of them.
_ALSO_CALLED: Mapping[str, str] = {
    "bert-base": "bert-base-uncased",
    "bert-large": "bert-large-uncased",
    "bge-base-en-v1.5": "bert-base-uncased",
    "bge-large-en-v1.5": "bert-large-uncased",
    "distilbert": "distilbert-base-uncased",
    "distilbert-base": "distilbert-base-uncased",
    "distilroberta": "distilroberta-base",
    "e5-base-v2": "bert-base-uncased",
    "e5-large-v2": "bert-large-uncased",
    "electra-base": "electra-base-discriminator",
    "electra-large": "electra-large-discriminator",
    "gpt-neox": "gpt-neox-20b",
    "resnext50": "resnext50-32x4d",
    "resnext101": "resnext101-32x8d",
    "vicuna-7b-v1.5": "llama-2-7b",
    "vicuna-13b-v1.5": "llama-2-13b",
    "zephyr-7b-beta": "mistral-7b",
}


def resolve(name: str) -> str:
    """The catalog's name of a model as others write it: any case, its owner before it, another variant of the
    same shapes behind it ("meta-llama/Meta-Llama-3-8B-Instruct"), dashes left out or put in ("resnet-50").

    Raises:
      CompileError: none is meant.
    """
    words = re.split(r"[-_ ]+", name.lower().rpartition("/")[2].removeprefix("meta-"))
    also, spelled = _spelled(_ALSO_CALLED), _spelled({known: known for known in MODELS})
    starts = ("".join(words[:count]) for count in range(len(words), 0, -1))
    meant = also.get("".join(words)) or next((spelled[start] for start in starts if start in spelled), name)
    find(MODELS, meant)
    return meant


def _spelled(names: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("-", ""): known for name, known in names.items()}
