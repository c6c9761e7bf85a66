"Restore the face in an uploaded photo. Start: python demo/app.py (CPU is fine), or as a Hugging Face Space."
import os
os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')

import shutil, tempfile
from functools import lru_cache
from pathlib import Path
import gradio as gr
from gen2res.images import ImageError, save_image, to_pil
from gen2res.prior import PriorError, load_prior
from gen2res.restore import NOTICE, Restorer, damaged_astronaut, paper_K, read_face, record

prior = lru_cache(load_prior)
PRIVACY = 'Photo and result are deleted within twenty minutes of closing the page.'

def folder(request:gr.Request):
    "This visitor's own temporary folder."
    return Path(tempfile.gettempdir())/f'gen2res_{getattr(request, "session_hash", None) or "local"}'

def forget(request:gr.Request):
    "Delete what this visitor left."
    shutil.rmtree(folder(request), ignore_errors=True)

def run(photo, K, seed, request:gr.Request=None, progress=gr.Progress()):
    "(what the prior was shown, the result, the result as a PNG with its record) for an uploaded file."
    if not photo: raise gr.Error('Choose a photo first.')
    try: y,_ = read_face(photo, prior().side)
    except (ImageError, PriorError) as e: raise gr.Error(str(e).replace(str(Path(photo).parent), '')) from None
    restorer = Restorer(prior(), K=int(K))
    x = restorer(y, int(seed), callback=lambda st: progress(1-st.t/max(1, K), desc='restoring'))
    out = save_image(x, folder(request)/'restored.png', record(restorer.settings(), int(seed), source=Path(photo).name))
    return to_pil(y),to_pil(x),str(out)

def example(request:gr.Request=None):
    "The damaged astronaut, as a file."
    return str(save_image(damaged_astronaut()[0], folder(request)/'astronaut.png'))

def build():
    "The page."
    with gr.Blocks(title='gen2res', delete_cache=(600, 600)) as page:
        gr.Markdown('# gen2res\nNoise a bad photo, then denoise it with a model of good ones. The largest face is restored.')
        with gr.Row():
            with gr.Column():
                photo = gr.Image(type='filepath', format='png', label='Photo', height=320)
                K = gr.Slider(0, 400, paper_K(prior()), step=1, label='K: noise steps', info='More repairs more, and invents more')
                seed = gr.Number(0, precision=0, label='Seed')
                with gr.Row(): go,demo = gr.Button('Restore', variant='primary'),gr.Button('Use the example')
            with gr.Column():
                with gr.Row(): seen,result = gr.Image(format='png', label='Before', height=320),gr.Image(format='png', label='Restored', height=320)
                file = gr.File(label='PNG with its record')
                gr.Markdown(f'{NOTICE} {PRIVACY}')
        go.click(run, [photo, K, seed], [seen, result, file])
        demo.click(example, None, photo)
        page.unload(forget)
    return page

if __name__=='__main__': build().queue(default_concurrency_limit=1).launch(ssr_mode=False)
