"The page builds, and its one function does what the command line does."
import sys
from pathlib import Path
import pytest
gr = pytest.importorskip('gradio')
sys.path.insert(0, str(Path(__file__).parent.parent/'demo'))
import app
from gen2res.images import load_image, to_array, to_tensor
from gen2res.restore import read_face, restore

def test_same_picture_as_the_library(faces64):
    photo = app.example()
    seen,result,file = app.run(photo, 12, 5, progress=lambda *a, **kw: None)
    y,_ = read_face(photo, 64)
    want = to_array(restore(y, faces64, 12, seeds=[5]))
    assert (to_array(load_image(file))==want).all() and seen.size==(64,64)

def test_garbage_is_a_toast(tmp_path):
    (tmp_path/'a.png').write_text('not a picture')
    with pytest.raises(gr.Error, match='not a picture'): app.run(str(tmp_path/'a.png'), 5, 0, progress=None)
    with pytest.raises(gr.Error, match='Choose'): app.run(None, 5, 0, progress=None)

def test_page_builds_with_png_everywhere():
    images = [b for b in app.build().blocks.values() if isinstance(b, gr.Image)]
    assert len(images)==3 and all(b.format=='png' for b in images)
