"""Loads ``bishare.callbacks`` from the folder ``callbacks/`` at the top of a clone.

A wheel carries the folder itself as ``bishare/callbacks/``, without the file ``bishare/callbacks.py``.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from typing import TYPE_CHECKING

from bishare.shipped import shipped_folder

if TYPE_CHECKING:
    from callbacks import *
else:
    _folder = shipped_folder("callbacks")
    _spec = spec_from_file_location(__name__, _folder / "__init__.py", submodule_search_locations=[str(_folder)])
    sys.modules[__name__] = module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[__name__])
