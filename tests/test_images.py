"Anything people have, read; anything else, one line."
import io, struct, zlib
import numpy as np, pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from gen2res.images import ImageError, atomic, grid, list_images, load_image, resize, save_image, seeded, square, to_array, to_tensor

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MODES = ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'I;16']

def picture(w, h, mode, seed=0):
    a = np.random.RandomState(seed).randint(0, 256, (h, w, 4), np.uint8)
    if mode=='I;16': return Image.fromarray(a[...,0].astype(np.uint16)*257)
    return Image.fromarray(a).convert('RGB').convert(mode)

@quick
@given(w=st.integers(1, 40), h=st.integers(1, 40), seed=st.integers(0, 99))
def test_png_round_trip_is_exact(tmp_path, w, h, seed):
    x = to_tensor(np.random.RandomState(seed).randint(0, 256, (h, w, 3))/255)
    save_image(x, tmp_path/'a.png')
    assert torch.equal(torch.from_numpy(to_array(load_image(tmp_path/'a.png'))), torch.from_numpy(to_array(x)))

@quick
@given(w=st.integers(1, 30), h=st.integers(1, 30), mode=st.sampled_from(MODES), turn=st.integers(1, 8))
def test_every_mode_and_orientation(tmp_path, w, h, mode, turn):
    exif = Image.Exif(); exif[0x0112] = turn
    path = tmp_path/('a.jpg' if mode=='CMYK' else 'a.png')
    picture(w, h, mode).save(path, exif=exif)
    x = load_image(path)
    assert x.shape==(1, 3, *((w, h) if turn>4 else (h, w))) and x.dtype==torch.float32
    assert x.min()>=-1 and x.max()<=1

@quick
@given(junk=st.binary(max_size=400), suffix=st.sampled_from(['.png', '.jpg', '.gif', '.tif', '.webp', '.bmp']))
def test_junk_is_one_line(tmp_path, junk, suffix):
    (tmp_path/f'a{suffix}').write_bytes(junk)
    try: load_image(tmp_path/f'a{suffix}')
    except ImageError as e: assert f'a{suffix}: ' in str(e) and '\n' not in str(e)

@quick
@given(cut=st.floats(0, 1), fmt=st.sampled_from(['PNG', 'JPEG', 'GIF', 'TIFF', 'BMP', 'WEBP', 'AVIF', 'JPEG2000']), flips=st.lists(st.tuples(st.floats(0, .999), st.integers(0, 255)), max_size=4))
def test_truncated_and_corrupted(tmp_path, cut, fmt, flips):
    f = io.BytesIO(); picture(24, 24, 'RGB').save(f, fmt)
    data = bytearray(f.getvalue()[:int(cut*len(f.getvalue()))])
    for at,value in flips:
        if data: data[int(at*len(data))] = value
    (tmp_path/'a').write_bytes(data)
    try: assert load_image(tmp_path/'a').shape[1]==3
    except ImageError as e: assert '\n' not in str(e)

def test_grey16_keeps_its_bits(tmp_path):
    a = np.arange(65536, dtype=np.uint16).reshape(256,256)
    Image.fromarray(a).save(tmp_path/'a.png')
    assert len(load_image(tmp_path/'a.png')[0,0].unique()) > 60000

def test_cmyk_is_not_inverted(tmp_path):
    Image.new('CMYK', (8,8), (0,255,255,0)).save(tmp_path/'red.jpg', quality=100)
    r,g,b = load_image(tmp_path/'red.jpg').mean((0,2,3))
    assert r>.5 and g<-.5 and b<-.5

def test_wide_gamut_profile_is_converted(tmp_path):
    from PIL import ImageCms
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    swapped = srgb.replace(b'rXYZ', b'?XYZ', 1).replace(b'gXYZ', b'rXYZ', 1).replace(b'?XYZ', b'gXYZ', 1)   # "my red is what you call green"
    red = Image.new('RGB', (8,8), (230,20,20))
    for mode in ('RGB', 'RGBA', 'P'):
        red.convert(mode).save(tmp_path/'a.png', icc_profile=swapped)
        r,g,b = load_image(tmp_path/'a.png').mean((0,2,3))
        assert g>.5 and r<-.3, mode
    red.save(tmp_path/'b.png', icc_profile=srgb); red.save(tmp_path/'c.png', icc_profile=b'broken'); red.save(tmp_path/'d.png')
    assert (load_image(tmp_path/'b.png')-load_image(tmp_path/'d.png')).abs().max() <= 2.1/127.5              # sRGB in, sRGB out
    assert torch.equal(load_image(tmp_path/'c.png'), load_image(tmp_path/'d.png'))

def test_palette_with_transparency_lies_on_white(tmp_path):
    im = Image.new('P', (4,4), 0); im.putpalette([0,0,0]*256); im.save(tmp_path/'a.png', transparency=0)
    assert load_image(tmp_path/'a.png').min()==1

def bomb(w, h):
    ihdr = b'IHDR' + struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + ihdr + struct.pack('>I', zlib.crc32(ihdr)) + b'\0\0\0\0IDAT'

@pytest.mark.parametrize('side', [11_000, 13_000, 30_000])
def test_bombs_are_refused_by_their_header(tmp_path, side):
    (tmp_path/'a.png').write_bytes(bomb(side, side))
    with pytest.raises(ImageError, match='a.png: .*pixels'): load_image(tmp_path/'a.png')

def test_animated_gives_its_first_frame(tmp_path):
    Image.new('RGB', (4,4), 'red').save(tmp_path/'a.gif', save_all=True, append_images=[Image.new('RGB', (4,4), 'blue')])
    r,g,b = load_image(tmp_path/'a.gif').mean((0,2,3))
    assert r>.9 and b<-.9

def test_float_tiff_is_refused(tmp_path):
    Image.fromarray(np.ones((4,4), np.float32)).save(tmp_path/'a.tif')
    with pytest.raises(ImageError, match='white level'): load_image(tmp_path/'a.tif')

def test_nothing_half_written(tmp_path):
    (tmp_path/'a.bin').write_bytes(b'old')
    with pytest.raises(RuntimeError):
        with atomic(tmp_path/'a.bin') as f: f.write(b'new'); raise RuntimeError
    assert (tmp_path/'a.bin').read_bytes()==b'old' and [p.name for p in tmp_path.iterdir()]==['a.bin']

def test_save_refuses(tmp_path):
    x = torch.zeros(1,3,4,4); save_image(x, tmp_path/'a.png')
    with pytest.raises(FileExistsError): save_image(x, tmp_path/'a.png', overwrite=False)
    for name in ('a.docx', 'a.psd', 'a'):
        with pytest.raises(ImageError, match='suffix'): save_image(x, tmp_path/name)
    with pytest.raises(ValueError, match='one picture'): save_image(torch.zeros(2,3,4,4), tmp_path/'b.png')

def test_folders_skip_what_is_hidden_and_foreign(tmp_path):
    for n in ('b.png', 'a.JPG', '.c.png', 'notes.txt', 'film.mpg', 'print.pdf', 'figure.eps'): (tmp_path/n).touch()
    (tmp_path/'sub').mkdir(); (tmp_path/'sub'/'d.png').touch()
    assert [p.name for p in list_images([tmp_path])]==['a.JPG', 'b.png']
    assert [p.name for p in list_images([tmp_path/'notes.txt'])]==['notes.txt']

def test_square_and_resize():
    assert square(torch.zeros(1,3,30,50), 16).shape==(1,3,16,16) and resize(torch.zeros(1,3,5,7), (3,2)).shape==(1,3,3,2)

def test_noise_belongs_to_the_image():
    x = torch.zeros(4,3,5,5)
    a,b = seeded(3, 4),seeded([5])
    for _ in range(3): assert torch.equal(a.randn_like(x)[2:3], b.randn_like(x[:1]))
    with pytest.raises(ValueError, match='one seed per image'): b.randn_like(x)

def test_postscript_is_never_opened(tmp_path):
    (tmp_path/'a.png').write_text('%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n')
    with pytest.raises(ImageError, match='not a picture'): load_image(tmp_path/'a.png')

def test_heic_says_what_to_do(tmp_path):
    (tmp_path/'a.heic').write_bytes(b'ftypheic'*9)
    assert len(list_images([tmp_path]))==1
    with pytest.raises(ImageError, match='JPEG'): load_image(tmp_path/'a.heic')

def test_grid_needs_a_label_each():
    for labels,ims in ((['a'], torch.zeros(2,3,4,4)), (None, [])):
        with pytest.raises(ValueError, match='grid'): grid(ims, labels=labels)

def test_grid_sizes():
    assert grid(torch.zeros(5,3,8,8), cols=2, side=10, pad=1).size==(23, 34)
    assert grid([Image.new('RGB', (20,10))], labels=['x'], side=40).size==(48, 42)

def test_labels_have_accents():
    from gen2res.images import astronaut, grid
    from gen2res.images import _font
    assert _font('Tante Ännchen', 12).getname()[0]=='DejaVu Sans' and _font('a', 12).getname()[0]!='DejaVu Sans'
    a,b = (np.array(grid([astronaut(64)], [t], side=200)) for t in ('Ä', 'é')); assert (a!=b).any()          # two boxes would be alike

def test_noise_does_not_depend_on_who_draws_it(monkeypatch):
    from gen2res import images
    x = torch.zeros(4,3,20,20); alone = seeded(7, 4).randn_like(x)
    monkeypatch.setattr(images, 'MANY', 0); rng = seeded(7, 4)
    assert torch.equal(rng.randn_like(x), alone) and torch.equal(torch.cat([seeded(i, 1).randn_like(x[:1]) for i in range(7, 11)]), alone)
    assert not torch.equal(rng.randn_like(x), alone)

def test_a_broken_note_on_the_camera_is_not_a_broken_photo(tmp_path):
    im = Image.fromarray(np.full((8, 8, 3), 99, np.uint8))
    for name in ('a.jpg', 'a.png', 'a.webp'): im.save(tmp_path/name, exif=b'Exif\0\0'+b'\0'*40, **(dict(dpi=(300, 300)) if name=='a.jpg' else {})); assert load_image(tmp_path/name).shape==(1, 3, 8, 8)
