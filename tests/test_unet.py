"Options of the network that no shipped checkpoint uses: written out by hand, as the published networks do them."
import math
import pytest, torch, torch.nn.functional as F
from gen2res.unet import Attention, Down, ResBlock, UNet, Up, timestep_embedding

KW = dict(model_channels=32, out_channels=3, num_res_blocks=1, channel_mult=(1,2), attention_pixels=[8,16], resblock_updown=False)
def some(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
def filled(net):
    "Nothing stays zero, or nothing could be seen."
    for i,p in enumerate(net.parameters()): p.data = some(*p.shape, seed=i)*.2
    return net.eval().requires_grad_(False)

@pytest.mark.parametrize('new_order', [False, True])
def test_both_orders_of_heads(new_order):
    a,x,heads = filled(Attention(64, 4, new_order)),some(2, 64, 3, 5),4
    qkv = a.qkv(a.norm(x).flatten(2)); d = 64//heads
    def one(b, h): # channels of head h: [q of all heads, k of all, v of all], or [q, k, v] of one head after the other
        q,k,v = ((qkv[b, j*64+h*d:j*64+(h+1)*d] if new_order else qkv[b, h*3*d+j*d:h*3*d+(j+1)*d]) for j in range(3))
        return v @ ((q.T @ k)/math.sqrt(d)).softmax(1).T
    out = torch.stack([torch.cat([one(b, h) for h in range(heads)]) for b in range(2)])
    assert torch.allclose(a(x), x+a.proj_out(out).view_as(x), atol=1e-4)

def test_the_noise_level_is_added_where_nothing_is_scaled():
    r,x,emb = filled(ResBlock(32, 64, 16, scale_shift=False)),some(2, 32, 4, 4),some(2, 16, seed=1)
    h = r.in_layers(x)+r.emb_layers(emb)[...,None,None]
    assert torch.allclose(r(x, emb), r.skip_connection(x)+r.out_layers(h), atol=1e-5)
    assert r.emb_layers[1].out_features==64 and ResBlock(32, 64, 16).emb_layers[1].out_features==128
    net = filled(UNet(16, **KW, use_scale_shift_norm=False)); assert net(some(1,3,16,16), torch.tensor([3])).shape==(1,3,16,16)

def test_heads_of_the_right_side():
    heads = lambda blocks: {m.heads for b in blocks for m in b.modules() if isinstance(m, Attention)}
    net = UNet(16, **KW, num_heads=2, num_heads_upsample=4)
    assert heads(net.input_blocks)==heads([net.middle_block])=={2} and heads(net.output_blocks)=={4}
    net = UNet(16, **KW, num_heads=2); assert heads(net.output_blocks)=={2}
    net = UNet(16, **KW, num_heads=2, num_heads_upsample=4, num_head_channels=16)        # channels decide
    assert heads(net.output_blocks)==heads(net.input_blocks)=={2,4} and heads([net.middle_block])=={4}

def test_sides_change_without_weights():
    net,plain = UNet(16, **KW),UNet(16, **KW, conv_resample=False)
    assert {*net.state_dict()}-{*plain.state_dict()}=={f'{k}.{p}' for k in ('input_blocks.2.0.op', 'output_blocks.1.2.conv') for p in ('weight','bias')} and {*plain.state_dict()} <= {*net.state_dict()}
    x = some(1,2,4,6); assert torch.equal(Up()(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3)) and torch.allclose(Down()(x), F.avg_pool2d(x, 2))
    assert filled(plain)(some(1,3,16,16), torch.tensor([3])).shape==(1,3,16,16)

def test_linear_maps_lead_around_the_network():
    net,plain = filled(UNet(16, **KW, patch=2, bypass=3)),filled(UNet(16, **KW, patch=2))     # the same weights: those of the bypass come last
    x,t = some(2,3,16,16),torch.tensor([3, 700]); folded = F.pixel_unshuffle(x, 2)
    mix = net.bypass.mix(net.time_embed(timestep_embedding(t, 32))); maps = net.bypass.maps.weight.split(12)
    around = sum(mix[:,n,None,None,None]*F.conv2d(folded, maps[n], padding=1) for n in range(3))
    assert torch.allclose(net(x, t)-plain(x, t), F.pixel_shuffle(around, 2), atol=1e-3) and around.std()>.1
    assert not any(UNet(16, **KW, patch=2, bypass=3)(x, t).flatten())                         # an untrained one says nothing
