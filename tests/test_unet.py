"Options of the network that no shipped checkpoint uses: written out by hand, as the published networks do them."
import math
import pytest, torch, torch.nn.functional as F
from gen2res.schedule import Schedule
from gen2res.unet import Attention, Down, ResBlock, UNet, Up, around

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
    assert torch.allclose(r(x, r.emb_layers(emb)), r.skip_connection(x)+r.out_layers(h), atol=1e-5)
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
    "A mixture of maps of the folded pixels, between two levels the mean of theirs; an unsolved one says nothing."
    net,plain = filled(UNet(16, **KW, patch=2, bypass=3)),filled(UNet(16, **KW, patch=2)); b = net.bypass
    x,t = some(2,3,16,16),torch.tensor([3., 700.5]); folded = F.pixel_unshuffle(x, 2)
    assert net(x, t).equal(plain(x, t)) and {*net.state_dict()}-{*plain.state_dict()}=={'bypass.maps', 'bypass.mix'} and not [*b.parameters()]
    b.maps.copy_(some(36,12,3,3)); b.mix.copy_(some(1000,3))
    mix = torch.stack([b.mix[3], (b.mix[700]+b.mix[701])/2])
    led = sum(mix[:,n,None,None,None]*F.conv2d(F.pad(folded, (1,1,1,1), 'replicate'), b.maps[12*n:12*n+12]) for n in range(3))
    assert torch.allclose(net(x, t)-plain(x, t), F.pixel_shuffle(led, 2), atol=1e-3) and led.std()>.1
    assert b(folded, torch.tensor([-1, 5000])).isfinite().all()
    with torch.autocast('cpu', torch.bfloat16): assert b(folded, t).equal(b(folded.float(), t)) and b(folded, t).dtype==torch.float32

def test_the_bypass_is_the_best_linear_map():
    "Against least squares on noisy pictures: no map of the same places does better than by chance."
    schedule = Schedule.linear(); x0 = F.interpolate(some(300,3,5,5), 16, mode='bilinear')
    net = UNet(16, **KW | dict(out_channels=6), patch=2, bypass=6); net.solve_bypass(x0, schedule.abar)
    for t in (5, 60, 300, 700):
        noise = some(300,3,16,16, seed=t); x,e = (F.pixel_unshuffle(v, 2) for v in (schedule.diffuse(x0, t, noise), noise))
        u,v = (w.transpose(1,2).flatten(0,1).double() for w in (F.unfold(around(x), 3), e.flatten(2)))
        best,mine = (u@torch.linalg.lstsq(u, v).solution-v).pow(2).mean(),net.bypass(x, torch.full((300,), t))
        assert best < (mine[:,:12]-e).pow(2).mean() < 1.1*best and not mine[:,12:].any()     # and nothing is said of the variance
