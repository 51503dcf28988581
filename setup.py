"""Builds the C core as a shared library that needs no Python, fastce/libfastce.so, and the binding, fastce._core.

The binding finds the library beside itself; so does whatever links it with the flags of fastce-config. Everything that
is not compilation is in pyproject.toml. No file gets flags of its own: each ISA opens its target region in its source,
so one set of flags does for all, and -march=native never appears.

FASTCE_WERROR=1 makes warnings of the core errors. FASTCE_OPENMP=0 builds without OpenMP; so does a compiler that has
none. In a tree that was built before, --force makes `setup.py build_ext` look at such a change.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# Contraction would round differently from file to file; fast-math would change the whole process at link time.
CFLAGS = ["-O3", "-std=c11", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]

# Python's own flags ask for debug information, which takes a third of the time to compile and most of the file.
CFLAGS += ["-g0"]

# What a mistake in C could be turned into is made hard: see SECURITY.md, and tests/test_hardening.py.
CFLAGS += ["-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
HARD_LINK = ["-Wl,-z,relro", "-Wl,-z,now", "-Wl,-z,noexecstack"] if sys.platform == "linux" else []

LIBRARY = "fastce.libfastce"
HEADERS = list(Path("fastce/include").glob("*.h"))

# What only the binding needs of C, and may ask of the core what any program may.
BINDING = Path("src_c/binding")

OPENMP_PROBE = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"


class BuildExt(build_ext):
    """build_ext with OpenMP where there is one, the C files in parallel, and unchanged objects kept."""

    def build_extensions(self) -> None:
        library, binding = self.extensions
        if self.has_openmp():
            for extension in self.extensions:
                extension.extra_compile_args.append("-fopenmp")
                extension.extra_link_args.append("-fopenmp")
        else:
            print("fastce: building without OpenMP: every call will use one thread")
        # One place for the objects of every kind of install, a different one for every way to compile.
        command = " ".join([*self.compiler.compiler_so, *library.extra_compile_args, sys.implementation.cache_tag])
        self.build_temp = f"build/objects-{zlib.crc32(command.encode()):08x}"
        if os.environ.get("FASTCE_WERROR", "0") == "1":
            library.extra_compile_args.append("-Werror")
        self.compiler.compile = self.compile
        if sys.platform == "darwin":
            self.link_as_library(library)
        binding.library_dirs.append(str(Path(self.get_ext_fullpath(LIBRARY)).parent))
        super().build_extensions()

    def link_as_library(self, library: Extension) -> None:
        """On macOS a module for Python is a bundle, which nothing can be linked with."""
        linker = self.compiler.linker_so
        self.compiler.linker_so = ["-dynamiclib" if option == "-bundle" else option for option in linker]
        library.extra_link_args.append("-Wl,-install_name,@rpath/libfastce.dylib")

    def get_ext_filename(self, fullname: str) -> str:
        """Name the library as linkers look for it."""
        if fullname.rpartition(".")[2] == "libfastce":
            return fullname.replace(".", os.sep) + (".dylib" if sys.platform == "darwin" else ".so")
        name: str = super().get_ext_filename(fullname)
        return name

    def has_openmp(self) -> bool:
        if os.environ.get("FASTCE_OPENMP", "1") == "0":
            return False
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(OPENMP_PROBE)
            command = [*self.compiler.compiler_so, "-fopenmp", str(source), "-o", str(source.with_suffix(""))]
            return subprocess.run(command, capture_output=True).returncode == 0

    def compile(self, sources: list[str], **options: Any) -> list[str]:
        """CCompiler.compile on all cores, leaving alone the objects that are newer than what they depend on.

        distutils has no public hook for either; these are the steps of its own method.
        """
        names = ("output_dir", "macros", "include_dirs", "sources", "depends", "extra_postargs")
        arguments = [sources if name == "sources" else options.get(name) for name in names]
        _, objects, postargs, cpp_options, build = self.compiler._setup_compile(*arguments)
        cc_args = self.compiler._get_cc_args(cpp_options, options.get("debug"), options.get("extra_preargs"))
        shared = [Path(path) for path in options.get("depends") or ()]

        def compile_one(obj: str) -> None:
            source, suffix = build[obj]
            newest = max(path.stat().st_mtime for path in [Path(source), *shared])
            if self.force or not Path(obj).exists() or Path(obj).stat().st_mtime <= newest:
                self.compiler._compile(obj, source, suffix, cc_args, postargs, cpp_options)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_one, objects))
        return list(objects)


def library() -> Extension:
    """The C core. Its file is no module for Python; setuptools only compiles it and puts it in its place."""
    soname = [] if sys.platform == "darwin" else ["-Wl,-soname,libfastce.so"]
    return Extension(
        LIBRARY,
        sources=sorted(str(path) for path in Path("src_c").rglob("*.c") if path.parent != BINDING),
        include_dirs=["fastce/include", "src_c"],
        extra_compile_args=CFLAGS.copy(),
        extra_link_args=HARD_LINK + soname,
        depends=["setup.py", *sorted(str(path) for path in [*HEADERS, *Path("src_c").rglob("*.h")])],
    )


def binding() -> Extension:
    origin = "@loader_path" if sys.platform == "darwin" else "$ORIGIN"
    extension = Extension(
        "fastce._core",
        sources=["fastce/_core.pyx", *sorted(str(path) for path in BINDING.glob("*.c"))],
        include_dirs=["fastce/include", "src_c", str(BINDING), np.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        extra_compile_args=CFLAGS.copy(),
        libraries=["fastce"],
        extra_link_args=[*HARD_LINK, f"-Wl,-rpath,{origin}"],
        depends=["setup.py", *sorted(str(path) for path in [*HEADERS, *BINDING.glob("*.h"), Path("src_c/convert.h")])],
    )
    [extension] = cythonize(
        [extension], build_dir="build/cython", language_level=3, compiler_directives={"binding": True}
    )
    return extension


setup(ext_modules=[library(), binding()], cmdclass={"build_ext": BuildExt})
