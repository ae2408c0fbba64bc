"""Models of ``neuronx.models`` have as many parameters as was published."""

import jax
import jax.numpy as jnp
import pytest

from neuronx.models import bert, clip, deberta, esm, gpt, llama, perceiver, resnet, text_perceiver, vgg, vit
from neuronx.models.layers import tensor_parallel
from neuronx.models.names import MODELS


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama-7b", 6.74),
        ("llama-30b", 32.53),
        ("llama-65b", 65.29),
        ("llama-2-7b", 6.74),
        ("llama-2-13b", 13.0),
        ("llama-2-70b", 69.0),
        ("llama-3-8b", 8.03),
        ("llama-3.1-70b", 70.6),
        ("llama-3.1-405b", 405.85),
        ("llama-3.2-1b", 1.236),
        ("llama-3.2-3b", 3.213),
        ("codellama-34b", 33.74),
        ("codellama-70b", 68.98),
        ("tinyllama-1.1b", 1.1),
        ("mistral-7b", 7.24),
        ("mixtral-8x7b", 46.70),
        ("mixtral-8x22b", 140.62),
        ("mistral-7b-v0.3", 7.248),
        ("mistral-nemo-12b", 12.25),
        ("mistral-small-24b", 23.57),
        ("qwen2.5-0.5b", 0.494),
        ("qwen2.5-1.5b", 1.544),
        ("qwen2.5-3b", 3.086),
        ("qwen2.5-7b", 7.616),
        ("qwen2.5-14b", 14.77),
        ("qwen2.5-32b", 32.76),
        ("qwen2.5-72b", 72.71),
        ("qwen3-0.6b", 0.596),
        ("qwen3-4b", 4.02),
        ("qwen3-8b", 8.19),
        ("qwen3-32b", 32.76),
        ("gemma-2b", 2.506),
        ("gemma-7b", 8.538),
        ("phi-3-mini", 3.821),
        ("phi-3-medium", 13.96),
        ("phi-4-14b", 14.66),
        ("yi-6b", 6.061),
        ("yi-34b", 34.39),
        ("solar-10.7b", 10.73),
        ("codestral-22b", 22.25),
        ("mistral-large-123b", 122.61),
        ("qwen1.5-0.5b", 0.464),
        ("qwen1.5-1.8b", 1.837),
        ("qwen1.5-4b", 3.95),
        ("qwen1.5-7b", 7.721),
        ("qwen1.5-14b", 14.17),
        ("qwen1.5-72b", 72.29),
        ("deepseek-r1-distill-qwen-1.5b", 1.777),
        ("yi-9b", 8.829),
        ("open-llama-3b", 3.426),
        ("deepseek-llm-7b", 6.91),
        ("deepseek-llm-67b", 67.43),
        ("baichuan2-7b", 7.506),
        ("baichuan2-13b", 13.90),
        ("internlm2-7b", 7.738),
        ("internlm2-20b", 19.86),
        ("falcon3-1b", 1.669),
        ("falcon3-3b", 3.228),
        ("falcon3-7b", 7.456),
        ("falcon3-10b", 10.31),
        ("granite-3.1-2b", 2.534),
        ("granite-3.1-8b", 8.171),
        ("smollm2-135m", 0.1345),
        ("smollm2-360m", 0.3618),
        ("smollm2-1.7b", 1.711),
        ("aya-23-8b", 8.028),
        ("c4ai-command-r-v01", 34.98),
    ],
)
def test_published_llamas_have_their_published_size(name: str, billions: float) -> None:
    shapes = jax.tree_util.tree_leaves(llama.parameter_shapes(llama.config(name), jnp.bfloat16))
    assert sum(shape.size for shape in shapes) == pytest.approx(billions * 1e9, rel=0.005)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("gpt-j-6b", 6.05),
        ("gpt-neox-20b", 20.55),
        ("codegen-350m", 0.3567),
        ("codegen-2b", 2.779),
        ("codegen-6b", 7.064),
        ("codegen-16b", 16.03),
        ("stablelm-3b-4e1t", 2.795),
        ("stablelm-2-1.6b", 1.6445),
        ("pythia-70m", 0.07043),
        ("pythia-160m", 0.16232),
        ("pythia-410m", 0.40533),
        ("pythia-1b", 1.0118),
        ("pythia-1.4b", 1.415),
        ("pythia-12b", 11.85),
        ("t5-small", 0.060506624),
        ("t5-3b", 2.851598336),
        ("flan-t5-base", 0.247577856),
        ("flan-t5-xl", 2.849757184),
        # With a bias of each token's logit.
        ("bart-base", 0.139470681),
        ("bart-large", 0.406341721),
        ("mbart-large-50", 0.611129542),
        ("opus-mt-en-de", 0.074468597),
        ("mt5-small", 0.300176768),
        ("mt5-base", 0.582401280),
        ("mt5-large", 1.229581312),
        ("mt5-xl", 3.742619648),
        ("whisper-tiny", 0.03776),
        ("whisper-base", 0.07259),
        ("whisper-small", 0.24173),
        ("whisper-medium", 0.76386),
        ("whisper-large", 1.5433),
        ("whisper-large-v3-turbo", 0.80888),
        ("distil-small.en", 0.1661),
        ("distil-medium.en", 0.3944),
        ("bloom-560m", 0.559),
        ("bloom-7b1", 7.069),
        ("bloom-176b", 176.247),
        ("mpt-7b", 6.649),
        ("mpt-30b", 29.96),
        # Without a head of its own.
        ("falcon-7b", 7.217 - 0.295),
        ("falcon-40b", 41.836 - 0.533),
        ("falcon-11b", 11.10),
        ("starcoderbase-1b", 1.137),
        ("starcoderbase-3b", 3.043),
        ("starcoderbase-7b", 7.327),
        ("starcoder-15b", 15.52),
        ("starcoder2-3b", 3.03),
        ("starcoder2-7b", 7.17),
        ("starcoder2-15b", 15.96),
        ("phi-1.5", 1.418),
        ("phi-2", 2.78),
    ],
)
def test_published_decoders_have_their_published_size(name: str, billions: float) -> None:
    module = MODELS[name]
    shapes = jax.tree_util.tree_leaves(module.parameter_shapes(module.config(name), jnp.bfloat16))
    assert sum(shape.size for shape in shapes) == pytest.approx(billions * 1e9, rel=0.005)


def test_published_encoders_and_classifiers_have_their_published_size() -> None:
    sizes = {
        "bert-base-uncased": (bert, 109.5e6),
        "bert-large-uncased": (bert, 335.1e6),
        "roberta-base": (bert, 124.6e6),
        "distilbert-base-uncased": (bert, 66.4e6),
        "gpt2": (gpt, 124.4e6),
        "gpt2-xl": (gpt, 1557.6e6),
        "vit-base-patch16-224": (vit, 86.6e6),
        "vit-large-patch16-224": (vit, 304.3e6),
        # Batch norms are folded: their scales and means are gone.
        "resnet18": (resnet, 11.69e6),
        "resnet50": (resnet, 25.5e6),
        "resnext50-32x4d": (resnet, 25_028_904),
        "resnext101-32x8d": (resnet, 88_791_336),
        "resnext101-64x4d": (resnet, 83_455_272),
        "wide-resnet50-2": (resnet, 68_883_240),
        "wide-resnet101-2": (resnet, 126_886_696),
        "vgg11": (vgg, 132_863_336),
        "vgg13": (vgg, 133_047_848),
        "vgg16": (vgg, 138_357_544),
        "vgg19": (vgg, 143_667_240),
        "mpnet-base": (bert, 109_486_464),
        "bge-m3": (bert, 567_754_752),
        "bert-base-multilingual-uncased": (bert, 167.4e6),
        "bert-base-chinese": (bert, 102.3e6),
        "multilingual-e5-small": (bert, 117.7e6),
        "labse": (bert, 470.9e6),
        "albert-base-v2": (bert, 11.7e6),
        "albert-large-v2": (bert, 17.7e6),
        "albert-xlarge-v2": (bert, 58.7e6),
        "albert-xxlarge-v2": (bert, 222.6e6),
        "electra-small-discriminator": (bert, 13.5e6),
        "all-minilm-l6-v2": (bert, 22.7e6),
        "deit-tiny-patch16-224": (vit, 5.72e6),
        "deit-small-patch16-224": (vit, 22.05e6),
        "vit-base-patch32-384": (vit, 88.3e6),
        "clip-vit-base-patch32": (clip, 151.3e6),
        "clip-vit-large-patch14": (clip, 427.6e6),
        "vision-perceiver-learned": (perceiver, 62.3e6),
        "language-perceiver": (text_perceiver, 201_108_230),
        "deberta-v3-xsmall": (deberta, 70_682_112),
        "deberta-v3-base": (deberta, 183_831_552),
        "deberta-v3-large": (deberta, 434_012_160),
        "mdeberta-v3-base": (deberta, 278_218_752),
        # Less the head that tells what is hidden.
        "esm2-t6-8m-ur50d": (esm, 7_512_353 - 103_393),
        "esm2-t33-650m-ur50d": (esm, 651.04e6 - 1.64e6),
    }
    for name, (module, count) in sizes.items():
        shapes = jax.tree_util.tree_leaves(module.parameter_shapes(module.config(name), jnp.float32))
        assert sum(shape.size for shape in shapes) == pytest.approx(count, rel=0.005), name


def test_the_classic_plan_cuts_columns_then_rows() -> None:
    params = llama.parameter_shapes(llama.config("llama-2-7b"), jnp.bfloat16)
    specs = tensor_parallel(params)
    layer = specs["layers"][0]
    assert tuple(layer["q"]["w"]) == tuple(layer["gate"]["w"]) == (None, "tp")
    assert tuple(layer["o"]["w"]) == tuple(layer["down"]["w"]) == ("tp",)
    assert tuple(specs["tokens"]) == tuple(layer["ffn_norm"]) == ()
