"Metrics: known values, sane orders, the real loading code on small made-up weights, and one line for everything that can go wrong."
import dataclasses, hashlib, math, sys, time
import numpy as np, pytest, torch
from gen2res import metrics as M
from gen2res.degrade import degrade
from gen2res.images import astronaut, save_image
from gen2res.metrics import METRICS, MetricError, at_hand, compare, frechet, interval, jackknife, left_out, metric, place, statistics

OFFLINE = [n for n,e in METRICS.items() if e.weights is None]
x = astronaut(64)

@pytest.fixture
def hub(tmp_path, monkeypatch):
    "An empty weight cache."
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path/'hub'))
    for m in ('HF_HUB_OFFLINE',): monkeypatch.setenv(m, '1')
    M.metric.cache_clear(); yield tmp_path/'hub'; M.metric.cache_clear()

def test_psnr_and_ssim_by_hand():
    y = (x+.1).clamp(-1, 1)
    mse = ((x-y)/2).pow(2).mean().item()
    assert abs(metric('psnr')(x, y).item() + 10*math.log10(mse)) < 1e-3
    assert abs(metric('ssim')(x, x).item()-1) < 1e-6
    from skimage.metrics import structural_similarity
    u,v = [((a[0]+1)/2).permute(1,2,0).numpy() for a in (x, y)]
    ours,theirs = metric('ssim')(x, y).item(),structural_similarity(u, v, channel_axis=-1, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    assert abs(ours-theirs) < 5e-3                                              # they differ at the borders

@pytest.mark.parametrize('name', [n for n in OFFLINE if METRICS[n].kind=='pair'])
def test_pairs(name):
    m,big = metric(name),astronaut(180)
    bad = [degrade(big, 'small', pixels=p) for p in (120, 60, 30)]
    v = m(torch.cat([big, *bad]), big.expand(4,-1,-1,-1))
    assert v.shape==(4,) and v.dtype==torch.float64
    if name!='colour': assert v.tolist()==sorted(v.tolist(), reverse=m.better=='up')     # worse is worse
    best = m(big, big).item()
    assert best==(math.inf if name=='psnr' else pytest.approx(1 if m.better=='up' else 0, abs=1e-5))
    alone = torch.cat([m(b, big) for b in bad])
    assert torch.allclose(alone, v[1:], atol=1e-6)                                        # alone as in a batch
    flat = torch.zeros_like(big)
    assert not m(flat, big).isnan().any() and not m(flat, flat).isnan().any()              # constant pictures
    assert m.dataset(torch.cat(bad), big.expand(3,-1,-1,-1))==pytest.approx(alone.mean().item())

def test_colour_sees_a_cast_and_nothing_else():
    m = metric('colour')
    assert m((x+torch.tensor([.1,0,-.1]).view(1,3,1,1)).clamp(-1,1), x) > 3 > m(degrade(x, 'small:25'), x)

def test_frechet_is_the_closed_form():
    a,b = (torch.eye(3).double()*v for v in (4., 1.))
    m = torch.tensor([1.,2.,2.]).double()
    assert abs(frechet((m, a), (0*m, b)) - (9 + 3*(2-1)**2)) < 1e-8
    f = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    assert frechet(statistics(f), statistics(f)) < 1e-8

@pytest.mark.parametrize('call,line', [
    (lambda: metric('beauty'), "no metric 'beauty'; there are: psnr"),
    (lambda: metric('psnr')(x), 'psnr: needs the true pictures'),
    (lambda: metric('psnr')(x, astronaut(32)), 'cannot be compared'),
    (lambda: metric('psnr')(x[0], x), 'expected pictures B x 3 x H x W'),
    (lambda: metric('ssim')(x*float('nan'), x), 'ssim: picture 0 holds values that are not numbers'),
    (lambda: metric('ssim')(x, torch.cat([x, x/0])), 'true picture 1 holds'),
    (lambda: metric('ms_ssim')(x, x), 'ms_ssim: needs pictures of at least 176 pixels a side, got 64 x 64'),
    (lambda: frechet(statistics(torch.rand(9, 3)), statistics(torch.rand(9, 4))), 'cannot be compared'),
    (lambda: M.read_statistics('/nowhere.npz'), 'not an .npz with arrays mu and sigma')])
def test_one_line(call, line):
    with pytest.raises(MetricError, match=line) as e: call()
    assert '\n' not in str(e.value)

def test_small_pictures_are_not_asked_what_they_cannot_answer(monkeypatch):
    monkeypatch.setitem(METRICS, 'niqe', METRICS['niqe']._replace(make=lambda d: lambda x: x.mean((1,2,3))))
    monkeypatch.setattr(M, 'can_run', lambda name: '')
    with pytest.raises(MetricError, match='niqe: needs pictures of at least 96 pixels a side, got 64 x 64'): M.Metric('niqe')(x)
    assert M.Metric('niqe')(torch.zeros(2, 3, 96, 120)).shape==(2,)
    assert [at_hand('psnr', 'ms_ssim', 'niqe', side=s) for s in (64, 96, 176)]==[('psnr',), ('psnr', 'niqe'), ('psnr', 'ms_ssim', 'niqe')]
    assert M.Metric('ms_ssim')(torch.rand(1, 3, 176, 176), torch.rand(1, 3, 176, 176)).isfinite().all()

def test_faces_are_compared_as_squares():
    with pytest.raises(ValueError, match='aligned squares, and these pictures are 48 x 32'): M.arcface_cut(torch.zeros(1, 3, 32, 48))
    with pytest.raises(ValueError, match='aligned squares'): M._moved(lambda c: [(0., 0.)], 32)(torch.zeros(1, 3, 32, 48), torch.zeros(1, 3, 32, 48))

def test_a_reference_of_nans_is_refused(tmp_path):
    np.savez(tmp_path/'r.npz', mu=np.full(3, np.nan), sigma=np.eye(3))
    with pytest.raises(MetricError, match='holds values that are not numbers'): M.read_statistics(tmp_path/'r.npz')

@pytest.mark.parametrize('name', [n for n,e in METRICS.items() if e.weights])
def test_without_weights_it_says_so_at_once(name, hub):
    t = time.time()
    with pytest.raises(MetricError) as e: metric(name)
    said,w = str(e.value),METRICS[name].weights
    assert time.time()-t < 1 and '\n' not in said
    assert all(s in said for s in (str(place(w)), f'{w.mb} MB', f'gen2res fetch {name}')) and str(hub) in said
    with pytest.raises(MetricError, match='HF_HUB_OFFLINE is set'): M.fetch_weights(name)
    assert not list(hub.glob('**/*.part'))

@pytest.mark.parametrize('name', ['lpips', 'musiq', 'fid'])
@pytest.mark.parametrize('content', [b'', b'garbage', b'\x80\x04c__builtin__\nprint\n.'])
def test_corrupt_weights(name, content, hub):
    path = place(METRICS[name].weights); path.parent.mkdir(parents=True); path.write_bytes(content)
    with pytest.raises(MetricError, match='damaged or not a plain weight file'): metric(name)

def thin(state):
    "A state that loads like a real one and takes no space: every tensor one number, repeated."
    g = torch.Generator().manual_seed(0)
    return {k: (torch.rand(1, generator=g).to(v.dtype)*.05).expand(v.shape) if v.is_floating_point() and v.ndim else v for k,v in state.items()}

def put(name, state):
    path = place(METRICS[name].weights); path.parent.mkdir(parents=True, exist_ok=True); torch.save(state, path)
    assert path.stat().st_size < 1e6

def test_lpips_loads(hub):
    pytest.importorskip('lpips')
    from torchvision.models import alexnet
    put('lpips', thin(alexnet().state_dict()))
    m,y = metric('lpips'),degrade(x, 'small:25')
    assert m(x, x).item()==0 and m(y, x).isfinite()
    put('lpips', {k: v for k,v in thin(alexnet().state_dict()).items() if k.startswith('features')}); M.metric.cache_clear()
    assert metric('lpips')(y, x)==m(y, x)                                              # all that it uses
    put('lpips', {'other': torch.ones(1)}); M.metric.cache_clear()
    with pytest.raises(MetricError, match='does not fit.*gen2res fetch lpips'): metric('lpips')

@pytest.mark.parametrize('name', ['musiq', 'maniqa'])
def test_pyiqa_loads(name, hub, monkeypatch):
    pytest.importorskip('pyiqa')
    import timm
    from pyiqa.archs import maniqa_arch, musiq_arch
    if name=='maniqa':
        plain = timm.create_model
        monkeypatch.setattr(timm, 'create_model', lambda n, pretrained=False, **k: plain(n, pretrained=False, **k))
        crop = maniqa_arch.uniform_crop
        monkeypatch.setattr(maniqa_arch, 'uniform_crop', lambda x, crop_size, crop_num: crop(x, crop_size=crop_size, crop_num=1)) # 20 crops of a picture of their size are 20 times the same
        net = maniqa_arch.MANIQA(pretrained=False)
    else: net = musiq_arch.MUSIQ(pretrained=False)
    s = thin(net.state_dict())
    size = sum(v.numel()*v.element_size() for v in s.values())/1e6
    assert abs(METRICS[name].weights.mb/size-1) < .1, size                           # the size that the error line states
    put(name, {'params': s} if name=='maniqa' else s)                                # as each is published
    v = metric(name)(astronaut(224))
    assert v.shape==(1,) and v.isfinite()

def small_onnx(weights, key, side, pool, monkeypatch):
    "A network of one pooling layer in the place of a real one, its hash made known to uniface."
    import onnx
    from onnx import TensorProto, helper
    from uniface import constants
    n = 3*(side//pool)**2
    graph = helper.make_graph([helper.make_node('AveragePool', ['x'], ['p'], kernel_shape=[pool, pool], strides=[pool, pool]), helper.make_node('Flatten', ['p'], ['y'])], 'g',
        [helper.make_tensor_value_info('x', TensorProto.FLOAT, [1, 3, side, side])], [helper.make_tensor_value_info('y', TensorProto.FLOAT, [1, n])])
    path = place(weights); path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid('', 13)], ir_version=9), path)
    known = constants.MODEL_REGISTRY[key]
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(constants.MODEL_REGISTRY, key, dataclasses.replace(known, sha256=sha))
    return path

def test_arcface_loads(hub, monkeypatch):
    pytest.importorskip('uniface')
    from uniface.constants import ArcFaceWeights
    small_onnx(M.ARCFACE, ArcFaceWeights.RESNET, 112, 16, monkeypatch)
    b = torch.cat([x, x.flip(-1)])
    assert torch.allclose(metric('ids')(b, b), torch.ones(2).double()) and metric('ids')(b, b.flip(0)).max() < .999
    assert metric('deg')(b, b).max() < .1 and torch.allclose(metric('deg')(b, b.flip(0)).deg2rad().cos(), metric('ids')(b, b.flip(0)), atol=1e-4)

def test_landmarks_load(hub, monkeypatch):
    pytest.importorskip('uniface')
    from uniface.constants import LandmarkWeights
    small_onnx(M.LANDMARKS, LandmarkWeights.DEFAULT, 192, 24, monkeypatch)
    assert metric('lmd')(x, x).item()==0 and metric('lmd')(x, x.flip(-1)).item() > 0

@pytest.mark.parametrize('name', ['ids', 'deg', 'lmd'])
def test_wrong_hash_is_one_line_and_no_download(name, hub):
    pytest.importorskip('uniface')
    path = place(METRICS[name].weights); path.parent.mkdir(parents=True); path.write_bytes(b'not a network')
    with pytest.raises(MetricError, match='its hash is another.*gen2res fetch '+name): metric(name)
    assert path.read_bytes()==b'not a network'

def test_arcface_cut_puts_the_eyes_where_they_belong():
    x = torch.full((1,3,500,500), -1.)
    for ex,ey in M.EYES: x[...,round(500*ey)-3:round(500*ey)+4,round(500*ex)-3:round(500*ex)+4] = 1
    cut = M.arcface_cut(x)[0].mean(0)+1
    for half,(ex,ey) in zip((slice(0,56), slice(56,112)), M.ARCFACE_EYES):
        w = cut[:,half]/cut[:,half].sum(); r = torch.arange(112.)+.5
        assert abs((w.sum(1)*r).sum()-ey) < .3 and abs((w.sum(0)*r[half]).sum()-ex) < .3

@pytest.mark.parametrize('name', ['deg_dlib', 'lmd_dlib'])
def test_dlib_says_what_it_lacks(name, monkeypatch, hub):
    M.dlib_embedder.cache_clear()
    monkeypatch.setattr(M.importlib.util, 'find_spec', lambda n: None)
    with pytest.raises(MetricError, match=rf'{name}: needs the package face_recognition_models: pip install "gen2res\[dlib\]"'): metric(name)
    monkeypatch.setitem(sys.modules, 'dlib', None)
    with pytest.raises(MetricError, match=rf'{name}: needs the package dlib: pip install "gen2res\[dlib\]"'): metric(name)

def test_dlib_knows_a_face():
    m,y,moved = metric('deg_dlib'),degrade(x, 'camera:moderate', seeds=0, scale=1.5),x.roll(4, -1)
    assert m(x, x).item()<1e-4 < m(y, x).item() < 20
    assert 16 < metric('lmd_dlib')(moved, x).item() < 48                               # 32 pixels of 512

def test_niqe_loads(hub):
    pytest.importorskip('pyiqa')
    from scipy.io import savemat
    path = place(METRICS['niqe'].weights); path.parent.mkdir(parents=True)
    savemat(path, dict(mu_prisparam=np.zeros((1,36)), cov_prisparam=np.eye(36)))
    assert metric('niqe')(astronaut(224)).item() > 0

def test_fid_loads(hub, monkeypatch, tmp_path):
    pytest.importorskip('pyiqa')
    from pyiqa.archs import inception
    from pyiqa.utils import download_util
    monkeypatch.setattr(download_util, 'DEFAULT_CACHE_DIR', str(hub/'pyiqa'))
    with monkeypatch.context() as c:
        c.setattr(inception, 'load_pretrained_network', lambda *a, **k: None)
        net = inception.fid_inception_v3()
    assert abs(METRICS['fid'].weights.mb/(sum(v.numel()*v.element_size() for v in net.state_dict().values())/1e6)-1) < .1
    put('fid', thin(net.state_dict()))
    m = metric('fid')
    A = degrade(x.expand(3,-1,-1,-1), 'classic', seeds=0)
    f = m.features(A)
    assert f.shape==(3,2048)
    np.savez(tmp_path/'stats.npz', mu=f.mean(0).numpy(), sigma=np.cov(f.numpy().T))
    assert abs(m.dataset(A, tmp_path/'stats.npz')) < 1e-6                              # the same set, through stored statistics
    with pytest.raises(MetricError, match='use .dataset'): m(x, x)
    with pytest.raises(MetricError, match='this one holds 1 picture'): m.dataset(A[:1], A)

def test_interval():
    rng = np.random.default_rng(0)
    inside = np.mean([lo<0<hi for lo,hi in (interval(rng.normal(size=40), 400) for _ in range(200))])
    assert .88 < inside < .99                                                           # of 95 %
    assert interval([1.,1.,1.])==(1.,1.) and np.isnan(interval([2.])[0])

@pytest.fixture
def folders(tmp_path):
    for i in range(3):
        y = degrade(x, 'classic:codeformer', seeds=i)
        save_image(y, tmp_path/f'gt/{i}.png'); save_image(degrade(y, 'jpeg:10'), tmp_path/f'a/{i}_restored.png'); save_image(y, tmp_path/f'b/{i}.png')
        save_image(astronaut(99), tmp_path/f'a/{i}_sheet.png')
    return tmp_path

def test_compare(folders):
    scores = compare({'a': folders/'a', 'b': folders/'b'}, folders/'gt', ['psnr', 'ssim'])
    a,b = [s for s in scores if s.metric=='ssim']
    assert a.value<b.value==pytest.approx(1) and a.n==3 and a.low<=a.value<=a.high
    rows = M.to_csv(scores).splitlines()
    assert rows[0]=='method,metric,value,low,high,n' and len(rows)==5
    assert M.to_markdown(scores).startswith('| method | psnr ↑ | ssim ↑ |\n| --- |') and r'\begin{tabular}{lrr}' in M.to_latex(scores)

@pytest.mark.parametrize('spoil,line', [
    (lambda d: (d/'a/1_restored.png').unlink(), r'a: 1 of 3 pictures are missing \(1\)'),
    (lambda d: save_image(astronaut(32), d/'a/1_restored.png'), 'is 32 x 32, the truth 64 x 64'),
    (lambda d: [p.unlink() for p in (d/'gt').iterdir()], 'no pictures here'),
    (lambda d: (d/'gt').rename(d/'away'), 'no such folder')])
def test_compare_complains(spoil, line, folders):
    spoil(folders)
    with pytest.raises((MetricError, ValueError), match=line): compare({'a': folders/'a'}, folders/'gt')

def test_no_picture_takes_the_place_of_another(folders):
    save_image(x, folders/'a/1.png')
    with pytest.raises(MetricError, match='1_restored.png: has the name of 1.png'): compare({'a': folders/'a'}, folders/'gt')

def test_what_a_metric_does_not_look_at_may_be_anything(folders, monkeypatch):
    monkeypatch.setitem(METRICS, 'light', METRICS['psnr']._replace(kind='single', make=lambda d: lambda x: x.mean((1,2,3)))); M.metric.cache_clear()
    for p in (folders/'gt').iterdir(): save_image(astronaut(32), p)
    [s] = compare({'a': folders/'a'}, folders/'gt', ['light']); assert s.n==3
    with pytest.raises(MetricError, match='not an .npz'): compare({'a': folders/'a'}, None, ['fd64'], reference=folders/'gt')
    with pytest.raises(ValueError, match='compared as aligned squares, and these pictures are 96 x 64'): metric('ids64')(torch.zeros(1,3,64,96), torch.zeros(1,3,64,96))

def test_a_jackknife_of_sets():
    x = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0)); true = torch.zeros(4).double(),torch.eye(4).double()
    value,low,high = jackknife(left_out(x+1, true)); assert low<4<high and high-low<.8
    assert jackknife(left_out(x, statistics(x)))[0]<1e-6 and jackknife(left_out(x[:3], true))[2]==math.inf

def test_compare_needs_a_truth(folders):
    with pytest.raises(MetricError, match='needs the true pictures'): compare({'a': folders/'a'})

@pytest.mark.parametrize('changed,line', [
    (dict(better='higher'), 'must say up or down.*it says higher'), (dict(kind='triple'), 'it says down and triple'),
    (dict(make=lambda d: lambda x, y: (x-y).abs().mean()), r'one number a picture, 1 of them, and gave \(\)'), (dict(make=lambda d: lambda x, y: .5), 'and gave float')])
def test_a_metric_of_ones_own_is_checked(changed, line, monkeypatch):
    mine = METRICS['gradient']._replace(make=lambda d: lambda x, y: (x-y).abs().mean((1,2,3)))
    monkeypatch.setitem(METRICS, 'mine', mine._replace(**changed)); metric.cache_clear()
    with pytest.raises(MetricError, match=line): metric('mine')(x, x)
    monkeypatch.setitem(METRICS, 'mine', mine); metric.cache_clear()
    assert metric('mine')(x, x).item()==0
    metric.cache_clear()
