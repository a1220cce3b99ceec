"""The rules of the house, read from the source: floors, sizes, packages, and the public surface."""

import ast
import functools
import inspect
import pathlib
import re
import statistics
import tomllib

import pytest

import jaxleak
from jaxleak import autodiff, convolution, langevin, lbfgs, names, norms, registration, rewriting, validate, variables
from jaxleak.attacks import matching

ROOT = pathlib.Path(__file__).parent.parent

# From the ground up. A module may import from floors below its own only; those of one floor do not know each other.
FLOORS = (
    {
        "base",
        "variables",
        "names",
        "jaxprs",
        "rewriting",
        "pooling",
        "files",
        "interrupts",
        "draws",
        "norms",
        "ranks",
        "registration",
    },
    {
        "validate",
        "flows",
        "perceptual",
        "progress",
        "distances",
        "priors",
        "lbfgs",
        "lanes",
        "results",
        "recording",
        "citations",
        "store",
        "programs",
        "langevin",
        "turns",
    },
    {"autodiff", "layers", "convolution", "losses", "distributed", "inputs", "memory"},
    {"observe", "exchange", "normalisations", "chains", "generators", "representation"},
    {"labels", "checkpoint", "slots", "epochs", "equations", "networks"},
    {"attacks.objective"},
    {"attacks.matching", "attacks.engines", "defenses"},
    {"attacks", "adaptive", "metrics"},
    {"solve"},
    {"fl"},
    {"sweep"},
    {"models"},
    {"experiments"},
    {"benchmarks"},
    {"experiments.cli"},
)
# In a folder of methods, one file may use another: AGIC is inverting gradients with weights.
FOLDERS = {"observe", "labels", "attacks", "defenses", "fl", "models", "experiments", "benchmarks"}
PACKAGES = {
    "jaxleak": "jaxleak",
    "jaxleak.models": "models",
    "jaxleak.experiments": "experiments",
    "jaxleak.benchmarks": "benchmarks",
}
ABOVE = {"models", "experiments", "benchmarks"}


def sources():
    """Every module by its dotted name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


@functools.cache
def tree(path):
    return ast.parse(path.read_text())


def imports(module, path, modules):
    """The modules of this project that a module imports, wherever in the file."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            candidates = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            candidates = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for candidate in candidates:
            while candidate and candidate not in modules:
                candidate = candidate.rpartition(".")[0]
            if candidate:
                yield candidate, node.lineno


def floor(module):
    name = module.removeprefix("jaxleak").removeprefix(".")
    while name:
        for number, rooms in enumerate(FLOORS):
            if name in rooms:
                return number
        name = name.rpartition(".")[0]
    return None


def room(module):
    return module.split(".")[1]


def test_every_module_has_a_floor():
    assert [module for module in sources() if module != "jaxleak" and floor(module) is None] == []


def test_an_import_never_climbs():
    modules, wrong, count = sources(), [], 0
    for module, path in modules.items():
        if module == "jaxleak":
            continue
        for imported, line in imports(module, path, modules):
            if imported == "jaxleak":
                # The experiments and the benchmarks are users of the library like any other.
                if room(module) not in ("experiments", "benchmarks"):
                    wrong.append(f"{path}:{line}: {module} imports the whole of jaxleak")
                continue
            count += 1
            same_folder = room(imported) == room(module) and room(module) in FOLDERS
            if floor(imported) > floor(module) or (floor(imported) == floor(module) and not same_folder):
                wrong.append(f"{path}:{line}: {module} imports {imported}")
    assert wrong == []
    assert count > 50


def test_the_library_knows_neither_models_nor_experiments():
    modules = sources()
    for module, path in modules.items():
        if path.is_relative_to(ROOT / "jaxleak"):
            assert [i for i, _ in imports(module, path, modules) if room(f"{i}.") in ABOVE] == []


def test_modules_do_not_import_in_circles():
    modules = sources()
    graph = {m: {i for i, _ in imports(m, path, modules) if i != m} for m, path in modules.items() if m != "jaxleak"}
    finished, open_ = set(), []

    def visit(module):
        assert module not in open_, f"{' -> '.join(open_)} -> {module}"
        if module in finished or module == "jaxleak":
            return
        open_.append(module)
        for imported in graph[module]:
            # A package's own __init__ is its table of contents, read by none of its files.
            if not module.startswith(f"{imported}."):
                visit(imported)
        open_.pop()
        finished.add(module)

    for module in graph:
        visit(module)


def test_files_are_about_one_thing():
    lines = {path: len(path.read_text().splitlines()) for path in sources().values()}
    assert [str(path) for path, count in lines.items() if count > 400] == []
    assert statistics.median(lines.values()) <= 150
    assert [path for path in lines if path.stem in ("utils", "util", "helpers", "common", "misc")] == []


def test_every_folder_with_python_files_is_a_package_that_ships():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    shipped = set(settings["packages"])
    assert settings["package-dir"] == {package: folder for package, folder in PACKAGES.items() if package != folder}
    found = set()
    for package, folder in PACKAGES.items():
        for path in (ROOT / folder).rglob("*.py"):
            found.add(".".join((package, *path.relative_to(ROOT / folder).parts[:-1])))
    assert found == shipped
    for package in shipped:
        folder = next(p for p in sorted(PACKAGES, key=len, reverse=True) if package == p or package.startswith(f"{p}."))
        assert (
            ROOT / PACKAGES[folder] / package.removeprefix(folder).strip(".").replace(".", "/") / "__init__.py"
        ).exists()


def public():
    """Every public function and class of the library, by name."""
    rooms = [vars(jaxleak)[name] for name in jaxleak.__all__ if inspect.ismodule(vars(jaxleak)[name])]
    found = {}
    parts = (autodiff, convolution, langevin, lbfgs, names, norms, registration, rewriting, validate, variables)
    for module in (jaxleak, *parts, matching, *rooms):
        for name, value in vars(module).items():
            if name.startswith("_") or not (inspect.isfunction(value) or inspect.isclass(value)):
                continue
            if value.__module__.startswith("jaxleak"):
                found[f"{value.__module__}.{value.__qualname__}"] = value
    return found


PUBLIC = public()
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
BANNED = {"rng", "prng", "lr", "eps", "epsilon", "dummy", "gt", "ground_truth", "iters", "n_steps", "sigma"}
# One signature for all of them, said once in the module's docstring; what they take is what the module is about.
SAME_SIGNATURE = ("jaxleak.labels.", "jaxleak.distances.", "jaxleak.priors.")


def test_the_public_surface_is_not_empty():
    assert len(FUNCTIONS) > 40
    assert {"jaxleak.solve.run", "jaxleak.attacks.dlg.dlg", "jaxleak.defenses.clip.clip"} <= set(FUNCTIONS)


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_public_has_a_docstring(name):
    docstring = PUBLIC[name].__doc__
    assert docstring
    first = docstring.strip().splitlines()[0]
    # One sentence, or a signature with what it means.
    assert re.search(r"[.:`]$", first.strip()), first


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_say_what_goes_in_and_out(name):
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    docstring = inspect.getdoc(FUNCTIONS[name])
    if len(parameters) < 3 or name.startswith(SAME_SIGNATURE):
        # The sentence says it all, with every argument it names.
        return
    if name.startswith("jaxleak.validate."):
        assert "refuses" in docstring.lower() or "Args:" in docstring
        return
    assert "Args:" in docstring or "Example:" in docstring
    assert "Returns:" in docstring or "Raises:" in docstring
    if "Args:" in docstring:
        assert [p for p in parameters if not re.search(rf"^\s+\**{p}: ", docstring, re.MULTILINE)] == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_have_the_words_of_the_house(name):
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    assert BANNED.isdisjoint(parameters)
    assert [
        p for p in parameters if p.endswith(("_rng", "_lr", "_eps")) or p in ("keys", "random_key", "prng_key")
    ] == []


def test_fields_have_the_words_of_the_house():
    for value in PUBLIC.values():
        if inspect.isclass(value):
            assert BANNED.isdisjoint(getattr(value, "__annotations__", ()))


def test_everything_in_all_is_there():
    for module in (jaxleak, jaxleak.attacks, jaxleak.defenses):
        assert sorted(module.__all__) == list(dict.fromkeys(sorted(module.__all__)))
        assert all(hasattr(module, name) for name in module.__all__)
