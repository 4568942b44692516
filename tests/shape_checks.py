"""An import hook that checks dtypes and shapes against jaxtyping's annotations, for tests only.

It decorates the public functions of the modules below, and the public methods of their flax modules. Other classes
are left alone: a pytree dataclass holds objects that are not arrays under `jax.eval_shape` and `jax.vmap`.
"""

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import sys

import beartype
import jaxtyping

CHECKED = ("instructjax.losses", "instructjax.models", "instructjax.rollout")
MODULES = ("nn.Module", "_Model")  # base classes

check = jaxtyping.jaxtyped(typechecker=beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True)))
_DECORATOR = f"__import__('sys').modules[{__name__!r}].check"


def install():
    """Checks the modules that are imported from now on."""
    sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if not any(fullname == name or fullname.startswith(f"{name}.") for name in CHECKED):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname):
        # Neither reads nor writes the bytecode of the module without checks.
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base) in MODULES for base in node.bases):
                _decorate(node.body)
        _decorate(tree.body)
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


def _decorate(body):
    for node in body:
        if isinstance(node, ast.FunctionDef) and (node.name == "__call__" or not node.name.startswith("_")):
            node.decorator_list.append(ast.parse(_DECORATOR, mode="eval").body)
