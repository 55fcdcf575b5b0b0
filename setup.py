"""What pyproject.toml cannot say: the CPU kernels are compiled, for each instruction set, where there is a compiler.

``MSFORMER_FAST_NATIVE=0`` leaves them out, which makes a wheel for every platform.
"""

import copy
import os
import platform
import sys
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FOLDER = "kernels/native"
FLAGS = [
    *("-std=c++17", "-O3", "-fvisibility=hidden", "-fPIC", "-pthread", "-g0"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
]
X86 = {
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"],
    "avx2": ["-mavx2", "-mfma"],
    "baseline": [],
}
ARM = {"baseline": []}


def variants() -> dict[str, list[str]]:
    """Compiler flags of each library of this platform; none where it is not supported."""
    if os.environ.get("MSFORMER_FAST_NATIVE", "1") == "0" or sys.platform != "linux":
        return {}
    return {"x86_64": X86, "aarch64": ARM}.get(platform.machine(), {})


def libraries() -> list[Extension]:
    sources = sorted(str(path) for path in Path(FOLDER).glob("*.cpp"))
    headers = sorted(str(path) for path in Path(FOLDER).glob("*.h"))
    return [
        Extension(
            f"msformer_fast.{FOLDER.replace('/', '.')}.native_{name}",
            sources,
            depends=headers,
            extra_compile_args=[*FLAGS, *flags],
            extra_link_args=["-pthread"],
            optional=True,  # without a compiler the package installs all the same
        )
        for name, flags in variants().items()
    ]


class BuildLibraries(build_ext):
    """Libraries that know nothing of Python, so one serves every version of it."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or True  # on all cores, unless --parallel says how many

    def build_extension(self, ext: Extension) -> None:
        # Objects of each variant in a folder of its own: they have the same names.
        own = copy.copy(self)
        own.build_temp = os.path.join(self.build_temp, ext.name)
        build_ext.build_extension(own, ext)


class Wheel(bdist_wheel):
    """For every Python 3 of this platform; for every platform without the libraries."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform_tag = super().get_tag()
        return "py3", "none", platform_tag


class Package(Distribution):
    def has_ext_modules(self) -> bool:
        return bool(self.ext_modules)


setup(ext_modules=libraries(), cmdclass={"build_ext": BuildLibraries, "bdist_wheel": Wheel}, distclass=Package)
