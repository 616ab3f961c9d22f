"""The compiled hot path: a module is compiled if a .pxd with its C types stands beside it.

Everything else about the package is in pyproject.toml. Without a C compiler the modules are interpreted.
"""

from pathlib import Path

from Cython.Distutils import build_ext
from setuptools import Extension, setup

SOURCE = Path(__file__).parent / "src"


def extension(types: Path) -> Extension:
    """The compiled twin of the module beside `types`; where it cannot be built, there is none."""
    module = types.relative_to(SOURCE)
    if types.suffix == ".pxd":
        module = module.with_suffix(".py")
    made = Extension(
        ".".join(module.with_suffix("").parts),
        [str(Path("src", module))],
        extra_compile_args=["-O2", "-g0"],
        optional=True,
    )
    # types are told in the .pxd alone: to Python, and to its readers, an annotation stays an annotation
    made.cython_directives = {"language_level": "3", "annotation_typing": False}
    return made


setup(
    cmdclass={"build_ext": build_ext},
    options={"build_ext": {"cython_c_in_temp": True}},
    ext_modules=[extension(types) for types in sorted([*SOURCE.rglob("*.pxd"), *SOURCE.rglob("*.pyx")])],
)
