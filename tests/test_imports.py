"""The order of the packages, and what may be named only in one file."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "jaxpurify"
FILES = sorted(ROOT.rglob("*.py"))
BASE = ("struct", "types", "random", "loop", "sharding", "destination", "records", "checkpoint")
# A package imports from its own layer's list and from everything before it, its own package included.
LAYERS = (BASE, ("networks", "data"), ("weights",), ("purify", "attack", "select"), ("train",))
LAYERS += (("generate", "defend", "certify"), ("evaluate",), ("cli", "__main__"))
ORDER = {name: number for number, layer in enumerate(LAYERS) for name in layer}
SEPARATE = {"purify", "attack", "select", "networks", "data"}  # see the others of their layer only as callables
RECORDS = {"jaxpurify.data.image", "jaxpurify.data.poison", "jaxpurify.data.dataset"}


def package(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "jaxpurify":
            yield from (f"jaxpurify.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def allowed(user, module):
    used = module.split(".")[1]
    if used == user:
        return True
    if user in ("purify", "attack", "select") and used in ("networks", "data", "weights"):
        return module in RECORDS
    if user in SEPARATE and ORDER[used] == ORDER[user]:
        return False
    return ORDER[used] <= ORDER[user]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path):
    user = package(path)
    if user == "__init__":
        return  # the public names come from every layer
    modules = [module for module in imports(path) if module.split(".")[0] == "jaxpurify" or module.startswith(".")]
    wrong = [module for module in modules if module.startswith(".") or not allowed(user, module)]
    assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(wrong)}"


def test_the_rules_refuse_what_they_should():
    assert not allowed("purify", "jaxpurify.attack.badnets")
    assert not allowed("purify", "jaxpurify.networks.energy")
    assert not allowed("attack", "jaxpurify.train.classifier")
    assert not allowed("networks", "jaxpurify.data.image")
    assert not allowed("train", "jaxpurify.generate.run")
    assert not allowed("loop", "jaxpurify.purify.jpeg")
    assert allowed("attack", "jaxpurify.data.poison") and allowed("cli", "jaxpurify.evaluate.scenario")


def names(path):
    """Every attribute and imported name of a file, as dotted text."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


ONLY_IN = {
    "PartitionSpec": ("sharding.py",),
    "NamedSharding": ("sharding.py",),
    "make_mesh": ("sharding.py",),
    "lax.scan": ("loop.py",),
    "lax.fori_loop": ("loop.py", "random.py"),  # two turns of elementwise arithmetic, no gradient
    "lax.while_loop": ("loop.py",),
    "os.environ": ("cli/", "data/"),
    "os.getenv": ("cli/", "data/"),
    "jax.pmap": (),
}


@pytest.mark.parametrize("name", ONLY_IN)
def test_named_in_one_place_only(name):
    found = {str(path.relative_to(ROOT)) for path in FILES if any(each.endswith(name) for each in names(path))}
    wrong = [path for path in found if not path.startswith(ONLY_IN[name])] if ONLY_IN[name] else found
    assert not wrong, f"{name} is named in {', '.join(sorted(wrong))}"


def test_a_mesh_is_built_in_one_place_only():
    # `Mesh` as a type in a signature is fine; a call of it is not.
    calls = {path for path in FILES for node in ast.walk(ast.parse(path.read_text())) if _builds_mesh(node)}
    assert calls == {ROOT / "sharding.py"}


def _builds_mesh(node):
    return isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "Mesh"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_importing_computes_nothing(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.Expr | ast.AugAssign) and node.value is not None:
            for call in ast.walk(node.value):
                text = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
                computes = text.startswith(("jnp.", "jax.random.", "jax.device", "jax.config", "lax.", "jax.numpy."))
                assert not computes, f"{path.relative_to(ROOT)} line {call.lineno}: {text} runs on import"
