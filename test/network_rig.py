"""The published networks as foundationpose.md §1 documents them: key table and arithmetic.

Written from the document with torch.nn.functional only, so that it can judge pose/networks.py.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

NAMES = {'refiner': ('encodeA', 'encodeAB'), 'scorer': ('encoderA', 'encoderAB')}
BATCH_NORM = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')

Shapes = dict[str, tuple[int, ...]]
State = dict[str, torch.Tensor]


def conv_shapes(conv: str, norm: str, c_out: int, c_in: int, kernel: int) -> Shapes:
    shapes: Shapes = {f'{conv}.weight': (c_out, c_in, kernel, kernel), f'{conv}.bias': (c_out,)}
    for name in BATCH_NORM:
        shapes[f'{norm}.{name}'] = () if name == 'num_batches_tracked' else (c_out,)
    return shapes


def block_shapes(name: str, channels: int) -> Shapes:
    return {
        **conv_shapes(f'{name}.conv1', f'{name}.bn1', channels, channels, 3),
        **conv_shapes(f'{name}.conv2', f'{name}.bn2', channels, channels, 3),
    }


def attention_shapes(name: str, d: int) -> Shapes:
    return {
        f'{name}.in_proj_weight': (3 * d, d),
        f'{name}.in_proj_bias': (3 * d,),
        f'{name}.out_proj.weight': (d, d),
        f'{name}.out_proj.bias': (d,),
    }


def head_shapes(name: str, d: int) -> Shapes:
    shapes = attention_shapes(f'{name}.0.self_attn', d)
    for layer in ('linear1', 'linear2'):
        shapes |= {f'{name}.0.{layer}.weight': (d, d), f'{name}.0.{layer}.bias': (d,)}
    for layer in ('norm1', 'norm2'):
        shapes |= {f'{name}.0.{layer}.weight': (d,), f'{name}.0.{layer}.bias': (d,)}
    return shapes | {f'{name}.1.weight': (3, d), f'{name}.1.bias': (3,)}


def documented_shapes(kind: str, width: float = 1.0) -> Shapes:
    """Every key and shape of §1.5."""
    a, ab = NAMES[kind]
    c64, c128, c256, d = (int(c * width) for c in (64, 128, 256, 512))
    shapes: Shapes = {
        **conv_shapes(f'{a}.0.net.0', f'{a}.0.net.1', c64, 6, 7),
        **conv_shapes(f'{a}.1.net.0', f'{a}.1.net.1', c128, c64, 3),
        **block_shapes(f'{a}.2', c128),
        **block_shapes(f'{a}.3', c128),
        **block_shapes(f'{ab}.0', c256),
        **block_shapes(f'{ab}.1', c256),
        **conv_shapes(f'{ab}.2.net.0', f'{ab}.2.net.1', d, c256, 3),
        **block_shapes(f'{ab}.3', d),
        **block_shapes(f'{ab}.4', d),
        'pos_embed.pe': (1, 400, d),
    }
    if kind == 'refiner':
        return {**shapes, **head_shapes('trans_head', d), **head_shapes('rot_head', d)}
    last: Shapes = {'linear.weight': (1, d), 'linear.bias': (1,)}
    return {**shapes, **attention_shapes('att', d), **attention_shapes('att_cross', d), **last}


def embedding(d: int) -> torch.Tensor:
    """§1.1: sine on even channels, cosine on odd ones, base 10000."""
    position, channel = np.arange(400)[:, None], np.arange(d)[None]
    angle = position / 10000.0 ** ((channel // 2 * 2) / d)
    code = np.where(channel % 2 == 0, np.sin(angle), np.cos(angle))
    return torch.from_numpy(code).float()[None]


def random_value(key: str, shape: tuple[int, ...], g: torch.Generator) -> torch.Tensor:
    if key.endswith('num_batches_tracked'):
        return torch.tensor(1234)
    if key == 'pos_embed.pe':
        return embedding(shape[2])
    noise = torch.randn(shape, generator=g)
    if key.endswith('running_var'):
        return 0.5 + noise.abs()
    if len(shape) == 1:
        return (1.0 if key.endswith('weight') else 0.0) + 0.2 * noise
    fan_in = noise[0].numel()
    return noise * (1.5 / fan_in) ** 0.5


def random_state(kind: str, width: float = 1.0, seed: int = 0) -> State:
    """A state_dict of §1.5 with numbers that keep the activations near one."""
    g = torch.Generator().manual_seed(seed)
    shapes = documented_shapes(kind, width)
    return {key: random_value(key, shape, g) for key, shape in shapes.items()}


def folded(state: State) -> State:
    """Batch norm merged into the convolutions by its formula (eps 1e-5), in double precision."""
    out = {key: value for key, value in state.items() if '.net.' not in key and '.bn' not in key}
    pairs = [(k[:-7], k[:-7].replace('.net.0', '.net.1')) for k in state if '.net.0.weight' in k]
    pairs += [
        (k[:-7], k[:-7].replace('.conv', '.bn'))
        for k in state
        if '.conv' in k and k.endswith('.weight')
    ]
    for conv, norm in pairs:
        gain = (
            state[f'{norm}.weight'].double()
            / (state[f'{norm}.running_var'].double() + 1e-5).sqrt()
        )
        weight, bias = state[f'{conv}.weight'].double(), state[f'{conv}.bias'].double()
        offset = (bias - state[f'{norm}.running_mean'].double()) * gain
        out[f'{conv}.weight'] = (weight * gain[:, None, None, None]).float()
        out[f'{conv}.bias'] = (offset + state[f'{norm}.bias'].double()).float()
    return out


def conv_norm(s: State, conv: str, norm: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    weight = s[f'{conv}.weight']
    x = F.conv2d(x, weight, s[f'{conv}.bias'], stride, (weight.shape[-1] - 1) // 2)
    mean, var = s[f'{norm}.running_mean'], s[f'{norm}.running_var']
    return F.batch_norm(x, mean, var, s[f'{norm}.weight'], s[f'{norm}.bias'], False, 0.1, 1e-5)


def block(s: State, name: str, x: torch.Tensor) -> torch.Tensor:
    y = F.relu(conv_norm(s, f'{name}.conv1', f'{name}.bn1', x))
    return F.relu(conv_norm(s, f'{name}.conv2', f'{name}.bn2', y) + x)


def trunk(s: State, kind: str, rendered: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
    """§1.2: tokens (N, 400, d)."""
    a, ab = NAMES[kind]

    def one(x: torch.Tensor) -> torch.Tensor:
        for k in (0, 1):
            x = F.relu(conv_norm(s, f'{a}.{k}.net.0', f'{a}.{k}.net.1', x, 2))
        return block(s, f'{a}.3', block(s, f'{a}.2', x))

    x = torch.cat([one(rendered), one(observed)], 1)
    x = block(s, f'{ab}.1', block(s, f'{ab}.0', x))
    x = F.relu(conv_norm(s, f'{ab}.2.net.0', f'{ab}.2.net.1', x, 2))
    x = block(s, f'{ab}.4', block(s, f'{ab}.3', x))
    n, d = x.shape[:2]
    tokens = torch.stack([x[:, :, k // 20, k % 20] for k in range(400)], 1)
    assert tokens.shape == (n, 400, d)
    return tokens + s['pos_embed.pe']


def attention(s: State, name: str, x: torch.Tensor) -> torch.Tensor:
    """Four heads of self-attention, (N, T, d)."""
    n, t, d = x.shape
    qkv = x @ s[f'{name}.in_proj_weight'].T + s[f'{name}.in_proj_bias']
    q, k, v = (part.view(n, t, 4, d // 4).transpose(1, 2) for part in qkv.chunk(3, -1))
    weights = torch.softmax(q @ k.transpose(-1, -2) / (d // 4) ** 0.5, -1)
    joined = (weights @ v).transpose(1, 2).reshape(n, t, d)
    return joined @ s[f'{name}.out_proj.weight'].T + s[f'{name}.out_proj.bias']


def head(s: State, name: str, x: torch.Tensor) -> torch.Tensor:
    """§1.3: post-norm encoder layer with ReLU, linear, mean over the tokens."""

    def linear(layer: str, y: torch.Tensor) -> torch.Tensor:
        return y @ s[f'{name}.{layer}.weight'].T + s[f'{name}.{layer}.bias']

    def norm(layer: str, y: torch.Tensor) -> torch.Tensor:
        gain, bias = s[f'{name}.0.{layer}.weight'], s[f'{name}.0.{layer}.bias']
        return F.layer_norm(y, y.shape[-1:], gain, bias, 1e-5)

    x = norm('norm1', x + attention(s, f'{name}.0.self_attn', x))
    x = norm('norm2', x + linear('0.linear2', F.relu(linear('0.linear1', x))))
    return linear('1', x).mean(1)


def refine(s: State, rendered: torch.Tensor, observed: torch.Tensor) -> State:
    """§1.3 as a whole: {'trans', 'rot'}, each (N, 3)."""
    tokens = trunk(s, 'refiner', rendered, observed)
    return {'trans': head(s, 'trans_head', tokens), 'rot': head(s, 'rot_head', tokens)}


def score(s: State, rendered: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
    """§1.4: logits (1, N) of N hypotheses of one object."""
    features = attention(s, 'att', trunk(s, 'scorer', rendered, observed)).mean(1)
    crossed = attention(s, 'att_cross', features[None])
    return (crossed @ s['linear.weight'].T + s['linear.bias'])[..., 0]


def crops(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rendered and observed crops (n, 6, 160, 160) float32 of smooth random content."""
    g = torch.Generator().manual_seed(seed)
    small = torch.rand(2, n, 6, 20, 20, generator=g)
    large = F.interpolate(small.flatten(0, 1), (160, 160), mode='bilinear')
    return large[:n].contiguous(), large[n:].contiguous()
