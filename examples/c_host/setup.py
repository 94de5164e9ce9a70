"""Builds c_host: python setup.py build_ext --inplace"""

from setuptools import Extension, setup

import kvit

setup(
    name="c_host",
    version="0.1.0",
    ext_modules=[
        Extension(
            "c_host",
            ["c_host.c"],
            include_dirs=[kvit.get_include()],
            extra_compile_args=["-std=c11", "-Wall", "-Wextra", "-Werror"],
            extra_link_args=["-pthread"],
        )
    ],
)
