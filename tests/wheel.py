"""What ``make wheel`` runs with the installed package: every module, every kind of packaged file, a whole small job.

Run by the Python that the wheel was installed for, in an empty folder, so that nothing of the checkout is seen.
"""

import importlib
import pkgutil
import subprocess
import sys
import tempfile
from pathlib import Path

import dualign


def main() -> None:
    """Import all, then run commands that need packaged configs, templates and the embedded world."""
    home = Path(dualign.__file__).parent
    assert Path(sys.prefix) in home.parents, f"{home} is not the installed package"
    for module in pkgutil.walk_packages([str(home)], "dualign."):
        importlib.import_module(module.name)
    command = Path(sys.executable).with_name("dualign")
    with tempfile.TemporaryDirectory() as folder:
        for arguments in (
            ["--help"],
            ["methods"],
            ["init", "--kind", "hf"],
            ["demo", "--quick", "--quiet", "--out", "run"],
        ):
            done = subprocess.run([command, *arguments], cwd=folder, capture_output=True, text=True, check=False)
            assert done.returncode in (0, 10, 11), f"{arguments}: {done.returncode}\n{done.stderr}"
        assert "</html>" in (Path(folder) / "run" / "report.html").read_text(encoding="utf-8")
    sys.stdout.write(f"dualign {dualign.__version__} on Python {sys.version.split()[0]}: installed and working\n")


if __name__ == "__main__":
    main()
