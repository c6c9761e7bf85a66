"Everything here is read from settings.ini; see https://nbdev.fast.ai. This file only adds the extras and the shipped data."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

LICENSES = {'apache2': 'Apache-2.0'}
STATUSES = ['', '', '2 - Pre-Alpha', '3 - Alpha', '4 - Beta', '5 - Production/Stable']
PYTHONS = '3.11 3.12 3.13 3.14'.split()

extras = {name: cfg[f'{name}_requirements'].split() for name in ('demo', 'metrics', 'dlib', 'lora', 'diffusers', 'restorers', 'cluster')}
extras['dev'] = cfg['dev_requirements'].split() + sum(extras.values(), [])

# The shipped networks live in the top-level data/ folder and are installed as the package gen2res.data; the web page likewise.
SHIPPED = ['faces64', 'ids64', 'swinir64', 'align64']

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'],
    license=LICENSES[cfg['license']], python_requires=f">={cfg['min_python']}",
    classifiers=[f"Development Status :: {STATUSES[int(cfg['status'])]}", f"Intended Audience :: {cfg['audience']}",
                 f"Natural Language :: {cfg['language']}",
                 *(f'Programming Language :: Python :: {v}' for v in PYTHONS if tuple(map(int, v.split('.'))) >= tuple(map(int, cfg['min_python'].split('.'))))],
    packages=find_packages(include=['gen2res', 'gen2res.*']) + ['gen2res.data', 'gen2res.demo'],
    package_dir={'gen2res.data': 'data', 'gen2res.demo': 'demo'}, include_package_data=False,
    package_data={'gen2res.data': [f'{d}/*' for d in SHIPPED], 'gen2res.demo': ['app.py']},
    install_requires=cfg['requirements'].split(), extras_require=extras,
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]},
    zip_safe=False)
