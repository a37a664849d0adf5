"""Refiner and scorer as ONNX files for TensorRT 8.6 and later and for ONNX Runtime."""

from __future__ import annotations

import copy
import inspect
import io
import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import __version__
from ..datatypes import require
from ..runtime.engine_manifest import sha256_of, write_atomically
from .crop_blocks import shape_in_blocks
from .crops import CROP_PX, OBSERVED, PAIR, PAIRS, RENDERED
from .networks import fold_batch_norm
from .pixel_kernels import CHANNELS
from .quantization import read_scales
from .quantized_networks import quantized_stage
from .typed_networks import (
    Rewrite,
    TypedExtractor,
    TypedRefiner,
    TypedScorer,
    TypedTrunk,
    sums_apart,
)
from .weights import (
    ALL_PRECISIONS,
    INT8,
    MANIFEST,
    OFFICIAL_LAYOUTS,
    PoseNetworks,
    resolve_folder,
)

if TYPE_CHECKING:
    import onnx

OPSET = 17  # the newest that TensorRT 8.6 parses, the first with LayerNormalization
HALF_OPSET = 19  # the first whose QuantizeLinear takes half; for TensorRT 10 and later
EXPORTER = 'torch.onnx.export, TorchScript-based (dynamo=False)'
OUTPUTS = {
    'refiner': ('trans', 'rot'),
    'scorer': ('score_logit',),
    'extractor': ('features',),  # the scorer up to its ranking, for hypotheses in several batches
    'refiner_trunk': ('image',),  # its convolutions (heads.py has the rest)
    'extractor_trunk': ('image',),
}
WEIGHTS_OF = {
    'refiner': 'refiner',
    'scorer': 'scorer',
    'extractor': 'scorer',
    'refiner_trunk': 'refiner',
    'extractor_trunk': 'scorer',
}
TRUNKS = ('refiner_trunk', 'extractor_trunk')
QUANTIZED = 'refiner_trunk'  # what precision int8 quantizes
CROP = (CHANNELS, CROP_PX, CROP_PX)
DYNAMIC = 'dynamic'  # in a request: any batch
# How residual sums are written (typed_networks.py), and what int8 files are without the types that
# TensorRT 8.6 chooses itself: all that is not in integers is float32, as its QuantizeLinear wants.
FUSED, APART, UNTYPED = 'fused', 'apart', 'untyped'
# Neither 1, which tracing may take for broadcasting, nor much work.
TRACED_BATCH = 2


def typed_network(
    networks: PoseNetworks, kind: str, precision: str, form: str = FUSED
) -> nn.Module:
    """Copy one network (a key of OUTPUTS) into its typed form, on the CPU.

    precision: 'fp32' or 'fp16', the dtype of the inputs; of the refiner's trunk also 'int8', with
    half inputs. form: one of forms_of. Raises ValueError for other words, and where int8 has no
    scales.
    """
    require(kind in OUTPUTS, f'network is "{kind}", must be one of {", ".join(OUTPUTS)}')
    require(
        precision in precisions_of(kind),
        f'precision is "{precision}", must be one of {", ".join(precisions_of(kind))}',
    )
    forms = forms_of(kind, precision)
    require(form in forms, f'form of the {kind} is "{form}", must be {" or ".join(forms)}')
    rewrite: Rewrite | None = sums_apart if form == APART else None
    if precision == INT8:
        rewrite = partial(quantized_stage, scales=scales_of(networks))
    trunk = partial(TypedTrunk, rewrite=rewrite, on_blocks=on_blocks(kind, precision))
    make: dict[str, Callable[..., nn.Module]] = {
        'refiner': TypedRefiner,
        'scorer': TypedScorer,
        'extractor': TypedExtractor,
        **dict.fromkeys(TRUNKS, trunk),
    }
    network = copy.deepcopy(getattr(networks, WEIGHTS_OF[kind]))
    network.requires_grad_(False).eval().to('cpu', torch.float32)
    fold_batch_norm(network)
    network.to(memory_format=torch.contiguous_format)
    return make[kind](network, type_of(precision, form)).eval().requires_grad_(False)


def on_blocks(kind: str, precision: str) -> bool:
    """Whether a network takes its crops in blocks: for matrix units, which half has."""
    return kind in TRUNKS and precision != 'fp32'


def inputs_of(kind: str) -> tuple[str, ...]:
    """Names of a network's inputs: a trunk has both halves, one behind the other, in one."""
    return (PAIRS,) if kind in TRUNKS else (RENDERED, OBSERVED)


def precisions_of(kind: str) -> tuple[str, ...]:
    """Precisions that a network (a key of OUTPUTS) can be exported in."""
    return tuple(name for name in ALL_PRECISIONS if name != INT8 or kind == QUANTIZED)


def forms_of(kind: str, precision: str) -> tuple[str, ...]:
    """Forms that a network can be exported in."""
    if precision == INT8:
        return (FUSED, UNTYPED)
    return (FUSED, APART) if kind in TRUNKS else (FUSED,)


def type_of(precision: str, form: str) -> torch.dtype:
    """Return what is not in integers, inputs and outputs included, in a file."""
    return torch.float32 if form == UNTYPED else ALL_PRECISIONS[precision]


def opset_of(precision: str, form: str) -> int:
    """Return the version of ONNX's operators that a file is written in."""
    return HALF_OPSET if precision == INT8 and form == FUSED else OPSET


def scales_of(networks: PoseNetworks) -> dict[str, float]:
    """Return the scales of the refiner's quantized convolutions; raises as read_scales."""
    require(
        networks.source is not None,
        f'weights {networks.name} were not loaded from files: there are no scales for int8',
    )
    folder = resolve_folder(str(networks.source))
    return read_scales(folder, sha256_of(source_file(str(folder), QUANTIZED)))


def onnx_model(
    networks: PoseNetworks,
    kind: str,
    precision: str = 'fp32',
    batch: int | None = None,
    form: str = FUSED,
) -> onnx.ModelProto:
    """Export one network (a key of OUTPUTS) of any device and dtype; nothing is written.

    precision: 'fp32' or 'fp16' (typed_networks.py says what stays float32), of QUANTIZED 'int8'.
    batch: fixed number of crop pairs, or None for any. form: as typed_network takes it. Inputs
    inputA (rendered) and inputB (observed), (batch, 6, 160, 160) of type_of(...); of a trunk
    crops, (2 * batch, 6, 160, 160), the rendered ones first, or (2 * batch, 96, 40, 40) where they
    come in blocks. Outputs float32: trans and rot, (batch, 3), or score_logit, (batch,), or
    features, (batch, d); of a trunk, of the inputs' type, image, (batch, d, 20, 20). Every tensor
    in the file carries its type, checked.
    Raises ValueError for other words, batch < 1, weights too large for fp16, and when the
    package `onnx` is absent.
    """
    require(batch is None or batch >= 1, f'batch is {batch}, must be at least 1, or dynamic')
    network = typed_network(networks, kind, precision, form)
    large = [key for key, value in network.state_dict().items() if not value.isfinite().all()]
    require(not large, f'{kind}: {large[:4]} hold values that are not finite in {precision}')
    try:
        import onnx
    except ImportError as error:
        raise ValueError('export needs the package onnx: pip install onnx onnxruntime') from error
    inputs = _sample(kind, precision, type_of(precision, form))
    traced = _traced(network, kind, inputs, opset_of(precision, form))
    model = onnx.load_model_from_string(traced)
    if precision == INT8:
        _without_identities(model.graph)
    if batch is not None:
        for port in (*model.graph.input, *model.graph.output):
            size = PAIR * batch if port.name == PAIRS else batch
            port.type.tensor_type.shape.dim[0].dim_value = size
    del model.graph.value_info[:]
    model = onnx.shape_inference.infer_shapes(
        model, check_type=True, strict_mode=True, data_prop=True
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _without_identities(graph: onnx.GraphProto) -> None:
    """Read what Identity nodes copy directly: TensorRT 8.6 takes no zero point from one."""
    copies = {node.output[0]: node.input[0] for node in graph.node if node.op_type == 'Identity'}
    for node in graph.node:
        for place, name in enumerate(node.input):
            while name in copies:
                name = node.input[place] = copies[name]
    kept = [node for node in graph.node if node.op_type != 'Identity']
    del graph.node[:]
    graph.node.extend(kept)


def _sample(kind: str, precision: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Return what a network is traced with."""
    if kind not in TRUNKS:
        crops = torch.zeros(2, TRACED_BATCH, *CROP, dtype=dtype)
        return crops[0], crops[1]
    crop = shape_in_blocks(CROP_PX, CROP_PX) if on_blocks(kind, precision) else CROP
    return (torch.zeros(PAIR * TRACED_BATCH, *crop, dtype=dtype),)


def _traced(network: nn.Module, kind: str, inputs: tuple[torch.Tensor, ...], opset: int) -> bytes:
    # The exporter over TorchScript is in every torch from 2.4 on and needs no further package;
    # dynamo=True needs onnxscript. Until torch 2.5 there is no other, and no word for it.
    choice: dict[str, Any] = {}
    if 'dynamo' in inspect.signature(torch.onnx.export).parameters:
        choice['dynamo'] = False
    given, found = inputs_of(kind), OUTPUTS[kind]
    # the input of both halves is twice as long as what is called a batch
    lengths = {name: 'crops' if name == PAIRS else 'batch' for name in (*given, *found)}
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        torch.onnx.export(
            network,
            inputs,
            file,  # type: ignore[arg-type]
            opset_version=opset,
            input_names=list(given),
            output_names=list(found),
            dynamic_axes={name: {0: length} for name, length in lengths.items()},
            **choice,
        )
    return file.getvalue()


def write_onnx(
    networks: PoseNetworks,
    kind: str,
    path: Path,
    precision: str = 'fp32',
    batch: int | None = None,
    form: str = FUSED,
) -> None:
    """Write onnx_model(...) to path, whole or not at all; raises as it does."""
    content = onnx_model(networks, kind, precision, batch, form).SerializeToString()
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
    kind, batch = request['kind'], request['batch'] if request['batch'] != DYNAMIC else None
    write_onnx(networks, kind, path, request['precision'], batch, request['form'])
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
            return folder / names[0 if WEIGHTS_OF[kind] == 'refiner' else 1]
    raise ValueError(f'{folder} holds no {MANIFEST} and no official set')


def manifest_path(path: Path) -> Path:
    """Manifest beside an ONNX file: refiner.onnx -> refiner.onnx.json."""
    return path.with_name(f'{path.name}.json')


def export_request(
    weights: str,
    kind: str,
    precision: str = 'fp32',
    batch: int | None = None,
    form: str = FUSED,
) -> dict[str, Any]:
    """Say what an export of these weights is made from and how: the manifest's first part."""
    source = source_file(weights, kind)
    told = sha256_of(source)
    scales = {'scales': read_scales(resolve_folder(weights), told)} if precision == INT8 else {}
    return {
        'format': 7,
        'kind': kind,
        'precision': precision,
        'form': form,
        'batch': DYNAMIC if batch is None else batch,
        'opset': opset_of(precision, form),
        **scales,
        'weights': {
            'name': resolve_folder(weights).name,
            'file': source.name,
            'sha256': told,
        },
        'foundationpose_trt': __version__,
    }


def write_export_manifest(path: Path, request: dict[str, Any], width: float) -> None:
    """Write <path>.json: the request, then what the ONNX file is and what wrote it.

    width: the network's, 1.0 = official size. Shapes give a free batch as 'batch', that of both
    halves in one as 'crops'.
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


def exported_scales(path: Path) -> dict[str, float] | None:
    """Scales that an ONNX file was made with; None where it has none, or its manifest is gone."""
    try:
        found = json.loads(manifest_path(path).read_text()).get('scales')
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, dict) else None


def exported_weights(path: Path) -> str | None:
    """SHA-256 of the weights that an ONNX file was made from; None where its manifest is gone."""
    try:
        return str(json.loads(manifest_path(path).read_text())['weights']['sha256'])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_current(path: Path, request: dict[str, Any]) -> bool:
    """Whether an ONNX file is whole and answers this request, by its manifest."""
    if not path.is_file() or not manifest_path(path).is_file():
        return False
    try:
        manifest = json.loads(manifest_path(path).read_text())
    except ValueError:
        return False
    return manifest == {**manifest, **request} and manifest.get('sha256') == sha256_of(path)
