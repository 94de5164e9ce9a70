"""Builds what pyproject.toml cannot say: pyx/<name>.pyx as kvit._native.<name>, and the kernels by kernels/codegen."""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
os.chdir(ROOT)  # Cython finds kvit/_native/*.pxd by qualified name, from here
sys.path.insert(0, str(ROOT / "kernels"))

from codegen.build import build_kernels, choose_jobs  # noqa: E402
from codegen.errors import BuildError  # noqa: E402
from codegen.toolchain import find_cuda_include  # noqa: E402


class BuildNative(build_ext):
    """The Cython modules, then the kernels; both keep what they made under build/ and redo what changed."""

    def finalize_options(self):
        from Cython.Build import cythonize

        self.distribution.ext_modules = cythonize(
            self.distribution.ext_modules,
            build_dir="build/cython",
            compiler_directives={"language_level": 3, "embedsignature": True},
        )
        super().finalize_options()
        try:
            self.parallel = self.parallel or choose_jobs()
            self.include_dirs += [str(ROOT / "kernels"), str(find_cuda_include())]
        except BuildError as error:
            sys.exit(f"kvit: {error}")

    def run(self):
        super().run()
        try:
            build_kernels(ROOT / "kernels", ROOT / "build" / "kernels", self.kernels_folder(), version=self.version())
        except BuildError as error:
            sys.exit(f"kvit: {error}")

    def kernels_folder(self):
        inside_tree = self.inplace or self.editable_mode
        return (ROOT if inside_tree else Path(self.build_lib).resolve()) / "kvit" / "_kernels"

    def version(self):
        return self.distribution.get_version()


def native_modules():
    return [
        Extension(
            f"kvit._native.{path.stem}",
            [path.relative_to(ROOT).as_posix()],
            extra_compile_args=["-O2", "-fvisibility=hidden"],
        )
        for path in sorted((ROOT / "pyx").glob("*.pyx"))
    ]


setup(ext_modules=native_modules(), cmdclass={"build_ext": BuildNative})
