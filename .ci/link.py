"link.py VENV NAME...: the packages of this environment whose names begin so are in that one, too, as hard links."
import os, sys, sysconfig
from importlib.metadata import distributions
from pathlib import Path

here = Path(sysconfig.get_path('purelib'))
there = Path(sys.argv[1])/here.relative_to(sys.prefix)
for d in distributions(path=[str(here)]):
    if not d.name.startswith(tuple(sys.argv[2:])): continue
    for f in d.files:
        if f.parts[0]=='..': continue                                                  # commands name the Python they belong to
        (there/f).parent.mkdir(parents=True, exist_ok=True)
        os.link(here/f, there/f)
