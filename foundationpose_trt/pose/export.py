"""Refiner and scorer as ONNX files for TensorRT 8.6 and later and for ONNX Runtime.

The networks are written down once more with every type spelled out, because nn.MultiheadAttention
exports as shape arithmetic that hides the attention from TensorRT's fusion, and because a strongly
typed network needs its casts in the graph. The arithmetic is that of networks.py; the mean over
the tokens is taken before the linear layer it commutes with, which saves 399 of 400 products.

fp16: inputs, weights and activations are half; what computes them sums up in float32, as the
kernels of softmax and LayerNorm do. float32 are the mean over the tokens and all after it: the
refiner's last layer, the whole ranking of the scorer, and the outputs. (With float32 around
softmax and LayerNorm too, the results are as near, and TensorRT cannot fuse the attention.)
"""

from __future__ import annotations

import copy
import inspect
import io
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import __version__
from ..datatypes import require
from ..runtime.engine_manifest import sha256_of, write_atomically
from .crops import CROP_PX, OBSERVED, RENDERED
from .networks import HEADS, TOKENS, RefineNet, ScoreNet, fold_batch_norm
from .weights import (
    MANIFEST,
    OFFICIAL_LAYOUTS,
    PRECISIONS,
    PoseNetworks,
    resolve_folder,
)

if TYPE_CHECKING:
    import onnx

OPSET = 17  # the newest that TensorRT 8.6 parses, the first with LayerNormalization
EXPORTER = 'torch.onnx.export, TorchScript-based (dynamo=False)'
INPUTS = (RENDERED, OBSERVED)
OUTPUTS = {
    'refiner': ('trans', 'rot'),
    'scorer': ('score_logit',),
    'extractor': ('features',),  # the scorer up to its ranking, for hypotheses in several batches
}
WEIGHTS_OF = {'refiner': 'refiner', 'scorer': 'scorer', 'extractor': 'scorer'}
CROP = (6, CROP_PX, CROP_PX)
DYNAMIC = 'dynamic'  # in a request: any batch
# Neither 1, which tracing may take for broadcasting, nor much work.
TRACED_BATCH = 2


def _cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert unless it is so already: the tracer would write a Cast that does nothing."""
    return x if x.dtype == dtype else x.to(dtype)


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


class _Trunk(nn.Module):
    """Both crops (N, 6, 160, 160) to tokens (N, 400, d), in the type of its weights."""

    code: torch.Tensor

    def __init__(self, encode_one: nn.Module, encode_both: nn.Module, code: torch.Tensor) -> None:
        super().__init__()
        self.encode_one, self.encode_both = encode_one, encode_both
        self.channels = code.shape[-1]
        self.register_buffer('code', code)

    def forward(self, rendered: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        count = rendered.shape[0]
        both = self.encode_one(torch.cat([rendered, observed]))
        joined = self.encode_both(torch.cat([both[:count], both[count:]], 1))
        return joined.reshape(-1, self.channels, TOKENS).transpose(1, 2) + self.code


class _Attention(nn.Module):
    """Self-attention of x (B, L, d) up to, without, the output projection.

    shape: (B, L), one of them -1 where it is free.
    """

    def __init__(self, source: nn.MultiheadAttention, shape: tuple[int, int]) -> None:
        super().__init__()
        weights, biases = source.in_proj_weight.chunk(3), source.in_proj_bias.chunk(3)
        self.channels, self.shape = source.embed_dim, shape
        scale = (source.embed_dim // HEADS) ** -0.5
        self.query = _linear(weights[0] * scale, biases[0] * scale)
        self.key, self.value = _linear(weights[1], biases[1]), _linear(weights[2], biases[2])

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(*self.shape, HEADS, self.channels // HEADS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query = self._split(self.query(x)).permute(0, 2, 1, 3)
        key = self._split(self.key(x)).permute(0, 2, 3, 1)
        value = self._split(self.value(x)).permute(0, 2, 1, 3)
        mixed = torch.softmax(query @ key, -1) @ value
        return mixed.permute(0, 2, 1, 3).reshape(*self.shape, self.channels)


class _Head(nn.Module):
    """Encoder layer (post-norm, ReLU), mean over the tokens, linear: (N, 400, d) -> (N, 3)."""

    def __init__(self, layer: nn.TransformerEncoderLayer, last: nn.Linear) -> None:
        super().__init__()
        self.attention = _Attention(layer.self_attn, (-1, TOKENS))
        self.out = layer.self_attn.out_proj
        self.linear1, self.linear2 = layer.linear1, layer.linear2
        self.norm1, self.norm2, self.last = layer.norm1, layer.norm2, last

    def typed(self, dtype: torch.dtype) -> _Head:
        """Set the types: dtype, but the last layer float32."""
        self.to(dtype)
        self.last.to(torch.float32)
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x + self.out(self.attention(x)))
        z = self.norm2(y + self.linear2(torch.relu(self.linear1(y))))
        return self.last(_cast(z, torch.float32).mean(1))


class TypedRefiner(nn.Module):
    """RefineNet with its types spelled out: two crops (N, 6, 160, 160) of dtype -> trans, rot.

    Both outputs (N, 3) float32, with the meaning RefineNet gives them.
    """

    def __init__(self, network: RefineNet, dtype: torch.dtype) -> None:
        super().__init__()
        trunk = _Trunk(network.encodeA, network.encodeAB, network.pos_embed.pe)
        self.trunk = trunk.to(dtype)
        self.trans, self.rot = (
            _Head(head[0], head[1]).typed(dtype)  # type: ignore[arg-type]
            for head in (network.trans_head, network.rot_head)
        )

    def forward(
        self, rendered: torch.Tensor, observed: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.trunk(rendered, observed)
        return self.trans(tokens), self.rot(tokens)


class TypedExtractor(nn.Module):
    """ScoreNet.extract with its types spelled out: two crops of dtype -> (N, d) float32."""

    def __init__(self, network: ScoreNet, dtype: torch.dtype) -> None:
        super().__init__()
        trunk = _Trunk(network.encoderA, network.encoderAB, network.pos_embed.pe)
        self.trunk = trunk.to(dtype)
        self.attention = _Attention(network.att, (-1, TOKENS)).to(dtype)
        self.out = network.att.out_proj

    def forward(self, rendered: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        mixed = self.attention(self.trunk(rendered, observed))
        return self.out(_cast(mixed, torch.float32).mean(1))


class TypedScorer(nn.Module):
    """ScoreNet with its types spelled out: two crops (N, 6, 160, 160) of dtype -> (N,) float32."""

    def __init__(self, network: ScoreNet, dtype: torch.dtype) -> None:
        super().__init__()
        self.extract = TypedExtractor(network, dtype)
        self.across = _Attention(network.att_cross, (1, -1))
        self.out, self.last = network.att_cross.out_proj, network.linear

    def forward(self, rendered: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        features = self.extract(rendered, observed)[None]
        return self.last(self.out(self.across(features))).reshape(-1)


def typed_network(networks: PoseNetworks, kind: str, precision: str) -> nn.Module:
    """Copy one network (a key of OUTPUTS) into its typed form, on the CPU.

    precision: 'fp32' or 'fp16', the dtype of the inputs. Raises ValueError for other words.
    """
    require(kind in OUTPUTS, f'network is "{kind}", must be one of {", ".join(OUTPUTS)}')
    require(
        precision in PRECISIONS,
        f'precision is "{precision}", must be one of {", ".join(PRECISIONS)}',
    )
    make = {'refiner': TypedRefiner, 'scorer': TypedScorer, 'extractor': TypedExtractor}[kind]
    network = copy.deepcopy(getattr(networks, WEIGHTS_OF[kind]))
    network.requires_grad_(False).eval().to('cpu', torch.float32)
    fold_batch_norm(network)
    network.to(memory_format=torch.contiguous_format)
    return make(network, PRECISIONS[precision]).eval().requires_grad_(False)


def onnx_model(
    networks: PoseNetworks, kind: str, precision: str = 'fp32', batch: int | None = None
) -> onnx.ModelProto:
    """Export one network (a key of OUTPUTS) of any device and dtype; nothing is written.

    precision: 'fp32' or 'fp16' (the module's head says what stays float32). batch: fixed number
    of crop pairs, or None for any. Inputs inputA (rendered) and inputB (observed), (batch, 6,
    160, 160) of the precision; outputs float32: trans and rot, (batch, 3), or score_logit,
    (batch,), or features, (batch, d). Every tensor in the file carries its type, checked.
    Raises ValueError for other words, batch < 1, weights too large for fp16, and when the
    package `onnx` is absent.
    """
    require(batch is None or batch >= 1, f'batch is {batch}, must be at least 1, or dynamic')
    network = typed_network(networks, kind, precision)
    large = [key for key, value in network.state_dict().items() if not value.isfinite().all()]
    require(not large, f'{kind}: {large[:4]} hold values that are not finite in {precision}')
    try:
        import onnx
    except ImportError as error:
        raise ValueError("export needs the package onnx: pip install '.[onnx]'") from error
    model = onnx.load_model_from_string(_traced(network, kind, PRECISIONS[precision]))
    if batch is not None:
        for port in (*model.graph.input, *model.graph.output):
            port.type.tensor_type.shape.dim[0].dim_value = batch
    del model.graph.value_info[:]
    model = onnx.shape_inference.infer_shapes(
        model, check_type=True, strict_mode=True, data_prop=True
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _traced(network: nn.Module, kind: str, dtype: torch.dtype) -> bytes:
    # The exporter over TorchScript is in every torch from 2.4 on and needs no further package;
    # dynamo=True needs onnxscript. Until torch 2.5 there is no other, and no word for it.
    choice: dict[str, Any] = {}
    if 'dynamo' in inspect.signature(torch.onnx.export).parameters:
        choice['dynamo'] = False
    crops = torch.zeros(2, TRACED_BATCH, *CROP, dtype=dtype)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        torch.onnx.export(
            network,
            (crops[0], crops[1]),
            file,  # type: ignore[arg-type]
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS[kind]),
            dynamic_axes={name: {0: 'batch'} for name in (*INPUTS, *OUTPUTS[kind])},
            **choice,
        )
    return file.getvalue()


def write_onnx(
    networks: PoseNetworks,
    kind: str,
    path: Path,
    precision: str = 'fp32',
    batch: int | None = None,
) -> None:
    """Write onnx_model(...) to path, whole or not at all; raises as it does."""
    content = onnx_model(networks, kind, precision, batch).SerializeToString()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def ensure_onnx(
    networks: PoseNetworks, request: dict[str, Any], path: Path, force: bool = False
) -> bool:
    """Write the file that export_request describes, and its manifest, if it is not there yet.

    force: also if it is. Returns whether it was written; raises as onnx_model.
    """
    if not force and is_current(path, request):
        return False
    batch = request['batch']
    kind = request['kind']
    write_onnx(networks, kind, path, request['precision'], batch if batch != DYNAMIC else None)
    write_export_manifest(path, request, getattr(networks, WEIGHTS_OF[kind]).width)
    return True


def source_file(weights: str, kind: str) -> Path:
    """File with the weights of one network (a key of OUTPUTS) in a set load_networks takes."""
    folder = resolve_folder(weights)
    if (folder / MANIFEST).exists():
        entry = json.loads((folder / MANIFEST).read_text())['networks'][WEIGHTS_OF[kind]]
        return folder / str(entry['file'])
    for names in OFFICIAL_LAYOUTS:
        if all((folder / name).exists() for name in names):
            return folder / names[0 if kind == 'refiner' else 1]
    raise ValueError(f'{folder} holds no {MANIFEST} and no official set')


def manifest_path(path: Path) -> Path:
    """Manifest beside an ONNX file: refiner.onnx -> refiner.onnx.json."""
    return path.with_name(f'{path.name}.json')


def export_request(
    weights: str, kind: str, precision: str = 'fp32', batch: int | None = None
) -> dict[str, Any]:
    """Say what an export of these weights is made from and how: the manifest's first part."""
    source = source_file(weights, kind)
    return {
        'format': 2,
        'kind': kind,
        'precision': precision,
        'batch': DYNAMIC if batch is None else batch,
        'opset': OPSET,
        'weights': {
            'name': resolve_folder(weights).name,
            'file': source.name,
            'sha256': sha256_of(source),
        },
        'foundationpose_trt': __version__,
    }


def write_export_manifest(path: Path, request: dict[str, Any], width: float) -> None:
    """Write <path>.json: the request, then what the ONNX file is and what wrote it.

    width: the network's, 1.0 = official size. Shapes give a free batch as 'batch'.
    """
    import onnx

    graph = onnx.load(str(path)).graph
    manifest = {
        **request,
        'file': path.name,
        'sha256': sha256_of(path),
        'width': width,
        'inputs': [_port(port) for port in graph.input],
        'outputs': [_port(port) for port in graph.output],
        'exporter': EXPORTER,
        'torch': torch.__version__,
    }
    write_atomically(manifest_path(path), (json.dumps(manifest, indent=2) + '\n').encode())


def _port(port: onnx.ValueInfoProto) -> dict[str, Any]:
    from onnx import helper

    kind = port.type.tensor_type
    return {
        'name': port.name,
        'shape': [size.dim_param or size.dim_value for size in kind.shape.dim],
        'dtype': helper.tensor_dtype_to_np_dtype(kind.elem_type).name,
    }


def is_current(path: Path, request: dict[str, Any]) -> bool:
    """Whether an ONNX file is whole and answers this request, by its manifest."""
    if not path.is_file() or not manifest_path(path).is_file():
        return False
    try:
        manifest = json.loads(manifest_path(path).read_text())
    except ValueError:
        return False
    return manifest == {**manifest, **request} and manifest.get('sha256') == sha256_of(path)
