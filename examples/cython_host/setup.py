"""Builds cython_host: python setup.py build_ext --inplace"""

from Cython.Build import cythonize
from setuptools import Extension, setup

import kvit

setup(
    name="cython_host",
    version="0.1.0",
    ext_modules=cythonize(
        [Extension("cython_host", ["cython_host.pyx"], include_dirs=[kvit.get_include()])],
        compiler_directives={"language_level": 3},
        build_dir="build",
    ),
)
