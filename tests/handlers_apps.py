"""Every app of handlers/, so that what is generated from one is generated from all."""

import importlib
from pathlib import Path

from choreo import App

ROOT = Path(__file__).parent.parent
NAMES = sorted(path.parent.name for path in (ROOT / "handlers").glob("*/app.py"))


def handlers_app(name: str) -> App:
    """The app of one flow."""
    app = importlib.import_module(f"handlers.{name}.app").app
    assert isinstance(app, App)
    return app
