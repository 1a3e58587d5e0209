from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def requirements(name: str) -> list[str]:
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line for line in lines if line and not line.startswith('#')]


setup(
    name='dlu_mmdet',
    version='0.1.0',
    description='Dynamic Lightweight Upsampling for MMDetection 3.x',
    license='Apache-2.0',
    packages=find_packages(include=['dlu_mmdet', 'dlu_mmdet.*']),
    python_requires='>=3.10',
    # the two stacks overwrite each other's files, so neither is required here
    install_requires=['torch>=2.4'],
    extras_require={
        name: requirements(name) for name in ('onedl', 'openmmlab', 'test')
    },
)
