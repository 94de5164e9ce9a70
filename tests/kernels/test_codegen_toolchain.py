"""kernels/codegen/toolchain.py: which compiler is taken, and what is said where none will do."""

import pytest

from codegen.errors import BuildError
from codegen.toolchain import bindings_language, find_cuda, find_cuda_include, find_gxx, quoted_compilers
from support.toolkit import make_ptxas, make_script, make_toolkit


@pytest.fixture
def nothing_usual(monkeypatch):
    """Hide a toolkit in /usr/local/cuda, so that only what a test makes can be found."""
    from codegen import toolchain

    real = toolchain.Path.is_dir
    monkeypatch.setattr(toolchain.Path, "is_dir", lambda path: str(path) != "/usr/local/cuda" and real(path))


def test_packages_of_the_python_environment_come_before_cuda_home_and_that_before_path(tmp_path):
    packaged = make_toolkit(tmp_path / "site" / "nvidia" / "cu13")
    home = make_toolkit(tmp_path / "home")
    on_path = make_toolkit(tmp_path / "path")
    environ = {"CUDA_HOME": str(home), "PATH": f"{on_path}/bin:/usr/bin:/bin"}
    assert find_cuda(environ, [str(tmp_path / "site")]).root == packaged
    assert find_cuda(environ, []).root == home
    assert find_cuda({"PATH": environ["PATH"]}, []).root == on_path


def test_a_toolkit_that_will_not_do_is_passed_over(tmp_path):
    make_toolkit(tmp_path / "site" / "nvidia" / "cu13", without=("nvvm/bin/cicc",))
    home = make_toolkit(tmp_path / "home")
    assert find_cuda({"CUDA_HOME": str(home), "PATH": "/usr/bin:/bin"}, [str(tmp_path / "site")]).root == home


@pytest.mark.parametrize(
    ("release", "without", "words"),
    [
        ("12.9", (), "is CUDA 12.9, older than 13.0"),
        ("13.0", ("nvvm/bin/cicc",), "lacks nvvm/bin/cicc"),
        ("13.0", ("bin/ptxas",), "has no bin/ptxas"),
        ("13.0", ("include/cudaProfiler.h",), "lacks headers cudaProfiler.h"),
    ],
)
def test_one_error_says_what_is_wrong_and_what_to_install(release, without, words, tmp_path, nothing_usual):
    root = make_toolkit(tmp_path / "nvidia" / "cu13", release, without)
    with pytest.raises(BuildError) as raised:
        find_cuda({"PATH": "/usr/bin:/bin"}, [str(tmp_path)])
    assert f"{root}: {words}" in str(raised.value)
    assert "pip install 'cuda-toolkit[nvcc,nvvm,crt,cudart,cccl,profiler]==13.0.*'" in str(raised.value)


def test_no_toolkit_at_all_is_the_same_error(tmp_path, nothing_usual):
    with pytest.raises(BuildError, match="no CUDA 13 compiler(?s:.*)pip install(?s:.*)KVIT_ARCHS=none"):
        find_cuda({"PATH": str(tmp_path)}, [])


def test_cubins_are_made_by_ptxas_of_cuda_12_where_it_is_installed(tmp_path, capsys):
    root = make_toolkit(tmp_path / "home", "13.2")
    environ = {"CUDA_HOME": str(root), "PATH": "/usr/bin:/bin"}
    packaged = make_ptxas(tmp_path / "site" / "nvidia" / "cuda_nvcc" / "bin" / "ptxas", "12.9")
    cuda = find_cuda(environ, [str(tmp_path / "site")])
    assert (cuda.version, cuda.assembler.path, cuda.assembler.version) == ((13, 2), packaged, (12, 9))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("packaged", [None, "12.0"], ids=["none", "too old"])
def test_without_it_the_toolkit_s_own_makes_them_and_a_note_says_what_they_need(packaged, tmp_path, capsys):
    root = make_toolkit(tmp_path / "home")
    if packaged:  # knows neither sm_100 nor as good code
        make_ptxas(tmp_path / "nvidia" / "cuda_nvcc" / "bin" / "ptxas", packaged)
    cuda = find_cuda({"CUDA_HOME": str(root), "PATH": "/usr/bin:/bin"}, [str(tmp_path)])
    assert (cuda.assembler.path, cuda.assembler.version) == (root / "bin" / "ptxas", (13, 0))
    note = capsys.readouterr().err
    assert (
        "need a driver of CUDA 13.0 (r580) or newer" in note and "pip install 'nvidia-cuda-nvcc-cu12==12.9.*'" in note
    )


def test_headers_are_found_without_a_compiler(tmp_path):
    # What the Cython modules need when KVIT_ARCHS=none: no nvcc, only the driver's headers.
    root = make_toolkit(tmp_path / "nvidia" / "cu13", without=("nvvm/bin/cicc",))
    (root / "bin" / "nvcc").unlink()
    assert find_cuda_include({"PATH": ""}, [str(tmp_path)]) == root / "include"


def test_missing_headers_are_an_error_that_says_what_to_install(tmp_path, nothing_usual):
    with pytest.raises(BuildError, match=r"cuda\.h.*pip install"):
        find_cuda_include({"PATH": str(tmp_path)}, [])


def test_a_missing_cpp_compiler_is_an_error_that_says_what_to_install(tmp_path):
    with pytest.raises(BuildError, match=r"apt install g\+\+"):
        find_gxx({"PATH": str(tmp_path)})


def test_an_old_gcc_is_an_error_that_says_which_is_needed(tmp_path):
    answer = 'case $1 in --version) echo "g++ 9.4, Free Software Foundation";; *) echo 9.4.0;; esac'
    make_script(tmp_path / "g++", answer)
    with pytest.raises(BuildError, match=r"GCC 9\.4\.0.*needs GCC 11"):
        find_gxx({"PATH": f"{tmp_path}:/usr/bin:/bin"})


def test_a_compiler_may_lie_in_a_folder_with_a_space_and_beside_us(tmp_path, monkeypatch):
    program = make_script(tmp_path / "my tools" / "g++", 'exec g++ "$@"')
    assert find_gxx({"CXX": str(program), "PATH": "/usr/bin:/bin"}) == str(program)
    monkeypatch.chdir(tmp_path)
    assert find_gxx({"CXX": "./my tools/g++", "PATH": "/usr/bin:/bin"}) == str(program)  # ninja runs in another folder
    assert find_gxx({"CXX": "", "PATH": "/usr/bin:/bin"}) == find_gxx({"PATH": "/usr/bin:/bin"})


def test_options_beside_the_compiler_are_refused_in_words():
    with pytest.raises(BuildError, match=r"CXX is one program, without options: 'g\+\+ -m64' is not"):
        find_gxx({"CXX": "g++ -m64", "PATH": "/usr/bin:/bin"})


def test_setuptools_gets_a_compiler_with_a_space_in_quotes(tmp_path):
    program = str(make_script(tmp_path / "my tools" / "gcc", ""))
    assert quoted_compilers({"CC": program, "CXX": "g++"}) == {"CC": f"'{program}'"}
    assert quoted_compilers({"CC": "gcc -m64", "PATH": "/usr/bin:/bin"}) == {}  # options, which setuptools knows


def make_bindings(folder, version):
    package = folder / "cuda" / "bindings"
    package.mkdir(parents=True)
    (package / "cydriver.pxd").touch()
    (package / "_version.py").write_text(f"__version__ = version = '{version}'\n")
    return [str(folder)]


def make_headers(folder, version):
    folder.mkdir()
    (folder / "cuda.h").write_text(f"#define CUDA_VERSION {version}\n")
    return folder


@pytest.mark.parametrize(
    ("bindings", "headers", "language"),
    [
        ("13.0.3", 13000, "c"),
        ("13.3.1", 13000, "c"),
        ("13.4.4", 13000, "c++"),  # cydriver.pxd calls an enum by its tag, which C does not know
        ("13.5.0", 13050, "c++"),  # and includes <type_traits>
        ("14.0.0", 14000, "c++"),
    ],
)
def test_modules_are_in_a_language_that_reads_the_bindings(bindings, headers, language, tmp_path):
    headers = make_headers(tmp_path / "include", headers)
    assert bindings_language(headers, make_bindings(tmp_path / "site", bindings)) == language


def test_bindings_that_are_newer_than_the_headers_are_found_before_anything_is_compiled(tmp_path):
    headers = make_headers(tmp_path / "include", 13000)
    with pytest.raises(BuildError, match=r"cuda-bindings 13\.5 .*CUDA 13\.0 does not(?s:.*)cuda-bindings==13\.0\.\*"):
        bindings_language(headers, make_bindings(tmp_path / "site", "13.5.0"))


def test_missing_bindings_are_an_error_that_says_what_to_install(tmp_path):
    with pytest.raises(BuildError, match=r"no cuda-bindings(?s:.*)pip install 'cuda-bindings==13\.0\.\*'"):
        bindings_language(make_headers(tmp_path / "include", 13000), [str(tmp_path)])
