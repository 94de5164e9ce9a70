"""Builds what pyproject.toml cannot say: pyx/<name>.pyx as kvit._native.<name>, and the kernels by kernels/codegen."""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
os.chdir(ROOT)  # Cython finds kvit/_native/*.pxd by qualified name, from here
sys.path.insert(0, str(ROOT / "kernels"))

from codegen.build import build_kernels, make_plan  # noqa: E402
from codegen.errors import BuildError  # noqa: E402
from codegen.toolchain import bindings_language, find_cuda_include, quoted_compilers  # noqa: E402


class BuildNative(build_ext):
    """The Cython modules, then the kernels. Both keep what they made under build/ and redo only what changed."""

    def run(self):
        try:
            # What can be found wrong is found here, before a minute of compiling.
            self.parallel = self.parallel or make_plan(ROOT / "kernels").jobs
            cuda_include = find_cuda_include()
            self.include_dirs += [str(ROOT / "kernels"), str(ROOT / "kvit" / "include"), str(cuda_include)]
            self.speak(bindings_language(cuda_include))
            self.translate()
            self.compile_modules()
            if not self.is_in_place():
                self.remove_strangers()
            build_kernels(
                ROOT / "kernels",
                ROOT / "build" / "kernels",
                (ROOT if self.is_in_place() else Path(self.build_lib).resolve()) / "kvit" / "_kernels",
                version=self.distribution.get_version(),
            )
        except BuildError as error:
            sys.exit(f"kvit: {error}")

    def is_in_place(self):
        return self.inplace or self.editable_mode

    def compile_modules(self):
        """What the base class does, by compilers in any folder."""
        quoted = quoted_compilers()
        plain = {name: os.environ[name] for name in quoted}
        os.environ.update(quoted)
        try:
            super().run()
        finally:
            os.environ.update(plain)

    def speak(self, language):
        """Compile what uses cuda.bindings in their language: "c" or "c++"."""
        for module in self.extensions:
            if "from cuda.bindings cimport" in (ROOT / module.sources[0]).read_text(encoding="utf-8"):
                module.language = language

    def translate(self):
        """Cython to C, under build/ and not beside the sources. Not in threads, as the base class would have it."""
        from Cython.Build import cythonize

        # Cython does not see that a module depends on its own .pxd, which lies in another folder.
        declared = max(path.stat().st_mtime for path in (ROOT / "kvit").rglob("*.pxd"))
        made = [path.stat().st_mtime for path in ROOT.glob("build/cython/pyx/*.c*")]
        translated = cythonize(
            [Extension(module.name, module.sources, language=module.language) for module in self.extensions],
            build_dir="build/cython",
            force=declared > min(made, default=0),
            compiler_directives={"language_level": 3, "embedsignature": True},
        )
        for module, new in zip(self.extensions, translated, strict=True):
            module.sources, module.language = new.sources, new.language

    def remove_strangers(self):
        """Drop what an earlier build left in build_lib, which a wheel would take along."""
        ours = {
            Path(path).resolve()
            for path in [*self.get_finalized_command("build_py").get_outputs(), *self.get_outputs()]
        }
        package = Path(self.build_lib).resolve() / "kvit"
        for path in package.rglob("*"):
            if path.is_file() and path not in ours and package / "_kernels" not in path.parents:
                path.unlink()


def native_modules():
    headers = [
        *ROOT.glob("kernels/abi/*.h"),
        *ROOT.glob("kvit/include/*.h"),
        ROOT / "kernels" / "platform" / "host_api.h",
    ]
    return [
        Extension(
            f"kvit._native.{path.stem}",
            [path.relative_to(ROOT).as_posix()],
            depends=[str(header) for header in headers],
            extra_compile_args=["-O2", "-g0", "-fvisibility=hidden"],
            extra_link_args=["-s"],
        )
        for path in sorted((ROOT / "pyx").glob("*.pyx"))
    ]


setup(ext_modules=native_modules(), cmdclass={"build_ext": BuildNative})
