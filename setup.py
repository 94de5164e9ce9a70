"""Builds what pyproject.toml cannot say: the Cython modules of pyx/, and the kernels by kernels/codegen.

pyx/<folder>/<name>.pyx becomes kvit._native.<name>: folders order the sources, and the modules stay side by side. The
declarations (.pxd, .pyi) lie beside the .pyx files, and Cython looks for them by qualified name: they are copied into a
package tree under build/, and beside the modules that are installed, or made in place.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = Path("kvit", "_native")
INSTALLED_HEADERS = Path("kvit", "include", "kernels")
DECLARATIONS = ROOT / "build" / "declarations"  # the package tree in which Cython looks
os.chdir(ROOT)
sys.path.insert(0, str(ROOT / "kernels"))

from codegen.build import build_kernels, make_plan  # noqa: E402
from codegen.errors import BuildError  # noqa: E402
from codegen.toolchain import bindings_language, find_cuda_include, quoted_compilers  # noqa: E402


def native_sources(suffix):
    """The files of pyx/ with this suffix; their stems are the names of modules, and no two are the same."""
    return sorted((ROOT / "pyx").glob(f"*/*{suffix}"))


def declarations():
    return [*native_sources(".pxd"), *native_sources(".pyi")]


def copy_declarations(folder, *suffixes):
    """Make `folder` hold the declarations of pyx/ with these suffixes, and no others."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {path.name: path for suffix in suffixes for path in native_sources(suffix)}
    for suffix in suffixes:
        for old in folder.glob(f"*{suffix}"):
            if old.name not in wanted:
                old.unlink()
    for name, path in wanted.items():
        copy_if_changed(path, folder / name)


def copy_if_changed(source, target):
    content = source.read_bytes()
    if not target.exists() or target.read_bytes() != content:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def lay_out_declarations():
    """The package tree: kvit/<name>.pxd and kvit/_native/<name>.pxd, and files that make packages of folders."""
    copy_declarations(DECLARATIONS / PACKAGE, ".pxd")
    for path in (ROOT / "kvit").glob("*.pxd"):
        copy_if_changed(path, DECLARATIONS / "kvit" / path.name)
    for folder in (DECLARATIONS / "kvit", DECLARATIONS / PACKAGE):
        (folder / "__init__.py").touch()


def kernel_headers():
    """What kvit.iterators.probe_own compiles: the headers of kernels/, and the sources of the host backend."""
    found = (path for folder in ROOT.glob("kernels/*") if folder.name != "codegen" for path in folder.glob("*.*"))
    return sorted(path for path in found if path.suffix in {".h", ".cuh", ".hpp", ".cpp"})


class BuildPackage(build_py):
    """The Python files, and beside them what `cimport`, type checkers and probes of a caller's own read."""

    def run(self):
        super().run()
        if not self.editable_mode:  # BuildNative puts them into the source tree then, which has the headers
            copy_declarations(Path(self.build_lib) / PACKAGE, ".pxd", ".pyi")
            shutil.rmtree(Path(self.build_lib) / INSTALLED_HEADERS, ignore_errors=True)
            for path in kernel_headers():
                copy_if_changed(path, Path(self.build_lib) / installed_header(path))

    def get_output_mapping(self):
        declared = {path: PACKAGE / path.name for path in declarations()}
        declared |= {path: installed_header(path) for path in kernel_headers()}
        added = {
            str(Path(self.build_lib) / target): path.relative_to(ROOT).as_posix() for path, target in declared.items()
        }
        return {**super().get_output_mapping(), **added}

    def get_outputs(self, include_bytecode=1):
        added = [PACKAGE / path.name for path in declarations()]
        added += [installed_header(path) for path in kernel_headers()]
        return [*super().get_outputs(include_bytecode), *(str(Path(self.build_lib) / path) for path in added)]


def installed_header(path):
    """Where a file of kernels/ lies in the package."""
    return INSTALLED_HEADERS / path.relative_to(ROOT / "kernels")


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
            if self.is_in_place():
                copy_declarations(ROOT / PACKAGE, ".pxd", ".pyi")
                self.remove_old_modules()
            else:
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

        lay_out_declarations()
        translated = cythonize(
            [Extension(module.name, module.sources, language=module.language) for module in self.extensions],
            build_dir="build/cython",
            include_path=[str(DECLARATIONS)],
            compiler_directives={"language_level": 3, "embedsignature": True},
        )
        for module, new in zip(self.extensions, translated, strict=True):
            module.sources, module.language = new.sources, new.language

    def remove_old_modules(self):
        """Drop modules of the source tree whose sources are gone: they would still be found when imported."""
        names = {path.stem for path in native_sources(".pyx")}
        for path in (ROOT / PACKAGE).glob("*.so"):
            if path.name.split(".")[0] not in names:
                path.unlink()

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
        for path in native_sources(".pyx")
    ]


setup(ext_modules=native_modules(), cmdclass={"build_ext": BuildNative, "build_py": BuildPackage})
