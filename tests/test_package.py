"""The package as installed: public names, import graph, packaged files, documentation of every public name."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import sb3_prune_robust

PACKAGE = Path(sb3_prune_robust.__file__).parent
PUBLIC = {
    "AdversarialVecEnv",
    "LipschitzCategoricalPolicy",
    "LipschitzDQNPolicy",
    "LipschitzGaussianPolicy",
    "LipschitzMaskableCategoricalPolicy",
    "LipschitzSACPolicy",
    "LipschitzTD3Policy",
    "PruningCallback",
    "certify",
    "certify_return",
    "sparsity",
    "worst_case",
}
# Which part of the package may import which others; "cli" sits on top of all.
MAY_IMPORT = {
    "anatomy": set(),
    "network": set(),
    "observations": set(),
    "layers": {"anatomy"},
    "bounds": {"network"},
    "policies": {"layers", "network"},
    "pruning": {"anatomy", "layers", "network"},
    "memory": {"network"},
    "actor": {"memory", "network", "observations"},
    "attacks": {"actor", "network", "observations"},
    "certificates": {"bounds", "network"},
    "hyperparams": set(),
    "defences": {"actor", "attacks", "bounds", "certificates", "layers", "network", "pruning"},
    "evaluation": {"actor", "attacks", "bounds", "certificates", "defences", "network", "observations", "policies", "pruning"},
    "deployment": {"anatomy", "evaluation", "network", "pruning", "tuning"},
    "tuning": {"attacks", "defences", "evaluation", "hyperparams", "pruning"},
    "study": {"attacks", "certificates", "defences", "evaluation", "network", "pruning", "tuning"},
    "zoo": {"tuning"},
    "cli": {"attacks", "certificates", "defences", "evaluation", "hyperparams", "pruning", "study", "tuning", "zoo"},
    "__main__": {"cli"},
}


def modules():
    return [info.name for info in pkgutil.walk_packages([str(PACKAGE)], "sb3_prune_robust.")]


def imports(path):
    """Names of the parts of the package that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "sb3_prune_robust" else [f"sb3_prune_robust.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("sb3_prune_robust."))


def test_import_graph():
    checked = 0
    for path in PACKAGE.rglob("*.py"):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        used = set(imports(path)) - {part}
        assert used <= MAY_IMPORT[part], f"{path.relative_to(PACKAGE)} imports {sorted(used - MAY_IMPORT[part])}"
        checked += 1
    assert checked > 20


def test_public_names():
    assert set(sb3_prune_robust.__all__) - {"__version__"} == PUBLIC
    assert all(hasattr(sb3_prune_robust, name) for name in PUBLIC)


@pytest.mark.parametrize("module", modules())
def test_every_public_name_is_documented(module):
    loaded = importlib.import_module(module)
    own = {n: o for n, o in vars(loaded).items() if getattr(o, "__module__", None) == module and not n.startswith("_")}
    undocumented = [n for n, o in own.items() if (inspect.isclass(o) or inspect.isfunction(o)) and not inspect.getdoc(o)]
    assert loaded.__doc__ and not undocumented


def test_what_is_installed_is_complete():
    """In CI the package is installed from the wheel that pip builds: a module or data file left out of it is seen here."""
    root = Path(__file__).parents[1]
    for source in [*(root / "sb3_prune_robust").rglob("*.py"), root / "sb3_prune_robust" / "py.typed"]:
        assert (PACKAGE / source.relative_to(root / "sb3_prune_robust")).exists(), source
    hyperparameters = list((root / "hyperparams").glob("*.yml"))
    (installed,) = map(Path, importlib.import_module("sb3_prune_robust.hyperparams").__path__)
    assert hyperparameters and all((installed / path.name).exists() for path in hyperparameters)


def test_nothing_refers_to_the_notes_beside_the_project():
    texts = [path.read_text() for path in PACKAGE.rglob("*.py")]
    assert len(texts) > 20 and not any("../shared" in text for text in texts)
